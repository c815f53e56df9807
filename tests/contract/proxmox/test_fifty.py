"""Fifty sandboxes asked for at once, on a node that is as slow as a real one.

The node handles three changing requests at a time, a clone holds its template's lock for 0.19 s
(thirty at once took 5.8 s on a real node) and gives up after a second without it, and starts take
1.5 s.  The least that these locks allow is printed beside the time that it took.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.model.job import JobState
from agentlab.store import events, jobs, sandboxes
from tests.contract.bench import settings
from tests.contract.conftest import connect_api
from tests.contract.proxmox.installation import Installation, installation
from tests.fakes.pve.node import LoadModel, ProxmoxNode, SimulatedGuests
from tests.fakes.pve.serving import serve

COUNT = 50
LOCK, CLONE, REQUEST, START, BOOT, WORKERS = 0.19, 0.46, 0.05, 1.5, 3.0, 3


@pytest.mark.slow
def test_fifty_at_once(tmp_path: Path) -> None:
    load = LoadModel(
        workers=WORKERS, request_secs=REQUEST, clone_secs=CLONE, clone_lock_secs=LOCK, lock_wait=1.0
    )
    node = ProxmoxNode(guests=SimulatedGuests(boot_secs=BOOT), load=load, time_scale=1.0)
    node.make_template(name="debian-12", size=1 << 30)
    for vmid in (1003, 1017, 1040):  # strangers in our range
        node.make_vm(vmid, f"stranger{vmid}", description="not to be touched")
    with serve(node, tmp_path) as served, closing(connect_api(served)) as transport:
        limits = settings(served, node_limit=10, patience=20.0)
        driver = ProxmoxHypervisor(transport, limits, NodeTools(""))
        with installation(tmp_path, driver, vmids=(1000, 1099), workers=32) as ours:
            _story(ours, node)


def test_one_alone(tmp_path: Path) -> None:
    """On a node that takes no time at all, what is left is ours (and the stand-in's own work)."""
    node = ProxmoxNode(guests=SimulatedGuests())
    node.make_template(name="debian-12", size=1 << 30)
    with serve(node, tmp_path) as served, closing(connect_api(served)) as transport:
        driver = ProxmoxHypervisor(transport, settings(served), NodeTools(""))
        with installation(tmp_path, driver) as ours:
            took = []
            for _ in range(5):
                begun = time.monotonic()
                job = ours.create()
                ours.until(job, JobState.RUNNING)
                took.append(time.monotonic() - begun)
                ours.report(job)
                ours.until(job, JobState.COMPLETED)
    print(f"\none sandbox after another: {statistics.median(took) * 1000:.0f} ms from the request "
          "to RUNNING, the stand-in's own work included")  # fmt: skip


def _story(ours: Installation, node: ProxmoxNode) -> None:
    for vm in node.vms:
        vm.start_secs = START
    begun = time.monotonic()
    asked = [ours.create() for _ in range(COUNT)]
    node_starts(node)
    running = [ours.until(job, JobState.RUNNING, JobState.FAILED) for job in asked]
    took = time.monotonic() - begun
    assert [job.state for job in running] == [JobState.RUNNING] * COUNT
    with ours.world.store.read() as tx:
        boxes = sandboxes.live(tx)
        told = events.after(tx, 0, limit=100_000)
    assert len({box.vmid for box in boxes}) == len({box.address for box in boxes}) == COUNT
    ready = [
        each.vmid for each in told if each.kind == "sandbox.state" and each.facts["to"] == "READY"
    ]
    assert sorted(ready) == sorted(box.vmid for box in boxes)
    assert not {box.vmid for box in boxes} & {1003, 1017, 1040}
    macs = Counter(str(vm.config["net0"]).split(",")[0] for vm in node.vms if vm.vmid in
                   {box.vmid for box in boxes})  # fmt: skip
    addresses = Counter(vm.config["ipconfig0"] for vm in node.vms if "ipconfig0" in vm.config)
    assert set(macs.values()) == set(addresses.values()) == {1}
    print(f"\n{len(ready)} sandboxes READY; {len(set(ready))} VMIDs, {len(addresses)} addresses and "
          f"{len(macs)} MACs, none of them shared")  # fmt: skip
    calls = dict(node.counts)
    total = sum(calls.values())
    changing = sum(count for (method, _), count in calls.items() if method != "GET")
    least = max(COUNT * LOCK + CLONE - LOCK, changing * REQUEST / WORKERS) + START + BOOT
    print(f"{COUNT} sandboxes RUNNING after {took:.1f} s; the locks allow {least:.1f} s "
          f"({took / least:.2f} x)")  # fmt: skip
    print(f"{total} calls, {total / COUNT:.1f} a sandbox, {changing / COUNT:.1f} of them changing; "
          f"at most {node.busiest} handled at once")  # fmt: skip
    for (method, template), count in sorted(calls.items(), key=lambda item: -item[1]):
        print(f"{count / COUNT:7.2f} a sandbox  {method:6} {template}")
    for job in asked:
        ours.report(job)
    for job in asked:
        assert ours.until(job, JobState.COMPLETED, JobState.FAILED).state is JobState.COMPLETED
    left = [vm.vmid for vm in node.vms if vm.vmid >= 1000 and vm.vmid != 9000]
    assert sorted(left) == [1003, 1017, 1040]
    assert not [vmid for vmid in range(1000, 1100) if node.volumes_of(vmid)]
    with ours.world.store.read() as tx:
        assert all(jobs.get(tx, job.id).state is JobState.COMPLETED for job in asked)
    print(f"all gone after {time.monotonic() - begun:.1f} s")


def node_starts(node: ProxmoxNode) -> None:
    """Machines that are cloned from now on start as slowly as real ones."""
    original = node.add_vm

    def slow(*args: object, **kwargs: object) -> object:
        vm = original(*args, **kwargs)
        vm.start_secs = START
        return vm

    node.add_vm = slow

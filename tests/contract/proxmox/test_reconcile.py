"""Records beside Proxmox's own inventory: what a look finds there, and what is done about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agentlab import config
from agentlab.control.drift import look
from agentlab.control.prune import prune
from agentlab.control.reconcile import Reconciler, apply
from agentlab.engine.runner import Runner
from agentlab.errors import Unavailable
from agentlab.hypervisor.proxmox import names
from agentlab.model.drift import Kind
from agentlab.model.sandbox import Sandbox, SandboxState
from agentlab.network.address import mac_for
from agentlab.operations import kinds
from agentlab.operations.context import World
from agentlab.secret import Secret
from agentlab.store import operations, sandboxes
from agentlab.store.db import Store
from agentlab.store.operations import OperationRow
from tests.contract.bench import OWNER, STRANGER, ProxmoxBench
from tests.fakes.fence import FakeFence

S, K = SandboxState, Kind


@dataclass
class Installation:
    """Records, an engine and the loop over a node of Proxmox."""

    world: World
    runner: Runner
    bench: ProxmoxBench
    loop: Reconciler

    def record(self, vmid: int, state: SandboxState) -> None:
        with self.world.store.write() as tx:
            sandboxes.create(
                tx,
                Sandbox(
                    vmid=vmid, name=f"box{vmid}", profile="demo", state=state,
                    address=IPv4Address("10.77.0.0") + vmid, mac=mac_for(OWNER, vmid),
                    tap=f"tap{vmid}i0", network="off", job="", created=0.0, changed=0.0,
                    lease_until=0.0, reason="",
                ),
                operation="",
            )  # fmt: skip

    def made(self, vmid: int, state: SandboxState, *, power: bool = True) -> None:
        """A machine of ours with a record."""
        self.record(vmid, state)
        self.bench.clone(vmid)
        self.bench.hypervisor.configure(vmid, self.bench.spec(vmid), owner=OWNER)
        if power:
            self.bench.hypervisor.start(vmid, owner=OWNER)

    def found(self) -> list[tuple[Kind, int]]:
        return [(each.kind, each.vmid) for each in look(self.world).drifts]

    def state(self, vmid: int) -> SandboxState:
        with self.world.store.read() as tx:
            return sandboxes.get(tx, vmid).state

    def vmids(self) -> list[int]:
        with self.bench.served.paused() as node:
            return sorted(vm.vmid for vm in node.vms if 1000 <= vm.vmid < 2000)

    def ended(self, operation: str) -> OperationRow:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with self.world.store.read() as tx:
                found = operations.get(tx, operation)
            if found.final:
                return found
            time.sleep(0.05)
        raise AssertionError(f"{found} does not end")


@contextmanager
def installation(bench: ProxmoxBench, folder: Path) -> Iterator[Installation]:
    text = f"data_dir: {folder}\nprofiles_dir: {folder}\nvmid_range: [1000, 1999]\n"
    store = Store(folder / "agentlab.db")
    world = World(
        config=config.parse(text, folder / "config.yaml"), store=store,
        hypervisor=bench.hypervisor, fence=FakeFence(),  # type: ignore[arg-type]
        build_template=lambda name, on_step: None, installation=OWNER, key=Secret("k" * 43),
    )  # fmt: skip
    runner = Runner(store, kinds(world), workers=2)
    runner.start()
    yield Installation(world, runner, bench, Reconciler(world, runner))
    runner.stop(5)
    store.close()


@pytest.fixture
def ours(proxmox_api: ProxmoxBench, tmp_path: Path) -> Iterator[Installation]:
    with installation(proxmox_api, tmp_path) as found:
        yield found


def test_what_somebody_did_by_hand_is_found_and_mended(ours: Installation) -> None:
    for vmid in (1001, 1002, 1003):
        ours.made(vmid, S.READY)
    ours.made(1004, S.STOPPED, power=False)
    assert ours.found() == []
    with ours.bench.served.paused() as node:
        node.vms.remove(node.vm(1001))
    ours.bench.hypervisor.stop(1002, owner=OWNER)
    assert ours.found() == [(K.MISSING, 1001), (K.STOPPED, 1002)]
    assert [each.mended for each in ours.loop.check()] == [True, True]
    assert [ours.state(vmid) for vmid in (1001, 1002, 1003, 1004)] == [
        S.FAILED, S.STOPPED, S.READY, S.STOPPED
    ]  # fmt: skip
    assert ours.loop.check() == []
    assert ours.vmids() == [1002, 1003, 1004]


def test_one_that_runs_though_stopped_is_configured_as_its_record_says(ours: Installation) -> None:
    ours.made(1001, S.STOPPED, power=False)
    ours.bench.hypervisor.start(1001, owner=OWNER)  # by hand, from a configuration of before
    with ours.world.store.write() as tx:
        sandboxes.set_size(tx, 1001, cores=4, memory=1024)
    (done,) = ours.loop.check()
    assert ours.ended(done.operation).error == ""
    assert ours.state(1001) is S.READY
    with ours.bench.served.paused() as node:
        config = node.vm(1001).config
        assert [str(config[key]) for key in ("cores", "memory")] == ["4", "1024"]
    assert ours.found() == []


def test_a_paused_machine_seems_to_run_and_is_asked(ours: Installation) -> None:
    ours.made(1001, S.SUSPENDED)
    ours.bench.hypervisor.pause(1001, owner=OWNER)
    assert ours.found() == []
    ours.bench.hypervisor.resume(1001, owner=OWNER)
    assert ours.found() == [(K.RESUMED, 1001)]


def test_templates_strangers_and_volumes_of_others(ours: Installation) -> None:
    with ours.bench.served.paused() as node:
        node.make_vm(1500, "db")
        node.add_ct(1501, "ct", node=node.node)
        node.make_template(vmid=1502, name="golden", size=1 << 30)
        node.leave_dead_clone(1503, description=names.render_description(STRANGER, 1503))
        # a copy of ours: the mark in it is that of another VMID
        node.make_vm(1504, "copy", description=names.render_description(OWNER, 1003))
    assert ours.found() == [(K.STRANGER, vmid) for vmid in (1500, 1501, 1503, 1504)]
    assert ours.loop.check() == []
    apply(ours.world, ours.runner)
    assert ours.vmids() == [1500, 1502, 1503, 1504]


def test_a_tag_without_the_mark_is_a_leftover_that_is_never_destroyed(ours: Installation) -> None:
    with ours.bench.served.paused() as node:
        node.make_vm(1500, "mine", tags=names.render_tags(OWNER, 1500), description="my database")
    _, (done,) = apply(ours.world, ours.runner)
    failed = ours.ended(done.operation)
    assert (failed.state, failed.code) == ("failed", "not_ours")
    assert ours.vmids() == [1500]


def test_a_machine_that_we_may_not_see_is_not_gone(ours: Installation) -> None:
    ours.made(1001, S.READY)
    ours.made(1002, S.TIMEOUT)
    with ours.bench.served.paused() as node:
        for vmid in (1001, 1002):
            node.hide(vmid)
    assert ours.found() == []
    assert ours.loop.check() == []
    assert prune(ours.world).kept == [1002]
    assert (ours.state(1001), ours.state(1002)) == (S.READY, S.TIMEOUT)


def test_an_inventory_that_cannot_be_read_is_no_inventory(ours: Installation) -> None:
    ours.made(1001, S.TIMEOUT)
    ours.bench.hypervisor.destroy(1001, owner=OWNER)
    with ours.bench.unreadable():
        assert not look(ours.world).complete
        assert ours.loop.check() == []
        with pytest.raises(Unavailable):
            prune(ours.world)
    assert ours.state(1001) is S.TIMEOUT
    assert [one.vmid for one in prune(ours.world).removed] == [1001]


def test_a_node_that_is_offline_hides_nothing(ours: Installation) -> None:
    ours.made(1001, S.READY)
    with ours.bench.served.paused() as node:
        node.add_node("pve2")
        node.vm(1001).node = "pve2"
        node.set_node_offline("pve2")
    assert ours.found() == []
    assert ours.loop.check() == []
    assert ours.state(1001) is S.READY


def test_fifty_sandboxes_are_one_question(ours: Installation) -> None:
    ours.made(1001, S.READY)
    with ours.bench.served.paused() as node:
        for vmid in range(1100, 1149):
            description = names.render_description(OWNER, vmid)
            tags = names.render_tags(OWNER, vmid)
            node.make_vm(vmid, "x", description=description, tags=tags)
    for vmid in range(1100, 1149):
        ours.record(vmid, S.STOPPED)
    look(ours.world)  # our rights are looked at once a minute
    with ours.bench.served.paused() as node:
        begun = len(node.requests)
    assert ours.found() == []
    with ours.bench.served.paused() as node:
        assert [path for _, path, _ in node.requests[begun:]] == ["/api2/json/cluster/resources"]


def test_what_a_clone_that_died_has_left_is_buried(
    proxmox_shell: ProxmoxBench, tmp_path: Path
) -> None:
    with proxmox_shell.served.paused() as node:
        node.leave_dead_clone(1012, description=names.render_description(OWNER, 1012, ["local"]))
    with installation(proxmox_shell, tmp_path) as ours:
        assert ours.loop.check() == []
        _, (done,) = apply(ours.world, ours.runner)
        assert done.drift.kind is K.LEFTOVER
        assert ours.ended(done.operation).state == "done"
        assert ours.vmids() == []
        assert not proxmox_shell.leftovers()
        assert ours.found() == []

"""Inventory, reconcile and prune, as a client sees them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentlab.errors import Denied
from agentlab.hypervisor.base import Machine, Power
from agentlab.model.sandbox import SandboxEvent
from agentlab.store import sandboxes
from tests.unit.daemon.bench import Bench


def made(bench: Bench) -> int:
    """The VMID of a sandbox that is READY."""
    asked = bench.ask("POST", "/v1/sandboxes", {"profile": "demo"}).document
    while True:
        seen = bench.store.commits
        found = bench.ask("GET", f"/v1/operations/{asked['id']}").document
        if found["final"]:
            assert found["state"] == "done", found
            return int(str(found["vmid"]))
        bench.store.wait(seen, 1.0)


def test_the_inventory_says_whose_each_machine_is(bench: Bench) -> None:
    vmid = made(bench)
    bench.hypervisor.machines |= {
        1500: Machine(1500, "old", "lab", Power.STOPPED, "pve1", "clone"),
        1501: Machine(1501, "x", "other", Power.RUNNING),
        9000: Machine(9000, "debian-12", "", Power.STOPPED, template=True),
        100: Machine(100, "db", "", Power.UNKNOWN),
    }
    found = bench.ask("GET", "/v1/inventory").document["machines"]
    assert isinstance(found, list)
    rows = [
        tuple(
            each[key] for key in ("vmid", "whose", "sandbox", "in_range", "power", "node", "lock")
        )
        for each in found
    ]
    assert rows == [
        (100, "stranger", "", False, "unknown", "", ""),
        (vmid, "ours", "READY", True, "running", "", ""),
        (1500, "ours", "", True, "stopped", "pve1", "clone"),
        (1501, "other installation", "", True, "running", "", ""),
        (9000, "template", "", False, "stopped", "", ""),
    ]
    bench.hypervisor.machines[vmid] = Machine(vmid, "taken", "", Power.RUNNING)
    found = bench.ask("GET", "/v1/inventory").document["machines"]
    assert isinstance(found, list)
    assert (found[1]["whose"], found[1]["sandbox"]) == ("stranger", "")


def test_reconcile_tells_and_mends_when_asked(bench: Bench) -> None:
    vmid = made(bench)
    machine = bench.hypervisor.machines[vmid]
    bench.hypervisor.machines[vmid] = replace(machine, power=Power.STOPPED)
    bench.hypervisor.machines[1500] = Machine(1500, "old", "lab", Power.STOPPED)
    for _ in range(2):
        reply = bench.ask("GET", "/v1/reconcile")
        assert (reply.status, reply.document["complete"]) == (200, True)
        drifts = reply.document["drifts"]
        assert isinstance(drifts, list)
        assert [(each["kind"], each["vmid"]) for each in drifts] == [
            ("stopped behind our back", vmid),
            ("leftover", 1500),
        ]
        assert all(each["mend"] and each["remedy"] and not each["mended"] for each in drifts)
    reply = bench.ask("POST", "/v1/reconcile")
    assert reply.status == 202
    drifts = reply.document["drifts"]
    assert isinstance(drifts, list)
    assert [(each["mended"], bool(each["operation"])) for each in drifts] == [
        (True, False),
        (False, True),
    ]
    assert bench.ask("GET", f"/v1/sandboxes/{vmid}").document["state"] == "STOPPED"
    shown = bench.ask("GET", f"/v1/operations/{drifts[1]['operation']}").document
    assert shown["kind"] == "leftover.destroy"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_reconcile_says_that_it_could_not_look(bench: Bench, method: str) -> None:
    vmid = made(bench)
    bench.hypervisor.faults["inventory"] = [Denied("no VM.Audit", hint="agentlab init")]
    found = bench.ask(method, "/v1/reconcile").document
    assert found == {"drifts": [], "complete": False, "problem": "no VM.Audit (agentlab init)"}
    assert bench.ask("GET", f"/v1/sandboxes/{vmid}").document["state"] == "READY"


def test_prune_says_what_it_removed_and_what_it_kept(bench: Bench) -> None:
    gone, there = made(bench), made(bench)
    with bench.store.write() as tx:
        for vmid in (gone, there):
            sandboxes.transition(tx, vmid, SandboxEvent.EXPIRE)
    del bench.hypervisor.machines[gone]
    bench.hypervisor.faults["inventory"] = [Denied("no VM.Audit")]
    assert bench.ask("POST", "/v1/sandboxes/prune").status == 403
    found = bench.ask("POST", "/v1/sandboxes/prune").document
    removed = found["removed"]
    assert isinstance(removed, list)
    assert [(each["vmid"], each["state"], each["power"]) for each in removed] == [
        (gone, "DESTROYED", "absent")
    ]
    assert found["kept"] == [there]

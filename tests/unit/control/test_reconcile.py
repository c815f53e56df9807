"""What a look finds, what the loop and `--apply` do about it, and what both leave alone."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentlab import clock, config
from agentlab.control import drift as control_drift
from agentlab.control import reconcile
from agentlab.control.drift import look
from agentlab.control.prune import prune
from agentlab.control.reconcile import Reconciler, apply
from agentlab.errors import Busy, DeadlineExceeded, Denied, NotOurs, Unavailable
from agentlab.hypervisor.base import Machine, Power
from agentlab.model.drift import GONE, LOST_POWER, Kind
from agentlab.model.event import Event
from agentlab.model.job import JobState
from agentlab.model.sandbox import Sandbox, SandboxEvent, SandboxState
from agentlab.operations import leftover_destroy, sandbox_requests
from agentlab.operations.sandbox_power import PAUSE, STOP
from agentlab.store import events, operations, sandboxes
from tests.unit.operations.bench import Bench, bench
from tests.waiting import ended

__all__ = ["bench"]  # the fixture
S, K = SandboxState, Kind


@pytest.fixture
def loop(bench: Bench) -> Reconciler:
    return Reconciler(bench.world, bench.runner)


def kinds(bench: Bench) -> list[tuple[Kind, int]]:
    return [(each.kind, each.vmid) for each in look(bench.world).drifts]


def power(bench: Bench, vmid: int, power: Power) -> None:
    """Somebody does it behind our back."""
    machines = bench.hypervisor.machines
    machines[vmid] = replace(machines[vmid], power=power)


def told(bench: Bench, kind: str = "reconcile.drift") -> list[Event]:
    with bench.world.store.read() as tx:
        return [each for each in events.after(tx, 0, limit=10_000) if each.kind == kind]


def all_ended(bench: Bench) -> None:
    with bench.world.store.read() as tx:
        waiting = operations.unfinished(tx)
    for each in waiting:
        bench.ended(each.id)


def state(bench: Bench, vmid: int) -> SandboxState:
    return bench.box(vmid).state


def snapshot(bench: Bench) -> tuple[Any, ...]:
    with bench.world.store.read() as tx:
        tables = ("sandbox", "operation", "subject", "event")
        rows = [[tuple(row) for row in tx.execute(f"SELECT * FROM {each}")] for each in tables]
    return (*rows, dict(bench.hypervisor.machines), list(bench.fence.members))


def test_all_as_it_should_be(bench: Bench, loop: Reconciler) -> None:
    first, second = bench.new(), bench.new()
    bench.act(PAUSE, first)
    bench.act(STOP, second)
    before = snapshot(bench)
    assert look(bench.world) == control_drift.Found([])
    assert loop.check() == []
    assert apply(bench.world, bench.runner)[1] == []
    assert snapshot(bench) == before


def test_one_that_was_stopped_is_stopped(bench: Bench, loop: Reconciler) -> None:
    box = bench.use(bench.new())
    power(bench, box.vmid, Power.STOPPED)
    assert kinds(bench) == [(K.STOPPED, box.vmid)]
    (done,) = loop.check()
    now = bench.box(box.vmid)
    assert done.mended
    assert (now.state, now.reason) == (S.STOPPED, LOST_POWER)
    assert bench.fence.members == []
    assert loop.check() == []
    assert bench.act("sandbox.start", box).state == "done"
    assert bench.box(box.vmid).reason == ""


def test_a_paused_one_that_lost_its_power_is_stopped(bench: Bench, loop: Reconciler) -> None:
    box = bench.new()
    bench.act(PAUSE, box)
    power(bench, box.vmid, Power.STOPPED)
    loop.check()
    assert state(bench, box.vmid) is S.STOPPED


def test_one_whose_vm_is_gone_has_failed_and_keeps_its_record(
    bench: Bench, loop: Reconciler
) -> None:
    box, other = bench.new(), bench.new()
    del bench.hypervisor.machines[box.vmid]
    (done,) = loop.check()
    now = bench.box(box.vmid)
    assert (done.drift.kind, done.mended) == (K.MISSING, True)
    assert (now.state, now.reason, now.address) == (S.FAILED, GONE, box.address)
    assert [member.vmid for member in bench.fence.members] == [other.vmid]
    before = snapshot(bench)
    assert loop.check() == []
    assert kinds(bench) == [(K.MISSING, box.vmid)]
    assert snapshot(bench)[:3] == before[:3]
    assert bench.ended(bench.destroy(box.vmid, force=True)).state == "done"
    assert kinds(bench) == []


def test_a_stopped_one_whose_vm_is_gone_waits_for_a_person(bench: Bench, loop: Reconciler) -> None:
    box = bench.new()
    bench.act(STOP, box)
    del bench.hypervisor.machines[box.vmid]
    assert loop.check() == []
    assert state(bench, box.vmid) is S.STOPPED
    _, (done,) = apply(bench.world, bench.runner)
    assert (done.mended, state(bench, box.vmid)) == (True, S.DESTROYED)
    assert apply(bench.world, bench.runner)[1] == []


def test_apply_closes_the_record_of_one_whose_vm_is_gone(bench: Bench) -> None:
    box, other = bench.new(), bench.new()
    del bench.hypervisor.machines[box.vmid]
    _, (done,) = apply(bench.world, bench.runner)
    now = bench.box(box.vmid)
    assert (done.mended, now.state, now.reason) == (True, S.DESTROYED, GONE)
    assert [member.vmid for member in bench.fence.members] == [other.vmid]


def test_one_that_runs_though_stopped_is_taken_up(bench: Bench, loop: Reconciler) -> None:
    box = bench.new()
    bench.act(STOP, box)
    power(bench, box.vmid, Power.RUNNING)
    (done,) = loop.check()
    assert bench.ended(done.operation).state == "done"
    now = bench.box(box.vmid)
    assert now.state is S.READY
    assert now.lease_until > clock.now()
    assert [member.vmid for member in bench.fence.members] == [box.vmid]
    assert loop.check() == []


@pytest.mark.parametrize("how", [Power.RUNNING, Power.PAUSED])
@pytest.mark.parametrize("deaf", [False, True])
def test_one_that_is_to_have_more_cores_is_shut_down_before_it_is_taken_up(
    bench: Bench, how: Power, *, deaf: bool
) -> None:
    box, hypervisor = bench.new(), bench.hypervisor
    bench.act(STOP, box)
    sandbox_requests.update(bench.world, str(box.vmid), cores=4, labels={})
    power(bench, box.vmid, how)
    hypervisor.calls.clear()
    hypervisor.deaf = deaf
    _, (done,) = apply(bench.world, bench.runner)
    assert bench.ended(done.operation).state == "done"
    assert state(bench, box.vmid) is S.READY
    assert hypervisor.specs[box.vmid].cores == 4
    assert hypervisor.machines[box.vmid].power is Power.RUNNING
    assert [member.vmid for member in bench.fence.members] == [box.vmid]
    ended = [each for each in hypervisor.calls if each in ("shutdown", "stop", "start")]
    assert ended == ["shutdown", *(["stop"] if deaf else []), "start"]
    assert apply(bench.world, bench.runner)[1] == []


def test_one_that_is_to_have_more_cores_has_its_rules_while_it_shuts_down(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = bench.new()
    bench.act(STOP, box)
    sandbox_requests.update(bench.world, str(box.vmid), cores=4, labels={})
    power(bench, box.vmid, Power.RUNNING)
    fenced, shutdown = [], bench.hypervisor.shutdown

    def seen(vmid: int, *, owner: str, timeout: float) -> bool:
        fenced.append([member.vmid for member in bench.fence.members])
        return shutdown(vmid, owner=owner, timeout=timeout)

    monkeypatch.setattr(bench.hypervisor, "shutdown", seen)
    assert bench.act("sandbox.start", box).state == "done"
    assert fenced == [[box.vmid]]


def test_one_that_cannot_be_taken_up_is_not_tried_each_minute(
    bench: Bench, loop: Reconciler
) -> None:
    box = bench.new()
    bench.act(STOP, box)
    power(bench, box.vmid, Power.RUNNING)
    bench.hypervisor.faults["configure"] = [Denied("no VM.Config.CPU")]
    (done,) = loop.check()
    assert bench.ended(done.operation).state == "failed"
    assert kinds(bench) == [(K.RUNNING, box.vmid)]
    assert loop.check() == []
    _, (asked,) = apply(bench.world, bench.runner)  # a person may, at any time
    assert bench.ended(asked.operation).state == "done"


def test_pause_and_resume_behind_our_back_are_for_a_person(bench: Bench, loop: Reconciler) -> None:
    paused, resumed = bench.use(bench.new()), bench.use(bench.new())
    bench.act(PAUSE, resumed)
    power(bench, paused.vmid, Power.PAUSED)
    power(bench, resumed.vmid, Power.RUNNING)
    assert loop.check() == []
    assert [state(bench, each.vmid) for each in (paused, resumed)] == [S.RUNNING, S.SUSPENDED]
    _, outcomes = apply(bench.world, bench.runner)
    assert [each.mended for each in outcomes] == [True, True]
    assert [state(bench, each.vmid) for each in (paused, resumed)] == [S.SUSPENDED, S.RUNNING]
    assert len(bench.fence.members) == 2


def test_a_leftover_is_destroyed_when_asked(bench: Bench, loop: Reconciler) -> None:
    bench.hypervisor.machines[1004] = Machine(1004, "old", "lab", Power.RUNNING, lock="clone")
    assert loop.check() == []
    assert 1004 in bench.hypervisor.machines
    _, (done,) = apply(bench.world, bench.runner)
    row = bench.ended(done.operation)
    assert (row.kind, row.state, done.mended) == (leftover_destroy.KIND, "done", False)
    assert bench.clean()
    assert apply(bench.world, bench.runner)[1] == []


def test_strangers_are_told_of_and_never_touched(bench: Bench, loop: Reconciler) -> None:
    mine = bench.new()
    bench.hypervisor.touched.clear()
    there = {
        1003: Machine(1003, "db", "", Power.RUNNING),
        1004: Machine(1004, "x", "other", Power.STOPPED, lock="clone"),
        mine.vmid: Machine(mine.vmid, "taken", "", Power.RUNNING),
    }
    bench.hypervisor.machines.update(there)
    assert sorted(kinds(bench)) == sorted(
        [(K.STRANGER, 1003), (K.STRANGER, 1004), (K.STRANGER, mine.vmid), (K.MISSING, mine.vmid)]
    )
    assert loop.check() == []  # somebody may have taken the mark off ours
    assert state(bench, mine.vmid) is S.READY
    apply(bench.world, bench.runner)
    all_ended(bench)
    assert state(bench, mine.vmid) is S.DESTROYED
    assert bench.hypervisor.machines == there
    assert bench.hypervisor.touched == []


@pytest.mark.parametrize("error", [Unavailable("no answer"), Denied("no VM.Audit"),
                                   DeadlineExceeded("too long")])  # fmt: skip
def test_an_inventory_that_cannot_be_read_changes_nothing(
    bench: Bench, loop: Reconciler, error: Exception
) -> None:
    boxes = [bench.new(), bench.new()]
    with bench.world.store.write() as tx:
        sandboxes.transition(tx, boxes[0].vmid, SandboxEvent.EXPIRE)
    bench.hypervisor.machines.clear()
    before = snapshot(bench)
    bench.hypervisor.faults["inventory"] = [error] * 4
    found, outcomes = apply(bench.world, bench.runner)
    assert (found.complete, found.drifts, outcomes) == (False, (), [])
    assert str(error) in found.problem
    assert not look(bench.world).complete
    assert loop.check() == []
    with pytest.raises(type(error)):
        prune(bench.world)
    assert snapshot(bench) == before


def test_a_machine_that_cannot_be_asked_is_not_gone(bench: Bench, loop: Reconciler) -> None:
    box, other = bench.new(), bench.new()
    with bench.world.store.write() as tx:
        sandboxes.transition(tx, box.vmid, SandboxEvent.EXPIRE)
    del bench.hypervisor.machines[box.vmid]
    power(bench, other.vmid, Power.STOPPED)
    before = snapshot(bench)
    bench.hypervisor.faults["status"] = [Denied("it exists, and we may not look at it")] * 8
    assert look(bench.world).drifts == []
    assert loop.check() == []
    assert apply(bench.world, bench.runner)[1] == []
    assert prune(bench.world).kept == [box.vmid]
    assert snapshot(bench) == before


def test_unknown_power_is_no_difference(bench: Bench, loop: Reconciler) -> None:
    box = bench.new()
    bench.act(STOP, box)
    bench.new()
    bench.hypervisor.machines[1004] = Machine(1004, "old", "lab", Power.STOPPED)
    bench.hypervisor.unseen = True
    before = snapshot(bench)
    assert loop.check() == []
    assert apply(bench.world, bench.runner)[1] == []
    assert snapshot(bench) == before


def test_an_old_inventory_is_not_believed(
    bench: Bench, loop: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxmox's is up to ten seconds behind: the machine itself is asked."""
    box = bench.new()
    old = [replace(bench.hypervisor.machines[box.vmid], power=Power.STOPPED)]
    for stale in (old, []):
        monkeypatch.setattr(bench.hypervisor, "inventory", lambda stale=stale: stale)
        assert look(bench.world).drifts == []
        assert loop.check() == []
    assert state(bench, box.vmid) is S.READY


def test_when_all_of_ours_are_missing_only_a_person_mends(
    bench: Bench, loop: Reconciler, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [bench.new(), bench.new()]
    bench.hypervisor.machines.clear()
    assert loop.check() == []
    assert loop.check() == []
    assert [state(bench, each.vmid) for each in boxes] == [S.READY, S.READY]
    found = look(bench.world)
    assert (found.complete, found.blind) == (True, True)
    assert "the inventory has none of our VMs, and there are 2 sandboxes" in found.problem
    assert caplog.text.count("none of our VMs") == 1
    _, outcomes = apply(bench.world, bench.runner)
    assert [each.mended for each in outcomes] == [True, True]
    assert [state(bench, each.vmid) for each in boxes] == [S.DESTROYED, S.DESTROYED]


def test_a_record_that_changes_between_look_and_mend_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = bench.new()
    power(bench, box.vmid, Power.STOPPED)
    found = look(bench.world)
    bench.use(box)  # somebody has started it again, and has been in it
    monkeypatch.setattr(reconcile, "look", lambda _: found)
    _, (left,) = apply(bench.world, bench.runner)
    assert (left.mended, left.operation) == (False, "")
    assert "changed meanwhile" in left.why
    assert state(bench, box.vmid) is S.RUNNING
    assert [member.vmid for member in bench.fence.members] == [box.vmid]


def test_a_record_that_is_held_when_the_mend_comes_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = bench.new()
    power(bench, box.vmid, Power.STOPPED)
    found = look(bench.world)
    with bench.world.store.write() as tx:
        operations.create(tx, "other", "x", [f"sandbox:{box.vmid}"], {}, vmid=box.vmid)
    monkeypatch.setattr(reconcile, "look", lambda _: found)
    _, (left,) = apply(bench.world, bench.runner)
    assert not left.mended
    assert state(bench, box.vmid) is S.READY


def test_a_record_that_moves_during_the_look_is_not_judged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine was seen as it was before, or as it is after: nobody knows which."""
    box = bench.new()
    seen = bench.hypervisor.inventory

    def then_used() -> Any:
        found = [replace(each, power=Power.STOPPED) for each in seen()]
        bench.use(box)
        return found

    monkeypatch.setattr(bench.hypervisor, "inventory", then_used)
    monkeypatch.setattr(bench.hypervisor, "status", lambda _: None)
    assert look(bench.world).drifts == []


def test_one_that_is_made_during_the_look_is_no_leftover(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Sandbox] = []
    seen = bench.hypervisor.inventory

    def after_another() -> Any:
        monkeypatch.setattr(bench.hypervisor, "inventory", seen)
        made.append(bench.new())
        return seen()

    monkeypatch.setattr(bench.hypervisor, "inventory", after_another)
    assert look(bench.world).drifts == []
    assert made[0].vmid in bench.hypervisor.machines


def test_a_leftover_that_has_a_record_by_now_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.hypervisor.machines[1000] = Machine(1000, "old", "lab", Power.STOPPED)
    found = look(bench.world)
    del bench.hypervisor.machines[1000]
    box = bench.new(vmid=1000)
    monkeypatch.setattr(reconcile, "look", lambda _: found)
    _, (left,) = apply(bench.world, bench.runner)
    assert "it is sandbox" in left.why
    assert bench.hypervisor.machines[box.vmid].power is Power.RUNNING


def test_a_leftover_that_is_another_s_by_then_stays(bench: Bench) -> None:
    bench.hypervisor.machines[1004] = Machine(1004, "old", "lab", Power.STOPPED)
    stranger = Machine(1004, "db", "", Power.RUNNING)
    bench.hypervisor.faults["status"] = [Unavailable("later")]
    _, (done,) = apply(bench.world, bench.runner)
    bench.hypervisor.machines[1004] = stranger
    failed = bench.ended(done.operation)
    assert (failed.state, failed.code) == ("failed", NotOurs.code)
    assert bench.hypervisor.machines[1004] == stranger
    assert bench.hypervisor.touched == []


def test_while_a_leftover_goes_nobody_gets_its_vmid(bench: Bench) -> None:
    with bench.world.store.write() as tx:
        operations.create(tx, "o", "x", ["sandbox:1004"], {}, vmid=1004)
    with bench.world.store.write() as tx, pytest.raises(Busy, match="x o is under way"):
        leftover_destroy.submit(tx, bench.runner, 1004)


def test_a_job_s_sandbox_is_its_job_s_affair(bench: Bench, loop: Reconciler) -> None:
    job = bench.create()
    vmid = bench.until(job, JobState.RUNNING).vmid
    power(bench, vmid, Power.STOPPED)
    assert kinds(bench) == []
    assert loop.check() == []
    assert bench.until(job, JobState.FAILED).reason


def test_a_fence_that_fails_leaves_the_record_for_the_next_round(
    bench: Bench, loop: Reconciler
) -> None:
    box = bench.new()
    power(bench, box.vmid, Power.STOPPED)
    bench.fence.faults = [Unavailable("nft is not there")]
    with pytest.raises(Unavailable):
        loop.check()
    assert state(bench, box.vmid) is S.READY
    loop.check()
    assert (state(bench, box.vmid), bench.fence.members) == (S.STOPPED, [])


def test_what_differs_is_told_once_and_so_is_its_end(
    bench: Bench, loop: Reconciler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.hypervisor.machines[1004] = Machine(1004, "db", "", Power.RUNNING)
    for _ in range(3):
        loop.check()
    (event,) = told(bench)
    assert event.facts["kind"] == "stranger in the range"
    assert (event.vmid, event.facts["vmid"]) == (0, 1004)
    assert caplog.text.count("stranger in the range") == 1
    del bench.hypervisor.machines[1004]
    for _ in range(2):
        loop.check()
    assert caplog.text.count("no longer so: VM 1004") == 1
    assert len(told(bench)) == 1


def test_fifty_sandboxes_cost_one_inventory(bench: Bench, loop: Reconciler) -> None:
    box = bench.new()
    with bench.world.store.write() as tx:
        for n in range(50):
            more = replace(
                box, vmid=2000 + n, name=f"n{n}", address=box.address + 1 + n, mac=f"m{n}",
                tap=f"t{n}",
            )  # fmt: skip
            sandboxes.create(tx, more, operation="")
            bench.hypervisor.machines[more.vmid] = Machine(more.vmid, "", "lab", Power.RUNNING)
    bench.hypervisor.calls.clear()
    loop.check()
    look(bench.world)
    apply(bench.world, bench.runner)
    assert bench.hypervisor.calls == ["inventory"] * 3


def test_where_machines_have_nodes_the_fence_is_on_our_own(bench: Bench, tmp_path: Path) -> None:
    text = "hypervisor: proxmox\nproxmox_backend: shell\nproxmox: {node: pve7}\n"
    world = replace(bench.world, config=config.parse(text, tmp_path / "c.yaml"))
    place = control_drift.place_of(world)
    assert (place.node, place.volumes) == ("pve7", range(990000, 991000))
    assert (control_drift.place_of(bench.world).node, place.installation) == ("", "lab")


def expired(bench: Bench, *, gone: bool) -> Sandbox:
    box = bench.new()
    with bench.world.store.write() as tx:
        sandboxes.transition(tx, box.vmid, SandboxEvent.EXPIRE)
    if gone:
        del bench.hypervisor.machines[box.vmid]
    return bench.box(box.vmid)


def test_prune_removes_orphaned_timeouts_and_only_those(bench: Bench) -> None:
    gone, there = expired(bench, gone=True), expired(bench, gone=False)
    alive, failed = bench.new(), bench.new()
    del bench.hypervisor.machines[failed.vmid]
    bench.hypervisor.calls.clear()
    pruned = prune(bench.world)
    assert [one.vmid for one in pruned.removed] == [gone.vmid]
    assert pruned.kept == [there.vmid]
    assert bench.hypervisor.calls == ["inventory", "status"]
    states = [state(bench, each.vmid) for each in (gone, there, alive, failed)]
    assert states == [S.DESTROYED, S.TIMEOUT, S.READY, S.READY]
    assert sorted(each.vmid for each in bench.fence.members) == [
        there.vmid, alive.vmid, failed.vmid
    ]  # fmt: skip
    assert [each.vmid for each in told(bench, "sandbox.pruned")] == [gone.vmid]
    again = prune(bench.world)
    assert (again.removed, again.kept) == ([], [there.vmid])


def test_prune_keeps_one_whose_vmid_somebody_else_has(bench: Bench) -> None:
    box = expired(bench, gone=True)
    bench.hypervisor.machines[box.vmid] = Machine(box.vmid, "db", "", Power.RUNNING)
    assert prune(bench.world).kept == [box.vmid]
    assert state(bench, box.vmid) is S.TIMEOUT


def test_prune_leaves_what_an_operation_holds(bench: Bench) -> None:
    box = expired(bench, gone=True)
    with bench.world.store.write() as tx:
        operations.create(tx, "o", "x", [f"sandbox:{box.vmid}"], {}, vmid=box.vmid)
    assert list(prune(bench.world).removed) == []
    assert state(bench, box.vmid) is S.TIMEOUT


def test_prune_and_apply_beside_a_daemon_at_work(bench: Bench, loop: Reconciler) -> None:
    """Sandboxes are made and destroyed meanwhile: every one is made, and none is lost."""
    stop, trouble = threading.Event(), []

    def again_and_again() -> None:
        try:
            while not stop.is_set():
                prune(bench.world)
                loop.check()
                apply(bench.world, bench.runner)
        except Exception as error:  # noqa: BLE001  # told below
            trouble.append(error)

    beside = threading.Thread(target=again_and_again)
    beside.start()
    try:
        for _ in range(6):
            box = bench.new()
            assert bench.act(STOP, box).state == "done"
            assert bench.act("sandbox.start", box).state == "done"
            assert state(bench, box.vmid) is S.READY
            assert bench.ended(bench.destroy(box.vmid)).state == "done"
    finally:
        stop.set()
        ended(beside)
    assert trouble == []
    assert told(bench) == []
    assert bench.clean()

"""Every verb of a sandbox on a real store and engine, with a hypervisor in memory."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from agentlab import clock
from agentlab.config import Limits
from agentlab.control.leases import Leases
from agentlab.errors import (
    Busy,
    Conflict,
    Invalid,
    InvalidTransition,
    NotFound,
    NotOurs,
    Unavailable,
    Unsupported,
)
from agentlab.hypervisor.base import Machine, Power
from agentlab.model.job import JobState
from agentlab.model.sandbox import SANDBOX, SandboxEvent, SandboxState
from agentlab.operations import lease_requests, sandbox_requests
from agentlab.operations.sandbox_power import PAUSE, RESUME, START, STOP
from agentlab.store import events, operations, sandboxes
from tests.unit.operations.bench import SPEC, Bench, bench
from tests.waiting import until

__all__ = ["bench"]  # the fixture
S = SandboxState


def test_a_sandbox_is_made_used_stopped_started_paused_and_destroyed(bench: Bench) -> None:
    box = bench.new(name="lab", ttl=600, labels={"who": "me"})
    assert (box.state, box.name, box.labels) == (S.READY, "lab", {"who": "me"})
    assert 540 < box.lease_until - clock.now() <= 600
    assert bench.hypervisor.snapshots(box.vmid) == ["clean"]
    assert bench.use(box).state is S.RUNNING
    assert bench.act(PAUSE, box).state == "done"
    assert bench.box("lab").state is S.SUSPENDED
    assert bench.act(RESUME, box).state == "done"
    assert bench.box("lab").state is S.RUNNING
    assert bench.act(STOP, box).state == "done"
    assert bench.box("lab").state is S.STOPPED
    assert bench.hypervisor.machines[box.vmid].power is Power.STOPPED
    assert bench.fence.members == []
    assert bench.act(START, box).state == "done"
    assert bench.box("lab").state is S.READY
    assert [member.vmid for member in bench.fence.members] == [box.vmid]
    assert bench.ended(bench.destroy("lab")).state == "done"
    assert bench.box("lab").state is S.DESTROYED
    assert bench.clean()


def test_a_pause_comes_back_to_what_it_was(bench: Bench) -> None:
    box = bench.new()
    bench.act(PAUSE, box)
    bench.act(RESUME, box)
    assert bench.box(box.vmid).state is S.READY


def test_clean_is_taken_before_the_first_power_on(bench: Bench) -> None:
    bench.new()
    calls = bench.hypervisor.calls
    assert calls.index("snapshot") < calls.index("start")


def test_a_storage_without_snapshots_makes_sandboxes_that_cannot_be_reverted(
    bench: Bench,
) -> None:
    bench.hypervisor.faults["snapshot"] = [Unsupported("storage lvm has no snapshots")]
    box = bench.new()
    assert box.state is S.READY
    failed = bench.ended(_revert(bench, box.vmid))
    assert failed.state == "failed"
    assert "no such snapshot" in failed.error
    assert bench.box(box.vmid).state is S.READY


def _revert(bench: Bench, vmid: int, **given: object) -> str:
    return sandbox_requests.revert(bench.world, bench.runner, str(vmid), "", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "given", "after"),
    [
        ("running", {}, S.READY),
        ("running", {"restart": False}, S.STOPPED),
        ("stopped", {}, S.STOPPED),
        ("stopped", {"restart": True}, S.READY),
        ("paused", {}, S.READY),
    ],
)
def test_revert_puts_the_disk_back(
    bench: Bench, before: str, given: dict[str, object], after: SandboxState
) -> None:
    box = bench.new()
    bench.hypervisor.disks[box.vmid] = "changed"
    if before == "stopped":
        bench.act(STOP, box)
    if before == "paused":
        bench.act(PAUSE, box)
    assert bench.ended(_revert(bench, box.vmid, **given)).state == "done"
    assert bench.box(box.vmid).state is after
    assert bench.hypervisor.disks[box.vmid] == ""


def test_revert_is_refused_while_a_job_runs_unless_forced(bench: Bench) -> None:
    job = bench.create()
    vmid = bench.until(job, JobState.RUNNING).vmid
    with pytest.raises(Busy, match=f"job {job.id} runs in it") as refused:
        _revert(bench, vmid)
    assert "--force" in refused.value.hint
    bench.hypervisor.disks[vmid] = "changed"
    asked = _revert(bench, vmid, force=True)
    with bench.world.store.read() as tx:
        (waiting,) = operations.waiting_for(tx, f"sandbox:{vmid}")
    assert waiting.id == asked
    bench.report(job, status="cancelled")
    assert bench.ended(asked).state == "done"
    assert bench.until(job, JobState.CANCELLED).reason
    assert bench.box(vmid).state is S.READY
    assert bench.hypervisor.disks[vmid] == ""


def test_snapshots_are_saved_listed_restored_and_deleted(bench: Bench) -> None:
    box, world = bench.new(), bench.world
    vmid = str(box.vmid)
    with pytest.raises(InvalidTransition, match="cannot take a snapshot of") as refused:
        sandbox_requests.save_snapshot(world, bench.runner, vmid, "", "before")
    assert f"sandbox stop {vmid}" in refused.value.hint
    bench.act(STOP, box)
    bench.hypervisor.disks[box.vmid] = "one"
    saved = sandbox_requests.save_snapshot(world, bench.runner, vmid, "", "before")
    assert bench.ended(saved).state == "done"
    with pytest.raises(Conflict, match="one of that name"):
        sandbox_requests.save_snapshot(world, bench.runner, vmid, "", "before")
    for bad in ("x", "1st", "a b", "current", "y" * 41):
        with pytest.raises(Invalid, match="name of a snapshot"):
            sandbox_requests.save_snapshot(world, bench.runner, vmid, "", bad)
    bench.hypervisor.disks[box.vmid] = "two"
    assert bench.ended(_revert(bench, box.vmid, name="before")).state == "done"
    assert bench.hypervisor.disks[box.vmid] == "one"
    unknown = bench.ended(_revert(bench, box.vmid, name="nothing"))
    assert "it has clean, before" in unknown.hint
    with pytest.raises(Conflict, match="revert goes back to it"):
        sandbox_requests.delete_snapshot(world, bench.runner, vmid, "", "clean")
    gone = sandbox_requests.delete_snapshot(world, bench.runner, vmid, "", "before")
    assert bench.ended(gone).state == "done"
    assert bench.hypervisor.snapshots(box.vmid) == ["clean"]


def test_half_a_snapshot_is_not_listed_and_can_be_deleted(bench: Bench) -> None:
    box, world = bench.new(), bench.world
    vmid = str(box.vmid)
    bench.act(STOP, box)
    saved = sandbox_requests.save_snapshot(world, bench.runner, vmid, "", "before")
    assert bench.ended(saved).state == "done"
    bench.hypervisor.half.add("before")
    assert bench.hypervisor.snapshots(box.vmid) == ["clean"]
    gone = sandbox_requests.delete_snapshot(world, bench.runner, vmid, "", "before")
    assert bench.ended(gone).state == "done"
    assert bench.hypervisor.snapshots(box.vmid, half=True) == ["clean"]


def test_later_snapshots_are_in_the_way_where_only_the_newest_can_be_restored(
    bench: Bench,
) -> None:
    bench.hypervisor.newest_only = True
    box = bench.new()
    bench.act(STOP, box)
    for name in ("one", "two"):
        bench.ended(
            sandbox_requests.save_snapshot(bench.world, bench.runner, str(box.vmid), "", name)
        )
    refused = bench.ended(_revert(bench, box.vmid))
    assert refused.state == "failed"
    assert "two, one came later" in refused.error
    assert "--force" in refused.hint
    assert bench.hypervisor.snapshots(box.vmid) == ["clean", "one", "two"]
    assert bench.ended(_revert(bench, box.vmid, force=True)).state == "done"
    assert bench.hypervisor.snapshots(box.vmid) == ["clean"]


def _in_state(bench: Bench, state: SandboxState) -> int:
    """A sandbox in this state, put there by the state table's own edges."""
    box = bench.new()
    with bench.world.store.write() as tx:
        paths = {
            S.READY: [], S.RUNNING: ["RUN"], S.SUSPENDED: ["PAUSE"], S.COMPLETED: ["RUN", "COMPLETE"],
            S.FAILED: ["FAIL"], S.TIMEOUT: ["EXPIRE"], S.STOPPED: ["STOP"],
        }  # fmt: skip
        for event in paths[state]:
            sandboxes.transition(tx, box.vmid, SandboxEvent[event])
    return box.vmid


STATES = (S.READY, S.RUNNING, S.SUSPENDED, S.COMPLETED, S.FAILED, S.TIMEOUT, S.STOPPED)


@pytest.mark.parametrize("state", STATES)
def test_the_lease_is_renewable_in_running_only(bench: Bench, state: SandboxState) -> None:
    vmid = _in_state(bench, state)
    before = bench.box(vmid)
    if state is S.RUNNING:
        renewed = lease_requests.renew(bench.world, bench.runner, str(vmid), 7200)
        assert 7140 < renewed.lease_until - clock.now() <= 7200
        assert renewed.ttl == 7200
        return
    with pytest.raises(InvalidTransition, match="sandbox lease not renewable") as refused:
        lease_requests.renew(bench.world, bench.runner, str(vmid), 7200)
    assert str(state) in refused.value.message
    assert "agentlab sandbox" in refused.value.hint
    assert bench.box(vmid) == before


@pytest.mark.parametrize("state", STATES)
def test_destroy_follows_the_state_table_and_force_does_not_need_it(
    bench: Bench, state: SandboxState
) -> None:
    vmid = _in_state(bench, state)
    before = bench.box(vmid)
    if SandboxEvent.DESTROY in SANDBOX.allowed(state):
        assert bench.ended(bench.destroy(vmid)).state == "done"
    else:
        with pytest.raises(Conflict, match="failed to destroy sandbox") as refused:
            bench.destroy(vmid)
        assert "--force" in refused.value.hint
        assert bench.box(vmid) == before
        assert bench.ended(bench.destroy(vmid, force=True)).state == "done"
    assert bench.box(vmid).state is S.DESTROYED
    assert bench.clean()


@pytest.mark.parametrize("state", [S.READY, S.COMPLETED, S.FAILED, S.STOPPED])
def test_plain_destroy_of_a_vm_that_is_surely_gone_asks_for_force(
    bench: Bench, state: SandboxState
) -> None:
    vmid = _in_state(bench, state)
    del bench.hypervisor.machines[vmid]
    before = bench.box(vmid)
    with pytest.raises(Conflict) as refused:
        bench.destroy(vmid)
    assert refused.value.message == f"failed to destroy sandbox {vmid}: its VM is gone"
    assert refused.value.hint == f"agentlab sandbox destroy --force {vmid}"
    assert bench.box(vmid) == before
    assert bench.ended(bench.destroy(vmid, force=True)).state == "done"
    assert bench.box(vmid).state is S.DESTROYED


def test_plain_destroy_goes_on_when_nobody_can_tell_whether_there_is_a_vm(bench: Bench) -> None:
    box = bench.new()
    bench.hypervisor.faults["status"] = [Unavailable("the hypervisor does not answer")]
    assert bench.ended(bench.destroy(box.vmid)).state == "done"
    assert bench.clean()


def test_a_destroy_asked_for_again_after_its_vm_is_gone_is_the_same_one(bench: Bench) -> None:
    """A lost reply: the same key gives the same operation, and the first one's end is not undone."""
    box = bench.new()
    asked = [
        sandbox_requests.destroy(bench.world, bench.runner, str(box.vmid), "key", force=False)
        for _ in range(2)
    ]
    assert bench.ended(asked[0]).state == "done"
    asked.append(
        sandbox_requests.destroy(bench.world, bench.runner, str(box.vmid), "key", force=False)
    )
    assert len(set(asked)) == 1


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", [START, STOP, PAUSE, RESUME])
def test_power_follows_the_state_table(bench: Bench, state: SandboxState, kind: str) -> None:
    event = {START: "START", STOP: "STOP", PAUSE: "PAUSE", RESUME: "RESUME"}[kind]
    vmid = _in_state(bench, state)
    before = bench.box(vmid)
    if SandboxEvent[event] in SANDBOX.allowed(state):
        assert bench.act(kind, vmid).state == "done"
        return
    with pytest.raises(InvalidTransition) as refused:
        bench.act(kind, vmid)
    assert refused.value.hint
    assert bench.box(vmid) == before


def test_force_closes_the_record_of_a_vm_that_is_gone_and_leaves_its_successor_alone(
    bench: Bench,
) -> None:
    gone, taken = bench.new(), bench.new()
    del bench.hypervisor.machines[gone.vmid]
    assert bench.ended(bench.destroy(gone.vmid, force=True)).state == "done"
    stranger = Machine(taken.vmid, "production", "", Power.RUNNING)
    bench.hypervisor.machines[taken.vmid] = stranger
    refused = bench.ended(bench.destroy(taken.vmid))
    assert refused.state == "failed"
    assert bench.ended(bench.destroy(taken.vmid, force=True)).state == "done"
    assert bench.hypervisor.machines == {taken.vmid: stranger}
    assert bench.box(taken.vmid).state is S.DESTROYED


def _held_at_stop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Event, threading.Event]:
    """Set when somebody takes the power, and to be set so that it is taken."""
    begun, go_on, stop = threading.Event(), threading.Event(), bench.hypervisor.stop

    def held(vmid: int, *, owner: str) -> None:
        begun.set()
        assert go_on.wait(20)
        stop(vmid, owner=owner)

    monkeypatch.setattr(bench.hypervisor, "stop", held)
    return begun, go_on


def test_force_that_is_asked_for_during_a_plain_destroy_is_not_that_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, hypervisor = bench.new(), bench.hypervisor
    begun, go_on = _held_at_stop(bench, monkeypatch)
    plain = bench.destroy(box.vmid)
    assert begun.wait(20)
    assert bench.destroy(box.vmid) == plain
    forced = bench.destroy(box.vmid, force=True)
    stranger = replace(hypervisor.machines[box.vmid], owner="")
    hypervisor.machines[box.vmid] = stranger
    go_on.set()
    assert bench.ended(plain).code == NotOurs.code
    assert bench.ended(forced).state == "done"
    assert bench.box(box.vmid).state is S.DESTROYED
    assert hypervisor.machines[box.vmid] == stranger


def test_a_destroy_asked_for_during_one_with_force_is_that_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = bench.new()
    begun, go_on = _held_at_stop(bench, monkeypatch)
    forced = bench.destroy(box.vmid, force=True)
    assert begun.wait(20)
    assert [bench.destroy(box.vmid, force=each) for each in (False, True)] == [forced, forced]
    go_on.set()
    assert bench.ended(forced).state == "done"


def test_a_destroy_that_waited_does_not_touch_the_vmids_next_sandbox(bench: Bench) -> None:
    """The VMID is free again before the waiting destroy has its turn."""
    vmids = bench.world.config.vmids
    first = bench.new(vmid=vmids.start)
    with bench.world.store.write() as tx:
        operations.create(tx, "blocker", "unknown", ["blocker"], {}, vmid=first.vmid)
        operations.lock(tx, "blocker", f"sandbox:{first.vmid}")
    late = bench.destroy(first.vmid, force=True)
    time.sleep(0.1)
    with bench.world.store.write() as tx:
        sandboxes.transition(tx, first.vmid, SandboxEvent.FORCE_DESTROY)
        second = replace(first, name="second", state=S.REQUESTED)
        sandboxes.create(tx, second, operation="")
        operations.finish(tx, "blocker", "done")
    bench.runner.wake(late)
    assert bench.ended(late).state == "done"
    assert bench.box(first.vmid).name == "second"
    assert bench.box(first.vmid).state is S.REQUESTED
    assert first.vmid in bench.hypervisor.machines


def test_names_and_vmids_are_given_once(bench: Bench) -> None:
    bench.hypervisor.machines[1004] = Machine(1004, "production", "", Power.RUNNING)
    box = bench.new(name="lab", vmid=1002)
    assert box.vmid == 1002
    for asked, why in (
        ({"name": "lab"}, "one of that name"), ({"vmid": 1002}, "one with that VMID"),
        ({"vmid": 1004}, "somebody else's"),
    ):  # fmt: skip
        with pytest.raises(Conflict, match=why):
            bench.ask(**asked)
    for asked in ({"vmid": 99}, {"vmid": 5000}, {"name": "1002"}, {"name": "-x"}, {"name": "A"}):
        with pytest.raises(Invalid):
            bench.ask(**asked)
    assert [one.vmid for one in _live(bench)] == [1002]
    assert set(bench.hypervisor.machines) == {1002, 1004}


def _live(bench: Bench) -> list[sandboxes.Sandbox]:
    with bench.world.store.read() as tx:
        return sandboxes.live(tx)


def test_a_vmid_that_a_stranger_takes_meanwhile_fails_and_touches_nothing(bench: Bench) -> None:
    bench.hypervisor.strangers = 1
    failed = bench.ended(bench.ask(vmid=1001))
    assert failed.state == "failed"
    assert bench.hypervisor.machines[1001].name == "production"
    assert {vmid for verb, vmid in bench.hypervisor.touched if verb != "clone"} <= set()


def test_the_same_key_makes_one_sandbox(bench: Bench) -> None:
    first = bench.ask(key="k1", name="lab")
    assert bench.ask(key="k1", name="lab") == first
    with pytest.raises(Conflict, match="Idempotency-Key"):
        bench.ask(key="k1", name="other")
    bench.ended(first)
    assert len(_live(bench)) == 1
    stop = sandbox_requests.act(bench.world, bench.runner, STOP, "lab", "k2")
    bench.ended(stop)
    assert sandbox_requests.act(bench.world, bench.runner, STOP, "lab", "k2") == stop


@pytest.mark.parametrize(
    "method", ["inventory", "clone", "configure", "snapshot", "start", "ready"]
)
def test_what_fails_on_the_way_leaves_nothing(bench: Bench, method: str) -> None:
    bench.hypervisor.faults[method] = [Conflict(f"cannot {method}: no")]
    failed = bench.ended(bench.ask(name="lab"))
    assert failed.state == "failed"
    assert failed.error.startswith(f"cannot {method}")
    assert bench.clean()
    assert _live(bench) == []


def test_a_start_that_fails_is_stopped_again_and_says_why(bench: Bench) -> None:
    box = bench.new()
    bench.act(STOP, box)
    bench.fence.faults = [Conflict("cannot put the rules in place")]
    assert bench.act(START, box).state == "failed"
    stopped = bench.box(box.vmid)
    assert (stopped.state, "rules" in stopped.reason) == (S.STOPPED, True)
    assert bench.hypervisor.machines[box.vmid].power is Power.STOPPED
    assert bench.fence.members == []


def _limit(bench: Bench, **limits: int) -> None:
    config = replace(bench.world.config, limits=Limits(**limits))
    object.__setattr__(bench.world, "config", config)


def test_beyond_the_limits_requests_wait_in_order_and_show_their_place(bench: Bench) -> None:
    _limit(bench, cores=4)
    first, second = bench.new(), bench.new()  # two cores each
    asked = [bench.ask(name="late0")]
    until(lambda: "place 1 in the queue" in _waits(bench, asked[0]))
    assert "given up after 1h56m" in _waits(bench, asked[0])
    asked.append(bench.ask(name="late1"))
    until(lambda: "place 2" in _waits(bench, asked[1]))
    assert bench.box("late0").state is S.REQUESTED
    with pytest.raises(Busy, match="no room"):
        bench.ask(name="now", queue=False)
    bench.act(STOP, first)
    assert bench.ended(asked[0]).state == "done"
    until(lambda: "place 1" in _waits(bench, asked[1]))
    started = sandbox_requests.act(bench.world, bench.runner, START, str(first.vmid), "")
    until(lambda: "place 2" in _waits(bench, started))
    bench.ended(bench.destroy(second.vmid))
    assert bench.ended(asked[1]).state == "done"
    bench.ended(bench.destroy("late0"))
    assert bench.ended(started).state == "done"


def test_a_small_one_does_not_overtake_a_large_one_that_came_first(bench: Bench) -> None:
    _limit(bench, cores=4)
    big = bench.world.config.profiles_dir / "big.yaml"
    big.write_text("cores: 4\nnetwork: off\nagent: {command: 'true'}\n")
    first = bench.new()  # two cores
    large = bench.ask(profile="big")
    until(lambda: "place 1 in the queue" in _waits(bench, large))
    small = bench.ask()  # two cores, which are free
    until(lambda: "place 2 in the queue" in _waits(bench, small))
    with pytest.raises(Busy, match="2 others wait"):
        bench.ask(queue=False)
    time.sleep(1.5)  # longer than the queue's own look
    assert "place 2 in the queue" in _waits(bench, small)
    bench.ended(bench.destroy(first.vmid))
    assert bench.ended(large).state == "done"
    bench.ended(bench.destroy(_made(bench, large)))
    assert bench.ended(small).state == "done"


def _made(bench: Bench, operation: str) -> int:
    with bench.world.store.read() as tx:
        return operations.get(tx, operation).vmid


def _waits(bench: Bench, operation: str) -> str:
    with bench.world.store.read() as tx:
        return operations.get(tx, operation).waits_for


def test_what_never_fits_is_refused_at_once(bench: Bench) -> None:
    _limit(bench, memory=1024)
    with pytest.raises(Conflict, match="never room"):
        bench.ask()
    with pytest.raises(Conflict, match="never room"):
        bench.create(SPEC)


def test_update_changes_labels_at_once_and_size_at_the_next_start(bench: Bench) -> None:
    box = bench.new(labels={"a": "1", "b": "2"})
    changed = sandbox_requests.update(
        bench.world, str(box.vmid), cores=4, memory=1024, labels={"a": None, "c": "3"}
    )
    assert (changed.labels, changed.cores, changed.memory) == ({"b": "2", "c": "3"}, 4, 1024)
    assert bench.hypervisor.specs[box.vmid].cores == 2
    bench.act(STOP, box)
    bench.act(START, box)
    assert bench.hypervisor.specs[box.vmid].cores == 4
    for bad in ({"cores": -1}, {"cores": 1000}, {"memory": 1}):
        with pytest.raises(Invalid):
            sandbox_requests.update(bench.world, str(box.vmid), labels={}, **bad)
    with pytest.raises(NotFound):
        sandbox_requests.update(bench.world, "nobody", labels={})


def test_operations_on_one_sandbox_take_turns_and_say_for_what_they_wait(bench: Bench) -> None:
    box = bench.new()
    bench.hypervisor.faults["shutdown"] = [Unavailable("busy")] * 3
    first = sandbox_requests.act(bench.world, bench.runner, STOP, str(box.vmid), "")
    second = sandbox_requests.act(bench.world, bench.runner, START, str(box.vmid), "")
    until(lambda: "sandbox.stop" in _waits(bench, second))
    assert bench.ended(first).state == "done"
    assert bench.ended(second).state == "done"
    assert bench.box(box.vmid).state is S.READY


def test_a_second_stop_that_waited_is_told_that_it_is_stopped(bench: Bench) -> None:
    box = bench.new()
    bench.hypervisor.faults["shutdown"] = [Unavailable("busy")] * 3
    both = [
        sandbox_requests.act(bench.world, bench.runner, STOP, str(box.vmid), "") for _ in range(2)
    ]
    assert [bench.ended(each).state for each in both] == ["done", "failed"]
    assert bench.box(box.vmid).state is S.STOPPED


def test_a_guest_that_does_not_power_off_loses_its_power(bench: Bench) -> None:
    box = bench.new()
    bench.hypervisor.deaf = True
    assert bench.act(STOP, box).state == "done"
    assert bench.hypervisor.calls[-1] == "stop"
    assert bench.hypervisor.machines[box.vmid].power is Power.STOPPED


def test_stop_of_a_vm_that_is_gone_says_so(bench: Bench) -> None:
    box = bench.new()
    del bench.hypervisor.machines[box.vmid]
    failed = bench.act(STOP, box)
    assert failed.state == "failed"
    assert "its VM is gone" in failed.error
    assert f"destroy --force {box.vmid}" in failed.hint


# --- leases ---


def _leases(bench: Bench) -> Leases:
    leases = Leases(bench.world, bench.runner)
    leases.check()  # the look after a start
    return leases


def _end(bench: Bench, vmid: int, at: float = -1.0) -> None:
    with bench.world.store.write() as tx:
        sandboxes.set_lease(tx, vmid, clock.now() + at)


@pytest.mark.parametrize("state", [S.READY, S.RUNNING, S.SUSPENDED])
def test_a_lease_that_ends_goes_to_timeout_and_the_vm_is_destroyed(
    bench: Bench, state: SandboxState
) -> None:
    leases = _leases(bench)
    vmid = _in_state(bench, state)
    _end(bench, vmid)
    leases.check()
    until(lambda: bench.box(vmid).state is S.DESTROYED)
    with bench.world.store.read() as tx:
        states = [e.facts.get("to") for e in events.after(tx, 0, vmid=vmid) if "to" in e.facts]
    assert states[-2:] == ["TIMEOUT", "DESTROYED"]
    until(bench.clean)  # the operation ends a moment after the record


def test_an_end_that_fails_is_tried_again_and_not_at_every_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = _leases(bench)
    box = bench.new()
    _end(bench, box.vmid)
    bench.hypervisor.faults["destroy"] = [Conflict("the disk is on fire")]
    for _ in range(5):
        leases.check()
        until(lambda: not _under_way(bench, box.vmid))
    assert bench.box(box.vmid).state is S.TIMEOUT
    assert len(_ends(bench, box.vmid)) == 1
    monkeypatch.setattr(leases, "_ended", {})  # as when the pause is over
    leases.check()
    until(lambda: bench.box(box.vmid).state is S.DESTROYED)
    assert len(_ends(bench, box.vmid)) == 2


def _ends(bench: Bench, vmid: int) -> list[object]:
    with bench.world.store.read() as tx:
        sql = "SELECT id FROM operation WHERE kind = 'sandbox.expire' AND vmid = ?"
        return tx.execute(sql, (vmid,)).fetchall()


def _under_way(bench: Bench, vmid: int) -> bool:
    with bench.world.store.read() as tx:
        return operations.holder_of(tx, f"sandbox:{vmid}") is not None


def test_a_stopped_sandbox_waits_for_its_owner(bench: Bench) -> None:
    leases = _leases(bench)
    box = bench.new()
    bench.act(STOP, box)
    _end(bench, box.vmid)
    leases.check()
    time.sleep(0.2)
    assert bench.box(box.vmid).state is S.STOPPED
    bench.act(START, box)
    assert bench.box(box.vmid).lease_until > clock.now() + 3000


def test_a_lease_that_ended_while_nobody_looked_has_a_grace_and_says_so(bench: Bench) -> None:
    box = bench.new()
    _end(bench, box.vmid, -3600)
    leases = _leases(bench)
    leases.check()
    time.sleep(0.2)
    left = bench.box(box.vmid).lease_until - clock.now()
    assert bench.box(box.vmid).state is S.READY
    assert 240 < left <= 300
    with bench.world.store.read() as tx:
        assert "while the daemon was down" in events.after(tx, 0, vmid=box.vmid)[-1].text


def test_a_clock_set_back_before_a_start_makes_no_lease_longer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = bench.new(ttl=600)
    real = time.time
    monkeypatch.setattr(clock, "now", lambda: real() - 86400)
    _leases(bench)
    assert bench.box(box.vmid).lease_until <= real() - 86400 + 601


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_is_set_while_we_look_ends_no_lease(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    leases = _leases(bench)
    box = bench.new()
    leases.check()
    real = time.time
    monkeypatch.setattr(clock, "now", lambda: real() + days * 86400)
    leases.check()
    time.sleep(0.2)
    assert bench.box(box.vmid).state is S.READY


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_is_set_before_the_first_look_ends_no_lease(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    leases = _leases(bench)
    box = bench.new(ttl=600)
    real = time.time
    monkeypatch.setattr(clock, "now", lambda: real() + days * 86400)
    leases.check()
    leases.check()
    time.sleep(0.2)
    assert bench.box(box.vmid).state is S.READY
    stamp = leases._stamps.deadline(f"sandbox {box.id}", bench.box(box.vmid).lease_until)
    assert 540 < stamp.left <= 600  # and it is no longer than it was given


def test_a_lease_that_is_kept_alive_renews_itself(bench: Bench) -> None:
    leases = _leases(bench)
    box = bench.new(keepalive=True, ttl=600)
    assert box.state is S.RUNNING
    _end(bench, box.vmid, 200)
    leases.check()
    assert bench.box(box.vmid).lease_until > clock.now() + 540


def test_a_lease_renewed_while_its_end_waits_for_its_turn_is_not_ended(bench: Bench) -> None:
    leases = _leases(bench)
    box = bench.use(bench.new())
    _end(bench, box.vmid)
    with bench.world.store.write() as tx:  # something else gets its turn first
        ended = bench.box(box.vmid).lease_until
        operations.create(tx, "blocker", "unknown", [f"sandbox:{box.vmid}"], {}, vmid=box.vmid)
        late = bench.runner.submit(
            tx, "sandbox.expire", [f"sandbox:{box.vmid}"], {"id": box.id, "lease": ended},
            vmid=box.vmid, in_turn=True,
        )  # fmt: skip
    leases.check()  # and a second end is not asked for
    lease_requests.renew(bench.world, bench.runner, str(box.vmid), 600)
    with bench.world.store.write() as tx:
        operations.finish(tx, "blocker", "done")
    bench.runner.wake(late)
    assert bench.ended(late).state == "done"
    assert bench.box(box.vmid).state is S.RUNNING
    assert bench.hypervisor.machines[box.vmid].power is Power.RUNNING


def test_a_jobs_lease_can_be_renewed_while_it_runs(bench: Bench) -> None:
    job = bench.create()
    running = bench.until(job, JobState.RUNNING)
    lease_requests.renew(bench.world, bench.runner, str(running.vmid), 36000)
    assert bench.job(job).deadline > clock.now() + 36000
    bench.report(job)
    assert bench.until(job, JobState.COMPLETED)


def test_errors_name_what_is_not_there(bench: Bench) -> None:
    bench.new(name="laboratory")
    with pytest.raises(NotFound) as unknown:
        sandbox_requests.act(bench.world, bench.runner, STOP, "laboratry", "")
    assert unknown.value.hint == "did you mean laboratory?"
    with pytest.raises(NotFound):
        bench.destroy(4711, force=True)
    with pytest.raises(NotFound, match="profile"):
        bench.ask(profile="demos")

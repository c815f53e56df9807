"""What a review once found in workspaces: each case lost work, hung, or hit what was not meant."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from agentlab.control import reconcile, workspace_check, workspace_leases
from agentlab.errors import Busy, Conflict, Unavailable
from agentlab.hypervisor.base import Power
from agentlab.model.job import JobState
from agentlab.model.sandbox import SandboxSpec, SandboxState
from agentlab.model.workspace import WorkspaceSpec, WorkspaceState
from agentlab.operations import (
    leftover_destroy,
    sandbox_destroy,
    sandbox_requests,
    sandbox_snapshots,
)
from agentlab.operations import session_requests as sessions_asked
from agentlab.operations import workspace_requests as requests
from agentlab.operations.sandbox_power import PAUSE, START, STOP
from agentlab.store import events, sandboxes, sessions, workspaces
from agentlab.store.operations import OperationRow
from tests.unit.operations.bench import SPEC
from tests.unit.operations.work_bench import Gate, WorkBench, bench, operation
from tests.waiting import until

__all__ = ["bench"]  # the fixture
S, W = SandboxState, WorkspaceState
WITH_WORK = dataclasses.replace(SPEC, workspace="work")


# --- no guest that answers loses power with unwritten work ---


def expire(bench: WorkBench, vmid: int) -> OperationRow:
    box = bench.box(vmid)
    with bench.world.store.write() as tx:
        identity = bench.runner.submit(
            tx, sandbox_destroy.EXPIRE, [f"sandbox:{vmid}"],
            {"id": box.id, "lease": box.lease_until}, vmid=vmid, in_turn=True,
        )  # fmt: skip
    return bench.ended(identity)


def test_a_forced_destroy_of_a_job_lets_its_guest_write(bench: WorkBench) -> None:
    bench.make()
    job = bench.create(WITH_WORK)
    bench.until(job, JobState.RUNNING)
    bench.ended(bench.destroy(bench.workspace().vmid, force=True))
    assert bench.volume().fs == "clean"


def test_a_guest_that_is_deaf_to_shutdown_and_answers_all_the_same(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    bench.hypervisor.deaf = True
    assert bench.act(STOP, box).state == "done"
    assert bench.volume().fs == "clean"


def test_a_lease_that_ends_while_it_is_paused(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    bench.act(PAUSE, box)
    assert expire(bench, box.vmid).state == "done"
    assert bench.volume().fs == "clean"


def test_a_lease_that_ends_while_it_is_paused_where_the_rules_do_not_see_it(
    bench: WorkBench,
) -> None:
    hypervisor = bench.hypervisor
    hypervisor.capabilities = dataclasses.replace(hypervisor.capabilities, makes_taps=True)
    bench.make()
    box = bench.new(workspace="work")
    bench.act(PAUSE, box)
    hypervisor.calls.clear()
    bench.fence.elsewhere = [Conflict("the tap is not on this host")] * 9  # each time that it looks
    assert expire(bench, box.vmid).state == "done"
    assert "resume" not in hypervisor.calls
    assert bench.volume().fs == "dirty"  # its journal has it


def test_a_destroy_while_nobody_can_tell_what_has_power(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    bench.hypervisor.unseen = True
    bench.ended(bench.destroy(box.vmid))
    assert bench.volume().fs == "clean"


def test_a_delivery_that_fails(bench: WorkBench) -> None:
    bench.make()
    bench.hypervisor.faults["file_write"] = [Conflict("lost")]
    bench.until(bench.create(WITH_WORK), JobState.FAILED)
    until(lambda: not bench.hypervisor.machines)
    assert bench.volume().fs == "clean"


def test_a_leftover_with_a_volume(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    with bench.world.store.write() as tx:
        workspaces.release_of(tx, box.id)
        tx.execute("DELETE FROM sandbox")
        identity = leftover_destroy.submit(tx, bench.runner, box.vmid)
    assert bench.ended(identity).state == "done"
    assert bench.volume().fs == "clean"


def test_a_destroy_that_fails_gives_work_back(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    bench.hypervisor.faults["stop"] = [Conflict("locked")]
    assert bench.ended(bench.destroy(box.vmid)).state == "failed"
    assert bench.hypervisor.mounted == {box.vmid}


# --- the lease encloses the disk ---


def test_a_lease_is_not_cleared_while_its_disk_is_out_for_a_moment(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    bench.act(STOP, box)
    gate = Gate(bench, "snapshot")
    saving = sandbox_requests.save_snapshot(bench.world, bench.runner, str(box.vmid), "", "mine")
    gate.wait()
    with pytest.raises(Busy, match=r"sandbox\.snapshot .* is under way") as told:
        requests.clear_lease(bench.world, "work", force=True)
    assert told.value.hint
    gate.go.set()
    assert bench.ended(saving).state == "done"
    assert bench.hypervisor.plugged == {box.vmid: bench.workspace().volid}


@pytest.mark.parametrize("by", ["destroy --force", "reconcile"])
def test_a_machine_whose_mark_was_edited_away_keeps_the_lease(bench: WorkBench, by: str) -> None:
    bench.make()
    box = bench.new(workspace="work")
    marked = bench.hypervisor.machines[box.vmid]
    bench.hypervisor.machines[box.vmid] = dataclasses.replace(marked, owner="")
    if by == "reconcile":
        reconcile.apply(bench.world, bench.runner)
    else:
        bench.ended(bench.destroy(box.vmid, force=True))
    assert bench.box(box.vmid).state is S.DESTROYED
    assert bench.hypervisor.plugged == {box.vmid: bench.workspace().volid}
    workspace_leases.renew(bench.world)
    assert bench.workspace().state is W.ATTACHED
    with pytest.raises(Conflict):
        bench.attach("work", bench.new().vmid)
    del bench.hypervisor.machines[box.vmid], bench.hypervisor.plugged[box.vmid]
    workspace_leases.renew(bench.world)  # now it is sure
    assert bench.workspace().state is W.DETACHED


def test_a_start_gives_back_what_was_taken_out(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    bench.act(STOP, box)
    del bench.hypervisor.plugged[box.vmid]
    assert (
        bench.ended(
            sandbox_requests.act(bench.world, bench.runner, "sandbox.start", str(box.vmid), "")
        ).state
        == "done"
    )
    assert bench.hypervisor.mounted == {box.vmid}


def test_a_guest_that_keeps_the_disk_keeps_nobody_for_ever(bench: WorkBench) -> None:
    bench.make()
    box = bench.new()
    bench.hypervisor._mount = lambda *_: {"error": "damaged"}  # type: ignore[method-assign]
    plain = bench.hypervisor.detach

    def detach(vmid: int, volid: str, *, owner: str) -> None:
        if bench.hypervisor.machines[vmid].power is Power.RUNNING:
            raise Busy("its guest does not let go")
        plain(vmid, volid, owner=owner)

    bench.hypervisor.detach = detach  # type: ignore[method-assign]
    asked = requests.attach(bench.world, bench.runner, "work", str(box.vmid), "")
    until(lambda: operation(bench, asked).final)
    found = bench.box(box.vmid)
    assert (found.state, "did not let go" in found.reason) == (S.STOPPED, True)
    assert bench.workspace().state is W.DETACHED
    assert bench.fence.members == []


# --- what cannot be made takes nothing of others along ---


def test_an_undo_that_waits_keeps_its_number(
    bench: WorkBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlab.config._VOLUMES", range(990_000, 990_001))
    bench.hypervisor.faults["allot"] = [Conflict("full")]
    plain, closed = bench.hypervisor.volumes, threading.Event()

    def volumes(*, owner: str, storage: str | None = None) -> Any:
        undoing = operation_of_a and operation(bench, operation_of_a[0]).state == "undoing"
        if undoing and not closed.is_set():
            raise Unavailable("storage nas is not active")
        return plain(owner=owner, storage=storage)

    operation_of_a: list[str] = []
    bench.hypervisor.volumes = volumes  # type: ignore[method-assign]
    spec = WorkspaceSpec("a", 1024)
    operation_of_a.append(requests.create(bench.world, bench.runner, spec, ""))
    until(lambda: operation(bench, operation_of_a[0]).state == "undoing")
    with pytest.raises(Conflict, match="all numbers"):
        requests.create(bench.world, bench.runner, WorkspaceSpec("b", 1024), "")
    closed.set()
    bench.runner.wake(operation_of_a[0])
    bench.ended(operation_of_a[0])
    assert bench.make("b").number == 990_000


def test_a_session_is_not_deleted_while_its_work_is_copied(bench: WorkBench) -> None:
    bench.session()
    gate = Gate(bench, "clone_volume")
    _, forking = sessions_asked.fork(bench.world, bench.runner, "lab", "", new="copy")
    gate.wait()
    with pytest.raises(Conflict, match="it is being made"):
        sessions_asked.delete(bench.world, bench.runner, "copy", "", with_workspace=True)
    assert [each.name for each in workspace_check.check(bench.world, "copy")] == ["busy"]
    gate.go.set()
    assert bench.ended(forking).state == "done"


def test_the_next_session_is_not_the_one_that_was_meant(bench: WorkBench) -> None:
    bench.make()
    bench.make("second")
    old = bench.session("old", workspace="work")
    bench.ended(sessions_asked.delete(bench.world, bench.runner, "old", "", with_workspace=False))
    new = bench.session("new", workspace="second")
    assert new.id != old.id


def test_a_workspace_that_is_being_deleted_gets_no_session(bench: WorkBench) -> None:
    bench.make()
    gate = Gate(bench, "free")
    deleting = requests.delete(bench.world, bench.runner, "work", "")
    gate.wait()
    with pytest.raises(Conflict, match="it is being deleted"):
        bench.session(workspace="work")
    gate.go.set()
    assert bench.ended(deleting).state == "done"


def test_a_session_is_not_deleted_while_it_is_resumed(bench: WorkBench) -> None:
    bench.session()
    gate = Gate(bench, "clone")
    resuming = sessions_asked.resume(bench.world, bench.runner, "lab", "")
    with pytest.raises((Busy, Conflict)):
        sessions_asked.delete(bench.world, bench.runner, "lab", "", with_workspace=True)
    gate.go.set()
    assert bench.ended(resuming).state == "done"


def test_a_fork_of_a_snapshot_from_before_a_resize_has_its_size(bench: WorkBench) -> None:
    bench.make()
    bench.ended(bench.destroy(bench.new(workspace="work").vmid))
    world, runner = bench.world, bench.runner
    bench.ended(requests.save_snapshot(world, runner, "work", "", "first"))
    bench.ended(requests.resize(world, runner, "work", "", size=4096))
    bench.ended(requests.fork(world, runner, "work", "", new="copy", snapshot="first"))
    assert bench.workspace("copy").size == 1024
    assert workspace_check.check(world, "copy") == []


def test_branches_of_a_session_that_is_gone_are_not_another_ones(bench: WorkBench) -> None:
    bench.session()
    name, forking = sessions_asked.branch(bench.world, bench.runner, "lab", "x", "")
    bench.ended(forking)
    bench.ended(sessions_asked.delete(bench.world, bench.runner, "lab", "", with_workspace=True))
    bench.session()
    again, forking = sessions_asked.branch(bench.world, bench.runner, "lab", "x", "")
    assert again != name
    assert bench.ended(forking).state == "done"


def test_two_sessions_of_one_branch(bench: WorkBench) -> None:
    bench.session("a", branch="main")
    with pytest.raises(Conflict, match="session a is for branch main"):
        bench.session("b", branch="main")


# --- rebind ---


def rebind(bench: WorkBench, *, force: bool = False) -> str:
    spec = SandboxSpec("")
    return requests.rebind(bench.world, bench.runner, "work", spec, "", keep_old=False, force=force)


def test_who_destroys_the_old_one_does_not_undo_the_move(bench: WorkBench) -> None:
    bench.make()
    old = bench.new(workspace="work")
    block = bench.undestroyed(old.vmid)
    moving = rebind(bench)
    until(lambda: "destroy_old" in operation(bench, moving).waits_for)
    new = bench.workspace().vmid
    destroying = bench.destroy(old.vmid, force=True)
    block.set()
    bench.runner.wake(moving)
    assert bench.ended(moving).state == "done"
    bench.ended(destroying)
    assert bench.workspace().vmid == new
    assert bench.hypervisor.mounted == {new}


def test_a_rebind_ends_what_uses_work_when_it_is_told(bench: WorkBench) -> None:
    bench.make()
    old = bench.new(workspace="work", labels={"who": "me"})
    bench.hypervisor.busy[old.vmid] = [{"pid": 9**99, "name": "x", "user": "agent"}]
    refused = bench.ended(rebind(bench))
    assert "x (?, agent)" in refused.error
    assert "--force" in refused.hint
    done = bench.ended(rebind(bench, force=True))
    assert done.state == "done"
    assert bench.box(done.vmid).labels == {"who": "me"}


def test_a_session_is_not_stopped_while_it_moves(bench: WorkBench) -> None:
    bench.session(workspace=bench.make().name)
    bench.ended(sessions_asked.resume(bench.world, bench.runner, "lab", ""))
    gate = Gate(bench, "clone")
    moving = rebind(bench)
    gate.wait()
    with pytest.raises(Busy, match=r"workspace\.rebind"):
        sessions_asked.stop(bench.world, bench.runner, "lab", "")
    gate.go.set()
    assert bench.ended(moving).state == "done"


# --- the queue ---


def test_who_waits_takes_no_vmid(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    for _ in range(9):
        bench.create(dataclasses.replace(WITH_WORK, workspace_wait=3600))
    other = bench.create(SPEC)
    bench.until(other, JobState.RUNNING)
    with bench.world.store.read() as tx:
        assert {one.vmid for one in sandboxes.live(tx)} == {box.vmid, bench.job(other).vmid}


def test_an_attach_does_not_jump_the_queue(bench: WorkBench) -> None:
    bench.make()
    box, other = bench.new(workspace="work"), bench.new()
    job = bench.create(dataclasses.replace(WITH_WORK, workspace_wait=3600))
    until(lambda: bool(bench.job(job).waits_for))
    gate = Gate(bench, "detach")
    detaching = requests.detach(bench.world, bench.runner, "work", "", force=False)
    gate.wait()
    gate.go.set()
    bench.ended(detaching)
    with pytest.raises(Conflict, match=rf"job {job.id} waits for it|attached to sandbox"):
        requests.attach(bench.world, bench.runner, "work", str(other.vmid), "")
    bench.until(job, JobState.RUNNING)
    assert bench.workspace().vmid not in (box.vmid, other.vmid)


def test_an_attach_whose_turn_comes_lets_those_who_wait_go_first(bench: WorkBench) -> None:
    """Nobody waited when it was asked for."""
    bench.make()
    bench.new(workspace="work")
    other = bench.new()
    job = bench.create(dataclasses.replace(WITH_WORK, workspace_wait=3600))
    until(lambda: bool(bench.job(job).waits_for))
    bench.hypervisor.plugged.clear()
    with bench.world.store.write() as tx:
        found = workspaces.get(tx, "work")
        workspaces.release(tx, found.id, found.nonce)
        asked = bench.runner.submit(
            tx, "workspace.attach", [f"workspace:{found.id}"],
            {"workspace": found.id, "sandbox": other.id}, vmid=other.vmid, in_turn=True,
        )  # fmt: skip
    ended = bench.ended(asked)
    assert (ended.state, ended.code) == ("failed", "conflict")
    assert other.vmid not in bench.hypervisor.plugged
    bench.until(job, JobState.RUNNING)


def test_all_of_this_leaves_no_session_without_work(bench: WorkBench) -> None:
    bench.session()
    bench.ended(sessions_asked.delete(bench.world, bench.runner, "lab", "", with_workspace=True))
    with bench.world.store.read() as tx:
        assert sessions.everyone(tx) == []
        assert tx.execute("SELECT count(*) FROM subject").fetchone()[0] == 0


# --- an undo that can never be done must not hold a sandbox for ever ---


def test_a_disk_that_its_machine_does_not_take_back_is_left_to_the_next_start(
    bench: WorkBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_snapshots, "_TRIES", 3)
    bench.make()
    box = bench.new()
    assert bench.attach("work", box.vmid).state == "done"
    bench.act(STOP, box)
    bench.hypervisor.faults["rollback"] = [Conflict("the storage says no")]
    bench.hypervisor.faults["attach"] = [Busy("VM is locked (backup)") for _ in range(100)]
    failed = bench.ended(
        sandbox_requests.revert(bench.world, bench.runner, str(box.vmid), "", restart=False)
    )
    assert (failed.state, failed.error) == ("failed", "the storage says no")
    assert bench.hypervisor.faults["attach"], "tried a few times, and not for ever"
    assert bench.workspace().holder == box.id
    assert bench.hypervisor.plugged == {}
    with bench.world.store.read() as tx:
        told = [each.text for each in events.after(tx, 0, limit=1000)]
    assert [text for text in told if "its work disk is not attached: VM is locked" in text]
    bench.hypervisor.faults["attach"].clear()
    bench.act(START, box)
    assert bench.hypervisor.plugged == {box.vmid: bench.workspace().volid}
    assert bench.hypervisor.mounted == {box.vmid}

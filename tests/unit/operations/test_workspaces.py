"""Workspaces on a real store and engine, with a hypervisor in memory whose guests mount them."""

from __future__ import annotations

import dataclasses

import pytest

from agentlab import clock
from agentlab.control import workspace_check, workspace_leases
from agentlab.errors import Busy, Conflict, Invalid, NotFound, Unavailable
from agentlab.model.job import JobState
from agentlab.model.sandbox import SandboxSpec, SandboxState
from agentlab.model.session import Session
from agentlab.model.workspace import WorkspaceSpec, WorkspaceState
from agentlab.operations import sandbox_requests, session_stop, workspace_create, workspace_volume
from agentlab.operations import workspace_requests as requests
from agentlab.operations.sandbox_power import START, STOP
from agentlab.store import events, operations, sandboxes, sessions, workspaces
from agentlab.store.operations import OperationRow
from tests.unit.operations.bench import SPEC
from tests.unit.operations.work_bench import WorkBench, bench
from tests.waiting import until

__all__ = ["bench"]  # the fixture
S, W = SandboxState, WorkspaceState


def test_a_workspace_is_made_attached_written_moved_and_deleted(bench: WorkBench) -> None:
    made = bench.make()
    assert (made.state, made.size, made.formatted, made.storage) == (
        W.DETACHED,
        1024,
        False,
        "local",
    )
    first, second = bench.new(), bench.new()
    assert bench.attach("work", first.vmid).state == "done"
    held = bench.workspace()
    assert (held.state, held.vmid, held.holder, held.formatted) == (
        W.ATTACHED, first.vmid, first.id, True,
    )  # fmt: skip
    assert bench.hypervisor.mounted == {first.vmid}
    bench.volume().content = "mine"
    assert bench.detach("work").state == "done"
    assert bench.hypervisor.mounted == set()
    assert bench.workspace().state is W.DETACHED
    assert bench.attach("work", second.vmid).state == "done"
    assert bench.volume().content == "mine"
    assert bench.detach("work").state == "done"
    assert bench.ended(requests.delete(bench.world, bench.runner, "work", "")).state == "done"
    assert bench.hypervisor.stored == {}
    with pytest.raises(NotFound):
        bench.workspace()


def test_its_name_and_number_are_free_again(bench: WorkBench) -> None:
    first = bench.make()
    bench.ended(requests.delete(bench.world, bench.runner, "work", ""))
    second = bench.make()
    assert second.id != first.id
    assert second.number != first.number


def test_attached_to_at_most_one(bench: WorkBench) -> None:
    bench.make()
    first, second = bench.new(), bench.new()
    bench.attach("work", first.vmid)
    with pytest.raises(Conflict, match=f"attached to sandbox {first.vmid}") as told:
        bench.attach("work", second.vmid)
    assert "agentlab workspace detach work" in told.value.hint
    assert bench.attach("work", first.vmid).state == "done"  # again is no harm
    bench.make("other")
    with pytest.raises(Conflict, match="it has workspace work"):
        bench.attach("other", first.vmid)


def test_of_many_that_want_it_at_once_one_gets_it(bench: WorkBench) -> None:
    bench.make()
    boxes = [bench.new() for _ in range(4)]
    asked = []
    for box in boxes:
        try:
            asked.append(requests.attach(bench.world, bench.runner, "work", str(box.vmid), ""))
        except Conflict:
            continue
    ended = [bench.ended(each) for each in asked]
    assert [each.state for each in ended].count("done") == 1
    assert len(bench.hypervisor.plugged) == 1
    assert bench.workspace().vmid == next(each.vmid for each in ended if each.state == "done")


def test_a_busy_workspace_is_not_torn_out(bench: WorkBench) -> None:
    bench.make()
    box = bench.new()
    bench.attach("work", box.vmid)
    bench.hypervisor.busy[box.vmid] = [
        {"pid": 77, "name": "vim\x1b[2J", "user": "agent"}, {"pid": "x"}, "hostile",  # type: ignore[list-item]
    ]  # fmt: skip
    ended = bench.detach("work")
    assert (ended.state, ended.code) == ("failed", "conflict")
    assert "vim\\x1b[2J (77, agent)" in ended.error
    assert "--force" in ended.hint
    assert bench.hypervisor.mounted == {box.vmid}
    assert bench.workspace().vmid == box.vmid
    assert bench.detach("work", force=True).state == "done"
    assert bench.volume().fs == "clean"


@pytest.mark.parametrize("state", ["STOPPED", "DESTROYED"])
def test_a_detach_without_a_guest(bench: WorkBench, state: str) -> None:
    bench.make()
    box = bench.new()
    bench.attach("work", box.vmid)
    if state == "STOPPED":
        bench.act(STOP, box)
        assert bench.workspace().vmid == box.vmid  # a stopped sandbox keeps it
    else:
        bench.ended(bench.destroy(box.vmid, force=True))
    assert bench.detach("work").state == "done"
    assert bench.workspace().state is W.DETACHED
    assert bench.volume().fs == "clean"


def test_a_started_sandbox_has_its_work_again(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    assert bench.hypervisor.mounted == {box.vmid}
    bench.act(STOP, box)
    assert bench.hypervisor.mounted == set()
    bench.act(START, box)
    assert bench.hypervisor.mounted == {box.vmid}


def test_a_sandbox_is_made_with_it_and_its_end_leaves_it(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    calls = bench.hypervisor.calls
    assert calls.index("snapshot") < calls.index("attach") < calls.index("start")
    bench.volume().content = "mine"
    with pytest.raises(Conflict, match="cannot use workspace work"):
        bench.ask(workspace="work")
    bench.ended(bench.destroy(box.vmid))
    assert bench.workspace().state is W.DETACHED
    assert (bench.volume().content, bench.volume().fs) == ("mine", "clean")


def test_a_sandbox_that_cannot_be_made_gives_it_back(bench: WorkBench) -> None:
    bench.make()
    bench.hypervisor.faults["start"] = [Conflict("no tap")]
    assert bench.ended(bench.ask(workspace="work")).state == "failed"
    assert bench.workspace().state is W.DETACHED
    assert bench.hypervisor.plugged == {}
    assert bench.new(workspace="work").state is S.READY


def test_a_sandbox_that_gets_another_vmid_keeps_it(bench: WorkBench) -> None:
    bench.make()
    bench.hypervisor.strangers = 2
    box = bench.new(workspace="work")
    held = bench.workspace()
    assert (held.holder, held.vmid) == (box.id, box.vmid)
    assert bench.hypervisor.plugged == {box.vmid: held.volid}


def test_a_damaged_one_is_given_to_nobody_and_mended(bench: WorkBench) -> None:
    bench.make()
    box = bench.new()
    bench.attach("work", box.vmid)
    bench.detach("work")
    bench.volume().fs = "damaged"
    ended = bench.attach("work", box.vmid)
    assert ended.state == "failed"
    assert "agentlab workspace fsck work" in ended.hint
    assert bench.workspace().state is W.DETACHED
    assert bench.hypervisor.plugged == {}
    for repair, state in ((False, "NEEDS REPAIR"), (True, "repaired"), (False, "clean")):
        done = bench.ended(requests.fsck(bench.world, bench.runner, "work", "", repair=repair))
        with bench.world.store.read() as tx:
            (step,) = [s for s in operations.steps(tx, done.id).values() if s.name == "fsck"]
        assert step.output["result"]["state"] == state  # type: ignore[index]
    assert bench.attach("work", box.vmid).state == "done"


def test_a_file_system_is_made_once_and_never_again(bench: WorkBench) -> None:
    bench.make()
    box = bench.new()
    bench.attach("work", box.vmid)
    bench.detach("work")
    bench.volume().fs = ""  # somebody has wiped it
    ended = bench.attach("work", box.vmid)
    assert "its file system is gone" in ended.error
    assert bench.volume().fs == ""


DETACHED_ONLY = {
    "fsck": lambda b: requests.fsck(b.world, b.runner, "work", "", repair=True),
    "resize": lambda b: requests.resize(b.world, b.runner, "work", "", size=2048),
    "delete": lambda b: requests.delete(b.world, b.runner, "work", ""),
    "snapshot": lambda b: requests.save_snapshot(b.world, b.runner, "work", "", "mine"),
    "restore": lambda b: requests.restore_snapshot(b.world, b.runner, "work", "", "mine"),
    "snapshot delete": lambda b: requests.delete_snapshot(b.world, b.runner, "work", "", "mine"),
    "fork": lambda b: requests.fork(b.world, b.runner, "work", "", new="other"),
}


@pytest.mark.parametrize("verb", DETACHED_ONLY)
def test_what_needs_it_detached_refuses_and_says_what_detaches(bench: WorkBench, verb: str) -> None:
    bench.make()
    box = bench.new()
    bench.attach("work", box.vmid)
    before = list(bench.hypervisor.calls)
    with pytest.raises(Conflict, match=f"attached to sandbox {box.vmid}") as told:
        DETACHED_ONLY[verb](bench)
    assert "agentlab workspace detach work" in told.value.hint
    assert bench.hypervisor.calls == before
    with bench.world.store.write() as tx:
        found = workspaces.get(tx, "work")
        sessions.create(tx, Session("lab", found.id, "demo", 0.0, 0.0))
    with pytest.raises(Conflict) as told:
        DETACHED_ONLY[verb](bench)
    assert "agentlab session stop lab" in told.value.hint


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (workspace_volume.FSCK, {"repair": True}),
        (workspace_volume.RESIZE, {"size": 4096}),
        (workspace_volume.DELETE, {}),
        (workspace_volume.SAVE, {"name": "mine"}),
        (workspace_volume.RESTORE, {"name": "mine"}),
        (workspace_volume.SNAPSHOT_DELETE, {"name": "mine"}),
        (workspace_create.FORK, {"made": 0}),
        (session_stop.DELETE, {"session": 1, "with_workspace": True}),
    ],
)
def test_what_was_attached_before_the_turn_came_is_not_touched(
    bench: WorkBench, kind: str, given: dict[str, object]
) -> None:
    """It was detached when that was asked for, which the request has seen to."""
    identity = bench.make().id
    box = bench.new()
    before = list(bench.hypervisor.calls)
    with bench.world.store.write() as tx:
        workspaces.hold(tx, identity, box)
        operation = bench.runner.submit(
            tx, kind, [f"workspace:{identity}"], {"workspace": identity, **given}, in_turn=True
        )
    ended = bench.ended(operation)
    assert (ended.state, ended.code) == ("failed", "conflict")
    assert f"sandbox {box.vmid}" in ended.error
    assert bench.hypervisor.calls == before


def test_snapshots_restore_and_fork(bench: WorkBench) -> None:
    bench.make()
    with pytest.raises(Conflict, match="nothing in it yet"):
        requests.save_snapshot(bench.world, bench.runner, "work", "", "empty")
    bench.ended(bench.destroy(bench.new(workspace="work").vmid))
    volume = bench.volume()
    volume.content = "one"

    def save() -> OperationRow:
        asked = requests.save_snapshot(bench.world, bench.runner, "work", "", "first")
        return bench.ended(asked)

    assert save().state == "done"
    assert save().code == "conflict"  # the name is taken
    volume.content = "two"

    def fork(new: str, of: str = "") -> OperationRow:
        return bench.ended(
            requests.fork(bench.world, bench.runner, "work", "", new=new, snapshot=of)
        )

    assert fork("now").state == "done"
    assert fork("then", "first").state == "done"
    assert (bench.volume("now").content, bench.volume("then").content) == ("two", "one")
    assert bench.workspace("then").origin == "work@first"
    assert bench.workspace("then").formatted
    restore = requests.restore_snapshot(bench.world, bench.runner, "work", "", "first")
    assert bench.ended(restore).state == "done"
    assert volume.content == "one"
    assert bench.volume("now").content == "two"
    missing = bench.ended(requests.restore_snapshot(bench.world, bench.runner, "work", "", "none"))
    assert missing.code == "not_found"
    dropped = requests.delete_snapshot(bench.world, bench.runner, "work", "", "first")
    assert bench.ended(dropped).state == "done"
    assert volume.snapshots == {}


def test_a_fork_that_fails_leaves_nothing(bench: WorkBench) -> None:
    bench.make()
    bench.hypervisor.faults["clone_volume"] = [Conflict("storage local is full")]
    ended = bench.ended(requests.fork(bench.world, bench.runner, "work", "", new="other"))
    assert ended.state == "failed"
    with bench.world.store.read() as tx:
        assert [each.name for each in workspaces.live(tx)] == ["work"]
    assert len(bench.hypervisor.stored) == 1


def test_a_volume_from_before_is_left_alone(bench: WorkBench) -> None:
    """A database that was lost: its volumes are ours by name, and nobody knows what is in them."""
    first = bench.make()
    bench.volume().content = "precious"
    with bench.world.store.write() as tx:
        tx.execute("DELETE FROM workspace")
    again = bench.make()
    assert again.number != first.number
    assert bench.hypervisor.stored[first.volid].content == "precious"
    assert bench.volume().content == ""


def test_resize(bench: WorkBench) -> None:
    bench.make()
    with pytest.raises(Invalid, match="never made smaller"):
        requests.resize(bench.world, bench.runner, "work", "", size=512)
    done = requests.resize(bench.world, bench.runner, "work", "", size=4096)
    assert bench.ended(done).state == "done"
    assert (bench.workspace().size, bench.volume().size) == (4096, 4096)


@pytest.mark.parametrize(
    ("name", "size", "path"),
    [("Bad", 1024, "name"), ("", 1024, "name"), ("a" * 64, 1024, "name"), ("-x", 1024, "name"),
     ("../x", 1024, "name"), ("fine", 1, "size"), ("fine", -5, "size"), ("fine", 1 << 40, "size")],
)  # fmt: skip
def test_bad_input(bench: WorkBench, name: str, size: int, path: str) -> None:
    with pytest.raises(Invalid) as told:
        requests.create(bench.world, bench.runner, WorkspaceSpec(name, size), "")
    assert told.value.details["path"] == path
    assert bench.hypervisor.calls == []


def test_a_storage_that_is_not_there(bench: WorkBench) -> None:
    with pytest.raises(NotFound, match="no storage nas"):
        requests.create(bench.world, bench.runner, WorkspaceSpec("work", 1024, "nas"), "")
    with bench.world.store.read() as tx:
        assert workspaces.live(tx) == []


def test_the_same_request_twice_makes_one(bench: WorkBench) -> None:
    spec = WorkspaceSpec("work", 1024)
    asked = [requests.create(bench.world, bench.runner, spec, "key") for _ in range(2)]
    assert asked[0] == asked[1]
    with pytest.raises(Conflict, match="something else"):
        requests.create(bench.world, bench.runner, WorkspaceSpec("work", 2048), "key")


# --- jobs ---


def test_a_job_works_in_it_and_leaves_it(bench: WorkBench) -> None:
    bench.make()
    job = bench.create(dataclasses.replace(SPEC, workspace="work"))
    bench.until(job, JobState.RUNNING)
    assert bench.hypervisor.mounted == {bench.workspace().vmid}
    with pytest.raises(Busy, match=f"job {job.id} runs in it"):
        requests.detach(bench.world, bench.runner, "work", "", force=True)
    bench.volume().content = "done"
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    assert bench.workspace().state is W.DETACHED
    assert (bench.volume().content, bench.volume().fs) == ("done", "clean")
    assert bench.clean()


def test_a_job_waits_for_a_held_one_as_long_as_it_was_told(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    spec = dataclasses.replace(SPEC, workspace="work")
    with pytest.raises(Conflict, match=f"sandbox {box.vmid} has it") as told:
        bench.create(spec)
    assert "--workspace-wait" in told.value.hint
    waits = bench.create(dataclasses.replace(spec, workspace_wait=600))
    bench.waits(waits, f"workspace work: sandbox {box.vmid} has it")
    bench.ended(bench.destroy(box.vmid))
    bench.until(waits, JobState.RUNNING)
    late = bench.create(dataclasses.replace(spec, workspace_wait=1))
    failed = bench.until(late, JobState.FAILED)
    assert "cannot use workspace work" in failed.reason
    bench.report(waits)
    bench.until(waits, JobState.COMPLETED)
    assert bench.workspace().state is W.DETACHED


def test_those_who_wait_come_in_order(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    spec = dataclasses.replace(SPEC, workspace="work", workspace_wait=600)
    jobs = []
    for _ in range(3):
        jobs.append(bench.create(spec))
        until(lambda: bench.job(jobs[-1]).waits_for)
    bench.ended(bench.destroy(box.vmid))
    for job in jobs:
        bench.until(job, JobState.RUNNING)
        others = [bench.job(each).state for each in jobs[jobs.index(job) + 1 :]]
        assert all(state is JobState.QUEUED for state in others)
        bench.report(job)
        bench.until(job, JobState.COMPLETED)


# --- rebind ---


def rebind(bench: WorkBench, *, keep_old: bool = False) -> str:
    spec = SandboxSpec("")
    return requests.rebind(bench.world, bench.runner, "work", spec, "", keep_old=keep_old)


@pytest.mark.parametrize("keep_old", [False, True])
def test_rebind_moves_it_when_the_new_one_is_ready(bench: WorkBench, keep_old: bool) -> None:
    bench.make()
    old = bench.new(workspace="work")
    bench.volume().content = "mine"
    done = bench.ended(rebind(bench, keep_old=keep_old))
    assert done.state == "done", done
    new = bench.box(done.vmid)
    assert (new.state, bench.workspace().vmid) == (S.READY, new.vmid)
    assert bench.hypervisor.mounted == {new.vmid}
    assert (bench.volume().content, bench.volume().fs) == ("mine", "clean")
    with bench.world.store.read() as tx:
        state = sandboxes.find(tx, old.vmid)
    assert state is not None
    assert state.state is (S.READY if keep_old else S.DESTROYED)


@pytest.mark.parametrize("fault", ["clone", "start", "attach", "mount", "busy"])
def test_a_rebind_that_fails_leaves_it_where_it_was(bench: WorkBench, fault: str) -> None:
    bench.make()
    old = bench.new(workspace="work")
    bench.volume().content = "mine"
    if fault == "busy":
        bench.hypervisor.busy[old.vmid] = [{"pid": 1, "name": "x", "user": "agent"}]
    elif fault == "mount":
        plain = bench.hypervisor._mount

        def only_in_old(vmid: int, make: bool) -> dict[str, object]:
            return plain(vmid, make) if vmid == old.vmid else {"error": "damaged", "detail": ""}

        bench.hypervisor._mount = only_in_old  # type: ignore[method-assign]
    else:
        bench.hypervisor.faults[fault] = [Conflict("it must not be")]
    ended = bench.ended(rebind(bench))
    assert ended.state == "failed", ended
    held = bench.workspace()
    assert (held.holder, held.vmid) == (old.id, old.vmid)
    assert bench.hypervisor.plugged == {old.vmid: held.volid}
    assert bench.hypervisor.mounted == {old.vmid}
    assert [*bench.hypervisor.machines] == [old.vmid]


# --- leases ---


def test_a_lease_is_renewed_for_a_sandbox_that_is_there_and_for_no_other(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")

    def age() -> None:
        with bench.world.store.write() as tx:
            tx.execute("UPDATE workspace SET lease_until = ?", (clock.now() - 5,))

    age()
    assert bench.workspace().stale(clock.now())
    assert workspace_leases.renew(bench.world) == 1
    assert not bench.workspace().stale(clock.now())
    age()
    bench.hypervisor.faults["inventory"] = [Unavailable("no answer")]
    assert workspace_leases.renew(bench.world) == 1  # what cannot be seen is not gone
    age()
    del bench.hypervisor.machines[box.vmid]
    assert workspace_leases.renew(bench.world) == 0
    assert bench.workspace().stale(clock.now())


def test_a_lease_is_cleared_by_hand_when_it_is_stale_and_nobody_has_the_volume(
    bench: WorkBench,
) -> None:
    bench.make()
    box = bench.new(workspace="work")
    with pytest.raises(Conflict, match="renews it"):
        requests.clear_lease(bench.world, "work", force=False)
    with pytest.raises(Conflict, match=f"machine {box.vmid} has its volume"):
        requests.clear_lease(bench.world, "work", force=True)
    del bench.hypervisor.machines[box.vmid], bench.hypervisor.plugged[box.vmid]
    with bench.world.store.write() as tx:
        tx.execute("UPDATE workspace SET lease_until = 1")
    assert requests.clear_lease(bench.world, "work", force=False).state is W.DETACHED
    assert requests.clear_lease(bench.world, "work", force=False).state is W.DETACHED


def test_who_has_lost_a_lease_changes_nothing(bench: WorkBench) -> None:
    bench.make()
    first, second = bench.new(), bench.new()
    with bench.world.store.write() as tx:
        identity = workspaces.get(tx, "work").id
        old = workspaces.hold(tx, identity, first)
        workspaces.release(tx, identity, old)
        new = workspaces.hold(tx, identity, second)
        assert not workspaces.renew(tx, identity, old)
        assert workspaces.release(tx, identity, old).nonce == new
        assert workspaces.renew(tx, identity, new)


def test_a_creation_whose_lease_was_cleared_does_not_attach(bench: WorkBench) -> None:
    bench.make()

    class Clears(list[Exception]):
        def pop(self, _: object = -1) -> Exception:  # type: ignore[override]
            self.clear()
            with bench.world.store.write() as tx:
                found = workspaces.get(tx, "work")
                workspaces.release(tx, found.id, found.nonce)
            return Unavailable("a moment")

    bench.hypervisor.faults["clone"] = Clears([Unavailable("")])
    ended = bench.ended(bench.ask(workspace="work"))
    assert (ended.state, "was cleared" in ended.error) == ("failed", True)
    assert bench.hypervisor.plugged == {}


# --- check ---


def test_check_finds_nothing_when_all_is_well(bench: WorkBench) -> None:
    bench.make()
    assert workspace_check.check(bench.world, "work") == []
    bench.new(workspace="work")
    assert workspace_check.check(bench.world, "work") == []


def test_a_request_that_is_asked_again_after_its_end_is_the_same(bench: WorkBench) -> None:
    """Its reply was lost: what it asked for is gone by now, or is the other way round."""
    bench.make()
    vmid = bench.new().vmid
    at = (bench.world, bench.runner, "work")
    asked = [
        lambda: requests.attach(*at, str(vmid), "first"),
        lambda: requests.detach(*at, "second", force=False),
        lambda: requests.delete(*at, "third"),
    ]
    first = [bench.ended(ask()).id for ask in asked]
    assert [ask() for ask in asked] == first
    with pytest.raises(Conflict, match="asked for something else"):
        requests.delete(*at, "second")


def test_a_detach_that_fails_at_its_end_leaves_the_lease_with_its_disk(bench: WorkBench) -> None:
    """The answer that it is out was lost: it is put in again, and mounted."""
    bench.make()
    vmid = bench.new().vmid
    assert bench.attach("work", vmid).state == "done"
    real = bench.hypervisor.detach

    def detach(vmid: int, volid: str, *, owner: str) -> None:
        real(vmid, volid, owner=owner)
        raise Conflict("the disk is on fire")

    bench.hypervisor.detach = detach  # type: ignore[method-assign]
    assert bench.detach("work").state == "failed"
    assert bench.workspace().vmid == vmid
    assert bench.hypervisor.plugged == {vmid: bench.workspace().volid}
    assert bench.hypervisor.mounted == {vmid}


@pytest.mark.parametrize("verb", ["detach", "rebind"])
def test_a_disk_that_a_machine_does_not_take_back_keeps_nobody_waiting(
    bench: WorkBench, verb: str
) -> None:
    """The lease stays, by which the next start attaches it."""
    bench.make()
    old = bench.new(workspace="work")
    real = bench.hypervisor.attach

    def out_and_refused(vmid: int, volid: str, *, owner: str) -> None:
        bench.hypervisor.plugged.pop(vmid, None)
        bench.hypervisor.attach = never  # type: ignore[method-assign]
        raise Conflict("the disk is on fire")

    def never(vmid: int, volid: str, *, owner: str) -> None:
        raise Busy("it is still being detached there")

    if verb == "detach":
        bench.hypervisor.detach = out_and_refused  # type: ignore[method-assign]
        assert bench.detach("work").state == "failed"
    else:
        bench.hypervisor.attach = out_and_refused  # type: ignore[method-assign]
        assert bench.ended(rebind(bench)).state == "failed"
    assert (bench.workspace().holder, bench.workspace().vmid) == (old.id, old.vmid)
    assert bench.hypervisor.plugged == {}
    with bench.world.store.read() as tx:
        told = [each.text for each in events.after(tx, 0, limit=1000)]
    for what in ("in", "mounted in"):
        assert [text for text in told if f"workspace work is not {what} sandbox {old.vmid}" in text]

    bench.hypervisor.attach = real  # type: ignore[method-assign]
    bench.act(STOP, old)
    bench.act(START, old)
    assert bench.hypervisor.plugged == {old.vmid: bench.workspace().volid}


def test_a_sandbox_that_cannot_be_destroyed_has_given_its_workspace_up(bench: WorkBench) -> None:
    """Its disk is out by then: a lease without it would keep the workspace from everybody."""
    bench.make()
    vmid = bench.new().vmid
    assert bench.attach("work", vmid).state == "done"

    def destroy(vmid: int, *, owner: str) -> None:
        raise Conflict("the disk is on fire")

    bench.hypervisor.destroy = destroy  # type: ignore[method-assign]
    assert bench.ended(bench.destroy(vmid)).state == "failed"
    assert bench.box(vmid).state is SandboxState.STOPPED
    assert (bench.workspace().state, bench.workspace().holder) == (WorkspaceState.DETACHED, 0)
    assert bench.hypervisor.plugged == {}


def test_a_new_sandbox_does_not_start_with_a_disk_whose_lease_it_has_lost(bench: WorkBench) -> None:
    """As by a hand in the database, between its attaching and its start."""
    bench.make()
    plain = bench.hypervisor.attach

    def attach(vmid: int, volid: str, *, owner: str) -> None:
        plain(vmid, volid, owner=owner)
        with bench.world.store.write() as tx:
            tx.execute("UPDATE workspace SET state = 'DETACHED', holder = 0, vmid = 0, nonce = ''")

    bench.hypervisor.attach = attach  # type: ignore[method-assign]
    spec = SandboxSpec("demo", name="box", workspace="work")
    made = sandbox_requests.create(bench.world, bench.runner, spec, "")
    assert "without a lease" in bench.ended(made).error
    assert "start" not in bench.hypervisor.calls

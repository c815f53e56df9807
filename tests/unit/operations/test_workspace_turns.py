"""What has changed by the time that a turn comes: an operation does what was meant, or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest

from agentlab.errors import Busy, Conflict
from agentlab.hypervisor.base import Machine, Power
from agentlab.model.job import Job, JobSpec, JobState
from agentlab.model.sandbox import SandboxSpec, SandboxState
from agentlab.model.workspace import WorkspaceState
from agentlab.operations import session_requests as sessions_asked
from agentlab.operations import session_stop, workspace_volume
from agentlab.operations import workspace_requests as requests
from agentlab.operations.sandbox_power import STOP
from agentlab.store import events, sessions, workspaces
from tests.unit.operations.bench import SPEC
from tests.unit.operations.work_bench import Gate, WorkBench, bench, operation
from tests.waiting import until

__all__ = ["bench"]  # the fixture
S, W = SandboxState, WorkspaceState


def rebind(bench: WorkBench, *, keep_old: bool = False, name: str = "work") -> str:
    spec = SandboxSpec("")
    return requests.rebind(bench.world, bench.runner, name, spec, "", keep_old=keep_old)


# --- rebind ---


def test_a_second_rebind_does_not_move_what_the_first_has_moved(bench: WorkBench) -> None:
    bench.make()
    old = bench.new(workspace="work")
    gate = Gate(bench, "clone")
    first = rebind(bench, keep_old=True)
    gate.wait()
    second = rebind(bench)
    gate.go.set()
    done = bench.ended(first)
    assert done.state == "done", done
    refused = bench.ended(second)
    assert (refused.state, refused.code) == ("failed", "conflict")
    assert f"sandbox {done.vmid} has it" in refused.error
    assert "agentlab workspace rebind work" in refused.hint
    assert bench.box(old.vmid).state is S.READY
    assert bench.workspace().vmid == done.vmid
    assert {*bench.hypervisor.machines} == {old.vmid, done.vmid}
    assert bench.detach("work").state == "done"


@pytest.mark.parametrize("by", ["cleared", "other"])
def test_a_rebind_leaves_an_old_one_alone_that_has_it_no_more(bench: WorkBench, by: str) -> None:
    """It has given it up while the new one was made: what it has now is not ours to take."""
    bench.make()
    bench.make("other")
    old = bench.new(workspace="work")
    gate = Gate(bench, "clone")
    moving = rebind(bench)
    gate.wait()
    bench.hypervisor.mounted.clear()
    bench.hypervisor.plugged.clear()
    with bench.world.store.write() as tx:
        found = workspaces.get(tx, "work")
        workspaces.release(tx, found.id, found.nonce)
    if by == "other":
        assert bench.attach("other", old.vmid).state == "done"
    gate.go.set()
    done = bench.ended(moving)
    assert done.state == "done", done
    assert bench.box(old.vmid).state is S.READY
    assert bench.workspace().vmid == done.vmid
    with_it = {old.vmid} if by == "other" else set()
    assert bench.hypervisor.mounted == {done.vmid} | with_it


def test_a_rebind_that_is_undone_gives_nothing_to_who_has_no_lease(bench: WorkBench) -> None:
    bench.make()
    old = bench.new(workspace="work")
    other = bench.new()
    plain = bench.hypervisor.attach

    def attach(vmid: int, volid: str, *, owner: str) -> None:
        if vmid in (old.vmid, other.vmid):
            return plain(vmid, volid, owner=owner)
        with bench.world.store.write() as tx:  # as if it had been cleared, and given to another
            found = workspaces.get(tx, "work")
            workspaces.pass_on(tx, found.id, found.nonce, other)
        plain(other.vmid, volid, owner=owner)
        raise Conflict("another machine has it")

    bench.hypervisor.attach = attach  # type: ignore[method-assign]
    ended = bench.ended(rebind(bench))
    assert ended.state == "failed"
    assert bench.workspace().holder == other.id
    assert bench.hypervisor.plugged == {other.vmid: bench.workspace().volid}


def test_a_rebind_of_what_is_detached_by_its_turn_destroys_nothing(bench: WorkBench) -> None:
    bench.make()
    old = bench.new(workspace="work")
    gate = Gate(bench, "detach")
    detaching = requests.detach(bench.world, bench.runner, "work", "", force=False)
    gate.wait()
    moving = rebind(bench)
    gate.go.set()
    assert bench.ended(detaching).state == "done"
    ended = bench.ended(moving)
    assert (ended.state, ended.code) == ("failed", "conflict")
    assert "no sandbox has it" in ended.error
    assert bench.box(old.vmid).state is S.READY


# --- who is next in line ---


@contextlib.contextmanager
def full(bench: WorkBench) -> Iterator[None]:
    """No VMID is free meanwhile: who is next in line waits before its sandbox is reserved."""
    vmids = [vmid for vmid in range(1000, 1010) if vmid not in bench.hypervisor.machines]
    for vmid in vmids:
        bench.hypervisor.machines[vmid] = Machine(vmid, "production", "", Power.RUNNING)
    yield
    for vmid in vmids:
        del bench.hypervisor.machines[vmid]


def next_in_line(bench: WorkBench, spec: JobSpec) -> Job:
    job = bench.create(spec)
    until(lambda: "VMID" in bench.job(job).waits_for)
    return job


def test_a_workspace_that_a_job_is_about_to_have_is_not_deleted(bench: WorkBench) -> None:
    identity = bench.make().id
    with full(bench):
        job = next_in_line(bench, dataclasses.replace(SPEC, workspace="work"))
        with pytest.raises(Conflict, match=f"cannot delete workspace work: job {job.id} waits"):
            requests.delete(bench.world, bench.runner, "work", "")
        with bench.world.store.write() as tx:  # nobody waited when it was asked for
            deleting = bench.runner.submit(
                tx, workspace_volume.DELETE, [f"workspace:{identity}"], {"workspace": identity},
                in_turn=True,
            )  # fmt: skip
        ended = bench.ended(deleting)
        assert (ended.state, f"job {job.id} waits" in ended.error) == ("failed", True)
    bench.runner.wake(job.operation)
    bench.until(job, JobState.RUNNING)


def test_a_session_whose_job_is_about_to_have_its_work_keeps_it(bench: WorkBench) -> None:
    session = bench.session()
    at, name = (bench.world, bench.runner), "lab"
    with full(bench):
        job = next_in_line(bench, dataclasses.replace(SPEC, session="lab"))
        with pytest.raises(Conflict, match=f"job {job.id} waits"):
            sessions_asked.delete(*at, name, "", with_workspace=True)
        with bench.world.store.write() as tx:
            deleting = bench.runner.submit(
                tx, session_stop.DELETE, [f"workspace:{session.workspace}"],
                {"workspace": session.workspace, "session": session.id, "with_workspace": True},
                in_turn=True,
            )  # fmt: skip
        ended = bench.ended(deleting)
        assert (ended.state, f"job {job.id} waits" in ended.error) == ("failed", True)
        alone = sessions_asked.delete(*at, name, "", with_workspace=False)
        assert bench.ended(alone).state == "done"  # the job has what it needs
    bench.runner.wake(job.operation)
    bench.until(job, JobState.RUNNING)


# --- sessions that are deleted ---


def test_a_workspace_that_goes_with_its_session_gets_no_other_one(bench: WorkBench) -> None:
    bench.session()
    at = (bench.world, bench.runner)
    saving, freeing = Gate(bench, "check_volume"), Gate(bench, "free")
    checking = requests.fsck(*at, "lab", "", repair=False)
    saving.wait()
    alone = sessions_asked.delete(*at, "lab", "", with_workspace=False)
    both = sessions_asked.delete(*at, "lab", "", with_workspace=True)
    saving.go.set()
    freeing.wait()
    assert bench.ended(checking).state == bench.ended(alone).state == "done"
    with pytest.raises(Conflict, match="it is being deleted"):
        bench.session("new", workspace="lab")
    freeing.go.set()
    assert bench.ended(both).state == "done"
    with bench.world.store.read() as tx:
        assert sessions.everyone(tx) == []
        assert workspaces.live(tx) == []


def test_a_workspace_of_another_session_by_now_does_not_go(bench: WorkBench) -> None:
    old = bench.session()
    at = (bench.world, bench.runner)
    assert bench.ended(sessions_asked.delete(*at, "lab", "", with_workspace=False)).state == "done"
    bench.session("new", workspace="lab")
    with bench.world.store.write() as tx:
        deleting = bench.runner.submit(
            tx, session_stop.DELETE, [f"workspace:{old.workspace}"],
            {"workspace": old.workspace, "session": old.id, "with_workspace": True}, in_turn=True,
        )  # fmt: skip
    ended = bench.ended(deleting)
    assert (ended.state, ended.code) == ("failed", "conflict")
    assert "session new" in ended.error
    assert bench.workspace("lab").state is W.DETACHED


# --- detach ---


def test_a_detach_says_so_when_another_has_it_by_its_turn(bench: WorkBench) -> None:
    bench.make()
    bench.new(workspace="work")
    gate = Gate(bench, "clone")
    moving = rebind(bench)
    gate.wait()
    detaching = requests.detach(bench.world, bench.runner, "work", "", force=False)
    gate.go.set()
    new = bench.ended(moving).vmid
    ended = bench.ended(detaching)
    assert (ended.state, ended.code) == ("failed", "conflict")
    assert f"sandbox {new} has it" in ended.error
    assert "agentlab workspace detach work" in ended.hint
    assert bench.hypervisor.mounted == {new}
    assert bench.detach("work").state == "done"
    assert bench.detach("work").state == "done"  # again is no harm


# --- a session that is about to run is not stopped already ---


def test_a_stop_sees_a_resume_that_waits(bench: WorkBench) -> None:
    bench.session()
    at = (bench.world, bench.runner, "lab", "")
    with full(bench):
        resuming = sessions_asked.resume(*at)
        until(lambda: "VMID" in operation(bench, resuming).waits_for)
        with pytest.raises(Busy, match="it is just being resumed") as told:
            sessions_asked.stop(*at)
        assert "--force" in told.value.hint
        stopping = sessions_asked.stop(*at, force=True)
    assert bench.ended(stopping).state == "done"
    assert bench.ended(resuming).state == "cancelled"
    assert sessions_asked.stop(*at) == ""
    assert bench.hypervisor.machines == {}
    assert bench.workspace("lab").state is W.DETACHED


def test_a_stop_sees_a_resume_that_waits_for_the_workspace(bench: WorkBench) -> None:
    bench.session()
    at = (bench.world, bench.runner, "lab", "")
    gate = Gate(bench, "check_volume")
    checking = requests.fsck(bench.world, bench.runner, "lab", "", repair=False)
    gate.wait()
    resuming = sessions_asked.resume(*at)
    with pytest.raises(Busy, match="it is just being resumed"):
        sessions_asked.stop(*at)
    stopping = sessions_asked.stop(*at, force=True)
    assert bench.ended(stopping).state == "done"
    gate.go.set()
    bench.ended(checking)
    assert bench.ended(resuming).state == "cancelled"
    assert bench.hypervisor.machines == {}


def test_a_stop_sees_a_job_that_waits_for_its_work(bench: WorkBench) -> None:
    bench.session()
    at = (bench.world, bench.runner, "lab", "")
    with full(bench):
        job = next_in_line(bench, dataclasses.replace(SPEC, session="lab"))
        with pytest.raises(Busy, match=f"job {job.id} waits for its work") as told:
            sessions_asked.stop(*at)
        assert f"agentlab job cancel {job.id}" in told.value.hint
        stopping = sessions_asked.stop(*at, force=True)
    assert bench.ended(stopping).state == "done"
    bench.until(job, JobState.CANCELLED)
    assert bench.hypervisor.machines == {}


def test_a_deletion_of_a_session_that_runs_by_its_turn_names_it(bench: WorkBench) -> None:
    session = bench.session()
    vmid = bench.ended(sessions_asked.resume(bench.world, bench.runner, "lab", "")).vmid
    with bench.world.store.write() as tx:
        deleting = bench.runner.submit(
            tx, session_stop.DELETE, [f"workspace:{session.workspace}"],
            {"workspace": session.workspace, "session": session.id}, in_turn=True,
        )  # fmt: skip
    ended = bench.ended(deleting)
    assert ended.error == f"cannot delete session lab: it runs in sandbox {vmid}"
    assert ended.hint == "stop it first: agentlab session stop lab"


# --- a lease ends when no machine has the volume ---


def test_a_detach_keeps_the_lease_of_what_a_vm_that_is_not_ours_has(bench: WorkBench) -> None:
    """Its mark was edited away, and its record closed: it runs on, with /work mounted."""
    bench.make()
    box = bench.new(workspace="work")
    marked = bench.hypervisor.machines[box.vmid]
    bench.hypervisor.machines[box.vmid] = dataclasses.replace(marked, owner="")
    bench.ended(bench.destroy(box.vmid, force=True))
    ended = bench.detach("work")
    assert (ended.state, ended.code) == ("failed", "conflict")
    assert f"VM {box.vmid} has its volume" in ended.error
    assert ended.hint
    assert bench.workspace().holder == box.id
    del bench.hypervisor.plugged[box.vmid]
    assert bench.detach("work").state == "done"


def test_a_detach_from_a_vm_that_lost_its_mark_meanwhile_keeps_the_lease(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    bench.act(STOP, box)
    marked = bench.hypervisor.machines[box.vmid]
    bench.hypervisor.machines[box.vmid] = dataclasses.replace(marked, owner="")
    ended = bench.detach("work")
    assert (ended.state, ended.code) == ("failed", "conflict")
    assert f"VM {box.vmid} has its volume" in ended.error
    assert bench.workspace().holder == box.id


# --- an old sandbox that cannot be destroyed ---


def test_a_rebind_whose_old_one_cannot_be_destroyed_is_done(bench: WorkBench) -> None:
    bench.make()
    old = bench.new(workspace="work")
    plain = bench.hypervisor.destroy

    def destroy(vmid: int, *, owner: str) -> None:
        if vmid == old.vmid:
            raise Conflict("protection mode enabled", hint="qm set --protection 0")
        plain(vmid, owner=owner)

    bench.hypervisor.destroy = destroy  # type: ignore[method-assign]
    done = bench.ended(rebind(bench))
    assert done.state == "done"
    assert bench.workspace().vmid == done.vmid
    left = bench.box(old.vmid)
    assert (left.state, "protection mode enabled" in left.reason) == (S.STOPPED, True)
    assert old.vmid not in [member.vmid for member in bench.fence.members]
    with bench.world.store.read() as tx:
        told = [each for each in events.after(tx, 0) if each.kind == "workspace.rebind"]
    assert f"agentlab sandbox destroy {old.vmid}" in told[-1].text
    bench.hypervisor.destroy = plain  # type: ignore[method-assign]
    assert bench.ended(bench.destroy(old.vmid)).state == "done"


def test_a_rebind_that_still_destroys_keeps_nobody_from_the_new_one(bench: WorkBench) -> None:
    bench.make()
    old = bench.new(workspace="work")
    block = bench.undestroyed(old.vmid)
    moving = rebind(bench)
    until(lambda: "destroy_old" in operation(bench, moving).waits_for)
    new = bench.workspace().vmid
    assert bench.detach("work").state == "done"
    assert bench.ended(bench.destroy(new, force=True)).state == "done"
    block.set()
    bench.runner.wake(moving)
    assert bench.ended(moving).state == "done"
    assert bench.hypervisor.machines == {}


def test_a_session_that_is_being_resumed_by_its_turn_is_not_deleted(bench: WorkBench) -> None:
    bench.session()
    at = (bench.world, bench.runner, "lab", "")
    gate = Gate(bench, "check_volume")
    checking = requests.fsck(*at, repair=False)
    gate.wait()
    deleting = sessions_asked.delete(*at, with_workspace=False)
    resuming = sessions_asked.resume(*at)
    gate.go.set()
    assert bench.ended(checking).state == "done"
    ended = bench.ended(deleting)
    assert (ended.state, ended.code) == ("failed", "conflict")
    assert "cannot delete session lab: it " in ended.error  # is being resumed, or runs by now
    assert bench.ended(resuming).state == "done"

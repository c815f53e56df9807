"""Sessions on a real store and engine: stopped, resumed, forked, branched, deleted; and their jobs."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from agentlab.config import Limits
from agentlab.errors import Busy, Conflict, Invalid, NotFound
from agentlab.model.job import JobState
from agentlab.model.sandbox import SandboxState
from agentlab.model.session import SessionSpec, branch_session_name, parse_branch, repo_session_base
from agentlab.model.workspace import WorkspaceState
from agentlab.operations import session_requests as requests
from agentlab.operations import workspace_requests
from agentlab.store import sandboxes, sessions, workspaces
from tests.unit.operations.bench import SPEC
from tests.unit.operations.work_bench import WorkBench, bench

__all__ = ["bench"]  # the fixture


def resume(bench: WorkBench, name: str = "lab") -> int:
    ended = bench.ended(requests.resume(bench.world, bench.runner, name, ""))
    assert ended.state == "done", ended
    return ended.vmid


def stop(bench: WorkBench, name: str = "lab", *, force: bool = False) -> None:
    operation = requests.stop(bench.world, bench.runner, name, "", force=force)
    assert operation
    assert bench.ended(operation).state == "done"


def test_work_is_stopped_and_resumed_in_a_new_vm(bench: WorkBench) -> None:
    session = bench.session()
    assert bench.workspace("lab").size == 20 << 10  # the settings' own
    first = resume(bench)
    bench.volume("lab").content = "mine"
    box = bench.box(first)
    assert (box.labels, box.state) == ({"session": "lab"}, SandboxState.READY)
    stop(bench)
    assert bench.hypervisor.machines == {}
    assert (bench.volume("lab").content, bench.volume("lab").fs) == ("mine", "clean")
    calls = bench.hypervisor.calls
    assert calls.index("shutdown") < calls.index("destroy")
    assert requests.stop(bench.world, bench.runner, "lab", "") == ""  # it is stopped
    second = bench.box(resume(bench))
    assert second.id != box.id
    assert bench.hypervisor.mounted == {second.vmid}
    assert bench.workspace("lab").holder == second.id
    assert session.profile == "demo"


def test_of_two_resumes_at_once_one_wins_and_the_other_is_told(bench: WorkBench) -> None:
    bench.session()
    told: list[Conflict] = []
    won: list[str] = []

    def one() -> None:
        try:
            won.append(requests.resume(bench.world, bench.runner, "lab", ""))
        except Conflict as conflict:
            told.append(conflict)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(told)) == (1, 5)
    assert all("cannot resume session lab" in each.message for each in told)
    assert bench.ended(won[0]).state == "done"
    with pytest.raises(Conflict, match="it runs in sandbox") as late:
        requests.resume(bench.world, bench.runner, "lab", "")
    assert "agentlab session stop lab" in late.value.hint
    assert len(bench.hypervisor.machines) == 1


def test_a_session_of_a_workspace_that_is_there(bench: WorkBench) -> None:
    bench.make()
    bench.session("mine", workspace="work")
    with pytest.raises(Conflict, match="belongs to session mine"):
        bench.session("other", workspace="work")
    with pytest.raises(Conflict, match="belongs to session mine") as told:
        workspace_requests.delete(bench.world, bench.runner, "work", "")
    assert "agentlab session delete mine" in told.value.hint
    with pytest.raises(Conflict, match="there is one of that name"):
        bench.session("mine")
    with pytest.raises(NotFound):
        bench.session("third", workspace="nothing")


def test_a_session_whose_workspace_cannot_be_made_is_not_there(bench: WorkBench) -> None:
    bench.hypervisor.faults["allot"] = [Conflict("storage local is full")]
    _, operation = requests.create(bench.world, bench.runner, SessionSpec("lab", "demo"), "")
    assert bench.ended(operation).state == "failed"
    with bench.world.store.read() as tx:
        assert sessions.everyone(tx) == []
    assert bench.session().name == "lab"


def test_fork_copies_the_work_too(bench: WorkBench) -> None:
    bench.session()
    resume(bench)
    bench.volume("lab").content = "mine"
    with pytest.raises(Conflict, match="attached to sandbox") as told:
        requests.fork(bench.world, bench.runner, "lab", "", new="copy")
    assert "agentlab session stop lab" in told.value.hint
    stop(bench)
    name, operation = requests.fork(bench.world, bench.runner, "lab", "", new="copy")
    assert (name, bench.ended(operation).state) == ("copy", "done")
    assert bench.volume("copy").content == "mine"
    bench.volume("copy").content = "theirs"
    assert bench.volume("lab").content == "mine"
    resume(bench, "copy")
    resume(bench)


def test_a_session_per_branch_is_the_same_one_again(bench: WorkBench) -> None:
    bench.session()
    name, operation = requests.branch(bench.world, bench.runner, "lab", "feature/Über-1", "")
    assert name == "lab-feature-ber-1"
    again = requests.branch(bench.world, bench.runner, "lab", "feature/Über-1", "")
    assert again in ((name, operation), (name, ""))
    bench.ended(operation)
    assert requests.branch(bench.world, bench.runner, "lab", "feature/Über-1", "") == (name, "")
    other, made = requests.branch(bench.world, bench.runner, "lab", "feature-ber-1", "")
    assert other == "lab-feature-ber-1-2"
    bench.ended(made)
    with bench.world.store.read() as tx:
        assert len(sessions.everyone(tx)) == 3


def test_a_branch_whose_fork_failed_is_told_so_when_it_is_asked_for_again(bench: WorkBench) -> None:
    """With the same key, after a reply that was lost."""
    bench.session()
    bench.hypervisor.faults["clone_volume"] = [Conflict("cannot copy: the test says so")]
    asked = (bench.world, bench.runner, "lab", "next", "key")
    name, operation = requests.branch(*asked)
    assert bench.ended(operation).state == "failed"
    assert requests.branch(*asked) == (name, operation) == ("lab-next", operation)
    name, again = requests.branch(*asked[:-1], "other key")
    assert (name, bench.ended(again).state) == ("lab-next", "done")


def test_delete_keeps_the_work_unless_told(bench: WorkBench) -> None:
    bench.session()
    box = resume(bench)
    with pytest.raises(Conflict, match=f"it runs in sandbox {box}"):
        requests.delete(bench.world, bench.runner, "lab", "", with_workspace=True)
    stop(bench)
    gone = requests.delete(bench.world, bench.runner, "lab", "", with_workspace=False)
    assert bench.ended(gone).state == "done"
    assert bench.workspace("lab").state is WorkspaceState.DETACHED
    bench.session("next", workspace="lab")
    gone = requests.delete(bench.world, bench.runner, "next", "", with_workspace=True)
    assert bench.ended(gone).state == "done"
    assert bench.hypervisor.stored == {}


def test_a_session_of_a_workspace_that_is_asked_for_again_is_there(bench: WorkBench) -> None:
    bench.make()
    spec = SessionSpec("mine", "demo", workspace="work")
    for _ in range(2):
        assert requests.create(bench.world, bench.runner, spec, "key") == ("mine", "")


def test_a_resume_that_does_not_queue_is_refused_at_once(bench: WorkBench) -> None:
    bench.session()
    config = dataclasses.replace(bench.world.config, limits=Limits(sandboxes=1))
    world = dataclasses.replace(bench.world, config=config)
    bench.new()
    with pytest.raises(Busy, match="no room"):
        requests.resume(world, bench.runner, "lab", "", queue=False)


# --- jobs ---


def test_a_job_in_a_session(bench: WorkBench) -> None:
    bench.session()
    spec = dataclasses.replace(SPEC, session="lab", profile="")
    job = bench.create(spec)
    assert job.spec.profile == "demo"
    bench.until(job, JobState.RUNNING)
    with pytest.raises(Conflict, match="it runs in sandbox"):
        requests.resume(bench.world, bench.runner, "lab", "")
    with pytest.raises(Busy, match=f"job {job.id} runs in it"):
        requests.stop(bench.world, bench.runner, "lab", "")
    bench.volume("lab").content = "done"
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    resume(bench)
    assert bench.volume("lab").content == "done"


def test_a_forced_stop_ends_the_job_first(bench: WorkBench) -> None:
    bench.session()
    job = bench.create(dataclasses.replace(SPEC, session="lab"))
    bench.until(job, JobState.RUNNING)
    stop(bench, force=True)
    assert bench.job(job).state is JobState.CANCELLED
    assert bench.hypervisor.machines == {}
    assert bench.workspace("lab").state is WorkspaceState.DETACHED
    assert bench.volume("lab").fs == "clean"


def test_a_stateful_job_finds_its_work_again(bench: WorkBench) -> None:
    spec = dataclasses.replace(SPEC, stateful=True)
    for content in ("one", "two"):
        job = bench.create(spec)
        bench.until(job, JobState.RUNNING)
        with bench.world.store.read() as tx:
            (session,) = sessions.everyone(tx)
            (workspace,) = workspaces.live(tx)
        assert session.name == "x-head"
        assert bench.hypervisor.stored[workspace.volid].content == (
            "" if content == "one" else "one"
        )
        bench.hypervisor.stored[workspace.volid].content = content
        bench.report(job)
        bench.until(job, JobState.COMPLETED)
    other = bench.create(dataclasses.replace(spec, branch="next"))
    assert other.spec.repo.ref == "next"
    bench.until(other, JobState.RUNNING)
    with bench.world.store.read() as tx:
        assert [each.name for each in sessions.everyone(tx)] == ["x-head", "x-next"]
    bench.report(other)
    bench.until(other, JobState.COMPLETED)


def test_a_job_of_a_branch_that_has_no_session_yet_waits_for_the_fork(bench: WorkBench) -> None:
    bench.session()
    box = resume(bench)
    bench.volume("lab").content = "base"
    stop(bench)
    job = bench.create(dataclasses.replace(SPEC, session="lab", branch="fix"))
    bench.until(job, JobState.RUNNING)
    assert bench.volume("lab-fix").content == "base"
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    assert bench.hypervisor.machines == {}
    assert box


def test_a_job_whose_fork_fails_says_so(bench: WorkBench) -> None:
    bench.session()
    bench.hypervisor.faults["clone_volume"] = [Conflict("storage local is full")]
    job = bench.create(dataclasses.replace(SPEC, session="lab", branch="fix"))
    failed = bench.until(job, JobState.FAILED)
    assert "workspace lab-fix is deleted: storage local is full" in failed.reason
    assert bench.clean()


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ({"workspace": "a", "session": "b"}, "workspace"),
        ({"workspace": "a", "stateful": True}, "workspace"),
        ({"branch": "x"}, "branch"),
        ({"branch": "x y", "session": "lab"}, "branch"),
        ({"profile": ""}, "profile"),
    ],
)
def test_what_does_not_go_together(bench: WorkBench, asked: dict[str, object], path: str) -> None:
    with pytest.raises(Invalid) as told:
        bench.create(dataclasses.replace(SPEC, **asked))  # type: ignore[arg-type]
    assert told.value.details["path"] == path
    with bench.world.store.read() as tx:
        assert sandboxes.live(tx) == []


def test_names_of_branches() -> None:
    assert parse_branch("feature/x-1") == "feature/x-1"
    for bad in ("", "-x", "a..b", "a b", "a~b", "/a", "a/", "a.lock", "a@{b", "x\x07", "a//b"):
        with pytest.raises(Invalid):
            parse_branch(bad)
    assert branch_session_name("lab", "main", set()) == "lab-main"
    assert branch_session_name("lab", "main", {"lab-main"}) == "lab-main-2"
    assert branch_session_name("lab", "///", set()) == "lab-branch"
    long = branch_session_name("l" * 63, "b" * 200, set())
    assert len(long) <= 63
    assert long != branch_session_name("l" * 63, "b" * 200, {long})
    assert repo_session_base("https://h/team/My_Repo.git") == "my-repo"
    assert repo_session_base("git@h:x/1st.git/") == "st"


def test_what_is_asked_again_after_its_end_is_the_same(bench: WorkBench) -> None:
    """Its reply was lost: the session is stopped by now, or gone."""
    bench.session()
    at = (bench.world, bench.runner, "lab")
    asked = [
        lambda: requests.resume(*at, "first"),
        lambda: requests.stop(*at, "second"),
        lambda: requests.delete(*at, "third", with_workspace=True),
    ]
    first = [bench.ended(ask()).id for ask in asked]
    assert [ask() for ask in asked] == first


def test_a_branch_whose_fork_has_failed_is_told_so_again(bench: WorkBench) -> None:
    """The reply was lost; by now the session is there no more."""
    bench.session()
    at = (bench.world, bench.runner, "lab", "fix", "key")
    bench.hypervisor.faults["clone_volume"] = [Conflict("storage local is full")]
    name, operation = requests.branch(*at)
    assert bench.ended(operation).state == "failed"
    assert requests.branch(*at) == (name, operation)
    with pytest.raises(Conflict, match="asked for something else"):
        requests.branch(bench.world, bench.runner, "lab", "other", "key")
    again, forking = requests.branch(bench.world, bench.runner, "lab", "fix", "another key")
    assert (again, bench.ended(forking).state) == (name, "done")
    assert requests.branch(bench.world, bench.runner, "lab", "fix", "another key") == (
        again,
        forking,
    )

"""Sessions, and jobs that have a workspace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.fakes.sim_guests import WROTE
from tests.faults.bench import PATIENCE, Bench
from tests.faults.scenario import (
    ALL,
    DONE,
    FAILED,
    GONE,
    MADE,
    NOBODY,
    Scenario,
    Target,
    apart,
    forked,
    had,
)  # fmt: skip
from tests.faults.scenarios_sandbox import cancel, times_out
from tests.faults.scenarios_workspace import alone, asks, unmade
from tests.waiting import seen

_LEFT = "synced" + WROTE  # by a job


def session(bench: Bench) -> Target:
    """One that is stopped."""
    target = Target(work=True)
    bench.workspace(target.key, target.text("synced"), session=True)
    return target


def running(bench: Bench) -> Target:
    """One that runs, with a text that is not written out."""
    target = session(bench)
    vmid = bench.done(bench.door("session resume", target.key).operation).vmid
    bench.node.work.add(vmid, ", and more")
    return replace(target, vmid=vmid)


def job_at_work(bench: Bench) -> Target:
    """A job that goes on until it is told to end, in a workspace."""
    target = alone(bench)
    job = bench.door("job", target.key, to="hold")
    row = bench.until_job(job.job, "RUNNING")
    assert seen(lambda: bench.guests.claimed[job.job], PATIENCE), "nobody fetched the job"
    return replace(target, vmid=row["vmid"], job=job.job, operation=job.operation)


def runs(task: str, profile: str = "demo") -> Callable[[Bench, Target], str]:
    def ask(bench: Bench, target: Target) -> str:
        answer = bench.door("job", target.key, key=target.key, to=task, profile=profile)
        target.job = answer.job
        return answer.operation

    return ask


def runs_in_branch(bench: Bench, target: Target) -> str:
    """The branch has no session: one is forked for it, and the job waits for its workspace."""
    answer = bench.door(
        "job in a branch", target.key, key=target.key, to="complete", snapshot="fork"
    )
    target.job = answer.job
    return answer.operation


_S = ("",)  # the session is called as its workspace
_ONCE = {**GONE, "clones": 1, "starts": 1}  # a sandbox that was made for it, and is gone

SESSION = (
    Scenario("session create", unmade, asks("session create", size=64),
             {**DONE, **NOBODY, **apart("", fs="", session=_S)}),
    Scenario("session create, undone", unmade, asks("session create", size=64),
             {**FAILED, **NOBODY, "workspace": "DELETED", "session": []},
             fails="workspace.create allot"),
    Scenario("session resume", session, asks("session resume"),
             {**DONE, **MADE, "work": True, **had("synced", session=_S)}),
    Scenario("session resume, undone", session, asks("session resume"),
             {**FAILED, **_ONCE, **apart("synced", session=_S)},
             fails="sandbox.create await_guest"),
    Scenario("session stop", running, asks("session stop"),
             {**DONE, **GONE, **apart(ALL, session=_S)}),
    Scenario("session stop, undone", running, asks("session stop"),
             {**FAILED, **GONE, **apart(ALL, session=_S)}, fails="session.stop destroy"),
    Scenario("session fork", session, asks("session fork", to="fork"),
             {**DONE, **NOBODY, **apart("synced", session=["", "-fork"]), **forked("synced")}),
    Scenario("session branch", session, asks("session branch", to="branch"),
             {**DONE, **NOBODY, **apart("synced", session=["", "-fork"]), **forked("synced")}),
    Scenario("session branch, undone", session, asks("session branch", to="branch"),
             {**FAILED, **NOBODY, **apart("synced", session=_S), "fork workspace": "DELETED"},
             fails="workspace.fork copy"),
    Scenario("session delete", session, asks("session delete"),
             {**DONE, **NOBODY, **apart("synced")}),
    Scenario("session delete --with-workspace", session, asks("session delete", force=True),
             {**DONE, **NOBODY, "workspace": "DELETED", "session": []}),
    Scenario("job with a workspace", alone, runs("complete"),
             {**DONE, **_ONCE, "job": "COMPLETED", **apart(_LEFT)}),
    Scenario("job with a workspace, that fails", alone, runs("fail"),
             {**DONE, **_ONCE, "job": "FAILED", **apart(_LEFT)}),
    Scenario("job in a branch's session", session, runs_in_branch,
             {**DONE, **_ONCE, "job": "COMPLETED", **apart("synced", session=["", "-fork"]),
              **forked(_LEFT)}),
    # its runner may be as quick as the failure: a task that writes would be a race
    Scenario("job with a workspace, undone", alone, runs("write nothing"),
             {**FAILED, **_ONCE, "job": "FAILED", **apart("synced")}, fails="job.run deliver"),
    Scenario("job with a workspace, cancelled", job_at_work, cancel,
             {**DONE, **GONE, "job": "CANCELLED", **apart(_LEFT)}),
    Scenario("job with a workspace, whose lease ends", job_at_work, times_out,
             {**DONE, **GONE, "job": "TIMEOUT", **apart(_LEFT)}),
)  # fmt: skip

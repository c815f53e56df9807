"""The life of a sandbox, and of jobs in it."""

from __future__ import annotations

import time
from collections.abc import Callable

from agentlab.api import messages as m
from agentlab.api import table
from tests.faults.bench import PATIENCE, Bench
from tests.faults.scenario import (
    DONE,
    DOWN,
    FAILED,
    GONE,
    MADE,
    UP,
    Scenario,
    Target,
    apart,
    had,
)  # fmt: skip
from tests.waiting import seen

# ------------------------------------------------------------------- what they begin with


def nothing(_: Bench) -> Target:
    return Target()


def ready(bench: Bench) -> Target:
    return Target(bench.create())


def with_work(bench: Bench) -> Target:
    """With a text that is written out, and more that is not."""
    target = ready(bench)
    target.work = True
    bench.attach_work(target.vmid, target.key, target.text("synced"), ", and more")
    return target


def stopped(bench: Bench) -> Target:
    target = ready(bench)
    bench.done(bench.ask(table.SANDBOX_STOP, vmid=target.vmid).id)
    with bench.served.paused() as node:  # no guest boots and ends within one second
        for task in node.tasklog:
            task["starttime"] -= 2 if task["id"] == str(target.vmid) else 0
    return target


def stopped_with_work(bench: Bench) -> Target:
    target = stopped(bench)
    target.work = True
    bench.attach_work(target.vmid, target.key, target.text("synced"))
    return target


def with_snapshot(bench: Bench) -> Target:
    target = stopped_with_work(bench)
    saved = bench.ask(table.SNAPSHOT_SAVE, m.SnapshotRequest("mine"), vmid=target.vmid)
    bench.done(saved.id)
    return target


def paused(bench: Bench) -> Target:
    target = ready(bench)
    bench.done(bench.ask(table.SANDBOX_PAUSE, vmid=target.vmid).id)
    return target


def gone(bench: Bench) -> Target:
    target = ready(bench)
    bench.behind(target.vmid, "destroy")
    return target


def leftover(bench: Bench) -> Target:
    """A machine with power that no record is about: the database was lost."""
    target = ready(bench)
    bench.stop()
    bench.poke("DELETE FROM sandbox WHERE vmid = ?", target.vmid)
    bench.poke("DELETE FROM operation WHERE vmid = ?", target.vmid)
    bench.start()
    return target


def at_work(bench: Bench) -> Target:
    """A job that goes on until it is told to end."""
    job = bench.job("hold")
    row = bench.until_job(job.id, "RUNNING")
    assert seen(lambda: bench.guests.claimed[job.id], PATIENCE), "nobody fetched the job"
    return Target(row["vmid"], job.id, row["operation"])


def booting(bench: Bench) -> Target:
    """A creation that waits for its guest."""
    bench.guests.mute = True
    made = bench.ask(table.SANDBOX_CREATE, m.SandboxRequest("demo"))

    def vmid() -> int:
        (row,) = bench.rows("SELECT vmid FROM operation WHERE id = ?", made.id)
        vm = bench.node.vm(row["vmid"])
        return int(row["vmid"]) if vm is not None and vm.status == "running" else 0

    found = seen(vmid, PATIENCE)
    assert found, bench.rows("SELECT * FROM operation WHERE id = ?", made.id)
    return Target(found)


# ------------------------------------------------------------------- what is asked


def create(bench: Bench, target: Target) -> str:
    spec = m.SandboxRequest("demo", name=target.key, vmid=target.wanted)
    return str(bench.ask(table.SANDBOX_CREATE, spec, key=target.key).id)


def acts(endpoint: object, request: object = None, **path: object) -> Callable[..., str]:
    def ask(bench: Bench, target: Target) -> str:
        made = bench.ask(endpoint, request, key=target.key, vmid=target.vmid, **path)  # type: ignore[arg-type]
        return str(made.id)

    return ask


def expire(bench: Bench, target: Target) -> str:
    """Nobody asks: its lease ends, and the daemon sees to it."""
    sql = "SELECT id FROM operation WHERE vmid = ? AND kind = 'sandbox.expire'"
    if not bench.rows(sql, target.vmid):
        bench.poke("UPDATE sandbox SET lease_until = ? WHERE vmid = ?", time.time(), target.vmid)
    rows = seen(lambda: bench.rows(sql, target.vmid), PATIENCE)
    assert rows, bench.sandbox(target.vmid)
    return str(rows[0]["id"])


def mend(bench: Bench, target: Target) -> str:
    """`reconcile --apply`, once: it has no key."""
    sql = "SELECT id FROM operation WHERE vmid = ? AND kind = 'leftover.destroy'"
    if not bench.rows(sql, target.vmid):
        bench.ask(table.RECONCILE_APPLY)
    (row,) = bench.rows(sql, target.vmid)
    return str(row["id"])


def run(task: str, profile: str = "demo") -> Callable[..., str]:
    def ask(bench: Bench, target: Target) -> str:
        target.job = bench.job(task, profile=profile, key=target.key).id
        return str(bench.rows("SELECT operation FROM job WHERE id = ?", target.job)[0]["operation"])

    return ask


def cancel(bench: Bench, target: Target) -> str:
    bench.ask(table.JOB_CANCEL, id=target.job)
    return target.operation


def times_out(bench: Bench, target: Target) -> str:
    bench.poke("UPDATE sandbox SET lease_until = ? WHERE vmid = ?", time.time(), target.vmid)
    return target.operation


_REVERT = m.RevertRequest()

SANDBOX = (
    Scenario("create", nothing, create, {**DONE, **MADE}),
    Scenario("create, undone", nothing, create,
             {**FAILED, "sandbox": "DESTROYED", "clones": 1, "starts": 1},
             fails="sandbox.create await_guest"),
    Scenario("start", stopped_with_work, acts(table.SANDBOX_START, m.StartRequest()),
             {**DONE, **MADE, "clones": 0, "work": True, **had("synced")}),
    Scenario("start, undone", stopped, acts(table.SANDBOX_START, m.StartRequest()),
             {**FAILED, **DOWN, "sandbox": "STOPPED", "clones": 0, "starts": 1, "work": False},
             fails="sandbox.start await_guest"),
    Scenario("stop", with_work, acts(table.SANDBOX_STOP),
             {**DONE, **DOWN, "sandbox": "STOPPED", "clones": 0, "starts": 0, "work": True, **had(mounted=False)}),
    Scenario("pause", ready, acts(table.SANDBOX_PAUSE),
             {**DONE, **UP, "sandbox": "SUSPENDED", "power": "paused", "clones": 0, "starts": 0,
              "work": False}),
    Scenario("resume", paused, acts(table.SANDBOX_RESUME),
             {**DONE, **UP, "sandbox": "READY", "clones": 0, "starts": 0, "work": False}),
    Scenario("revert", with_work, acts(table.SANDBOX_REVERT, _REVERT),
             {**DONE, **UP, "sandbox": "READY", "clones": 0, "starts": 1, "work": True, **had()}),
    Scenario("revert --no-restart", with_work,
             acts(table.SANDBOX_REVERT, m.RevertRequest(restart=False)),
             {**DONE, **DOWN, "disk": "new", "sandbox": "STOPPED", "clones": 0, "starts": 0,
              "work": True, **had(mounted=False)}),
    Scenario("revert, undone", with_work, acts(table.SANDBOX_REVERT, _REVERT),
             {**FAILED, **DOWN, "sandbox": "STOPPED", "clones": 0, "starts": 1, "work": True,
              **had(mounted=False)},
             fails="sandbox.revert await_guest"),
    Scenario("revert --force of a job", at_work,
             acts(table.SANDBOX_REVERT, m.RevertRequest(force=True)),
             {**DONE, **UP, "sandbox": "READY", "job": "CANCELLED", "clones": 0, "starts": 1,
              "work": False}),
    Scenario("snapshot save", stopped_with_work,
             acts(table.SNAPSHOT_SAVE, m.SnapshotRequest("mine")),
             {**DONE, **DOWN, "snapshots": ["clean", "mine"], "sandbox": "STOPPED", "clones": 0,
              "starts": 0, "work": True, **had("synced", mounted=False)}),
    Scenario("snapshot save, undone", stopped_with_work,
             acts(table.SNAPSHOT_SAVE, m.SnapshotRequest("mine")),
             {**FAILED, **DOWN, "snapshots": ["clean", "mine"], "sandbox": "STOPPED",
              "clones": 0, "starts": 0, "work": True, **had("synced", mounted=False)}, fails="sandbox.snapshot attach"),
    Scenario("snapshot restore", with_snapshot,
             acts(table.SNAPSHOT_RESTORE, m.RevertRequest(restart=True), name="mine"),
             {**DONE, **UP, "snapshots": ["clean", "mine"], "sandbox": "READY", "clones": 0,
              "starts": 1, "work": True, **had("synced")}),
    Scenario("snapshot delete", with_snapshot, acts(table.SNAPSHOT_DELETE, name="mine"),
             {**DONE, **DOWN, "sandbox": "STOPPED", "clones": 0, "starts": 0, "work": True, **had("synced", mounted=False)}),
    Scenario("destroy", with_work, acts(table.SANDBOX_DESTROY, m.DestroyRequest()),
             {**DONE, **GONE, **apart()}),
    Scenario("destroy, undone", with_work, acts(table.SANDBOX_DESTROY, m.DestroyRequest()),
             {**FAILED, **GONE, **apart()}, fails="sandbox.destroy destroy"),
    Scenario("destroy --force of a job", at_work,
             acts(table.SANDBOX_DESTROY, m.DestroyRequest(force=True)),
             {**DONE, **GONE, "job": "CANCELLED"}),
    Scenario("destroy --force of a VM that is gone", gone,
             acts(table.SANDBOX_DESTROY, m.DestroyRequest(force=True)), {**DONE, **GONE}),
    Scenario("destroy --force during create", booting,
             acts(table.SANDBOX_DESTROY, m.DestroyRequest(force=True)), {**DONE, **GONE},
             begun="sandbox.create"),
    Scenario("expire with a workspace", with_work, expire, {**DONE, **GONE, **apart()}),
    Scenario("expire", ready, expire, {**DONE, **GONE}),
    Scenario("expire, undone", ready, expire, {**FAILED, **GONE},
             fails="sandbox.expire destroy"),
    Scenario("reconcile --apply of a leftover", leftover, mend,
             {**DONE, "sandbox": "", "clones": 0, "starts": 0}),
    Scenario("job that succeeds", nothing, run("complete"),
             {**DONE, **GONE, "job": "COMPLETED", "clones": 1, "starts": 1}),
    Scenario("job that fails", nothing, run("fail"),
             {**DONE, **GONE, "job": "FAILED", "clones": 1, "starts": 1}),
    Scenario("job that leaves its sandbox stopped", nothing, run("complete", "halt"),
             {**DONE, **DOWN, "sandbox": "STOPPED", "job": "COMPLETED", "clones": 1, "starts": 1,
              "work": False}),
    Scenario("job, undone", nothing, run("complete"),
             {**FAILED, **GONE, "job": "FAILED", "clones": 1, "starts": 1},
             fails="job.run deliver"),
    Scenario("job that is cancelled", at_work, cancel, {**DONE, **GONE, "job": "CANCELLED"}),
    Scenario("job whose lease ends", at_work, times_out, {**DONE, **GONE, "job": "TIMEOUT"}),
)  # fmt: skip

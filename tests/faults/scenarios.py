"""What is asked for while things go wrong: each operation, from what it begins with to its end."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agentlab.api import messages as m
from agentlab.api import table
from tests.faults.bench import Bench

Outcome = Mapping[str, object]


@dataclass
class Target:
    """What one case works on; `key` makes its requests the same ones when they are asked again."""

    vmid: int = 0
    job: str = ""
    operation: str = ""
    wanted: int = 0  # the VMID that a new sandbox is to have
    clones: Counter[int] = field(default_factory=Counter)  # that there had been when it began
    boots: Counter[int] = field(default_factory=Counter)
    key: str = field(default_factory=lambda: f"k{secrets.token_hex(6)}")


@dataclass(frozen=True)
class Scenario:
    """`ask` asks for the operation and gives its id; it may be called again after a lost reply.

    `outcome` is what has become of it in the end, by the words of `look`.  `fails` is a step
    ("KIND STEP") that raises, so that the operation turns back.
    """

    name: str
    prepare: Callable[[Bench], Target]
    ask: Callable[[Bench, Target], str]
    outcome: Outcome
    fails: str = ""

    def __str__(self) -> str:
        return self.name


def look(bench: Bench, target: Target) -> Outcome:
    """How an operation ended, and what it left, as far as two runs of it must agree."""
    (row,) = bench.rows("SELECT * FROM operation WHERE id = ?", target.operation)
    box, vmid = bench.sandbox(row["vmid"]), row["vmid"]
    found: dict[str, object] = {"operation": row["state"], "sandbox": box.get("state", "")}
    if target.job:
        found["job"] = bench.rows("SELECT * FROM job WHERE id = ?", target.job)[0]["state"]
    with bench.served.paused() as node:
        vm = node.vm(vmid)
        if vm is not None:
            found["power"] = vm.qmpstatus if vm.status == "running" else "stopped"
            found["snapshots"] = sorted(vm.snapshots)
            found["disk"] = node.disks.get(vmid, "").partition(" ")[0]
            found["work"] = "scsi1" in vm.config
        found["clones"] = node.clones[vmid] - target.clones[vmid]
        found["starts"] = node.boots[vmid] - target.boots[vmid]
    return found


# ------------------------------------------------------------------- what they begin with


def nothing(_: Bench) -> Target:
    return Target()


def ready(bench: Bench) -> Target:
    return Target(bench.create())


def with_work(bench: Bench) -> Target:
    target = ready(bench)
    bench.attach_work(target.vmid)
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
    bench.attach_work(target.vmid)
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


def at_work(bench: Bench) -> Target:
    """A job that goes on until it is told to end."""
    job = bench.job("hold")
    row = bench.until_job(job.id, "RUNNING")
    until = time.monotonic() + 30
    while not bench.guests.claimed[job.id]:
        assert time.monotonic() < until, "nobody fetched the job"
        time.sleep(0.02)
    return Target(row["vmid"], job.id, row["operation"])


def booting(bench: Bench) -> Target:
    """A creation that waits for its guest."""
    bench.guests.mute = True
    made = bench.ask(table.SANDBOX_CREATE, m.SandboxRequest("demo"))
    until = time.monotonic() + 30
    while True:
        row = bench.rows("SELECT * FROM operation WHERE id = ?", made.id)[0]
        vm = bench.node.vm(row["vmid"])
        if vm is not None and vm.status == "running":
            return Target(row["vmid"])
        assert time.monotonic() < until, row
        time.sleep(0.02)


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
    until = time.monotonic() + 30
    while not (rows := bench.rows(sql, target.vmid)):
        assert time.monotonic() < until, bench.sandbox(target.vmid)
        time.sleep(0.02)
    return str(rows[0]["id"])


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


_GONE = {"sandbox": "DESTROYED", "clones": 0, "starts": 0}
_UP = {"power": "running", "snapshots": ["clean"], "disk": "used"}
_DOWN = {"power": "stopped", "snapshots": ["clean"], "disk": "used"}
_MADE = {"sandbox": "READY", "clones": 1, "starts": 1, "work": False, **_UP}
_DONE, _FAILED = {"operation": "done"}, {"operation": "failed"}
_REVERT = m.RevertRequest()

SCENARIOS = (
    Scenario("create", nothing, create, {**_DONE, **_MADE}),
    Scenario("create, undone", nothing, create,
             {**_FAILED, "sandbox": "DESTROYED", "clones": 1, "starts": 1},
             fails="sandbox.create await_guest"),
    Scenario("start", stopped_with_work, acts(table.SANDBOX_START, m.StartRequest()),
             {**_DONE, **_MADE, "clones": 0, "work": True}),
    Scenario("start, undone", stopped, acts(table.SANDBOX_START, m.StartRequest()),
             {**_FAILED, **_DOWN, "sandbox": "STOPPED", "clones": 0, "starts": 1, "work": False},
             fails="sandbox.start await_guest"),
    Scenario("stop", with_work, acts(table.SANDBOX_STOP),
             {**_DONE, **_DOWN, "sandbox": "STOPPED", "clones": 0, "starts": 0, "work": True}),
    Scenario("pause", ready, acts(table.SANDBOX_PAUSE),
             {**_DONE, **_UP, "sandbox": "SUSPENDED", "power": "paused", "clones": 0, "starts": 0,
              "work": False}),
    Scenario("resume", paused, acts(table.SANDBOX_RESUME),
             {**_DONE, **_UP, "sandbox": "READY", "clones": 0, "starts": 0, "work": False}),
    Scenario("revert", with_work, acts(table.SANDBOX_REVERT, _REVERT),
             {**_DONE, **_UP, "sandbox": "READY", "clones": 0, "starts": 1, "work": True}),
    Scenario("revert --no-restart", with_work,
             acts(table.SANDBOX_REVERT, m.RevertRequest(restart=False)),
             {**_DONE, **_DOWN, "disk": "new", "sandbox": "STOPPED", "clones": 0, "starts": 0,
              "work": True}),
    Scenario("revert, undone", with_work, acts(table.SANDBOX_REVERT, _REVERT),
             {**_FAILED, **_DOWN, "sandbox": "STOPPED", "clones": 0, "starts": 1, "work": True},
             fails="sandbox.revert await_guest"),
    Scenario("revert --force of a job", at_work,
             acts(table.SANDBOX_REVERT, m.RevertRequest(force=True)),
             {**_DONE, **_UP, "sandbox": "READY", "job": "CANCELLED", "clones": 0, "starts": 1,
              "work": False}),
    Scenario("snapshot save", stopped_with_work,
             acts(table.SNAPSHOT_SAVE, m.SnapshotRequest("mine")),
             {**_DONE, **_DOWN, "snapshots": ["clean", "mine"], "sandbox": "STOPPED", "clones": 0,
              "starts": 0, "work": True}),
    Scenario("snapshot save, undone", stopped_with_work,
             acts(table.SNAPSHOT_SAVE, m.SnapshotRequest("mine")),
             {**_FAILED, **_DOWN, "snapshots": ["clean", "mine"], "sandbox": "STOPPED",
              "clones": 0, "starts": 0, "work": True}, fails="sandbox.snapshot attach"),
    Scenario("snapshot restore", with_snapshot,
             acts(table.SNAPSHOT_RESTORE, m.RevertRequest(restart=True), name="mine"),
             {**_DONE, **_UP, "snapshots": ["clean", "mine"], "sandbox": "READY", "clones": 0,
              "starts": 1, "work": True}),
    Scenario("snapshot delete", with_snapshot, acts(table.SNAPSHOT_DELETE, name="mine"),
             {**_DONE, **_DOWN, "sandbox": "STOPPED", "clones": 0, "starts": 0, "work": True}),
    Scenario("destroy", with_work, acts(table.SANDBOX_DESTROY, m.DestroyRequest()),
             {**_DONE, **_GONE}),
    Scenario("destroy, undone", with_work, acts(table.SANDBOX_DESTROY, m.DestroyRequest()),
             {**_FAILED, **_GONE}, fails="sandbox.destroy destroy"),
    Scenario("destroy --force of a job", at_work,
             acts(table.SANDBOX_DESTROY, m.DestroyRequest(force=True)),
             {**_DONE, **_GONE, "job": "CANCELLED"}),
    Scenario("destroy --force of a VM that is gone", gone,
             acts(table.SANDBOX_DESTROY, m.DestroyRequest(force=True)), {**_DONE, **_GONE}),
    Scenario("destroy --force during create", booting,
             acts(table.SANDBOX_DESTROY, m.DestroyRequest(force=True)), {**_DONE, **_GONE}),
    Scenario("expire", ready, expire, {**_DONE, **_GONE}),
    Scenario("expire, undone", ready, expire, {**_FAILED, **_GONE},
             fails="sandbox.expire destroy"),
    Scenario("job that succeeds", nothing, run("complete"),
             {**_DONE, **_GONE, "job": "COMPLETED", "clones": 1, "starts": 1}),
    Scenario("job that fails", nothing, run("fail"),
             {**_DONE, **_GONE, "job": "FAILED", "clones": 1, "starts": 1}),
    Scenario("job that leaves its sandbox stopped", nothing, run("complete", "halt"),
             {**_DONE, **_DOWN, "sandbox": "STOPPED", "job": "COMPLETED", "clones": 1, "starts": 1,
              "work": False}),
    Scenario("job, undone", nothing, run("complete"),
             {**_FAILED, **_GONE, "job": "FAILED", "clones": 1, "starts": 1},
             fails="job.run deliver"),
    Scenario("job that is cancelled", at_work, cancel, {**_DONE, **_GONE, "job": "CANCELLED"}),
    Scenario("job whose lease ends", at_work, times_out, {**_DONE, **_GONE, "job": "TIMEOUT"}),
)  # fmt: skip

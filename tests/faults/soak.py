"""A soak: random operations, several at once, with faults and kills; at the end nothing is left over.

What is asked for, of whom, after which pause and when the daemon is killed depends on the seed
alone.  What cannot be made deterministic: how the threads of the daemon and the tasks of Proxmox
interleave, and so which call meets which fault (that is drawn for each call by its number among all
calls), and in which state a request finds its sandbox.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.api.table import Endpoint
from agentlab.client.unix import Lost
from agentlab.errors import AgentLabError, Unavailable, Unreachable, Unsupported
from tests.fakes.pve.front import Fault
from tests.fakes.pve.node import TaskError
from tests.faults.bench import VMIDS, Bench, Node, bench
from tests.faults.soak_work import WorkActs

KILL_EACH = 50  # operations
FAULTS = 0.02  # of all calls
FAILED_TASKS = 0.005
_IN_FLIGHT = 6
_MOST = 25  # sandboxes that are kept at one time
_ENDS = 240.0  # after so long one of those in flight has ended, with whatever retries
_QUIET = 150.0
_SAYS = {
    "500 lock": (500, "can't lock file '/var/lock/qemu-server/lock-1.conf' - got timeout"),
    "595": (595, "No route to host"), "596": (596, "Broken pipe"),
    "599": (599, "Too many redirections"), "503": (503, "going away"),
}  # fmt: skip


class ShakyNode(Node):
    """Proxmox on a bad day: each call and each task may fail, as its number says."""

    def __init__(self, seed: int, **given: Any) -> None:
        super().__init__(**given)
        self.seed = seed
        self.shaky = False
        self.met: Counter[str] = Counter()
        self.calls = 0
        self._tasks_begun = 0

    async def _fault_for(self, request: Any, match: Any) -> Fault | None:
        self.calls += 1
        draw = random.Random(f"{self.seed} call {self.calls}")
        if not self.shaky or match is None or draw.random() >= FAULTS:
            return await super()._fault_for(request, match)
        kinds = ["lost reply", "595", "599", "503", "slow"]
        kinds += [] if request.method == "GET" else ["lost reply", "no worker", "500 lock", "596"]
        kind = draw.choice(kinds)
        self.met[kind] += 1
        common = (request.method, match.template)
        if kind in _SAYS:
            status, reason = _SAYS[kind]
            return Fault("answer", *common, status=status, reason=reason)
        if kind == "slow":
            return Fault("delay", *common, secs=draw.uniform(0, 20))
        return Fault("lose the reply" if kind == "lost reply" else "no worker", *common)

    def _fail_as_told(self, record: dict[str, Any], *, late: bool = False) -> None:
        super()._fail_as_told(record, late=late)
        if late:  # one draw for each task
            return
        self._tasks_begun += 1
        draw = random.Random(f"{self.seed} task {self._tasks_begun}")
        if self.shaky and record["type"] != "qmclone" and draw.random() < FAILED_TASKS:
            self.met["failed task"] += 1
            raise TaskError("the disk is on fire")


@dataclass
class Soak:
    """One run; `boxes` and `jobs` are what was asked for and not ended since, in that order."""

    bench: Bench
    seed: int
    asked: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    boxes: dict[str, str] = field(default_factory=dict)  # up, off or paused, as was asked last
    jobs: list[str] = field(default_factory=list)
    drifted: set[int] = field(default_factory=set)
    lost: list[Callable[[], None]] = field(default_factory=list)
    made: int = 0
    rng: random.Random = field(init=False)
    work: WorkActs = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.work = WorkActs(self)

    @property
    def node(self) -> ShakyNode:
        return self.bench.node  # type: ignore[return-value]

    def run(self, operations: int, kill_each: int) -> list[str]:
        """All of it; what is wrong at the end."""
        self.bench.start()
        self.node.shaky = True
        for number in range(1, operations + 1):
            self._one()
            if number % kill_each == 0:
                self._kill()
        return self._end()

    # ------------------------------------------------------------------- what is asked

    def _one(self) -> None:
        acts: dict[Callable[[], None], int] = {
            self._new: 20, self._job: 12, self._stop: 7, self._start: 7, self._pause: 5,
            self._resume: 5, self._save: 5, self._delete: 3, self._restore: 4, self._revert: 6,
            self._update: 3, self._renew: 4, self._destroy: 9, self._force: 7, self._cancel: 4,
            self._report: 8, self._behind: 3, self._stranger: 1, self._prune: 1,
            self._reconcile: 2, **self.work.acts(),
        }  # fmt: skip
        act = self.rng.choices(list(acts), list(acts.values()))[0]
        if len(self.boxes) > _MOST and act in (self._new, self._job):
            act = self._force
        act()
        time.sleep(self.rng.uniform(0.0, 0.05))
        until = time.monotonic() + _ENDS
        while len(waiting := self._unfinished()) >= _IN_FLIGHT:
            assert time.monotonic() < until, f"nothing ends: {waiting}\n{self.bench.log()[-4000:]}"
            if self.bench.is_dead(0.02):
                self._revive()

    def _unfinished(self) -> list[dict[str, Any]]:
        held = "SELECT id FROM job WHERE state = 'RUNNING'"  # they may wait as long as they like
        return self.bench.rows(
            "SELECT id FROM operation WHERE state IN ('doing', 'undoing')"
            f" AND (job = '' OR job NOT IN ({held}))"
        )

    def _ask(
        self, verb: str, endpoint: Endpoint[Any, Any], request: object = None, **path: str
    ) -> Any:
        """Asks; asks again with the same key after a restart, when the reply was lost."""
        key = f"soak-{self.asked.total()}"
        self.asked[verb] += 1
        for _ in range(100):
            try:
                return self.bench.ask(endpoint, request, key=key, **path)
            except (Lost, Unreachable):
                if self.bench.is_dead(0.5):
                    self._revive()
            except Unsupported:
                self.refused[f"{verb} (not built yet)"] += 1
                return None
            except Unavailable:
                time.sleep(0.05)
            except AgentLabError:
                self.refused[verb] += 1
                return None
        self.refused[f"{verb} (Proxmox was away)"] += 1
        return None

    def _some(self, *states: str) -> str:
        """A sandbox, mostly one that is in a state in which that may be asked; "nobody" for none."""
        fitting = [name for name, state in self.boxes.items() if state in states]
        if fitting and self.rng.random() < 0.9:
            return self.rng.choice(fitting)
        return self.rng.choice(list(self.boxes)) if self.boxes else "nobody"

    def _act(
        self, verb: str, endpoint: Endpoint[Any, Any], request: object = None,
        *, on: tuple[str, ...], to: str = "", **path: str,
    ) -> None:  # fmt: skip
        """Asks for something of a sandbox; `to` is what it is then, "" for the same."""
        name = self._some(*on)
        if name in self.boxes and to:
            self.boxes[name] = to
        if to == "gone":
            self.boxes.pop(name, None)
        self._ask(verb, endpoint, request, vmid=name, **path)

    def _new(self) -> None:
        self.made += 1
        name, profile = f"box{self.made}", self.rng.choices(["demo", "short"], [9, 1])[0]
        keepalive = self.rng.random() < 0.3
        self.boxes[name] = "up"
        spec = m.SandboxRequest(profile, name=name, keepalive=keepalive)
        self._ask("new", table.SANDBOX_CREATE, spec)

    def _job(self) -> None:
        task = self.rng.choice(["complete", "fail", "hold", "hold"])
        profile = self.rng.choice(["demo", "demo", "keep", "halt"])
        spec = m.JobRequest(m.RepoRequest(url="https://example.org/x.git"), task, profile)
        made = self._ask("job run", table.JOB_CREATE, spec)
        if made is not None:
            self.jobs.append(made.id)
            self.boxes[f"job-{made.id}"] = "job"

    def _stop(self) -> None:
        self._act("stop", table.SANDBOX_STOP, on=("up",), to="off")

    def _start(self) -> None:
        self._act("start", table.SANDBOX_START, m.StartRequest(), on=("off",), to="up")

    def _pause(self) -> None:
        self._act("pause", table.SANDBOX_PAUSE, on=("up",), to="paused")

    def _resume(self) -> None:
        self._act("resume", table.SANDBOX_RESUME, on=("paused",), to="up")

    def _snapshot(self) -> str:
        return self.rng.choice(["one", "two"])

    def _save(self) -> None:
        asked = m.SnapshotRequest(self._snapshot())
        self._act("snapshot save", table.SNAPSHOT_SAVE, asked, on=("off",))

    def _delete(self) -> None:
        name = self._snapshot()
        self._act("snapshot delete", table.SNAPSHOT_DELETE, on=("off",), name=name)

    def _restore(self) -> None:
        restart, name = self.rng.choice([True, False]), self._snapshot()
        self._act(
            "snapshot restore", table.SNAPSHOT_RESTORE, m.RevertRequest(restart=restart),
            on=("off", "up"), to="up" if restart else "off", name=name,
        )  # fmt: skip

    def _revert(self) -> None:
        force, restart = self.rng.random() < 0.4, self.rng.choice([True, False])
        on = ("up", "off", "paused", "job") if force else ("up", "off")
        self._act(
            "revert --force" if force else "revert", table.SANDBOX_REVERT,
            m.RevertRequest(force=force, restart=restart), on=on, to="up" if restart else "off",
        )  # fmt: skip

    def _update(self) -> None:
        asked = m.UpdateRequest(cores=self.rng.choice([0, 1, 2]), labels={"turn": str(self.made)})
        self._act("update", table.SANDBOX_UPDATE, asked, on=("up", "off"))

    def _renew(self) -> None:
        self._act("renew", table.SANDBOX_RENEW, m.RenewRequest("40m"), on=("up", "job"))

    def _destroy(self) -> None:
        self._act("destroy", table.SANDBOX_DESTROY, m.DestroyRequest(), on=("up", "off"), to="gone")

    def _force(self) -> None:
        asked, on = m.DestroyRequest(force=True), ("up", "off", "paused", "job")
        self._act("destroy --force", table.SANDBOX_DESTROY, asked, on=on, to="gone")

    def _cancel(self) -> None:
        if self.jobs:
            self._ask("job cancel", table.JOB_CANCEL, id=self.rng.choice(self.jobs[-10:]))

    def _report(self) -> None:
        """A job that goes on until it is told to end comes to its end."""
        self.asked["job report"] += 1
        self.bench.guests.let_go.update(self.jobs[-12:-2] if self.rng.random() < 0.5 else
                                        self.jobs[-4:])  # fmt: skip

    def _prune(self) -> None:
        self._ask("prune", table.SANDBOX_PRUNE)

    def _reconcile(self) -> None:
        self._ask("reconcile --apply", table.RECONCILE_APPLY)

    def _behind(self) -> None:
        """Somebody else stops or destroys a machine that is not being worked on."""
        what, name = self.rng.choice(["stop", "destroy"]), self._some("up", "off")
        self.asked[f"{what} behind our back"] += 1
        rows = self.bench.rows(
            "SELECT vmid FROM sandbox WHERE name = ? AND state IN ('READY', 'RUNNING', 'STOPPED')"
            " AND NOT EXISTS (SELECT 1 FROM subject WHERE subject.name = 'sandbox:' || vmid)", name,
        )  # fmt: skip
        for row in rows:
            self.drifted.add(row["vmid"])
            self.bench.behind(row["vmid"], what)

    def _stranger(self) -> None:
        """Somebody else makes a VM with a VMID of our range."""
        self.asked["a stranger comes"] += 1
        vmid = self.rng.randrange(*VMIDS)
        with self.bench.served.paused() as node:
            if node.vm(vmid) is None and not node.volumes_of(vmid):
                node.make_vm(vmid, f"stranger{vmid}", description="not to be touched")
                node.strangers.add(vmid)
                self.bench.watch(vmid)

    # ------------------------------------------------------------------- kills

    def _kill(self) -> None:
        """At a point that is reached soon, or at once when none is."""
        self.bench.arm(kill="anywhere", skip=self.rng.randrange(0, 12))
        for _ in range(4):
            self._new()
        if not self.bench.is_dead(2.0):
            self.bench.kill()
            self.bench.arm()
            self.bench.start()
        else:
            self._revive()

    def _revive(self) -> None:
        if self.bench.daemon and self.bench.is_dead():
            self.bench.reap()
            self.bench.arm()
            self.bench.start()

    # ------------------------------------------------------------------- the end

    def _end(self) -> list[str]:
        """No more faults; all jobs come to their end, all sandboxes are destroyed."""
        self.node.shaky = False
        self._revive()
        self.bench.guests.let_go.update(self.jobs)
        wrong = self._look(drift=self.drifted)
        for name in [row["name"] for row in self._live()]:
            self._ask(
                "destroy --force", table.SANDBOX_DESTROY, m.DestroyRequest(force=True), vmid=name
            )
        wrong += self._look()
        wrong += [f"{row['name']} is still {row['state']}" for row in self._live()]
        self.work.end()
        wrong += self.bench.wrong() + self.bench.left() + self.work.left()
        known = {row["id"] for row in self.bench.rows("SELECT id FROM job")}
        return wrong + [f"job {each} is lost" for each in self.jobs if each not in known]

    def _look(self, **given: Any) -> list[str]:
        """What is wrong while nothing is under way; again when a lease ended as we looked."""
        said: list[str] = []  # the log is read once
        while True:
            self._settle()
            before = self.bench.rows("SELECT count(*) AS n FROM operation")
            wrong = [*said, *self.bench.wrong(**given), *self.work.wrong()]
            if before == self.bench.rows("SELECT count(*) AS n FROM operation"):
                return wrong
            said = [each for each in wrong if each.startswith("the log says")]

    def _settle(self) -> None:
        until = time.monotonic() + _QUIET
        while time.monotonic() < until:
            self.bench.guests.let_go.update(self.jobs)
            if not self.bench.rows("SELECT id FROM operation WHERE state IN ('doing', 'undoing')"):
                return
            time.sleep(0.1)
        self.bench.quiet(1.0)

    def _live(self) -> list[dict[str, Any]]:
        return self.bench.rows("SELECT name, state FROM sandbox WHERE state != 'DESTROYED'")

    # ------------------------------------------------------------------- what it was

    def figures(self) -> list[str]:
        ends = self.bench.rows("SELECT kind, state, count(*) AS n FROM operation GROUP BY 1, 2")
        failed = self.bench.rows("SELECT kind, error FROM operation WHERE state = 'failed'")
        why = Counter(f"{row['kind']}: {_plain(row['error'])}" for row in failed)
        states = Counter({(row["kind"], row["state"]): row["n"] for row in ends})
        kinds = sorted({kind for kind, _ in states})
        lines = ["| operation | done | failed | cancelled |", "| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {kind} | " + " | ".join(str(states[(kind, each)]) for each in
                                        ("done", "failed", "cancelled")) + " |"
            for kind in kinds
        ]  # fmt: skip
        jobs = self.bench.rows("SELECT state, count(*) AS n FROM job GROUP BY 1")
        return [
            *lines,
            "jobs: " + ", ".join(f"{row['n']} {row['state']}" for row in jobs),
            "asked: " + _counted(self.asked),
            "refused (4xx): " + _counted(self.refused),
            f"faults in {self.node.calls} calls: " + _counted(self.node.met),
            f"daemons killed: {self.bench.kills}, started: {self.bench.starts}",
            "failed with:",
            *(f"  {count} x {text}" for text, count in why.most_common()),
        ]


def _plain(text: str) -> str:
    """Without what differs each time."""
    return re.sub(r"\d{2,}|[0-9a-z]{16}|box\d+", "N", text)[:200]


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def soak(seed: int, operations: int, kill_each: int = KILL_EACH) -> list[str]:
    """Runs a soak and prints its seed and figures; what is wrong at the end."""
    again = f"make soak SEED={seed} OPS={operations} KILL_EACH={kill_each}"
    print(f"soak: seed {seed}, {operations} operations; to replay: {again}", flush=True)
    begun = time.monotonic()
    with bench(time_scale=0.02, node=ShakyNode(seed, time_scale=0.02)) as installation:
        run = Soak(installation, seed)
        try:
            wrong = run.run(operations, kill_each)
        except BaseException:
            print(f"failed with seed {seed}; to replay: {again}", flush=True)
            print(installation.log()[-6000:])
            raise
        for line in run.figures():
            print(line)
        print(f"{time.monotonic() - begun:.0f} s; wrong at the end: {len(wrong)}")
        if wrong:
            print("\n".join(wrong))
            print(f"failed with seed {seed}; to replay: {again}", flush=True)
            print(installation.log()[-20000:], file=sys.stderr)
    return wrong

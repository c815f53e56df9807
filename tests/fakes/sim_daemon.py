"""The real daemon over a Proxmox that is not there, made to be killed again and again.

    sim_daemon.py

reads orders from stdin, a JSON object a line, and answers each with a line.  `{"start": {…}}`
forks a daemon from this process, in which all modules are loaded already, and answers with its
process id; `{"wait": PID}` answers with its exit status (negative: the signal), `{"rows": [PATH, SQL, VALUES]}` with rows.

What runs in such a daemon is `serve()` itself: engine, API, guest listener, leases and deadlines
over the Proxmox driver by REST.  Not real are:

- the fence: it keeps its members in a file and has no rules and no taps (what becomes of the real
  one under kill is in tests/faults/test_kill.py, with real VMs);
- the time: loops look more often, graces are short, and `offset` in the control file moves the
  clock of records by so many seconds;
- the driver's looks: more often, since nothing costs anything here;
- the check of a volume's file system: what its guests have put there is none (`sim_work.py`), so it
  is looked at and mended by the same rules here.  All else that root's tools do to a volume is real.

The control file is read whenever a point is reached: at each boundary of a step, and before and
after each call, and each program of a node, that changes something (the latter when the request was carried out and its answer
is here, and nobody knows of it yet).  `kill` names the point at which SIGKILL comes, `skip` how
many times it is passed before that, `fail` a step ("KIND STEP") that raises when it is done.
Points that are reached are written to the trace file.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import importlib
import pkgutil

from agentlab import clock, config, control, log
from agentlab.daemon import build, handlers, main  # noqa: F401  # handlers: loaded before the fork
from agentlab.errors import Conflict
from agentlab.hypervisor import qemu_img
from agentlab.hypervisor.base import Capabilities, FileSystem, VolumeCheck
from agentlab.hypervisor.proxmox import (  # noqa: F401
    checks,
    driver,
    node,
    rest,
    rights,
    storage_plan,
    template,
    tool,
)  # fmt: skip
from agentlab.network.settings import Member
from agentlab.operations import job_run
from agentlab.store.operations import OperationRow
from tests.fakes import sim_work
from tests.fakes.sim_door import open_door

_LOOK = 0.4  # seconds between looks at machines
_LOOP = 0.4  # and between the rounds of loops
_GRACE = 1.0
PROGRAM = "RUN"  # where a call has its method
_CHANGES = ("snapshot", "resize", "-c", "-a", "-d")


@dataclass(frozen=True, slots=True)
class Order:
    """Where one daemon finds what it is to do; all are paths."""

    config: str
    control: str
    trace: str
    members: str
    log: str


class Sim:
    """One daemon's faults."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lock = threading.Lock()
        self._seen = (0, 0)
        self._control: dict[str, Any] = {}
        self._passed = 0
        self._place = threading.local()
        self._trace = os.open(order.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @property
    def control(self) -> Mapping[str, Any]:
        with self._lock:
            found = Path(self._order.control).stat()
            if (found.st_mtime_ns, found.st_ino) != self._seen:
                self._control = json.loads(Path(self._order.control).read_text())
                self._seen, self._passed = (found.st_mtime_ns, found.st_ino), 0
            return self._control

    def reach(self, point: str) -> None:
        """Tells that a point was reached, and dies there if that was asked for."""
        os.write(self._trace, f"{point}\n".encode())
        asked = self.control
        if asked.get("kill") not in (point, "anywhere"):
            return
        with self._lock:
            self._passed += 1
            if self._passed > int(asked.get("skip", 0)):
                self._disarm(asked)
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)  # the signal is on its way

    def _disarm(self, asked: Mapping[str, Any]) -> None:
        left = {key: value for key, value in asked.items() if key not in ("kill", "skip")}
        part = Path(f"{self._order.control}.part")
        part.write_text(json.dumps(left))
        part.replace(self._order.control)

    def observe(self, moment: str, verb: str, operation: OperationRow, step: str) -> None:
        """The engine's observer."""
        place = f"{verb} {operation.kind} {step}"
        self._place.now = place
        self.reach(f"step {moment} {place}")
        if moment == "after":
            self._place.now = ""
            if verb == "do" and self.control.get("fail") == f"{operation.kind} {step}":
                raise Conflict(f"cannot {step}: the test says so")

    @property
    def place(self) -> str:
        """Where the calling thread is: "VERB KIND STEP", or "- - -" outside of any step."""
        return getattr(self._place, "now", "") or "- - -"

    def now(self) -> float:
        return time.time() + float(self.control.get("offset", 0.0))


class Watched:
    """A Transport that says what it is about to do, and what it has done."""

    def __init__(self, inner: rest.RestTransport, sim: Sim) -> None:
        self._inner = inner
        self._sim = sim
        self.name = inner.name
        self.foreground = inner.foreground

    def call(self, method: Any, path: str, params: Any = None, *, timeout: float = 30.0) -> object:
        return self._watched(
            method, path, lambda: self._inner.call(method, path, params, timeout=timeout)
        )

    def guest_exec(
        self, node: str, vmid: int, argv: Sequence[str], stdin: str, *, timeout: float
    ) -> Any:
        return self._watched(
            "POST",
            f"/nodes/{node}/qemu/{vmid}/agent/exec",
            lambda: self._inner.guest_exec(node, vmid, argv, stdin, timeout=timeout),
        )

    def _watched(self, method: str, path: str, act: Callable[[], Any]) -> Any:
        if method == "GET" or path.endswith("/agent/ping"):
            return act()
        point = f"{self._sim.place} {method} {template_of(path)}"
        self._sim.reach(f"call before {point}")
        answer = act()
        self._sim.reach(f"call after {point}")
        return answer


def watch_programs(sim: Sim) -> None:
    """Makes points of the programs that change a volume, as of calls."""
    real_do, real_convert = tool.do, qemu_img.convert

    def do(words: Sequence[str], what: str, **more: Any) -> str:
        if words[0] != "qemu-img" or words[1] == "info":
            return real_do(words, what, **more)
        verb = " ".join(word for word in words[1:4] if word in _CHANGES)
        return str(_reached(sim, f"qemu-img {verb}", lambda: real_do(words, what, **more)))

    def convert(words: Sequence[str], progress: Any) -> None:
        _reached(sim, "qemu-img convert", lambda: real_convert(words, progress))

    tool.do, qemu_img.convert = do, convert


def _reached(sim: Sim, program: str, act: Callable[[], Any]) -> Any:
    point = f"{sim.place} {PROGRAM} {program}"
    sim.reach(f"call before {point}")
    answer = act()
    sim.reach(f"call after {point}")
    return answer


def check_volume(
    self: node.NodeTools, storage: storage_plan.Storage, volume: str, *, repair: bool
) -> VolumeCheck:
    """As the real one, of what `sim_work` puts on a volume."""
    plan = storage_plan.plan_volume_tool(storage, volume, "check")
    self.snapshots(storage, volume)  # NoSuchVolume
    found = sim_work.read(Path(plan.name))
    if not found.fs:
        return VolumeCheck(FileSystem.BLANK, "nothing was ever written to it")
    if found.fs == "clean":
        return VolumeCheck(FileSystem.CLEAN, "clean")
    if not repair:
        return VolumeCheck(FileSystem.NEEDS_REPAIR, found.fs)
    sim_work.write(Path(plan.name), sim_work.Content("clean", found.text))
    return VolumeCheck(FileSystem.REPAIRED, "mended")


def template_of(path: str) -> str:
    """`/nodes/pve/qemu/1001/status/start` as Proxmox's own documentation writes it."""
    for pattern, name in (
        (r"(?<=/nodes/)[^/]+", "{node}"),
        (r"(?<=/qemu/)\d+", "{vmid}"),
        (r"(?<=/snapshot/)[^/]+", "{snapname}"),
        (r"(?<=/tasks/)[^/]+", "{upid}"),
        (r"(?<=/storage/)[^/]+", "{storage}"),
        (r"(?<=/content/).+", "{volume}"),
    ):
        path = re.sub(pattern, name, path)
    return path


class FileFence:
    """A fence of nothing but a list in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def ensure(self) -> None:
        if not self._path.exists():
            self._path.write_text("{}")

    def sync(self, read_members: Callable[[], Sequence[Member]]) -> None:
        with self._lock:
            members = {
                str(one.vmid): [one.tap, one.mac, str(one.address)] for one in read_members()
            }
            part = self._path.with_name(f"{self._path.name}.part")
            part.write_text(json.dumps(members))
            part.replace(self._path)

    def check_port(self, tap: str) -> None:
        with self._lock:
            taps = [each[0] for each in json.loads(self._path.read_text()).values()]
        if tap not in taps:
            raise Conflict(f"{tap} is not behind the rules")

    def verify(self) -> None:
        """Nobody else changes it."""

    def look_at_bridge(self) -> bool:
        return True

    def look_at_rules(self) -> int:
        return len(json.loads(self._path.read_text()))


def prepare(sim: Sim, members: Path) -> None:
    """Puts into this process what is not real."""
    real = build._api  # the transport that the daemon would have
    build.TRANSPORTS = {"api": lambda given: Watched(real(given), sim)}  # type: ignore[assignment,return-value,arg-type]
    build.Fence = lambda _: FileFence(members)  # type: ignore[assignment,misc,return-value]
    clock.now = sim.now
    watch_programs(sim)
    node.NodeTools.check_volume = check_volume  # type: ignore[method-assign]
    open_door()
    job_run._GRACE = _GRACE
    for found in pkgutil.iter_modules(control.__path__):
        module = importlib.import_module(f"agentlab.control.{found.name}")
        if hasattr(module, "EVERY"):
            module.EVERY = min(module.EVERY, _LOOP)
    said = driver.ProxmoxHypervisor.capabilities.fget
    assert said is not None

    def capabilities(self: driver.ProxmoxHypervisor) -> Capabilities:
        return replace(said(self), look=_LOOK)

    driver.ProxmoxHypervisor.capabilities = property(capabilities)  # type: ignore[assignment,method-assign]


def run(order: Order) -> int:
    """The daemon, in the forked process."""
    sim = Sim(order)
    out = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    prepare(sim, Path(order.members))
    log.setup()
    return main.serve(config.load(Path(order.config)), observer=sim.observe)


def start(order: Order) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        random.seed()
        status = run(order)
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    with contextlib.suppress(ChildProcessError):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 0


def read(path: str, sql: str, values: Sequence[object]) -> list[dict[str, object]]:
    """Rows of a database: for one that only this process's mount namespace has."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql, values)]


def obey() -> None:
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "rows" in order:
            answer: object = json.dumps(read(*order["rows"]))
        else:
            answer = start(Order(**order["start"])) if "start" in order else wait(order["wait"])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    obey()

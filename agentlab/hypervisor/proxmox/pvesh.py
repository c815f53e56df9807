"""The Transport by `pvesh`, for a daemon that runs as root on a Proxmox node.

pvesh runs a task in the foreground, and a task dies with its pvesh.  So a call that changes
something has a record, a directory of the spool, in which it lives on without us:

    <ms since the epoch>.<subject>.<random>/
        call      JSON: what, argv, at (seconds since the epoch)
        begun     "PID START" of the wrapper (START as in /proc/PID/stat), or "-": given up
        stdout    what pvesh and its worker said
        stderr
        status    the exit status; it appears whole, when pvesh has ended

`begun` is made once only, by the wrapper or by who gives the record up, so that a call that is
given up never begins.  Two calls for one subject never run at the same time, whichever daemon
started them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentlab import run
from agentlab.clock import Deadline, now
from agentlab.errors import Busy, DeadlineExceeded, Invalid, Unavailable, Unsupported
from agentlab.hypervisor.base import ExecResult
from agentlab.hypervisor.proxmox.pvesh_records import (
    State,
    age_of,
    outcome,
    render_launch,
    slug_of,
    state_of,
    wait_end,
    wait_exit,
    wait_session,
    what_of,
)
from agentlab.hypervisor.proxmox.pvesh_words import (
    call_error,
    is_list,
    is_quick,
    parse_value,
    render_call,
    subject_of,
)
from agentlab.hypervisor.proxmox.transport import (
    LockTimeout,
    Method,
    Parameters,
    Refused,
    ReplyLost,
)

if TYPE_CHECKING:
    from subprocess import Popen  # the type alone: only run.py starts processes

_KEEP = 200  # finished records
_KEEP_FOR = 3600.0
_SWEEP_EVERY = 60.0
_LOCK = "lock"
_API_HINT = "use proxmox_backend: api, or keep to the node on which the daemon runs"
# Perl prints what pvesh and qm encode by themselves, whatever our own environment wants.
_ENVIRONMENT: Mapping[str, str] = {"LC_ALL": "C.UTF-8", "PERL_UNICODE": "0"}


class PveshTransport:
    """Calls of the API by `pvesh`, as root on `node`.  `spool` is a directory of ours alone.

    `scope` says whether systemd gives each changing call a scope of its own, so that stopping
    our unit does not end it; None: when systemd runs this machine.
    """

    name = "shell"
    foreground = True

    def __init__(self, node: str, spool: Path, *, scope: bool | None = None) -> None:
        self._node = node
        self._spool = spool
        self._scope = Path("/run/systemd/system").is_dir() if scope is None else scope
        self._reading: set[str] = set()  # records of ours that a thread still has to read
        self._swept = Deadline.after(0)
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)

    def call(
        self, method: Method, path: str, params: Parameters | None = None, *, timeout: float = 30.0
    ) -> object:
        """As `Transport.call`; beyond it:

        Busy: a changing call goes on after `timeout`, and is left to it.  LockTimeout, a Busy too:
        an earlier one for the same subject did, and this one was not begun.  ReplyLost: its
        process ended without telling how.  Unsupported: no pvesh here.
        """
        argv = render_call(method, path, params or {})
        remote = self._is_elsewhere(path)
        if remote and any(is_list(value) for value in (params or {}).values()):
            # pvesh passes a call on by ssh, and a list as the text "ARRAY(0x…)".
            raise Unsupported(
                f"{method} {path}: pvesh passes no lists to other nodes, and we are on {self._node}",
                hint=_API_HINT,
            )
        _need("pvesh")
        deadline = Deadline.after(timeout)
        what = f"{method} {path}"
        if method == "GET" or is_quick(path):
            return self._read(
                what, argv, deadline, lost=Unavailable if method == "GET" else ReplyLost
            )
        status, stdout, stderr = self._change(what, argv, subject_of(path, params or {}), deadline)
        if status == 0:
            return parse_value(stdout)
        error = call_error(what, status, stderr)
        if remote and isinstance(error, Refused):
            # It passes worker lines on as if they were JSON, and fails when all is done.
            raise ReplyLost(f"{error.message} (said after a call to another node)")
        raise error

    def guest_exec(
        self, node: str, vmid: int, argv: Sequence[str], stdin: str, *, timeout: float
    ) -> ExecResult | int:
        """As `Transport.guest_exec`; always the pid.  Only for VMs on this node: Unsupported.

        With `stdin` it is `qm guest exec`, which reads it from a pipe; pvesh could only take it
        as an argument.  qm could wait for the end as well, but then prints the guest's bytes as
        they are in some versions and each as a UTF-8 character in others, and nothing tells
        which.  `exec-status` by pvesh is always the latter: `text.encode("latin-1")`.
        """
        if node != self._node:
            raise Unsupported(
                f"cannot run a program in VM {vmid}: it is on node {node}, and we are on"
                f" {self._node}",
                hint=_API_HINT,
            )
        if not argv or any("\0" in word for word in argv) or not stdin.isascii():
            raise Invalid(f"cannot run a program in VM {vmid}: not a command, or stdin not ASCII")
        what = f"cannot run {argv[0]} in VM {vmid}"
        if stdin:
            _need("qm")
            options = ("--synchronous", "0", "--pass-stdin", "1")
            words = ["qm", "guest", "exec", str(vmid), *options, "--", *argv]
            text = stdin.encode()
            answer = self._read(what, words, Deadline.after(timeout), lost=ReplyLost, stdin=text)
        else:
            path = f"/nodes/{node}/qemu/{vmid}/agent/exec"
            answer = self.call("POST", path, {"command": list(argv)}, timeout=timeout)
        pid = answer.get("pid") if isinstance(answer, dict) else None
        if not isinstance(pid, int | str) or not str(pid).isdecimal():
            raise ReplyLost(f"{what}: Proxmox gave no pid")
        return int(pid)

    # Calls without a task: killed at the time-out, which ends nothing but the wait.

    def _read(
        self,
        what: str,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        lost: type[Unavailable],
        stdin: bytes | None = None,
    ) -> object:
        timeout = max(deadline.left, 0.1)
        try:
            done = run.run(argv, timeout=timeout, stdin=stdin, check=False, env=_ENVIRONMENT)
        except DeadlineExceeded as late:
            raise lost(f"{what}: {late.message}") from late
        if done.status < 0:
            raise lost(f"{what}: its process was killed")
        if done.status != 0:
            raise call_error(what, done.status, done.stderr)
        text = done.text.strip()
        if not text:
            return None
        try:
            value: object = json.loads(text)
        except ValueError:
            value = parse_value(done.stdout)
            if value is None:
                raise lost(f"{what}: {argv[0]} said what is not JSON") from None
        return value

    # Calls with a task.

    def _change(
        self, what: str, argv: Sequence[str], subject: str, deadline: Deadline
    ) -> tuple[int, bytes, bytes]:
        """The exit status, stdout and stderr of a call that nobody may cut off."""
        record, process = self._launch(what, argv, subject, deadline)
        try:
            ended = wait_exit(process.pid, deadline)
            if ended:
                process.wait()
                ended = (record / "status").exists() or wait_session(process.pid, deadline)
            else:  # someone has to take its exit status
                threading.Thread(target=process.wait, name=f"reap {what}", daemon=True).start()
            if not ended:
                raise Busy(
                    f"{what} is still running",
                    hint="it goes on by itself; look at the state, or ask again",
                    details={"call": what, "record": record.name, "pid": process.pid},
                )
            return outcome(what, record)
        finally:
            self._reading.discard(record.name)

    def _launch(
        self, what: str, argv: Sequence[str], subject: str, deadline: Deadline
    ) -> tuple[Path, Popen[bytes]]:
        slug = slug_of(subject)
        while True:
            with self._locked(what, deadline):
                self._sweep()
                earlier = self._unfinished(slug)
                if earlier is None:
                    return self._start(what, argv, slug)
            if deadline.passed or not wait_end(earlier, deadline):
                running = what_of(earlier)
                raise LockTimeout(
                    f"{what}: {running} is still running",
                    hint="it goes on by itself; ask again",
                    details={"call": running, "record": earlier.name},
                )

    def _start(self, what: str, argv: Sequence[str], slug: str) -> tuple[Path, Popen[bytes]]:
        record = self._spool / f"{int(now() * 1000):013d}.{slug}.{secrets.token_hex(4)}"
        record.mkdir(mode=0o700)
        self._reading.add(record.name)
        try:
            call = {"what": what, "argv": list(argv), "at": now()}
            (record / "call").write_text(json.dumps(call))
            with (record / "stdout").open("wb") as out, (record / "stderr").open("wb") as errors:
                words = render_launch(argv, unit=record.name if self._scope else "")
                environment = {**os.environ, **_ENVIRONMENT}
                process = run.spawn(words, stdout=out, stderr=errors, cwd=record, env=environment)
        except BaseException:
            self._reading.discard(record.name)
            shutil.rmtree(record, ignore_errors=True)
            raise
        return record, process

    def _unfinished(self, slug: str) -> Path | None:
        for record in sorted(self._spool.glob(f"*.{slug}.*")):
            if state_of(record) in (State.STARTING, State.ALIVE):
                return record
        return None

    def _sweep(self) -> None:
        """Removes finished records that are old or too many; the caller holds the lock."""
        names = sorted(name for name in os.listdir(self._spool) if name != _LOCK)
        if not self._swept.passed and len(names) < 2 * _KEEP:
            return
        self._swept = Deadline.after(_SWEEP_EVERY)
        kept = 0
        for name in reversed(names):
            record = self._spool / name
            if name in self._reading or state_of(record) in (State.STARTING, State.ALIVE):
                continue
            kept += 1
            if kept > _KEEP or age_of(record) > _KEEP_FOR:
                shutil.rmtree(record, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, what: str, deadline: Deadline) -> Iterator[None]:
        """Between looking for an earlier call and starting one, nobody else starts one."""
        descriptor = os.open(self._spool / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if deadline.passed:
                        raise LockTimeout(f"{what}: many calls are starting") from None
                    time.sleep(0.005)
            yield
        finally:
            os.close(descriptor)

    def _is_elsewhere(self, path: str) -> bool:
        found = re.match(r"/nodes/([^/]+)", path)
        return found is not None and found.group(1) not in (self._node, "localhost")


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise Unsupported(
            f"cannot run {program}: not installed here",
            hint="run the daemon on a Proxmox node, or use proxmox_backend: api",
        )

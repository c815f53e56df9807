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
import hashlib
import json
import os
import re
import secrets
import select
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlab import run
from agentlab.clock import Deadline, now
from agentlab.errors import (
    AgentLabError,
    Busy,
    DeadlineExceeded,
    Internal,
    Invalid,
    Unavailable,
    Unsupported,
)
from agentlab.hypervisor.base import ExecResult
from agentlab.hypervisor.proxmox.transport import (
    LockTimeout,
    Method,
    NotReached,
    Parameters,
    Refused,
    ReplyLost,
    classify,
)
from agentlab.log import one_line

if TYPE_CHECKING:
    from subprocess import Popen  # the type alone: only run.py starts processes

_VERBS: Mapping[str, str] = {"GET": "get", "POST": "create", "PUT": "set", "DELETE": "delete"}
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_PATH = re.compile(r"(/[^/\s\x00-\x1f]+)+")
_LONGEST_WORD = 120_000  # bytes; Linux takes 128 KiB in one argument
_KEEP = 200  # finished records
_KEEP_FOR = 3600.0
_SWEEP_EVERY = 60.0
_START_WITHIN = 20.0  # seconds from the record's birth to `begun`; systemd may be slow
_POLL = 0.05
_SIGNALS = (1, 2, 3, 6, 9, 11, 13, 15)  # sh adds 128; other high numbers are Perl's
_PROC = Path("/proc")

# The relative names are in the record, where it is started.  ${line##*) } drops the process's
# name, which may hold anything; the 20th word after it is the start time.  `set -C` makes `>`
# fail for a file that exists.
_WRAPPER = """\
read -r line < /proc/$$/stat
set -C
( set -- ${line##*) }; echo "$$ ${20}" ) > begun || exit 125
"$@"
echo "$?" > status.new && mv status.new status
"""


class _State(Enum):
    STARTING = "starting"
    ALIVE = "alive"
    ENDED = "ended"  # with a status
    LOST = "lost"  # it ran, and ended without a status
    NEVER = "never"  # it did not run, and never will


@dataclass(frozen=True, slots=True)
class Said:
    """What an error output means: a status as HTTP has it, the words, the fields of a 400."""

    status: int
    words: str
    errors: Mapping[str, str]


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
        if remote and any(_is_list(value) for value in (params or {}).values()):
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
        error = _error(what, status, stderr)
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
            raise _error(what, done.status, done.stderr)
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
            ended = _wait_exit(process.pid, deadline)
            if ended:
                process.wait()
                ended = (record / "status").exists() or _wait_session(process.pid, deadline)
            else:  # someone has to take its exit status
                threading.Thread(target=process.wait, name=f"reap {what}", daemon=True).start()
            if not ended:
                raise Busy(
                    f"{what} is still running",
                    hint="it goes on by itself; look at the state, or ask again",
                    details={"call": what, "record": record.name, "pid": process.pid},
                )
            return _outcome(what, record)
        finally:
            self._reading.discard(record.name)

    def _launch(
        self, what: str, argv: Sequence[str], subject: str, deadline: Deadline
    ) -> tuple[Path, Popen[bytes]]:
        slug = _slug(subject)
        while True:
            with self._locked(what, deadline):
                self._sweep()
                earlier = self._unfinished(slug)
                if earlier is None:
                    return self._start(what, argv, slug)
            if deadline.passed or not _wait_end(earlier, deadline):
                running = _what(earlier)
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
            if _state(record) in (_State.STARTING, _State.ALIVE):
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
            if name in self._reading or _state(record) in (_State.STARTING, _State.ALIVE):
                continue
            kept += 1
            if kept > _KEEP or _age(record) > _KEEP_FOR:
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


_LOCK = "lock"
_API_HINT = "use proxmox_backend: api, or keep to the node on which the daemon runs"
# Perl prints what pvesh and qm encode by themselves, whatever our own environment wants.
_ENVIRONMENT: Mapping[str, str] = {"LC_ALL": "C.UTF-8", "PERL_UNICODE": "0"}


def render_call(method: Method, path: str, params: Parameters) -> list[str]:
    """The words of one pvesh call.  Internal when it would show a secret, or is malformed."""
    if not _PATH.fullmatch(path):
        raise Internal(f"cannot call Proxmox: {path!r} is no path")
    hidden = {"password", "cipassword", "input-data"} | (
        {"content"} if path.endswith("/agent/file-write") else set()
    )
    if hidden & params.keys():
        raise Internal(f"{method} {path}: everybody can read the arguments of pvesh")
    words = ["pvesh", _VERBS[method], path, "--output-format=json"]
    return words + render_parameters(params)


def render_parameters(params: Parameters) -> list[str]:
    """Parameters as options: True as 1, False as 0, a sequence as one option many times.

    Perl's Getopt::Long takes all that follows the first "=" as the value, be it "-x", "--help"
    or "@file" (which it does not know).  Only an empty value is an error there, and goes as a
    word of its own.
    """
    words: list[str] = []
    for key, value in params.items():
        if not _KEY.fullmatch(key):
            raise Internal(f"cannot call Proxmox: {key!r} is no parameter")
        values = (value,) if isinstance(value, str | int) else value
        for each in values:
            text = str(int(each)) if isinstance(each, bool) else str(each)
            if "\0" in text or len(text.encode(errors="replace")) > _LONGEST_WORD:
                raise Invalid(f"cannot call Proxmox: {key} is too long or has a zero byte")
            words += [f"--{key}={text}"] if text else [f"--{key}", ""]
    return words


def render_launch(argv: Sequence[str], *, unit: str) -> list[str]:
    """The wrapper around a call; with `unit` in a systemd scope of that name.

    `systemd-run --scope` becomes the program that it starts: the process id stays.
    """
    wrapped = ["/bin/sh", "-c", _WRAPPER, "pvesh-call", *argv]
    if not unit:
        return wrapped
    name = f"--unit=agentlab-pvesh-{unit}.scope"
    return ["systemd-run", "--scope", "--quiet", "--collect", name, "--", *wrapped]


def is_quick(path: str) -> bool:
    """Whether a call runs no task whatever its method: those to the guest agent."""
    return re.fullmatch(r"/nodes/[^/]+/qemu/\d+/agent(/[a-z-]+)?", path) is not None


def subject_of(path: str, params: Parameters) -> str:
    """What a changing call is about, of which there is only one at a time.

    For a clone it is the VM to be, so that clones of one template go side by side.
    """
    if "newid" in params:
        return f"vm {params['newid']}"
    found = re.match(r"/nodes/[^/]+/(?:qemu|lxc)(?:/(\d+))?", path)
    if found and (found.group(1) or "vmid" in params):
        return f"vm {found.group(1) or params['vmid']}"
    found = re.fullmatch(r"/nodes/[^/]+/storage/([^/]+)/content(?:/(.+))?", path)
    if found:
        volume = str(found.group(2) or params.get("filename", ""))
        return f"volume {found.group(1)}/{volume.rpartition('/')[2].rpartition(':')[2]}"
    return path


def parse_value(stdout: bytes) -> object:
    """The value that pvesh gave: JSON on the last line, after the worker's own lines.

    None when there is no value; `set …/config` has only lines of its worker, for example.
    """
    lines = stdout.decode(errors="replace").rstrip().splitlines()
    if not lines:
        return None
    try:
        return json.loads(lines[-1])
    except ValueError:
        # A worker's last line may lack its end, and the UPID then follows on it.
        found = re.search(r'"(UPID:[^"\s]+:)"$', lines[-1])
        return found.group(1) if found else None


def parse_error(stderr: bytes) -> Said:
    """The status, words and fields of what pvesh or qm said before it failed."""
    lines = []
    for raw in stderr.decode(errors="replace").splitlines():
        line = raw.strip()
        if re.match(r"(pvesh|qm) [a-z]+ .*[<\[]", line):
            break  # how to use it, after a 400
        if line and not re.match(r"(Wide character|Use of uninitialized value) .* line \d+", line):
            lines.append(line)
    for index, line in enumerate(lines):
        found = re.match(r"([1-5]\d\d) (.+)", line)
        if found:
            lines[index] = found.group(2)
            fields = lines[index + 1 :] if found.group(1) == "400" else []
            return Said(int(found.group(1)), "; ".join(lines), _fields(fields))
    words = "; ".join(lines[-5:])
    if words.startswith("Permission check failed"):
        return Said(403, words, {})
    if re.match(r"no '[a-z]+' handler", words, re.IGNORECASE):
        return Said(501, words, {})
    return Said(500, words, {})


def _fields(lines: Sequence[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    key = ""
    for line in lines:
        found = re.match(r"([A-Za-z0-9_.\[\]-]+): (.*)", line)
        if found:
            key, fields[found.group(1)] = found.groups()
        elif key:
            fields[key] += f" {line}"
    return fields


def _error(what: str, status: int, stderr: bytes) -> AgentLabError:
    if status - 128 in _SIGNALS:
        return ReplyLost(f"{what}: its process was killed")
    said = parse_error(stderr)
    words = said.words or f"it ended with status {status} and said nothing"
    return classify(what, said.status, words, said.errors)


def _outcome(what: str, record: Path) -> tuple[int, bytes, bytes]:
    stderr = _bytes(record / "stderr")
    try:
        status = int(_bytes(record / "status"))
    except ValueError:
        if _bytes(record / "begun").strip() not in (b"", b"-"):
            raise ReplyLost(f"{what}: its process ended without telling how") from None
        said = one_line(stderr.decode(errors="replace").strip()[-400:])
        raise NotReached(f"{what}: its process did not start: {said}") from None
    return status, _bytes(record / "stdout"), stderr


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise Unsupported(
            f"cannot run {program}: not installed here",
            hint="run the daemon on a Proxmox node, or use proxmox_backend: api",
        )


def _is_list(value: Any) -> bool:
    return not isinstance(value, str | int)


def _slug(subject: str) -> str:
    """A subject as part of a file name and of a unit's name; without dots."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", subject)[-40:].strip("-")
    return f"{readable}-{hashlib.sha256(subject.encode()).hexdigest()[:8]}"


# The state of a record, as any process can see it.


def _what(record: Path) -> str:
    try:
        return str(json.loads(_bytes(record / "call"))["what"])
    except (ValueError, KeyError, TypeError):
        return f"an earlier call ({record.name})"


def _age(record: Path) -> float:
    try:
        return abs(now() - record.stat().st_mtime)
    except FileNotFoundError:
        return 0.0


def _state(record: Path) -> _State:
    if (record / "status").exists():
        return _State.ENDED
    try:
        mark = (record / "begun").read_text().split()
    except FileNotFoundError:
        if _age(record) < _START_WITHIN:
            return _State.STARTING if record.is_dir() else _State.NEVER
        if not _give_up(record):
            return _state(record)
        return _State.NEVER
    if mark == ["-"]:
        return _State.NEVER
    if len(mark) != 2 or not all(word.isdecimal() for word in mark):
        return _State.STARTING if _age(record) < _START_WITHIN else _State.LOST
    if _is_running(int(mark[0]), int(mark[1])):
        return _State.ALIVE
    return _State.ENDED if (record / "status").exists() else _State.LOST


def _give_up(record: Path) -> bool:
    """Keeps a call from ever beginning; False when it has begun."""
    try:
        with (record / "begun").open("x") as file:
            file.write("-\n")
    except FileExistsError:
        return False
    except FileNotFoundError:
        pass  # the record itself is gone, so that no wrapper can write there
    return True


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (the state) on; [] when there is none."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _is_running(pid: int, start: int) -> bool:
    """Whether that wrapper lives, or what it started: a wrapper may be killed alone."""
    fields = _stat(pid)
    if fields and fields[19] != str(start):
        return False  # another process has the number, which takes that the session is empty
    return (bool(fields) and fields[0] not in "ZX") or _has_session(pid)


def _has_session(leader: int) -> bool:
    for entry in os.listdir(_PROC):
        fields = _stat(int(entry)) if entry.isdecimal() else []
        if fields and fields[3] == str(leader) and fields[0] not in "ZX":
            return True
    return False


def _wait_exit(pid: int, deadline: Deadline) -> bool:
    """True when the process has ended; a zombie has."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(deadline.left * 1000))
    finally:
        os.close(handle)


def _wait_session(leader: int, deadline: Deadline) -> bool:
    while _has_session(leader):
        if deadline.passed:
            return False
        time.sleep(_POLL)
    return True


def _wait_end(record: Path, deadline: Deadline) -> bool:
    """True when the call of a record, begun by whatever daemon, runs no more."""
    while (state := _state(record)) in (_State.STARTING, _State.ALIVE):
        if deadline.passed:
            return False
        mark = _bytes(record / "begun").split()
        if state is _State.ALIVE and mark and _stat(int(mark[0])):
            _wait_exit(int(mark[0]), Deadline.after(min(deadline.left, 1.0)))
        time.sleep(min(_POLL, max(deadline.left, 0.001)))
    return True

"""Records of calls by pvesh that nobody may cut off: what any process can see of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from agentlab.clock import Deadline, now
from agentlab.hypervisor.proxmox.transport import NotReached, ReplyLost
from agentlab.log import one_line

_START_WITHIN = 20.0  # seconds from the record's birth to `begun`; systemd may be slow
_POLL = 0.05
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


class State(Enum):
    STARTING = "starting"
    ALIVE = "alive"
    ENDED = "ended"  # with a status
    LOST = "lost"  # it ran, and ended without a status
    NEVER = "never"  # it did not run, and never will


def render_launch(argv: Sequence[str], *, unit: str) -> list[str]:
    """The wrapper around a call; with `unit` in a systemd scope of that name.

    `systemd-run --scope` becomes the program that it starts: the process id stays.
    """
    wrapped = ["/bin/sh", "-c", _WRAPPER, "pvesh-call", *argv]
    if not unit:
        return wrapped
    name = f"--unit=agentlab-pvesh-{unit}.scope"
    return ["systemd-run", "--scope", "--quiet", "--collect", name, "--", *wrapped]


def outcome(what: str, record: Path) -> tuple[int, bytes, bytes]:
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


def slug_of(subject: str) -> str:
    """A subject as part of a file name and of a unit's name; without dots."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", subject)[-40:].strip("-")
    return f"{readable}-{hashlib.sha256(subject.encode()).hexdigest()[:8]}"


# The state of a record, as any process can see it.


def what_of(record: Path) -> str:
    try:
        return str(json.loads(_bytes(record / "call"))["what"])
    except (ValueError, KeyError, TypeError):
        return f"an earlier call ({record.name})"


def age_of(record: Path) -> float:
    try:
        return abs(now() - record.stat().st_mtime)
    except FileNotFoundError:
        return 0.0


def state_of(record: Path) -> State:
    if (record / "status").exists():
        return State.ENDED
    try:
        mark = (record / "begun").read_text().split()
    except FileNotFoundError:
        if age_of(record) < _START_WITHIN:
            return State.STARTING if record.is_dir() else State.NEVER
        if not _give_up(record):
            return state_of(record)
        return State.NEVER
    if mark == ["-"]:
        return State.NEVER
    if len(mark) != 2 or not all(word.isdecimal() for word in mark):
        return State.STARTING if age_of(record) < _START_WITHIN else State.LOST
    if _is_running(int(mark[0]), int(mark[1])):
        return State.ALIVE
    return State.ENDED if (record / "status").exists() else State.LOST


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


def wait_exit(pid: int, deadline: Deadline) -> bool:
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


def wait_session(leader: int, deadline: Deadline) -> bool:
    while _has_session(leader):
        if deadline.passed:
            return False
        time.sleep(_POLL)
    return True


def wait_end(record: Path, deadline: Deadline) -> bool:
    """True when the call of a record, begun by whatever daemon, runs no more."""
    while (state := state_of(record)) in (State.STARTING, State.ALIVE):
        if deadline.passed:
            return False
        mark = _bytes(record / "begun").split()
        if state is State.ALIVE and mark and _stat(int(mark[0])):
            wait_exit(int(mark[0]), Deadline.after(min(deadline.left, 1.0)))
        time.sleep(min(_POLL, max(deadline.left, 0.001)))
    return True

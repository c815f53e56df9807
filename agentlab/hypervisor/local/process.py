"""QEMU processes: started so that they outlive us, found again by what they are, killed by what they are."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentlab import run
from agentlab.clock import Deadline
from agentlab.errors import Busy, Unavailable
from agentlab.hypervisor.files import try_lock
from agentlab.log import one_line

if TYPE_CHECKING:
    from subprocess import Popen  # the type alone: only run.py starts processes

PIDFILE = "pid"
_ALIVE = "alive"  # QEMU inherits a lock on it, held from the fork to its end
_STDERR_LIMIT = 256 << 10
_PROC = Path("/proc")


class Child:
    """A QEMU that this process started, for as long as both live."""

    def __init__(self, process: Popen[bytes], name: str) -> None:
        self._ended = threading.Event()
        self._process = process
        # Someone has to take its exit status, or it stays a zombie for as long as we live.
        threading.Thread(target=self._reap, name=f"qemu {name}", daemon=True).start()

    def _reap(self) -> None:
        self._process.wait()
        self._ended.set()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()


def launch(directory: Path, argv: Sequence[str], *, stderr: Path) -> Child:
    """Starts QEMU in its directory, so that its sockets have short names; returns at once.

    Raises Busy when a QEMU of this directory is still there.
    """
    alive = os.open(directory / _ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
    errors = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        deadline = Deadline.after(5.0)
        while not try_lock(alive):
            if deadline.passed:
                raise Busy(f"cannot start QEMU in {directory}: one is still there")
            time.sleep(0.02)
        os.ftruncate(errors, 0)
        (directory / PIDFILE).unlink(missing_ok=True)
        process = run.spawn(argv, stdout=errors, stderr=errors, cwd=directory, pass_fds=(alive,))
    finally:
        os.close(alive)
        os.close(errors)
    return Child(process, directory.name)


def find(directory: Path, uuid: str) -> int | None:
    """The process id of the QEMU with this uuid on its command line, or None.

    The number in the pid file is only where to look first.
    """
    with contextlib.suppress(OSError, ValueError):
        pid = int((directory / PIDFILE).read_text())
        if _is_ours(pid, uuid):
            return pid
    if not _held(directory):
        return None
    for entry in os.listdir(_PROC):
        if entry.isdecimal() and _is_ours(int(entry), uuid):
            return int(entry)
    return None


def kill(directory: Path, uuid: str, *, timeout: float = 10.0) -> None:
    """Kills that QEMU and waits until it is gone, with its open files.  None there: returns."""
    pid = find(directory, uuid)
    if pid is None:
        # one that somebody else killed has no command line any more, but still its tap
        deadline = Deadline.after(timeout)
        while _held(directory) and not deadline.passed:
            time.sleep(0.01)
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The handle stays with the process that it was opened for: look again, then kill.
        if not _is_ours(pid, uuid):
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], timeout)[0]:
            raise Unavailable(f"QEMU with pid {pid} does not end after SIGKILL")
    finally:
        os.close(handle)


def wait_gone(directory: Path, uuid: str, timeout: float) -> bool:
    """True when that QEMU has ended within `timeout`."""
    deadline = Deadline.after(timeout)
    while find(directory, uuid) is not None:
        if deadline.passed:
            return False
        time.sleep(min(0.05, max(deadline.left, 0.001)))
    return True


def last_words(stderr: Path) -> str:
    """The end of what QEMU said, on one line, for an error message."""
    try:
        with stderr.open("rb") as file:
            file.seek(max(0, stderr.stat().st_size - 2000))
            lines = file.read().decode(errors="replace").strip().splitlines()[-3:]
    except OSError:
        return ""
    return one_line("; ".join(lines))


def trim(stderr: Path) -> None:
    """Empties a log that a guest made grow; QEMU appends, so it goes on at the new end."""
    with contextlib.suppress(OSError):
        if stderr.stat().st_size > _STDERR_LIMIT:
            os.truncate(stderr, 0)


def _is_ours(pid: int, uuid: str) -> bool:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(
        flag == b"-uuid" and value == uuid.encode() for flag, value in itertools.pairwise(words)
    )


def _held(directory: Path) -> bool:
    """Whether a process still holds the lock that QEMU inherits; spares a walk through /proc."""
    try:
        descriptor = os.open(directory / _ALIVE, os.O_RDWR)
    except OSError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)

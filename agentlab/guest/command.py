"""Runs a program as the agent's user: its output goes to a sink, its errors are remembered."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agentlab import run
from agentlab.clock import Deadline, Timed
from agentlab.errors import AgentLabError, DeadlineExceeded
from agentlab.guest.account import Account

_PIECE = 64 * 1024
_TAIL = 8 * 1024  # bytes of standard error that are kept
_AFTER_EXIT = 1.0  # seconds for output that is still in the pipes
PIPE = 1 << 20  # bytes that a pipe of a user can hold (pipe(7): /proc/sys/fs/pipe-max-size)

Sink = Callable[[bytes], object]


class Stopped(AgentLabError):
    """Somebody asked to stop while a program ran."""

    code = "conflict"


@dataclass(frozen=True, slots=True)
class Ended:
    """A program that has ended: its status (negative: the signal) and its last errors."""

    status: int
    said: bytes

    @property
    def text(self) -> str:
        return self.said.decode(errors="replace").strip()


class Process(Protocol):
    """What is needed of a started process."""

    pid: int
    returncode: int | None

    def wait(self, timeout: float | None = None) -> int: ...


def wait_for_end(process: Process, seconds: float) -> bool:
    """Waits up to `seconds` without polling; True when the process has ended (not yet reaped)."""
    pidfd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(max(0, int(seconds * 1000))))
    finally:
        os.close(pidfd)


@dataclass
class _Pipes:
    """The read ends of a program's two outputs, and where the bytes go."""

    out: int
    err: int
    sink: Sink
    said: bytearray = field(default_factory=bytearray)
    open: int = 2

    def pump(self, poll: select.poll, milliseconds: int) -> bool:
        """Takes what is there; False when there was nothing."""
        events = poll.poll(milliseconds)
        for fd, _ in events:
            data = os.read(fd, _PIECE)
            if not data:
                poll.unregister(fd)
                self.open -= 1
            elif fd == self.out:
                self.sink(data)
            else:
                self.said += data
                del self.said[:-_TAIL]
        return bool(events)


def run_as(
    account: Account,
    argv: Sequence[str | Path],
    *,
    deadline: Timed,
    env: Mapping[str, str],
    stdin: int | None = None,
    sink: Sink = bytes.__len__,
    stop: Callable[[], bool] = lambda: False,
) -> Ended:
    """Runs a program as `account`, in `/`, with exactly `env`, to its end.

    Raises DeadlineExceeded, Stopped when `stop()` turns true, Unsupported when it is not
    installed, and whatever `sink` raises; the program's whole group is killed in each case.
    """
    out, out_end = os.pipe()
    err, err_end = os.pipe()
    try:
        try:
            # In `/`: Popen changes the directory before it changes the user.
            process = run.spawn(
                argv, stdin=stdin, stdout=out_end, stderr=err_end,
                cwd=Path("/"), env=env, user=account.user,
            )  # fmt: skip
        finally:
            os.close(out_end)
            os.close(err_end)
        try:
            pipes = _Pipes(out, err, sink)
            _follow(process, pipes, str(argv[0]), deadline, stop)
            return Ended(process.wait(), bytes(pipes.said))
        finally:
            with suppress(PermissionError):
                run.kill_group(process)
    finally:
        os.close(out)
        os.close(err)


def _follow(
    process: Process, pipes: _Pipes, name: str, deadline: Timed, stop: Callable[[], bool]
) -> None:
    """Until the program has ended; a child that keeps a pipe open is not waited for."""
    poll = select.poll()
    for fd in (pipes.out, pipes.err):
        poll.register(fd, select.POLLIN)
    pidfd = os.pidfd_open(process.pid)
    poll.register(pidfd, select.POLLIN)
    ends = select.poll()
    ends.register(pidfd, select.POLLIN)
    try:
        while not ends.poll(0):
            if deadline.passed:
                raise DeadlineExceeded(f"{name} took longer than it was given")
            if stop():
                raise Stopped(f"{name} was stopped")
            poll.unregister(pidfd)
            pipes.pump(poll, 0)
            poll.register(pidfd, select.POLLIN)
            poll.poll(min(200, int(deadline.left * 1000) + 1))
        poll.unregister(pidfd)
        until, late = Deadline.after(_AFTER_EXIT), 0
        # Whoever was held up until then still takes what the pipes can hold.
        while pipes.open and late <= PIPE // _PIECE and pipes.pump(poll, 50):
            late += until.passed
    finally:
        os.close(pidfd)

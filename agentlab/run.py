"""The one place that starts processes.  Arguments are lists, never shell text; all have deadlines."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, DeadlineExceeded, Unsupported

_TAIL = 2000  # characters of output that an error message carries
_active: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True, slots=True)
class Completed:
    """A process that has ended: its status (negative: the signal) and its output, as bytes."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


class CommandFailed(AgentLabError):
    """A program ended with a status other than 0; `completed` holds what it said."""

    code = "command_failed"

    def __init__(self, completed: Completed) -> None:
        said = (completed.stderr or completed.stdout).decode(errors="replace").strip()[-_TAIL:]
        super().__init__(
            f"{shlex.join(completed.argv[:6])} ended with status {completed.status}: {said}"
        )
        self.completed = completed


def _missing(program: str) -> Unsupported:
    return Unsupported(
        f"cannot run {program}: not installed",
        hint=f"install the package that has {program}, and see that it is in PATH",
    )


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    stdin: bytes | None = None,
    check: bool = True,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    watch: Callable[[], None] | None = None,
) -> Completed:
    """Runs a program to its end in a process group of its own, which a time-out kills whole.

    `timeout` is in seconds.  `env` is added to our own environment; LC_ALL is C.UTF-8.
    With `output`, stdout and stderr go to that file and `Completed` holds empty bytes.
    `watch` is called about once a second while it runs; what it raises ends the program.
    Raises CommandFailed (with `check`), DeadlineExceeded, Unsupported when not installed.
    """
    words = tuple(str(word) for word in argv)
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=output or subprocess.PIPE,
            stderr=subprocess.STDOUT if output else subprocess.PIPE,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            start_new_session=True,
        )
    except FileNotFoundError as missing:
        raise _missing(words[0]) from missing
    _active.add(process)
    try:
        stdout, stderr = _communicate(process, stdin, timeout, watch)
    except BaseException as stopped:
        kill_group(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        if isinstance(stopped, subprocess.TimeoutExpired):
            raise DeadlineExceeded(
                f"{shlex.join(words[:6])} took longer than {timeout:g} s"
            ) from stopped
        raise
    finally:
        _active.discard(process)
    completed = Completed(words, process.returncode, stdout or b"", stderr or b"")
    if check and completed.status != 0:
        raise CommandFailed(completed)
    return completed


def _communicate(
    process: subprocess.Popen[bytes],
    stdin: bytes | None,
    timeout: float,
    watch: Callable[[], None] | None,
) -> tuple[bytes, bytes]:
    if watch is None:
        return process.communicate(stdin, timeout)
    until = Deadline.after(timeout)
    while True:
        try:
            return process.communicate(stdin, min(until.left, 1.0))
        except subprocess.TimeoutExpired:
            if until.passed:
                raise
            stdin = None  # it is taken the first time
        watch()


def end_active(grace: float) -> None:
    """Ends every program that `run` waits for on any thread: the last act of a daemon that ends.

    They are told to end first, since some (mmdebstrap) tidy up then, and killed after `grace`
    seconds.
    """
    active = list(_active)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in active:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        until = Deadline.after(grace)
        while any(process in _active for process in active) and not until.passed:
            time.sleep(0.05)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that has a session of its own, with all its children, and reaps it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _as_user(user: str | int | None) -> dict[str, Any]:
    """Popen's words for a user with the groups of a login; a bare number has its own group only."""
    if user is None:
        return {}
    try:
        entry = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError as unknown:
        if isinstance(user, str):
            raise Unsupported(f"cannot run as user {user}: no such user") from unknown
        return {"user": user, "group": user, "extra_groups": []}
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


def spawn(
    argv: Sequence[str | Path],
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    user: str | int | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a program in a session of its own, so that it outlives us; no deadline.

    `env` is the whole environment when given.  A standard stream that is None is /dev/null.
    `user` is a name or a number; with it the program has that user's groups and no other.
    """
    words = [str(word) for word in argv]
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
            **_as_user(user),
        )
    except FileNotFoundError as missing:
        if cwd is not None and not cwd.is_dir():
            raise
        raise _missing(words[0]) from missing

"""Calls and tasks: what is repeated, how long for, and how a task's end is told."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Busy, Unavailable
from agentlab.hypervisor.load import Gate, Resource
from agentlab.hypervisor.proxmox.transport import (
    AgentSilent,
    Changed,
    LockTimeout,
    Method,
    NoSuchTask,
    NoSuchVM,
    NotReached,
    NoWorker,
    Parameter,
    Parameters,
    Refused,
    ReplyLost,
    StorageFull,
    Transport,
    classify,
)

T = TypeVar("T")

_UPID = re.compile(r"UPID:(?P<node>[^:]+):[0-9A-Fa-f:]+:[^:]*:[^:]*:[^:]+:")
_FIRST_POLL, _SLOWEST_POLL = 0.1, 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 3.0
_SHORT = 10.0  # seconds for which a reading call is tried again
_REFUSALS = 3  # times that words which we do not know are taken for a passing trouble
_LOG_LINES = 3


class Api:
    """Proxmox's API for the driver.  All methods may be called from any thread.

    `patience` is how many seconds a call waits for a lock, a turn or a task before it gives the
    thread back with Busy; whoever asks again finds the work by its mark.
    """

    def __init__(self, transport: Transport, gate: Gate, *, patience: float) -> None:
        self.transport = transport
        self._gate = gate
        self._patience = patience

    def get(self, path: str, *, what: str = "", **params: Parameter) -> object:
        """A reading call; repeated after whatever may pass."""
        return self._try(
            lambda: self.transport.call("GET", path, params),
            what or f"cannot read {path}",
            again=lambda error: (
                isinstance(error, (Unavailable, LockTimeout, NoWorker))
                and not isinstance(error, (AgentSilent, StorageFull))
            ),
            seconds=min(_SHORT, self._patience),
        )

    def change(
        self, method: Method, path: str, params: Parameters | None = None, *, what: str
    ) -> object:
        """A call that has done its work when it answers; repeated when it surely did nothing.

        Raises ReplyLost when only a look can tell.
        """
        return self._try(
            lambda: self.transport.call(method, path, params),
            what,
            again=lambda error: isinstance(error, (LockTimeout, NoWorker, NotReached)),
            seconds=self._patience,
        )

    def act(
        self,
        method: Method,
        path: str,
        params: Parameters | None = None,
        *,
        what: str,
        turns: Sequence[Resource] = (),
        patience: float = 0.0,
        before: Callable[[], object] = bool,
    ) -> None:
        """A call that starts a task, and the wait for its end; errors by what the task says.

        `before` is called when the turn has come and before each try: it proves what the call
        rests on.  Raises ReplyLost when only a look can tell, Busy when the task still runs.
        `patience` is in seconds and may only lengthen that of the driver for the task itself.
        """
        with self._gate.turn(turns, patience=self._patience):
            deadline = Deadline.after(max(patience, self._patience))

            def call() -> object:
                before()
                timeout = max(30.0, patience, self._patience)
                return self.transport.call(method, path, params, timeout=timeout)

            answer = self._try(
                call,
                what,
                again=lambda error: isinstance(error, (LockTimeout, NoWorker, NotReached)),
                seconds=self._patience,
            )
            self._ended(answer, what, deadline)

    def _ended(self, answer: object, what: str, deadline: Deadline) -> None:
        upid = _UPID.fullmatch(answer) if isinstance(answer, str) else None
        if upid is None:
            return  # a call that some versions carry out without a task
        self.wait(upid[0], what=what, deadline=deadline)

    def wait(self, upid: str, *, what: str, deadline: Deadline) -> None:
        """Until the task has ended well; its `exitstatus` decides.

        Raises what `exitstatus` means, with the task's last lines; Busy when it still runs.
        """
        node = upid.split(":")[1]
        path, pause = f"/nodes/{node}/tasks/{upid}", _FIRST_POLL
        while True:
            try:
                status = self.get(f"{path}/status", what=what)
            except NoSuchTask as forgotten:
                raise ReplyLost(
                    f"{what}: node {node} has forgotten its task", details={"upid": upid}
                ) from forgotten
            if isinstance(status, dict) and status.get("status") == "stopped":
                break
            if deadline.passed:
                raise Busy(f"{what}: its task still runs", details={"upid": upid})
            time.sleep(min(pause, max(deadline.left, 0.01)))
            pause = min(pause * 1.5, _SLOWEST_POLL)
        said = str(status.get("exitstatus", ""))
        # PVE::Tools upid_normalize_status_type: a warning is a success
        if said != "OK" and not said.startswith("WARNINGS"):
            raise self._task_error(path, what, said)

    def _task_error(self, path: str, what: str, said: str) -> AgentLabError:
        error = classify(what, 0, said)
        try:
            log = self.get(f"{path}/log", what=what, limit=1000)
        except AgentLabError:
            return error  # the task's own word is what matters
        lines = [str(line.get("t", "")) for line in log if isinstance(line, dict)] if (
            isinstance(log, list)
        ) else []  # fmt: skip
        last = [line.strip() for line in lines if line.strip() and said not in line][-_LOG_LINES:]
        error.details["log"] = list(last)
        if last and isinstance(error, (Refused, Unavailable)):
            error.message = f"{error.message} (its task's last lines: {' | '.join(last)[:300]})"
        return error

    @contextmanager
    def about(self, what: str) -> Iterator[None]:
        """Errors of the transport become sentences about what we were doing."""
        try:
            yield
        except AgentLabError as error:
            raise _about(error, what) from error

    def _try(
        self,
        call: Callable[[], T],
        what: str,
        *,
        again: Callable[[AgentLabError], bool],
        seconds: float,
    ) -> T:
        deadline, pause, refusals = Deadline.after(seconds), _FIRST_PAUSE, 0
        while True:
            try:
                return call()
            except AgentLabError as error:
                refusals += _odd(error)
                passing = again(error) or (_odd(error) and refusals < _REFUSALS)
                wait = _jitter(pause)
                if not passing or deadline.left < wait:
                    raise _about(error, what) from error
            time.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE)


def _odd(error: AgentLabError) -> bool:
    """Words of the server that nobody knows; those of a guest are its own affair."""
    return (
        isinstance(error, Refused)
        and error.details.get("status") == 500
        and not str(error.details.get("said")).startswith("Agent error")
    )


def _about(error: AgentLabError, what: str) -> AgentLabError:
    """The same error in a sentence about what we were doing."""
    said = error.details.get("said")
    message = f"{what}: {said}" if said else f"{what}: {error.message}"
    return type(error)(message, hint=error.hint, details=error.details)


def _jitter(pause: float) -> float:
    return pause * random.uniform(0.5, 1.5)  # noqa: S311  # spreads callers, no secret


def settled(attempt: Callable[[], T], *, patience: float) -> T:
    """Runs what looks before it acts, and has it look again for what may pass.

    That is a lost reply; what was just seen and is not there, since somebody has moved it; a
    configuration that somebody else has just changed; and a task that did not get a lock, which
    may have done a part.
    """
    deadline, pause = Deadline.after(patience), 0.3
    while True:
        try:
            return attempt()
        except (ReplyLost, NoSuchVM, Changed, LockTimeout, NoWorker):
            if deadline.left < pause:
                raise
        time.sleep(_jitter(pause))
        pause = min(pause * 2, _LONGEST_PAUSE)

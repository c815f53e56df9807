"""What the threads of the runner tell each other: the stage, and whether to stop."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Unavailable
from agentlab.guest.daemon import Daemon


class Control:
    """The stage that the job is in, and the reason to stop it, if any."""

    def __init__(self) -> None:
        self.stage = "bootstrap"
        self.changed = threading.Event()
        self._reason = ""

    def enter(self, stage: str) -> None:
        self.stage = stage
        self.changed.set()

    def stop(self, reason: str) -> None:
        """`cancelled` (the daemon said so) or `shutdown`; the first reason stays."""
        self._reason = self._reason or reason

    @property
    def reason(self) -> str:
        return self._reason

    def stopping(self) -> bool:
        return bool(self._reason)


class Limit:
    """The agent's time limit: a deadline that moves when the sandbox's lease is renewed."""

    def __init__(self, seconds: float) -> None:
        self._deadline = Deadline.after(seconds)

    def move(self, seconds: float) -> None:
        """From now on it is so many seconds away."""
        self._deadline = Deadline.after(seconds)

    @property
    def left(self) -> float:
        return self._deadline.left

    @property
    def passed(self) -> bool:
        return self._deadline.passed


class Heartbeat:
    """Says each `interval` seconds, and at each new stage, that we live.

    It hears of a cancel, and of a time limit that is another one since a lease was renewed.
    """

    def __init__(self, daemon: Daemon, control: Control, interval: float, limit: Limit) -> None:
        self._daemon, self._control, self._interval = daemon, control, interval
        self._limit = limit
        self._over = False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """After this no heartbeat is sent."""
        self._over = True
        self._control.changed.set()
        self._thread.join(15)

    def _beat(self) -> None:
        failing = False
        while not self._over:
            self._control.changed.clear()
            try:
                with suppress(Unavailable):  # it restarts; the next heartbeat is the retry
                    answer = self._daemon.heartbeat(self._control.stage)
                    if answer.cancel:
                        self._control.stop("cancelled")
                    if answer.time_left is not None:
                        self._limit.move(answer.time_left)
                failing = False
            except AgentLabError as refused:
                if not failing:
                    logging.warning("the daemon refused a heartbeat: %s", refused.message)
                failing = True
            if not self._over:
                self._control.changed.wait(self._interval)

"""Threads that serve connections: started when needed, used again, never more than a number.

They are kept because the store keeps a reading connection for each thread.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from agentlab.errors import Unavailable

_log = logging.getLogger(__name__)


class Pool:
    """At most `most` acts at the same time.  The threads end with the process."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._turn = threading.Condition()
        self._todo: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._busy = 0

    def submit(self, act: Callable[[], None]) -> bool:
        """Has a thread do it at once; False when all are busy.

        Unavailable when the system has no further thread; then nothing of it is done.
        """
        with self._turn:
            if self._busy >= self._most:
                return False
            if self._busy == self._threads:
                self._start()
            self._busy += 1
            self._todo.append(act)
            self._turn.notify_all()
        return True

    def _start(self) -> None:
        name = f"{self._name}-{self._threads + 1}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError as error:
            raise Unavailable(
                f"cannot take another connection: {error}", hint="try again in a moment"
            ) from error
        self._threads += 1

    def wait_idle(self, timeout: float) -> bool:
        """True when nothing is being done any more."""
        with self._turn:
            return self._turn.wait_for(lambda: self._busy == 0, timeout)

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: bool(self._todo))
                act = self._todo.popleft()
            try:
                act()
            except Exception:  # noqa: BLE001  # this thread serves on
                _log.exception("a connection could not be served")
            finally:
                with self._turn:
                    self._busy -= 1
                    self._turn.notify_all()

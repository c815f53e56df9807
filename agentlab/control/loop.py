"""A thread that does one thing again and again until it is stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from agentlab.errors import AgentLabError

_log = logging.getLogger(__name__)


class Loop:
    """Calls `act` at once and then each `every` seconds; what it raises is logged, once a change."""

    def __init__(self, name: str, act: Callable[[], object], *, every: float) -> None:
        self._name = name
        self._act = act
        self._every = every
        self._end = threading.Event()
        self._said = ""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The present round ends by itself; there is no further one."""
        self._end.set()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self._act()
                self._said = ""
            except Exception as error:  # noqa: BLE001  # the next round may do better
                if not self._end.is_set():
                    self._tell(error)
            self._end.wait(self._every)

    def _tell(self, error: Exception) -> None:
        ours = isinstance(error, AgentLabError)
        text = str(error) if ours else f"{type(error).__name__}: {error}"
        if text != self._said:
            _log.log(
                logging.WARNING if ours else logging.ERROR,
                "%s: %s", self._name, text, exc_info=None if ours else error,
            )  # fmt: skip
        self._said = text

"""Whose turn it is: operations by the time at which they want to be looked at."""

from __future__ import annotations

import heapq
import threading
import time


class Schedule:
    """Each operation stands here once at most, and is in one pair of hands at most."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._due: list[tuple[float, str]] = []
        self._next: dict[str, float] = {}  # the one entry of `_due` that counts
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._closed = False

    def wake(self, operation: str, after: float = 0.0) -> None:
        """Has an operation looked at after some seconds, or earlier if that was asked for before.

        One that is being worked on is looked at again as soon as it is given back.
        """
        at = time.monotonic() + after
        with self._turn:
            if operation in self._running:
                self._again.add(operation)
            elif at < self._next.get(operation, float("inf")):
                self._next[operation] = at
                heapq.heappush(self._due, (at, operation))
                self._turn.notify()

    def take(self) -> str | None:
        """Waits for the next operation that is due; None when the schedule is closed."""
        with self._turn:
            while not self._closed:
                now = time.monotonic()
                while self._due and self._due[0][0] <= now:
                    at, operation = heapq.heappop(self._due)
                    if self._next.get(operation) == at:
                        del self._next[operation]
                        self._running.add(operation)
                        return operation
                self._turn.wait(self._due[0][0] - now if self._due else None)
        return None

    def give_back(self, operation: str, pause: float | None) -> None:
        """Ends a turn; the next one is after `pause` seconds, or never with None, unless woken."""
        with self._turn:
            self._running.discard(operation)
            again = operation in self._again
            self._again.discard(operation)
        if again:
            self.wake(operation)
        elif pause is not None:
            self.wake(operation, pause)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Nobody is given a turn any more."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()

"""Turns: so many at the same moment for each node, template and storage; the others queue."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from agentlab.clock import Deadline
from agentlab.errors import Busy


@dataclass(frozen=True, slots=True)
class Resource:
    """What a turn is taken at: `Resource("template", "9000")`."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Gate:
    """First come, first served, at any number of resources at once.  All methods are thread-safe.

    `limits` says for each kind how many may have their turn at one resource of it; a kind that
    is not named has no limit.  At most `queue` callers wait.
    """

    def __init__(self, limits: Mapping[str, int], *, queue: int) -> None:
        self._limits = limits
        self._queue = queue
        self._taken: Counter[Resource] = Counter()
        self._waiting: list[_Ticket] = []
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, resources: Sequence[Resource], *, patience: float) -> Iterator[None]:
        """Waits for a turn at all of them, at most `patience` seconds; Busy tells the place."""
        wanted = tuple(dict.fromkeys(resources))
        self._take(wanted, Deadline.after(patience))
        try:
            yield
        finally:
            with self._changed:
                self._taken.subtract(wanted)
                self._taken += Counter()  # drops what is back at nought
                self._changed.notify_all()

    def _take(self, wanted: tuple[Resource, ...], deadline: Deadline) -> None:
        with self._changed:
            if not self._waiting and self._room(wanted):
                self._taken.update(wanted)
                return
            if len(self._waiting) >= self._queue:
                raise Busy(f"cannot queue for {_words(wanted)}: {self._queue} callers wait already")
            ticket = _Ticket(wanted)
            self._waiting.append(ticket)
            try:
                while not self._may_go(ticket):
                    if not self._changed.wait(deadline.left) and deadline.passed:
                        place = self._waiting.index(ticket) + 1
                        raise Busy(
                            f"waits for its turn at {_words(wanted)}: place {place} in the queue",
                            details={"place": place},
                        )
                self._taken.update(wanted)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _room(self, wanted: Sequence[Resource]) -> bool:
        return all(
            each.kind not in self._limits or self._taken[each] < self._limits[each.kind]
            for each in wanted
        )

    def _may_go(self, ticket: _Ticket) -> bool:
        """There is room, and nobody who came before could take it as well."""
        if not self._room(ticket.wanted):
            return False
        before = self._waiting[: self._waiting.index(ticket)]
        return not any(
            set(earlier.wanted) & set(ticket.wanted) and self._room(earlier.wanted)
            for earlier in before
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """One caller in the queue; told from others that want the same."""

    wanted: tuple[Resource, ...]


def _words(wanted: Sequence[Resource]) -> str:
    return ", ".join(str(each) for each in wanted)

"""Time: wall time for records, monotonic time for deadlines; both replaceable in tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


def now() -> float:
    """Seconds since the epoch, UTC; the form in which every record keeps its times."""
    return time.time()


def utc(at: float) -> str:
    """`2026-01-31 12:00:01 UTC`, for sentences in records."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time by which something has to be done."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at


class Timed(Protocol):
    """Whatever has an end in time that is looked at now and then: a Deadline, or one that moves."""

    @property
    def left(self) -> float: ...

    @property
    def passed(self) -> bool: ...


class Jumps:
    """Tells that the clock was set forth between two looks at it."""

    def __init__(self) -> None:
        self._wall, self._monotonic = now(), time.monotonic()

    def since(self) -> float:
        """Seconds by which it was set forth since the look before; 0 for next to none."""
        wall, monotonic = now(), time.monotonic()
        jumped = (wall - self._wall) - (monotonic - self._monotonic)
        self._wall, self._monotonic = wall, monotonic
        return jumped if jumped > 1.0 else 0.0


class Stamps:
    """Points in wall time as deadlines: a clock that is set later moves none that was seen before.

    Nor does it move one that took the place of such a one since the look before.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, Deadline, Jumps]] = {}

    def deadline(
        self, key: str, at: float, *, jumped: float = 0.0, most: float = float("inf")
    ) -> Deadline:
        """When `at` (seconds since the epoch) will be, as it looked when first asked for.

        `jumped` is by how much the clock may have been set forth since `at` was written down; in
        `most` seconds it is over in any case.
        """
        seen = self._seen.get(key)
        jumps = Jumps() if seen is None else seen[2]
        jumped = max(jumped, jumps.since())
        if seen is None or seen[0] != at:
            until = Deadline.after(min(at - now() + jumped, most))
            seen = self._seen[key] = (at, until, jumps)
        return seen[1]

    def forget(self, key: str) -> None:
        self._seen.pop(key, None)

    def keep(self, keys: set[str]) -> None:
        """Forgets all others."""
        self._seen = {key: each for key, each in self._seen.items() if key in keys}

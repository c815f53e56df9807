"""Time: wall time for records, monotonic time for deadlines; both replaceable in tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime


def now() -> float:
    """Seconds since the epoch, UTC; the form in which every record keeps its times."""
    return time.time()


def iso(at: float) -> str:
    """`2026-01-31T12:00:00.123Z` for seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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

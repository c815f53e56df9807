"""A fence that only remembers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agentlab.network.settings import Member


@dataclass
class FakeFence:
    """Remembers what it was last asked to admit; `faults` are what its next calls raise."""

    members: list[Member] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    elsewhere: list[Exception] = field(default_factory=list)

    def check_port(self, tap: str) -> None:
        self.checked.append(tap)
        if self.elsewhere:
            raise self.elsewhere.pop(0)

    def sync(self, read: Callable[[], Sequence[Member]]) -> None:
        if self.faults:
            raise self.faults.pop(0)
        self.members = list(read())

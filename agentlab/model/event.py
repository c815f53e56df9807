"""Events: appended facts with a sequence number; the one stream that everybody reads."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """What happened (`kind`, like `job.state` or `step.done`), to what, when, and why.

    `job` is "" and `vmid` 0 where the event is not about one.  `facts` holds JSON values.
    """

    seq: int
    at: float
    kind: str
    text: str
    job: str = ""
    vmid: int = 0
    operation: str = ""
    facts: dict[str, object] = field(default_factory=dict)

"""What all of them have in common: nothing, errors, operations, events, checks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Nothing:
    """An empty request."""


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """An error, as every endpoint gives it."""

    error: str
    code: str
    hint: str = ""
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """The daemon at a glance; `jobs` and `sandboxes` count by state, finished ones left out."""

    version: str
    commit: str
    python: str
    pid: int
    started: float
    hypervisor: str
    accelerator: str
    data_dir: str
    resident: int
    jobs: dict[str, int]
    sandboxes: dict[str, int]


@dataclass(frozen=True, slots=True)
class EventView:
    """A fact of the event stream; `job` is "" and `vmid` 0 where it is not about one."""

    seq: int
    at: float
    kind: str
    text: str
    job: str
    vmid: int
    operation: str
    facts: dict[str, object]


@dataclass(frozen=True, slots=True)
class EventList:
    """Events in order; `last` is the sequence number to ask after next."""

    events: list[EventView]
    last: int


@dataclass(frozen=True, slots=True)
class OperationView:
    """An operation: `state` is doing, undoing, done, failed or cancelled; `step` the present one.

    `vmid` is 0 for one that has no sandbox, or has none yet.  `result` is what it found out, empty
    for most: a check of a file system gives `state` and `text`.
    """

    id: str
    kind: str
    subject: str
    state: str
    step: str
    final: bool
    error: str
    hint: str
    waits_for: str
    vmid: int = 0
    result: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckView:
    """What a check of the host found: `status` is ok, missing, error or skipped."""

    name: str
    status: str
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CheckList:
    checks: list[CheckView]

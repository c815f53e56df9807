"""A guest's word on how its job ended: hostile input, checked, kept, and handed to the engine."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import cast

from agentlab.api.codec import at_most, limit, to_plain
from agentlab.daemon.context import Daemon
from agentlab.daemon.guest_session import Ended, Session, current_job
from agentlab.daemon.job_files import INCOMING, REPORT, Part, disk_errors, open_job_dir, open_parent
from agentlab.errors import Invalid, TooMany
from agentlab.store import events, jobs

MAX_REPORT = 1 << 20  # bytes: it lists every artifact, and there may be a thousand
# An honest entry has a sha256 and takes over 100 bytes, so that MAX_REPORT is what it meets first.
_MAX_ARTIFACTS = 10_000
_MAX_MISSING = 1000  # the runner stops at 201
_MAX_NUMBER = 1 << 53
_MAX_TEXT = 500


class Status(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Handed:
    """An artifact, as the guest says."""

    name: str = limit(1024)
    size: int = 0
    sha256: str = limit(64, default="")


@dataclass(frozen=True, slots=True)
class Missing:
    """What could not be handed back, and why."""

    name: str = limit(2048)
    reason: str = limit(4096, default="")


@dataclass(frozen=True, slots=True)
class Report:
    """The report of the protocol.  All of it is a claim."""

    status: Status
    stage: str = limit(64)
    message: str = limit(4096, default="")
    exit_code: int | None = None
    signal: int | None = None
    started: float | None = None
    ended: float | None = None
    commit_before: str | None = limit(64, default=None)
    commit_after: str | None = limit(64, default=None)
    log_bytes: int = 0
    log_truncated: bool = False
    artifacts: list[Handed] = field(default_factory=list, metadata=at_most(_MAX_ARTIFACTS))
    missing: list[Missing] = field(default_factory=list, metadata=at_most(_MAX_MISSING))


class Turns:
    """One report of a job at a time: each takes much more memory than its size."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_work: set[str] = set()

    @contextlib.contextmanager
    def one(self, job: str) -> Iterator[None]:
        """TooMany, which is worth a retry, when another is under way."""
        with self._lock:
            if job in self._at_work:
                raise TooMany("another report of this job is being taken")
            self._at_work.add(job)
        try:
            yield
        finally:
            with self._lock:
                self._at_work.discard(job)


def plain_report(report: Report) -> dict[str, object]:
    """A report as plain values; Invalid for a number that no database takes."""
    sizes = [("artifacts", each.size) for each in report.artifacts]
    numbers = [
        *sizes,
        ("exit_code", report.exit_code),
        ("signal", report.signal),
        ("started", report.started),
        ("ended", report.ended),
        ("log_bytes", report.log_bytes),
    ]
    for path, number in numbers:
        # JSON text has no bound, and Python's reader takes NaN
        if number is not None and not (math.isfinite(number) and abs(number) < _MAX_NUMBER):
            raise Invalid(f"{path}: is out of range", details={"path": path})
    return cast("dict[str, object]", to_plain(report))


def take(daemon: Daemon, session: Session, claimed: Report) -> dict[str, object]:
    """Keeps the report, once, and wakes the job's operation; the same one again is no matter."""
    report, job = plain_report(claimed), session.job
    if job.report is not None:
        return _again(job.report, report)
    text = json.dumps(report, indent=2).encode() + b"\n"
    store, artifact_dir = daemon.world.store, daemon.world.config.artifact_dir
    with (
        disk_errors(REPORT),
        open_job_dir(artifact_dir, job.id) as folder,
        open_parent(folder, f"{INCOMING}/{REPORT}", create=True) as (incoming, _),
        Part(incoming, daemon.boot) as part,
    ):
        part.write(text)
        part.sync()
        with store.write() as tx:
            job = current_job(tx, session)
            if job.report is not None:
                return _again(job.report, report)
            part.keep(folder, REPORT)
            jobs.set_report(tx, job.id, report)
            status, stage = str(report["status"]), str(report["stage"])
            events.append(
                tx, "job.report", f"job {job.id} reported: {status} ({stage})", job=job.id,
                vmid=job.vmid, operation=job.operation,
                facts={"status": status, "stage": stage,
                       "message": str(report["message"])[:_MAX_TEXT]},
            )  # fmt: skip
            # what follows is the engine's: the guest does not wait for it
            tx.on_commit(lambda: daemon.runner.wake(session.job.operation))
    return {}


def _again(kept: Mapping[str, object], report: Mapping[str, object]) -> dict[str, object]:
    if kept != report:
        raise Ended("cannot take the report: there is another one already")
    return {}

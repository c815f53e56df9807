"""The report: one sentence and the facts, the last thing that the daemon hears of a job."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from agentlab.guest.agent import Outcome
from agentlab.guest.job import Job

STILL_RUNS = "some processes of the agent cannot be ended and may have changed what was handed back"
_MOST = 512 * 1024  # bytes of the list of artifacts: the daemon takes a report of 1 MiB


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the job ended: a status and a stage of the protocol, and a sentence."""

    status: str
    stage: str
    message: str


@dataclass(slots=True)
class Facts:
    """What is known of the job when it ends; filled while it goes on."""

    commit_before: str | None = None
    commit_after: str | None = None
    started: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    log_bytes: int = 0
    log_truncated: bool = False
    artifacts: list[dict[str, object]] = field(default_factory=list)
    missing: list[dict[str, object]] = field(default_factory=list)


def stopped(reason: str, stage: str, job: Job) -> Verdict:
    """The verdict on a job that did not end by itself: `timeout`, `cancelled` or `shutdown`."""
    if reason == "timeout":
        limit = f"{job.time_limit:g} s"
        return Verdict("timeout", stage, f"stopped: the time limit of {limit} was reached")
    if reason == "cancelled":
        return Verdict("cancelled", stage, "stopped: the job was cancelled")
    return Verdict("failed", stage, "stopped: the machine was shut down")


def judge(outcome: Outcome, job: Job) -> Verdict:
    """The verdict on an agent that ran; nothing is complete while some of it still runs."""
    verdict = _judge_end(outcome, job)
    if not outcome.alive:
        return verdict
    status = "failed" if verdict.status == "completed" else verdict.status
    said = filter(None, (verdict.message, STILL_RUNS))
    return Verdict(status, "agent", "; ".join(said))


def _judge_end(outcome: Outcome, job: Job) -> Verdict:
    if outcome.stopped:
        return stopped(outcome.stopped, "agent", job)
    if outcome.signal is not None:
        try:
            name = signal.Signals(outcome.signal).name
        except ValueError:
            name = "a signal without a name"
        return Verdict("failed", "agent", f"the agent was killed by {name} ({outcome.signal})")
    if outcome.exit_code == 0:
        return Verdict("completed", "done", "")
    said = {
        127: "a command was not found; is the agent installed in the template?",
        126: "a command could not be run; is it executable?",
    }.get(outcome.exit_code or 0, "")
    ended = f"the agent ended with status {outcome.exit_code}"
    return Verdict("failed", "agent", f"{ended}: {said}" if said else ended)


def _within(entries: list[dict[str, object]], most: int) -> list[dict[str, object]]:
    """As many as fit into so many bytes; the daemon has seen every file itself."""
    kept, size = [], 0
    for entry in entries:
        size += len(json.dumps(entry)) + 2
        if size > most:
            break
        kept.append(entry)
    return kept


def render_report(verdict: Verdict, facts: Facts, ended: float) -> Mapping[str, object]:
    """The report's document, as the protocol lists it."""
    message = " ".join(verdict.message.split())[:2000]
    return {
        "status": verdict.status,
        "stage": verdict.stage,
        # A lone surrogate would be valid JSON that no strict reader takes.
        "message": message.encode(errors="replace").decode(),
        "exit_code": facts.exit_code,
        "signal": facts.signal,
        "started": facts.started,
        "ended": ended,
        "commit_before": facts.commit_before,
        "commit_after": facts.commit_after,
        "log_bytes": facts.log_bytes,
        "log_truncated": facts.log_truncated,
        "artifacts": _within(facts.artifacts, _MOST),
        "missing": facts.missing,
    }

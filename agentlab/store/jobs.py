"""Jobs, their artifacts and the bundles that they start from."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Mapping

from agentlab import clock
from agentlab.model.ids import unknown
from agentlab.model.job import JOB, Artifact, Job, JobEvent, JobSpec, JobState, Repo
from agentlab.store import events
from agentlab.store.db import Tx

_SELECT = (
    "SELECT job.*, coalesce(operation.waits_for, '') AS waits_for,"
    " coalesce(operation.state NOT IN ('doing', 'undoing'), 1) AS settled"
    " FROM job LEFT JOIN operation ON operation.id = job.operation"
)


def create(tx: Tx, job: Job, *, request_key: str, request_hash: str) -> None:
    """Writes a new job down; `request_key` "" means that the request cannot be repeated."""
    tx.execute(
        "INSERT INTO job (id, state, spec, vmid, operation, created, changed, deadline,"
        " request_key, request_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job.id, job.state, json.dumps(dataclasses.asdict(job.spec)), job.vmid, job.operation,
            job.created, job.changed, job.deadline, request_key or None, request_hash,
        ),
    )  # fmt: skip
    events.append(
        tx, "job.state", f"job {job.id} is {job.state}", job=job.id, operation=job.operation,
        facts={"from": "", "to": job.state},
    )  # fmt: skip


def find(tx: Tx, job: str) -> Job | None:
    row = tx.execute(f"{_SELECT} WHERE job.id = ?", (job,)).fetchone()
    return None if row is None else _job(row)


def get(tx: Tx, job: str) -> Job:
    """The job; NotFound with a near id otherwise."""
    found = find(tx, job)
    if found is None:
        rows = tx.execute("SELECT id FROM job ORDER BY created DESC LIMIT 200")
        raise unknown("job", job, [row["id"] for row in rows])
    return found


def by_request(tx: Tx, request_key: str) -> tuple[Job, str] | None:
    """The job that a request with this key made, and the hash of that request."""
    row = tx.execute(f"{_SELECT} WHERE job.request_key = ?", (request_key,)).fetchone()
    return None if row is None else (_job(row), row["request_hash"])


def newest(tx: Tx, *, state: str = "", limit: int = 100) -> list[Job]:
    """Jobs, newest first; state "" means any.  Their reports come without the lists of files."""
    rows = tx.execute(
        "SELECT job.id, job.state, job.spec, job.vmid, job.operation, job.created, job.changed,"  # noqa: S608  # our words
        " job.deadline, job.reason,"
        " json_remove(job.report, '$.artifacts', '$.missing') AS report,"
        " coalesce(operation.waits_for, '') AS waits_for,"
        " coalesce(operation.state NOT IN ('doing', 'undoing'), 1) AS settled"
        " FROM job LEFT JOIN operation ON operation.id = job.operation"
        + (" WHERE job.state = ?" if state else "")
        + " ORDER BY job.created DESC LIMIT ?",
        (state, limit) if state else (limit,),
    )
    return [_job(row) for row in rows]


def unfinished(tx: Tx) -> list[Job]:
    """All jobs that are not in a final state."""
    live = [state for state in JOB.states if not JOB.final(state)]
    marks = ", ".join("?" * len(live))
    return [_job(row) for row in tx.execute(f"{_SELECT} WHERE job.state IN ({marks})", live)]


def count_by_state(tx: Tx) -> dict[str, int]:
    """How many jobs are in each state that is not final."""
    live = [state for state in JOB.states if not JOB.final(state)]
    marks = ", ".join("?" * len(live))
    rows = tx.execute(
        f"SELECT state, count(*) AS n FROM job WHERE state IN ({marks}) GROUP BY state",  # noqa: S608  # marks only
        live,
    )
    return {row["state"]: row["n"] for row in rows}


def transition(
    tx: Tx,
    job: str,
    event: JobEvent,
    *,
    reason: str = "",
    report: Mapping[str, object] | None = None,
) -> Job:
    """Moves a job along its state table, with its event; InvalidTransition otherwise."""
    before = get(tx, job)
    state = JOB.next(before.state, event)
    tx.execute(
        "UPDATE job SET state = ?, changed = ?, reason = ?, report = coalesce(?, report)"
        " WHERE id = ? AND state = ?",
        (
            state, clock.now(), reason, None if report is None else json.dumps(dict(report)),
            job, before.state,
        ),
    )  # fmt: skip
    events.append(
        tx, "job.state", f"job {job} is {state}" + (f": {reason}" if reason else ""),
        job=job, vmid=before.vmid, operation=before.operation,
        facts={"from": before.state, "to": state, "reason": reason},
    )  # fmt: skip
    return get(tx, job)


def set_sandbox(tx: Tx, job: str, vmid: int) -> None:
    tx.execute("UPDATE job SET vmid = ? WHERE id = ?", (vmid, job))


def set_deadline(tx: Tx, job: str, deadline: float) -> None:
    tx.execute("UPDATE job SET deadline = ? WHERE id = ?", (deadline, job))


def set_report(tx: Tx, job: str, report: Mapping[str, object]) -> None:
    tx.execute("UPDATE job SET report = ? WHERE id = ?", (json.dumps(dict(report)), job))


def put_artifact(tx: Tx, artifact: Artifact) -> None:
    tx.execute(
        "INSERT INTO artifact VALUES (?, ?, ?, ?, ?) ON CONFLICT (job, name) DO UPDATE"
        " SET size = excluded.size, sha256 = excluded.sha256, created = excluded.created",
        (artifact.job, artifact.name, artifact.size, artifact.sha256, artifact.created),
    )


def artifacts(tx: Tx, job: str) -> list[Artifact]:
    """What a job handed back, by name."""
    rows = tx.execute("SELECT * FROM artifact WHERE job = ? ORDER BY name", (job,))
    return [Artifact(*tuple(row)) for row in rows]


def put_bundle(tx: Tx, sha256: str, size: int) -> None:
    tx.execute(
        "INSERT INTO bundle VALUES (?, ?, ?) ON CONFLICT (sha256) DO UPDATE"
        " SET created = excluded.created",
        (sha256, size, clock.now()),
    )


def has_bundle(tx: Tx, sha256: str) -> bool:
    return tx.execute("SELECT 1 FROM bundle WHERE sha256 = ?", (sha256,)).fetchone() is not None


def idle_bundles(tx: Tx, before: float) -> list[str]:
    """Bundles sent before a time that no unfinished job starts from."""
    rows = tx.execute(
        "SELECT sha256 FROM bundle WHERE created < ? AND sha256 NOT IN"
        " (SELECT json_extract(spec, '$.repo.bundle') FROM job"
        "  WHERE state IN ('QUEUED', 'PROVISIONING', 'RUNNING'))",
        (before,),
    )
    return [row["sha256"] for row in rows]


def forget_idle_bundle(tx: Tx, sha256: str, before: float) -> bool:
    """Deletes a bundle's record; False when it is idle no longer, and stays."""
    deleted = tx.execute(
        "DELETE FROM bundle WHERE sha256 = ? AND created < ? AND sha256 NOT IN"
        " (SELECT json_extract(spec, '$.repo.bundle') FROM job"
        "  WHERE state IN ('QUEUED', 'PROVISIONING', 'RUNNING'))",
        (sha256, before),
    )
    return deleted.rowcount == 1


def finished_before(tx: Tx, at: float, limit: int = 500) -> list[str]:
    """Jobs that ended before a time, oldest first."""
    final = [state for state in JOB.states if JOB.final(state)]
    marks = ", ".join("?" * len(final))
    rows = tx.execute(
        f"SELECT id FROM job WHERE state IN ({marks}) AND changed < ? ORDER BY changed LIMIT ?",  # noqa: S608  # marks only
        (*final, at, limit),
    )
    return [row["id"] for row in rows]


def forget(tx: Tx, job: str) -> None:
    """Deletes a job's record with its artifacts' records and its tokens."""
    tx.execute("DELETE FROM job WHERE id = ?", (job,))


def _job(row: sqlite3.Row) -> Job:
    spec = json.loads(row["spec"])
    return Job(
        id=row["id"],
        state=JobState(row["state"]),
        spec=JobSpec(**{**spec, "repo": Repo(**spec["repo"])}),
        vmid=row["vmid"],
        operation=row["operation"],
        created=row["created"],
        changed=row["changed"],
        deadline=row["deadline"],
        reason=row["reason"],
        waits_for=row["waits_for"],
        settled=bool(row["settled"]),
        report=None if row["report"] is None else json.loads(row["report"]),
    )

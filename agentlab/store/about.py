"""What is written down about one thing, over all tables: for those who look into its history."""

from __future__ import annotations

import json
from dataclasses import dataclass

from agentlab.model.event import Event
from agentlab.model.job import Job
from agentlab.model.sandbox import Sandbox
from agentlab.model.session import Session
from agentlab.model.workspace import Workspace
from agentlab.store import events, jobs, operations
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow


@dataclass(frozen=True, slots=True)
class About:
    """Of whom we ask: each of them may be absent.

    Names and VMIDs are given again to others, so each counts from its own record's beginning only.
    """

    session: Session | None = None
    workspace: Workspace | None = None
    sandbox: Sandbox | None = None
    jobs: tuple[Job, ...] = ()


def jobs_of(tx: Tx, workspace: Workspace, session: Session | None, limit: int) -> list[Job]:
    """The newest jobs that had a workspace, oldest first; named in their spec or operation."""
    rows = tx.execute(
        "SELECT job.id FROM job LEFT JOIN operation ON operation.id = job.operation"
        " WHERE json_extract(operation.input, '$.workspace') = :id"
        " OR (job.created >= :since AND (json_extract(job.spec, '$.workspace') = :name"
        "  OR (json_extract(job.spec, '$.session') = :session AND :session != ''"
        "   AND coalesce(json_extract(job.spec, '$.branch'), '') = '')))"
        " ORDER BY job.created DESC, job.id DESC LIMIT :limit",
        {
            "id": workspace.id, "name": workspace.name, "since": workspace.created,
            "session": session.name if session else "", "limit": limit,
        },
    ).fetchall()  # fmt: skip
    return [jobs.get(tx, row["id"]) for row in reversed(rows)]


def operations_of(tx: Tx, about: About, limit: int) -> list[OperationRow]:
    """The newest operations on any of them, oldest first."""
    rows = tx.execute(
        "SELECT id FROM operation WHERE subject IN (:workspace_subject, :session_subject)"
        " OR json_extract(input, '$.workspace') = :workspace"
        " OR json_extract(input, '$.made') = :workspace"
        " OR job IN (SELECT value FROM json_each(:jobs))"
        # by their events: one that makes a sandbox begins before the sandbox's own record does
        " OR id IN (SELECT operation FROM event"
        "  WHERE vmid = :vmid AND at >= :since AND at < :until)"
        " ORDER BY created DESC, id DESC LIMIT :limit",
        {**_values(tx, about), "limit": limit},
    ).fetchall()
    return [operations.get(tx, row["id"]) for row in reversed(rows)]


def events_of(tx: Tx, about: About, found: list[OperationRow], limit: int) -> list[Event]:
    """The newest events about any of them or of these operations, oldest first."""
    rows = tx.execute(
        "SELECT seq FROM event WHERE job IN (SELECT value FROM json_each(:jobs))"
        " OR operation IN (SELECT value FROM json_each(:operations))"
        " OR (vmid = :vmid AND at >= :since AND at < :until)"
        " OR (at >= :workspace_since AND json_extract(facts, '$.workspace') = :workspace_name)"
        " OR (at >= :session_since AND json_extract(facts, '$.session') = :session_name)"
        " ORDER BY seq DESC LIMIT :limit",
        {
            **_values(tx, about), "limit": limit,
            "operations": json.dumps([each.id for each in found]),
        },
    ).fetchall()  # fmt: skip
    return events.these(tx, [row["seq"] for row in rows])


def _values(tx: Tx, about: About) -> dict[str, object]:
    """What the queries compare with; NULL is equal to nothing."""
    session, workspace, sandbox = about.session, about.workspace, about.sandbox
    return {
        "jobs": json.dumps([each.id for each in about.jobs]),
        "workspace": workspace.id if workspace else None,
        "workspace_subject": f"workspace:{workspace.id}" if workspace else None,
        "workspace_name": workspace.name if workspace else None,
        "workspace_since": workspace.created if workspace else None,
        "session_subject": f"session:{session.id}" if session else None,
        "session_name": session.name if session else None,
        "session_since": session.created if session else None,
        "vmid": sandbox.vmid if sandbox else None,
        "since": sandbox.created if sandbox else None,
        "until": _next(tx, sandbox) if sandbox else None,
    }


def _next(tx: Tx, sandbox: Sandbox) -> float:
    """When the next sandbox with the same VMID was made; infinity as long as there is none."""
    row = tx.execute(
        "SELECT created FROM sandbox WHERE vmid = ? AND id > ? ORDER BY id LIMIT 1",
        (sandbox.vmid, sandbox.id),
    ).fetchone()
    return float("inf") if row is None else float(row["created"])

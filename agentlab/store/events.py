"""The event stream: append and read after a sequence number."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

from agentlab import clock
from agentlab.model.event import Event
from agentlab.store.db import Tx

_MAX_TEXT = 4000


def append(
    tx: Tx,
    kind: str,
    text: str,
    *,
    job: str = "",
    vmid: int = 0,
    operation: str = "",
    facts: Mapping[str, object] | None = None,
) -> None:
    """Writes down a fact in the same transaction as the change that it tells of."""
    tx.execute(
        "INSERT INTO event (at, kind, text, job, vmid, operation, facts)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (clock.now(), kind, text[:_MAX_TEXT], job, vmid, operation, json.dumps(dict(facts or {}))),
    )


def last(tx: Tx) -> int:
    """The sequence number of the newest event, 0 when there was never one."""
    row = tx.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
    return int(row["seq"]) if row else 0


def after(
    tx: Tx, seq: int, *, job: str = "", vmid: int = 0, operation: str = "", limit: int = 500
) -> list[Event]:
    """Events with a greater sequence number, oldest first; "" and 0 mean any."""
    where, values = ["seq > ?"], [seq]
    filters: list[tuple[str, object]] = [("job", job), ("vmid", vmid), ("operation", operation)]
    for column, value in filters:
        if value:
            where.append(f"{column} = ?")
            values.append(value)  # type: ignore[arg-type]  # bound by SQLite, whatever it is
    rows = tx.execute(
        f"SELECT * FROM event WHERE {' AND '.join(where)} ORDER BY seq LIMIT ?",  # noqa: S608  # columns are ours
        (*values, limit),
    )
    return [_event(row) for row in rows]


def these(tx: Tx, seqs: Sequence[int]) -> list[Event]:
    """Events by their sequence numbers, oldest first."""
    rows = tx.execute(
        "SELECT * FROM event WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq",
        (json.dumps(list(seqs)),),
    )
    return [_event(row) for row in rows]


def noted(tx: Tx, kind: str, vmid: int, fact: str, value: str) -> bool:
    """Whether there is an event of this kind about a sandbox that has this fact."""
    row = tx.execute(
        "SELECT 1 FROM event WHERE vmid = ? AND vmid != 0 AND kind = ?"
        " AND json_extract(facts, '$.' || ?) = ? LIMIT 1",
        (vmid, kind, fact, value),
    ).fetchone()
    return row is not None


def used_after(tx: Tx, seq: int) -> set[int]:
    """VMIDs of sandboxes that somebody has run or copied something in since a sequence number."""
    rows = tx.execute(
        "SELECT DISTINCT vmid FROM event WHERE seq > ? AND vmid != 0"
        " AND (kind GLOB 'exec.*' OR kind GLOB 'use.*' OR kind GLOB 'cp.*')",
        (seq,),
    )
    return {row["vmid"] for row in rows}


def delete_before(tx: Tx, at: float) -> int:
    """Retention: forgets events older than `at`; gives how many."""
    return tx.execute("DELETE FROM event WHERE at < ?", (at,)).rowcount


def _event(row: sqlite3.Row) -> Event:
    return Event(
        seq=row["seq"],
        at=row["at"],
        kind=row["kind"],
        text=row["text"],
        job=row["job"],
        vmid=row["vmid"],
        operation=row["operation"],
        facts=json.loads(row["facts"]),
    )

"""Operations, their steps and the subjects that they lock."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentlab import clock
from agentlab.errors import Busy
from agentlab.model.ids import unknown
from agentlab.store.db import Tx

UNFINISHED = ("doing", "undoing")


@dataclass(frozen=True, slots=True)
class OperationRow:
    """An operation as written down.  `state`: doing, undoing, done, failed or cancelled."""

    id: str
    kind: str
    subject: str
    input: dict[str, object]
    job: str
    vmid: int
    state: str
    cancel: bool
    waits_for: str
    error: str
    code: str
    hint: str
    created: float
    changed: float

    @property
    def final(self) -> bool:
        return self.state not in UNFINISHED


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step as written down.  `state`: doing, done, undoing or undone."""

    name: str
    state: str
    output: dict[str, object]
    attempts: int
    started: float
    ended: float | None


def create(
    tx: Tx,
    operation: str,
    kind: str,
    subjects: Sequence[str],
    arguments: Mapping[str, object],
    *,
    job: str = "",
    vmid: int = 0,
) -> None:
    """Writes a new operation down and locks its subjects (the first one names it); Busy."""
    now = clock.now()
    tx.execute(
        "INSERT INTO operation (id, kind, subject, input, job, vmid, state, created, changed)"
        " VALUES (?, ?, ?, ?, ?, ?, 'doing', ?, ?)",
        (operation, kind, subjects[0], json.dumps(dict(arguments)), job, vmid, now, now),
    )
    for subject in subjects:
        lock(tx, operation, subject)


def lock(tx: Tx, operation: str, subject: str) -> None:
    """Locks one more subject for an operation; Busy names the operation that holds it."""
    holder = holder_of(tx, subject)
    if holder is None:
        tx.execute("INSERT INTO subject VALUES (?, ?)", (subject, operation))
    elif holder.id != operation:
        raise Busy(
            f"cannot work on {subject}: {holder.kind} {holder.id} is under way",
            hint="wait for it, or cancel it",
            details={"operation": holder.id, "kind": holder.kind, "job": holder.job},
        )


def unlock(tx: Tx, operation: str, subject: str) -> None:
    """Frees one subject before the operation ends; not locked by it: returns."""
    tx.execute("DELETE FROM subject WHERE name = ? AND operation = ?", (subject, operation))


def holder_of(tx: Tx, subject: str) -> OperationRow | None:
    """The unfinished operation that has locked a subject."""
    row = tx.execute(
        "SELECT operation.* FROM subject JOIN operation ON operation.id = subject.operation"
        " WHERE subject.name = ?",
        (subject,),
    ).fetchone()
    return None if row is None else _operation(row)


def find(tx: Tx, operation: str) -> OperationRow | None:
    row = tx.execute("SELECT * FROM operation WHERE id = ?", (operation,)).fetchone()
    return None if row is None else _operation(row)


def get(tx: Tx, operation: str) -> OperationRow:
    found = find(tx, operation)
    if found is None:
        raise unknown("operation", operation, [])
    return found


def unfinished(tx: Tx) -> list[OperationRow]:
    """All that have to go on, oldest first."""
    rows = tx.execute(
        "SELECT * FROM operation WHERE state IN ('doing', 'undoing') ORDER BY created, id"
    )
    return [_operation(row) for row in rows]


def steps(tx: Tx, operation: str) -> dict[str, StepRow]:
    """The steps begun so far, by name."""
    rows = tx.execute("SELECT * FROM step WHERE operation = ?", (operation,))
    return {row["name"]: _step(row) for row in rows}


def begin_step(tx: Tx, operation: str, name: str) -> StepRow:
    """Writes `doing` before a step is done; again for one that is done again."""
    tx.execute(
        "INSERT INTO step (operation, name, state, started) VALUES (?, ?, 'doing', ?)"
        " ON CONFLICT (operation, name) DO UPDATE SET attempts = attempts + 1",
        (operation, name, clock.now()),
    )
    _touch(tx, operation)
    return steps(tx, operation)[name]


def end_step(tx: Tx, operation: str, name: str, state: str, output: Mapping[str, object]) -> None:
    """Writes `done` or `undone` after it."""
    tx.execute(
        "UPDATE step SET state = ?, output = ?, ended = ? WHERE operation = ? AND name = ?",
        (state, json.dumps(dict(output)), clock.now(), operation, name),
    )
    _touch(tx, operation)


def save_output(tx: Tx, operation: str, name: str, output: Mapping[str, object]) -> None:
    """Keeps what a step has learnt before it is done (a task's id, say)."""
    tx.execute(
        "UPDATE step SET output = ? WHERE operation = ? AND name = ?",
        (json.dumps(dict(output)), operation, name),
    )


def begin_undo(tx: Tx, operation: str, name: str) -> None:
    tx.execute(
        "UPDATE step SET state = 'undoing' WHERE operation = ? AND name = ?", (operation, name)
    )


def set_vmid(tx: Tx, operation: str, vmid: int) -> None:
    tx.execute("UPDATE operation SET vmid = ? WHERE id = ?", (vmid, operation))


def set_waits_for(tx: Tx, operation: str, waits_for: str) -> None:
    """Notes for what an operation waits, "" for nothing."""
    tx.execute("UPDATE operation SET waits_for = ? WHERE id = ?", (waits_for, operation))


def request_cancel(tx: Tx, operation: str) -> None:
    tx.execute(
        "UPDATE operation SET cancel = 1 WHERE id = ? AND state IN ('doing', 'undoing')",
        (operation,),
    )


def turn_back(tx: Tx, operation: str, *, error: str, code: str, hint: str) -> None:
    """From now on the operation is undone; the reason is kept."""
    tx.execute(
        "UPDATE operation SET state = 'undoing', error = ?, code = ?, hint = ?, waits_for = '',"
        " changed = ? WHERE id = ? AND state = 'doing'",
        (error, code, hint, clock.now(), operation),
    )


def finish(tx: Tx, operation: str, state: str) -> None:
    """Ends an operation and frees its subjects."""
    tx.execute(
        "UPDATE operation SET state = ?, waits_for = '', changed = ? WHERE id = ?",
        (state, clock.now(), operation),
    )
    tx.execute("DELETE FROM subject WHERE operation = ?", (operation,))


def forget_before(tx: Tx, at: float) -> int:
    """Deletes operations that ended before a time, with their steps; gives how many."""
    return tx.execute(
        "DELETE FROM operation WHERE changed < ? AND state NOT IN ('doing', 'undoing')", (at,)
    ).rowcount


def _touch(tx: Tx, operation: str) -> None:
    tx.execute(
        "UPDATE operation SET changed = ?, waits_for = '' WHERE id = ?", (clock.now(), operation)
    )


def _operation(row: sqlite3.Row) -> OperationRow:
    fields = dict(row)
    fields["input"] = json.loads(fields["input"])
    fields["cancel"] = bool(fields["cancel"])
    return OperationRow(**fields)


def _step(row: sqlite3.Row) -> StepRow:
    return StepRow(
        name=row["name"],
        state=row["state"],
        output=json.loads(row["output"]),
        attempts=row["attempts"],
        started=row["started"],
        ended=row["ended"],
    )

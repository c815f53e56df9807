"""Operations, their steps and the subjects that they lock.

Who came first is told by `rowid`, the order in which they were written: clocks are set back.
(`+rowid` sorts what the index of unfinished ones has found, and reads no others.)
"""

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
    request_key: str | None = None
    request_hash: str = ""

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
    in_turn: bool = False,
    request: tuple[str, str] = ("", ""),
) -> None:
    """Writes a new operation down and locks its subjects (the first one names it); Busy.

    `in_turn`: it locks its subject itself, when its turn has come; at once when nobody has it.  `request` is the key of the
    request that asked for it, and a hash of what it asked: for `by_request`.
    """
    now, (key, digest) = clock.now(), request
    tx.execute(
        "INSERT INTO operation (id, kind, subject, input, job, vmid, state, created, changed,"
        " request_key, request_hash) VALUES (?, ?, ?, ?, ?, ?, 'doing', ?, ?, ?, ?)",
        (operation, kind, subjects[0], json.dumps(dict(arguments)), job, vmid, now, now,
         key or None, digest),
    )  # fmt: skip
    if not in_turn:
        for subject in subjects:
            lock(tx, operation, subject)
    elif holder_of(tx, subjects[0]) is None and len(waiting_for(tx, subjects[0])) == 1:
        lock(tx, operation, subjects[0])


def by_request(tx: Tx, key: str) -> OperationRow | None:
    """The operation that an earlier request with this key has made."""
    row = tx.execute("SELECT * FROM operation WHERE request_key = ?", (key,)).fetchone()
    return None if row is None else _operation(row)


def ahead(tx: Tx, operation: OperationRow, step: str) -> OperationRow | None:
    """The operation that comes before this one at its subject: the holder, or an earlier waiter."""
    holder = holder_of(tx, operation.subject)
    if holder is not None:
        return None if holder.id == operation.id else holder
    row = tx.execute(
        "SELECT operation.* FROM operation JOIN step ON step.operation = operation.id"
        " WHERE operation.subject = ? AND operation.state = 'doing' AND step.name = ?"
        " AND step.state = 'doing' ORDER BY operation.rowid LIMIT 1",
        (operation.subject, step),
    ).fetchone()
    return None if row is None or row["id"] == operation.id else _operation(row)


def at_step(tx: Tx, step: str) -> list[str]:
    """Operations that are at a step now, those that were asked for first before the others."""
    rows = tx.execute(
        "SELECT step.operation FROM step JOIN operation ON operation.id = step.operation"
        " WHERE step.name = ? AND step.state = 'doing' AND operation.state = 'doing'"
        " ORDER BY operation.rowid",
        (step,),
    )
    return [row["operation"] for row in rows]


def waiting_for(tx: Tx, subject: str) -> list[OperationRow]:
    """Unfinished operations that have named a subject theirs and do not hold it yet."""
    rows = tx.execute(
        "SELECT * FROM operation WHERE subject = ? AND state = 'doing' AND id NOT IN"
        " (SELECT operation FROM subject WHERE name = ?) ORDER BY rowid",
        (subject, subject),
    )
    return [_operation(row) for row in rows]


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
    rows = tx.execute("SELECT * FROM operation WHERE state IN ('doing', 'undoing') ORDER BY +rowid")
    return [_operation(row) for row in rows]


def of_made(tx: Tx, workspace: int) -> OperationRow | None:
    """The unfinished operation that makes a workspace, by the id of the record."""
    row = tx.execute(
        "SELECT * FROM operation WHERE state IN ('doing', 'undoing')"
        " AND json_extract(input, '$.made') = ? LIMIT 1",
        (workspace,),
    ).fetchone()
    return None if row is None else _operation(row)


def of_kind(tx: Tx, kind: str) -> list[OperationRow]:
    """Unfinished operations of one kind, oldest first."""
    return [each for each in unfinished(tx) if each.kind == kind]


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


def finish(tx: Tx, operation: str, state: str) -> list[str]:
    """Ends an operation and frees its subjects; gives the operations that wait for them."""
    waiting = tx.execute(
        "SELECT operation.id FROM operation JOIN subject ON subject.name = operation.subject"
        " WHERE subject.operation = ? AND operation.id != ? AND operation.state = 'doing'",
        (operation, operation),
    ).fetchall()
    tx.execute(
        "UPDATE operation SET state = ?, waits_for = '', changed = ? WHERE id = ?",
        (state, clock.now(), operation),
    )
    tx.execute("DELETE FROM subject WHERE operation = ?", (operation,))
    return [row["id"] for row in waiting]


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

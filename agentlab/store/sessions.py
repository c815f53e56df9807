"""Sessions: which workspace belongs to which profile, under which name."""

from __future__ import annotations

import sqlite3

from agentlab import clock
from agentlab.model.ids import unknown
from agentlab.model.session import Session
from agentlab.store import events
from agentlab.store.db import Tx


def create(tx: Tx, session: Session, *, operation: str = "") -> int:
    """Writes a new session down and gives its id; the unique indexes refuse what another has."""
    row = tx.execute(
        "INSERT INTO session (name, workspace, profile, origin, repo, branch, created, changed)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (session.name, session.workspace, session.profile, session.origin, session.repo,
         session.branch, session.created, session.changed),
    ).fetchone()  # fmt: skip
    _tell(tx, f"session {session.name} was created", session.name, operation)
    return int(row["id"])


def find(tx: Tx, name: str) -> Session | None:
    row = tx.execute("SELECT * FROM session WHERE name = ?", (name,)).fetchone()
    return None if row is None else _session(row)


def by_id(tx: Tx, identity: int) -> Session | None:
    row = tx.execute("SELECT * FROM session WHERE id = ?", (identity,)).fetchone()
    return None if row is None else _session(row)


def get(tx: Tx, name: str) -> Session:
    """By its name; NotFound with a near one otherwise."""
    found = find(tx, name)
    if found is None:
        raise unknown("session", name, [one.name for one in everyone(tx)])
    return found


def everyone(tx: Tx) -> list[Session]:
    """All sessions, by name."""
    return [_session(row) for row in tx.execute("SELECT * FROM session ORDER BY name")]


def of_workspace(tx: Tx, workspace: int) -> Session | None:
    """The session that a workspace belongs to, by the id of its record."""
    row = tx.execute("SELECT * FROM session WHERE workspace = ?", (workspace,)).fetchone()
    return None if row is None else _session(row)


def of_branch(tx: Tx, *, origin: str = "", repo: str = "", branch: str) -> Session | None:
    """The session that there is for a branch of a session, or of a repository."""
    row = tx.execute(
        "SELECT * FROM session WHERE origin = ? AND repo = ? AND branch = ?",
        (origin, repo, branch),
    ).fetchone()
    return None if row is None else _session(row)


def touch(tx: Tx, identity: int) -> None:
    """Somebody has worked with it."""
    tx.execute("UPDATE session SET changed = ? WHERE id = ?", (clock.now(), identity))


def delete(tx: Tx, identity: int, *, operation: str = "") -> None:
    """Absent: returns.  Its workspace stays, and so do its forks, which are nobody's any more.

    A later session of the same name has branches of its own.
    """
    found = by_id(tx, identity)
    if found is not None:
        tx.execute("DELETE FROM session WHERE id = ?", (identity,))
        tx.execute(
            "UPDATE session SET origin = ? WHERE origin = ?",
            (f"{found.name}#{identity}", found.name),
        )
        _tell(tx, f"session {found.name} was deleted", found.name, operation)


def _tell(tx: Tx, text: str, name: str, operation: str) -> None:
    events.append(tx, "session.state", text, operation=operation, facts={"session": name})


def _session(row: sqlite3.Row) -> Session:
    return Session(
        name=row["name"],
        workspace=row["workspace"],
        profile=row["profile"],
        created=row["created"],
        changed=row["changed"],
        id=row["id"],
        origin=row["origin"],
        repo=row["repo"],
        branch=row["branch"],
    )

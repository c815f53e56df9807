"""One-shot tokens of guests: only fingerprints are kept."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab import clock
from agentlab.store.db import Tx


@dataclass(frozen=True, slots=True)
class Token:
    """A token's record; `session` is the fingerprint of the session that spent it, "" for none."""

    fingerprint: str
    job: str
    address: str
    expires: float
    session: str


def put(tx: Tx, fingerprint: str, *, job: str, address: str, expires: float) -> None:
    tx.execute(
        "INSERT INTO token (fingerprint, job, address, created, expires) VALUES (?, ?, ?, ?, ?)",
        (fingerprint, job, address, clock.now(), expires),
    )


def find(tx: Tx, fingerprint: str) -> Token | None:
    return _one(tx, "fingerprint", fingerprint)


def by_session(tx: Tx, session: str) -> Token | None:
    return _one(tx, "session", session)


def spend(tx: Tx, fingerprint: str, session: str) -> None:
    """Binds an unspent token to the session that spends it."""
    tx.execute(
        "UPDATE token SET session = ? WHERE fingerprint = ? AND session IS NULL",
        (session, fingerprint),
    )


def spent(tx: Tx, job: str) -> bool:
    return (
        tx.execute("SELECT 1 FROM token WHERE job = ? AND session IS NOT NULL", (job,)).fetchone()
        is not None
    )


def revoke(tx: Tx, job: str) -> None:
    """Forgets all tokens and sessions of a job."""
    tx.execute("DELETE FROM token WHERE job = ?", (job,))


def _one(tx: Tx, column: str, value: str) -> Token | None:
    row = tx.execute(
        "SELECT fingerprint, job, address, expires, coalesce(session, '') AS session"  # noqa: S608  # our column
        f" FROM token WHERE {column} = ?",
        (value,),
    ).fetchone()
    return None if row is None else Token(*tuple(row))

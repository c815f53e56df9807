"""Facts about this installation itself."""

from __future__ import annotations

from agentlab.store.db import Tx


def get(tx: Tx, key: str) -> str | None:
    row = tx.execute("SELECT value FROM setting WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row["value"])


def ensure(tx: Tx, key: str, value: str) -> str:
    """The value that is there, or `value` when there was none."""
    tx.execute("INSERT INTO setting VALUES (?, ?) ON CONFLICT DO NOTHING", (key, value))
    return get(tx, key) or value


def put(tx: Tx, key: str, value: str) -> None:
    tx.execute(
        "INSERT INTO setting VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )

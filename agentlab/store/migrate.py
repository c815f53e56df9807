"""Migrations: append-only, one transaction each, a backup before the first, a newer file refused."""

from __future__ import annotations

import re
import sqlite3
from importlib import resources
from pathlib import Path

from agentlab.errors import Conflict, Internal

_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


def migrations() -> list[tuple[int, str]]:
    """All migrations as (number, SQL text), in order and without a gap."""
    found = []
    for entry in resources.files("agentlab.store").joinpath("sql").iterdir():
        match = _FILE.fullmatch(entry.name)
        if match:
            found.append((int(match[1]), entry.read_text("utf-8")))
    found.sort()
    if [number for number, _ in found] != list(range(1, len(found) + 1)):
        raise Internal("the migrations are not numbered without a gap")
    return found


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings the file up to date; Conflict for a file of a newer program."""
    at = connection.execute("PRAGMA user_version").fetchone()[0]
    known = migrations()
    if at > len(known):
        raise Conflict(
            f"cannot open {path}: it was written by a newer AgentLab (version {at} of its tables)",
            hint="start the newer program again, or restore the backup that lies beside the file",
        )
    todo = known[at:]
    if todo and at > 0:
        _backup(connection, path.with_name(f"{path.name}.before-{todo[0][0]:04}"))
    for number, text in todo:
        # executescript commits an open transaction, so BEGIN and COMMIT stand in the text
        try:
            connection.executescript(f"BEGIN;\n{text}\nPRAGMA user_version = {number};\nCOMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.rollback()
            raise


def make_private(path: Path) -> None:
    """A file that only its owner may read, made when it is not there.

    What SQLite then lays beside it has the same mode.
    """
    path.touch(mode=0o600)
    path.chmod(0o600)


def _backup(connection: sqlite3.Connection, target: Path) -> None:
    make_private(target)
    copy = sqlite3.connect(target)
    try:
        connection.backup(copy)
    finally:
        copy.close()

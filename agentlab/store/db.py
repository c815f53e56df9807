"""One SQLite file: one writer at a time, readers beside it, and a word to those who wait for news."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentlab.errors import Unavailable
from agentlab.store.migrate import make_private, migrate

_BUSY_MS = 10_000
_IDLE_READERS = 16
_OURS = (sqlite3.IntegrityError, sqlite3.ProgrammingError)
_HELD = "see who holds it: lsof PATH; end what is stale, or: systemctl restart agentlabd"
_DAMAGED = (
    "stop agentlabd and copy the file; then: "
    'sqlite3 PATH "PRAGMA integrity_check;", and: sqlite3 PATH "VACUUM;"; '
    "when that does not repair it, put a backup in its place"
)
_OTHER = "is the disk full or broken, or are there too many open files?"


@dataclass(frozen=True, slots=True)
class Tx:
    """An open transaction; functions of the store take it first."""

    connection: sqlite3.Connection
    committed: list[Callable[[], None]] = field(default_factory=list)

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        return self.connection.execute(sql, parameters)

    def on_commit(self, act: Callable[[], None]) -> None:
        """Has `act` called when this transaction is on disk; never when it is rolled back."""
        self.committed.append(act)


class Store:
    """The database of one daemon.  `write()` for one transaction, `read()` for a snapshot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _keep_private(path)
        with _told("open", path):
            self._writer = _opened(path)
        self._write_lock = threading.Lock()
        self._readers: list[sqlite3.Connection] = []  # those that nobody reads with now
        self._closed = False
        self._news = threading.Condition()
        self._commits = 0

    @contextlib.contextmanager
    def write(self) -> Iterator[Tx]:
        """One transaction, all or nothing; Unavailable when the file is locked, damaged or full."""
        tx = Tx(self._writer)
        with self._write_lock, _told("write", self.path):
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield tx
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:
                    self._writer.rollback()
        for act in tx.committed:
            act()
        with self._news:
            self._commits += 1
            self._news.notify_all()

    @contextlib.contextmanager
    def read(self) -> Iterator[Tx]:
        """A consistent view; never blocks a writer.  Unavailable when it cannot be had."""
        with _told("read", self.path):
            connection = self._reader()
            try:
                connection.execute("BEGIN")
                try:
                    yield Tx(connection)
                finally:
                    connection.rollback()
            finally:
                if self._closed or len(self._readers) >= _IDLE_READERS:
                    connection.close()
                else:
                    self._readers.append(connection)

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._readers.pop()
        except IndexError:
            connection = _connect(self.path)
            connection.execute("PRAGMA query_only = ON")
            return connection

    @property
    def commits(self) -> int:
        """Counts the transactions written by this process; a mark for `wait`."""
        return self._commits

    def wait(self, seen: int, timeout: float) -> bool:
        """Sleeps until something is written after the mark `seen`; False when `timeout` passed."""
        with self._news:
            return self._news.wait_for(lambda: self._commits != seen, timeout)

    def wake_waiters(self) -> None:
        """Ends every `wait` early, for a shutdown."""
        with self._news:
            self._commits += 1
            self._news.notify_all()

    def close(self) -> None:
        self._closed = True
        while self._readers:
            self._readers.pop().close()
        with self._write_lock:
            self._writer.close()


def _keep_private(path: Path) -> None:
    """The file and what SQLite lays beside it are its owner's alone: the key is in there."""
    make_private(path)
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            beside.chmod(0o600)


def _opened(path: Path) -> sqlite3.Connection:
    """The connection that writes, to a file that has been brought up to date."""
    connection = _connect(path)
    try:
        migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False
    )
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _told(verb: str, path: Path) -> Iterator[None]:
    """What is wrong with the file becomes Unavailable; a statement that is wrong stays what it is."""
    try:
        yield
    except _OURS:
        raise
    except sqlite3.DatabaseError as error:
        said = str(error)
        if "locked" in said:
            said, hint = "database locked", _HELD  # the guide names this message
        elif "malformed" in said or "not a database" in said:
            hint = _DAMAGED
        else:
            hint = _OTHER
        raise Unavailable(
            f"cannot {verb} {path}: {said}", hint=hint.replace("PATH", str(path))
        ) from error

"""The database's file: who may read it, and what is said when nobody can."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.errors import Unavailable
from agentlab.store import db, migrate, settings
from agentlab.store.db import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "agentlab.db")
    yield made
    made.close()


def test_a_file_that_cannot_be_read_is_unavailable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    with monkeypatch.context() as patch:
        patch.setattr(db, "_connect", broken)
        with pytest.raises(Unavailable, match=r"cannot read .*: unable to open"), store.read():
            pass
    with pytest.raises(Unavailable, match="no such table"), store.read() as tx:
        tx.execute("SELECT * FROM missing_table")
    with store.read() as tx:
        assert tx.execute("SELECT 1").fetchone()[0] == 1


@pytest.mark.parametrize("mask", [0o022, 0o000])
def test_only_its_owner_reads_the_database(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        _fill(tmp_path / "agentlab.db")
    finally:
        os.umask(before)
    assert _modes(tmp_path) == {0o600}


def test_a_database_that_all_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "agentlab.db"
    path.touch(mode=0o644)
    store = Store(path)
    for each in tmp_path.iterdir():
        each.chmod(0o644)
    again = Store(path)
    assert _modes(tmp_path) == {0o600}
    assert len(list(tmp_path.iterdir())) == 3
    again.close()
    store.close()


def test_a_backup_is_its_owners_too(tmp_path: Path) -> None:
    path = tmp_path / "agentlab.db"
    _fill(path)
    connection = sqlite3.connect(path)
    backup = tmp_path / "agentlab.db.before-0002"
    migrate._backup(connection, backup)
    connection.close()
    assert backup.stat().st_mode & 0o777 == 0o600


def _fill(path: Path) -> None:
    store = Store(path)
    with store.write() as tx:
        settings.ensure(tx, "key", "secret")
    assert len(list(path.parent.iterdir())) == 3  # with -wal and -shm
    assert _modes(path.parent) == {0o600}
    store.close()


def test_a_file_that_is_locked_at_the_start_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "_BUSY_MS", 20)
    path = tmp_path / "agentlab.db"
    with _locked(path), pytest.raises(Unavailable) as refused:
        Store(path)
    assert refused.value.message == f"cannot open {path}: database locked"
    assert f"lsof {path}" in refused.value.hint


def test_a_file_that_is_locked_later_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "_BUSY_MS", 20)
    store = Store(tmp_path / "agentlab.db")
    with _locked(store.path):
        with pytest.raises(Unavailable) as refused, store.write() as tx:
            settings.put(tx, "key", "value")
        assert refused.value.message == f"cannot write {store.path}: database locked"
        assert f"lsof {store.path}" in refused.value.hint
    with store.write() as tx:
        settings.put(tx, "key", "value")
    store.close()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def test_a_file_that_is_no_database_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "agentlab.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(Unavailable) as refused:
        Store(path)
    assert refused.value.message == f"cannot open {path}: file is not a database"
    assert f'sqlite3 {path} "PRAGMA integrity_check;"' in refused.value.hint


@pytest.mark.parametrize("at_the_start", [True, False])
def test_a_damaged_file_is_told_so(tmp_path: Path, at_the_start: bool) -> None:
    path = tmp_path / "agentlab.db"
    store = Store(path)
    if at_the_start:
        store.close()
    else:
        with store.write() as tx:
            settings.put(tx, "key", "value")
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096 if not at_the_start else 100)
        file.write(b"\xff" * (path.stat().st_size - file.tell()))
    if at_the_start:
        with pytest.raises(Unavailable) as refused:
            Store(path)
    else:
        with pytest.raises(Unavailable) as refused, store.read() as tx:
            settings.get(tx, "key")
        with pytest.raises(Unavailable, match=r"cannot write .*malformed"), store.write() as tx:
            settings.put(tx, "other", "value")
        store.close()
    assert "database disk image is malformed" in refused.value.message
    assert f'sqlite3 {path} "PRAGMA integrity_check;"' in refused.value.hint


def test_a_fault_of_ours_stays_one(store: Store) -> None:
    with pytest.raises(sqlite3.IntegrityError), store.write() as tx:
        tx.execute("INSERT INTO setting VALUES ('key', NULL)")
    with pytest.raises(sqlite3.ProgrammingError), store.read() as tx:
        tx.execute("SELECT ?", ())


def _modes(folder: Path) -> set[int]:
    return {each.stat().st_mode & 0o777 for each in folder.iterdir()}

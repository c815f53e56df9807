"""The database's file: who may read it, and what is said when nobody can."""

from __future__ import annotations

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


def _modes(folder: Path) -> set[int]:
    return {each.stat().st_mode & 0o777 for each in folder.iterdir()}

"""The database: transactions, migrations, and what the tables refuse."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agentlab.errors import Conflict, NotFound, Unavailable
from agentlab.model.job import JOB, Job, JobEvent, JobSpec, JobState, Repo
from agentlab.model.machine import StateMachine
from agentlab.model.sandbox import SANDBOX, Sandbox, SandboxEvent, SandboxState
from agentlab.store import events, jobs, sandboxes
from agentlab.store.db import Store
from agentlab.store.migrate import migrations
from tests.waiting import PATIENCE, ended


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "agentlab.db")
    yield made
    made.close()


def _job(identity: str = "j1") -> Job:
    return Job(
        id=identity, state=JobState.QUEUED, spec=JobSpec(Repo(url="https://x/y"), "t", "demo"),
        vmid=0, operation="op", created=1.0, changed=1.0, deadline=9.0, reason="", waits_for="",
        settled=False,
        report=None,
    )  # fmt: skip


def _sandbox(vmid: int, address: str = "10.77.0.2") -> Sandbox:
    return Sandbox(
        vmid=vmid, name=f"box-{vmid}", profile="demo", state=SandboxState.REQUESTED,
        address=IPv4Address(address), mac=f"02:00:00:00:00:{vmid % 256:02x}", tap=f"tap{vmid}",
        network="off", job="", created=1.0, changed=1.0, lease_until=0.0, reason="",
    )  # fmt: skip


def test_what_is_raised_in_a_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.write() as tx:
        jobs.create(tx, _job(), request_key="", request_hash="")
        raise RuntimeError
    with store.read() as tx:
        assert jobs.find(tx, "j1") is None
        assert events.after(tx, 0) == []


def test_on_commit_is_called_after_a_commit_only(store: Store) -> None:
    called: list[str] = []
    with store.write() as tx:
        tx.on_commit(lambda: called.append("committed"))
        assert called == []
    with pytest.raises(RuntimeError), store.write() as tx:
        tx.on_commit(lambda: called.append("rolled back"))
        raise RuntimeError
    assert called == ["committed"]


def test_wait_ends_when_something_is_written(store: Store) -> None:
    seen = store.commits
    woken = threading.Event()
    waiter = threading.Thread(target=lambda: woken.set() if store.wait(seen, PATIENCE) else None)
    waiter.start()
    with store.write() as tx:
        events.append(tx, "test", "x")
    ended(waiter)
    assert woken.is_set()


def test_the_file_is_durable_and_strict(store: Store) -> None:
    with store.write() as tx:
        assert tx.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert tx.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert tx.execute("PRAGMA foreign_keys").fetchone()[0] == 1
        tables = tx.execute(
            "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite%'"
        ).fetchall()
    assert len(tables) > 8
    assert [row["name"] for row in tables if not row["strict"]] == []


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "a.db").close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("PRAGMA user_version = 9999")
    with pytest.raises(Conflict, match="newer AgentLab"):
        Store(tmp_path / "a.db")


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path / "a.db").close()
    bad = [*migrations(), (len(migrations()) + 1, "CREATE TABLE x (a INTEGER) STRICT; nonsense;")]
    monkeypatch.setattr("agentlab.store.migrate.migrations", lambda: bad)
    with pytest.raises(Unavailable, match=r"cannot open .*syntax error"):
        Store(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert (
            connection.execute("SELECT name FROM sqlite_master WHERE name = 'x'").fetchall() == []
        )
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(bad) - 1
    assert (tmp_path / f"a.db.before-{len(bad):04}").exists()


def test_sandboxes_of_an_older_file_keep_what_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = migrations()[:1]
    with monkeypatch.context() as older:
        older.setattr("agentlab.store.migrate.migrations", lambda: first)
        Store(tmp_path / "a.db").close()
    plan = {"template": "debian-12", "cores": 3, "memory": 768, "disk": 4096, "ttl": 1800}
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute(
            "INSERT INTO operation (id, kind, subject, input, job, vmid, state, created, changed)"
            " VALUES ('o', 'job.run', 'job:j', ?, 'j', 1000, 'doing', 1, 1)",
            (json.dumps({"plan": plan}),),
        )
        for vmid, job, state in ((1000, "j", "RUNNING"), (1001, "gone", "STOPPED")):
            connection.execute(
                "INSERT INTO sandbox (vmid, name, profile, state, address, mac, tap, network, job,"
                " created, changed) VALUES (?, ?, 'demo', ?, ?, ?, 't', 'off', ?, 1, 1)",
                (vmid, f"n{vmid}", state, f"10.77.0.{vmid - 990}", f"m{vmid}", job),
            )
    store = Store(tmp_path / "a.db")
    with store.read() as tx:
        known, unknown = sandboxes.live(tx)
    store.close()
    assert (known.cores, known.memory, known.disk, known.ttl) == (3, 768, 4096, 1800)
    assert (known.template, known.used) == ("debian-12", True)
    assert (unknown.cores, unknown.template, unknown.used) == (1, "", False)


@pytest.mark.parametrize(("table", "machine"), [("job", JOB), ("sandbox", SANDBOX)])
def test_the_check_of_a_table_is_its_state_table(
    store: Store, table: str, machine: StateMachine[JobState, JobEvent]
) -> None:
    with store.read() as tx:
        sql = tx.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
    listed = re.search(r"state IN \(([^)]*)\)", sql)
    assert listed is not None
    assert re.findall(r"'(\w+)'", listed[1]) == [state.value for state in machine.states]


def test_two_live_sandboxes_share_neither_vmid_nor_address(store: Store) -> None:
    with store.write() as tx:
        sandboxes.create(tx, _sandbox(1000, "10.77.0.2"), operation="")
    for other in (_sandbox(1000, "10.77.0.3"), _sandbox(1001, "10.77.0.2")):
        with pytest.raises(sqlite3.IntegrityError), store.write() as tx:
            sandboxes.create(tx, other, operation="")
    with store.write() as tx:
        sandboxes.transition(tx, 1000, SandboxEvent.FORCE_DESTROY)
        sandboxes.create(tx, _sandbox(1000, "10.77.0.2"), operation="")


def test_a_transition_writes_state_and_event_together(store: Store) -> None:
    with store.write() as tx:
        jobs.create(tx, _job(), request_key="", request_hash="")
        jobs.transition(tx, "j1", JobEvent.FAIL, reason="because")
    with store.read() as tx:
        assert jobs.get(tx, "j1").state is JobState.FAILED
        assert [event.facts["to"] for event in events.after(tx, 0, job="j1")] == [
            "QUEUED",
            "FAILED",
        ]
    with pytest.raises(Conflict, match="FAILED"), store.write() as tx:
        jobs.transition(tx, "j1", JobEvent.COMPLETE)


def test_an_unknown_name_gets_a_near_one(store: Store) -> None:
    with store.write() as tx:
        jobs.create(tx, _job("abcdefgh"), request_key="", request_hash="")
        sandboxes.create(tx, _sandbox(1000), operation="")
    with store.read() as tx:
        with pytest.raises(NotFound) as unknown:
            jobs.get(tx, "abcdefgx")
        assert unknown.value.hint == "did you mean abcdefgh?"
        with pytest.raises(NotFound) as unknown:
            sandboxes.get(tx, "bx-1000")
        assert unknown.value.hint == "did you mean box-1000?"

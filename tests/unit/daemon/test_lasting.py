"""What goes wrong once does not end a thread that everything else depends on."""

from __future__ import annotations

import logging
import socket
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentlab.control import fence_watch, retention
from agentlab.control.loop import Loop
from agentlab.daemon import housekeeping
from agentlab.daemon.housekeeping import Housekeeping
from agentlab.daemon.pool import Pool
from agentlab.errors import AgentLabError, Unavailable
from tests.unit.daemon.bench import Bench, request
from tests.waiting import PATIENCE, happened, until

ASK = request("GET", "/v1/status")


def test_a_pool_without_a_thread_to_have_counts_right(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool("dry", 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread)
        for _ in range(3):
            with pytest.raises(Unavailable, match="can't start new thread"):
                pool.submit(lambda: None)
    assert pool.wait_idle(0)
    done = threading.Event()
    assert pool.submit(done.set)
    happened(done)
    assert pool.wait_idle(PATIENCE)


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_no_thread_for_a_connection_is_told_and_the_next_is_served(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread)
        assert bench.wire().reply().status == 503
        for _ in range(10):  # more than one address may have: each is given back
            assert bench.guest_wire("127.0.7.7").reply().status == 503
    assert bench.wire().send(ASK).reply().status == 200
    assert bench.guest_wire("127.0.7.7").send(ASK).reply().status == 404


def test_a_fault_while_accepting_closes_one_connection_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(_: socket.socket) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    with monkeypatch.context() as patch:
        patch.setattr(bench.api, "peer_of", fault)
        assert bench.wire().closed()
    assert bench.wire().send(ASK).reply().status == 200
    assert [each.levelname for each in caplog.records if each.exc_info] == ["ERROR"]


def test_a_refusal_that_cannot_be_written_down_is_still_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise sqlite3.OperationalError("unable to open database file")

    kept = [bench.guest_wire("127.0.8.8") for _ in range(8)]
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "_reader", broken)
        assert bench.guest_wire("127.0.8.8").reply().status == 429
    assert bench.guest_wire("127.0.8.9").send(ASK).reply().status == 404
    assert len(kept) == 8


class Fence:
    """Fails in a way that nobody foresaw, so often."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.ensured = 0

    def ensure(self) -> None:
        self.ensured += 1
        if self.failures:
            self.failures -= 1
            raise OSError(30, "Read-only file system")

    def verify(self) -> None:
        pass


class Engine:
    """Fails to start, so often."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.runs = threading.Event()

    def start(self) -> int:
        if self.failures:
            self.failures -= 1
            raise Unavailable("cannot read the database: disk I/O error")
        self.runs.set()
        return 0

    def stop(self, timeout: float) -> None:
        pass


@pytest.mark.parametrize(("fence_fails", "engine_fails"), [(2, 0), (0, 2), (2, 1)])
def test_engine_and_fence_come_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fence_fails: int, engine_fails: int
) -> None:
    for name in ("_FIRST_PAUSE", "_MOST_PAUSE"):
        monkeypatch.setattr(housekeeping, name, 0.01)
    watched = threading.Event()
    monkeypatch.setattr(fence_watch, "check", lambda _: watched.set())
    monkeypatch.setattr(retention, "sweep", lambda _world, _now: None)
    fence, engine = Fence(fence_fails), Engine(engine_fails)
    config = SimpleNamespace(
        network=SimpleNamespace(bridge="b", subnet="s"), bundle_dir=tmp_path, artifact_dir=tmp_path
    )
    world = SimpleNamespace(config=config, fence=fence, sync_fence=lambda: None)
    daemon = SimpleNamespace(world=world, runner=engine, stopping=threading.Event(), boot="b")
    keeping = Housekeeping(daemon)  # type: ignore[arg-type]  # as much of a daemon as it needs
    keeping.start()
    happened(engine.runs)
    happened(watched)
    assert fence.ensured == fence_fails + 1
    daemon.stopping.set()
    keeping.stop(1)


@pytest.mark.parametrize("error", [Unavailable("no"), OSError(28, "full"), sqlite3.Error("x")])
def test_a_loop_goes_on_and_tells_the_same_once(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    rounds = []

    def act() -> None:
        rounds.append(1)
        raise error

    loop = Loop("round", act, every=0.001)
    loop.start()
    until(lambda: len(rounds) > 3)
    loop.stop()
    (line,) = [each for each in caplog.records if each.getMessage().startswith("round: ")]
    known = isinstance(error, AgentLabError)
    assert line.levelno == (logging.WARNING if known else logging.ERROR)
    assert bool(line.exc_info) is not known

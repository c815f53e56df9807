"""What comes over a connection, however broken, gets a clear answer; and the next request too."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from pathlib import Path

import pytest

from agentlab.api import table
from tests.unit.daemon.bench import Bench, open_bench, request
from tests.waiting import until


def post(body: bytes, path: str = "/v1/jobs") -> bytes:
    return request("POST", path, body)


def test_many_requests_on_one_connection(bench: Bench) -> None:
    wire = bench.wire()
    for _ in range(3):
        assert wire.send(request("GET", "/v1/status")).reply().status == 200
    wire.send(request("GET", "/v1/status") + request("GET", "/v1/jobs"))  # at once
    assert wire.reply().document["pid"] == os.getpid()
    assert wire.reply().document["jobs"] == []


def test_a_connection_is_closed_when_asked(bench: Bench) -> None:
    wire = bench.wire().send(request("GET", "/v1/status", headers={"Connection": "close"}))
    assert wire.reply().headers["connection"] == "close"
    assert wire.closed()


@pytest.mark.parametrize(
    "nonsense",
    [b"\x16\x03\x01\x02\x00\x01\n\n", b"hello\r\n\r\n", b"\x00" * 100 + b"\n\n", b"GET /\r\n\r\n"],
)
def test_garbage_is_answered_and_the_connection_ends(bench: Bench, nonsense: bytes) -> None:
    wire = bench.wire().send(nonsense)
    reply = wire.reply()
    assert reply.status == 400
    assert "cannot read the request" in reply.error
    assert wire.closed()


def test_half_a_head_gets_a_time_out(bench: Bench) -> None:
    wire = bench.wire().send(b"GET /v1/status HTTP/1.1\r\nHost:")
    assert wire.reply().status == 408
    assert wire.closed()


def test_a_head_that_drips_does_not_get_more_time(bench: Bench) -> None:
    wire, since = bench.wire(), time.monotonic()
    try:
        for byte in b"GET /v1/status HTTP/1.1\r\nHost: " + b"x" * 3000:  # of 60 s
            wire.send(bytes([byte]))
            time.sleep(0.02)
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert time.monotonic() - since < 30
    assert wire.reply().status == 408


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000,
    ],
)
def test_a_huge_head_is_refused(bench: Bench, head: bytes) -> None:
    wire = bench.wire()
    wire.send(head)
    assert wire.reply().status == 431
    assert wire.closed()


def test_a_body_that_ends_early(bench: Bench) -> None:
    wire = bench.wire().send(b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 100\r\n\r\n{}")
    wire.socket.shutdown(socket.SHUT_WR)
    reply = wire.reply()
    assert (reply.status, wire.closed()) == (400, True)
    assert "before its Content-Length" in reply.error


def test_a_body_that_does_not_come(bench: Bench) -> None:
    wire = bench.wire().send(b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 100\r\n\r\n{}")
    assert wire.reply().status == 408
    assert wire.closed()


def test_a_body_longer_than_its_length_is_the_next_request(bench: Bench) -> None:
    wire = bench.wire().send(
        b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}garbage\r\n\r\n"
    )
    assert wire.reply().status == 400
    assert "first line" in wire.reply().error
    assert wire.closed()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /v1/jobs HTTP/1.1\r\n\r\n", 411),
        (b"POST /v1/jobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 501),
        (b"POST /v1/jobs HTTP/1.1\r\nContent-Length: two\r\n\r\n{}", 400),
        (b"GET http://x/v1/status HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/status HTTP/3.0\r\n\r\n", 505),
    ],
)
def test_http_that_is_not_ours(bench: Bench, head: bytes, status: int) -> None:
    assert bench.wire().send(head).reply().status == status


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "line 1 column 1"),
        (b"{", "line 1 column 2"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 5_000, "nested"),
        (b"1" * 10_000, "too long"),
        (b"[]", "must be an object"),
        (b'{"repo": {"url": 5}, "task": "x", "profile": "demo"}', "repo.url"),
        (b'{"repo": {"url": "a\\u0000b"}, "task": "x", "profile": "demo"}', "repo.url"),
        (b'{"repo": {"url": "\\ud800"}, "task": "x", "profile": "demo"}', "repo.url"),
        (b'{"\\ud800": 1}', "unknown key"),
        (
            b'{"repo": {"url": "https://a/b", "rev": "x"}, "task": "x", "profile": "demo"}',
            "repo.rev",
        ),
        (b'{"task": "x", "profile": "demo"}', "repo: is missing"),
    ],
)
def test_a_bad_document_is_told_where(bench: Bench, body: bytes, words: str) -> None:
    wire = bench.wire()
    reply = wire.send(post(body)).reply()
    assert reply.status == 400
    assert words in reply.error
    assert wire.send(request("GET", "/v1/status")).reply().status == 200


def test_of_two_equal_keys_the_last_counts(bench: Bench) -> None:
    body = b'{"repo": {"url": "https://a/b"}, "task": "x", "task": "", "profile": "demo"}'
    assert bench.wire().send(post(body)).reply().error == "task: is empty"


def test_too_large_and_the_next_request_on_the_same_connection(bench: Bench) -> None:
    wire = bench.wire()
    reply = wire.send(post(b" " * (table.MAX_BODY + 1))).reply()
    assert reply.status == 413
    assert str(table.MAX_BODY) in reply.error
    assert wire.send(request("GET", "/v1/status")).reply().status == 200


def test_far_too_large_is_answered_before_it_comes(bench: Bench) -> None:
    wire = bench.wire().send(b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n{")
    assert wire.reply().status == 413
    assert wire.closed()


def test_expect_continue(bench: Bench) -> None:
    head = b"POST /v1/jobs/validate HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    body = json.dumps(bench.job_request()).encode()
    wire = bench.wire().send(head % len(body))
    assert wire.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert wire.send(body).reply().status == 200
    # refused by its length alone: the body is never asked for
    wire = bench.wire().send(head % (table.MAX_BODY + 1))
    assert wire.reply().status == 413
    assert wire.closed()


def test_methods_and_parameters(bench: Bench) -> None:
    reply = bench.ask("DELETE", "/v1/jobs")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, POST")
    assert bench.ask("GET", "/v1/nothing").status == 404
    assert "did you mean limit?" in str(bench.ask("GET", "/v1/jobs?limits=1").document["hint"])
    for query in ("limit=x", "limit=-1", "limit=1&limit=2", "limit=%zz", "limit=%ff", "limit"):
        assert bench.ask("GET", f"/v1/jobs?{query}").status == 400, query
    wire = bench.wire().send(request("HEAD", "/v1/status"))
    assert wire.reply(body=False).status == 405
    assert wire.send(request("GET", "/v1/status")).reply().status == 200


def test_a_fault_of_ours_is_logged_once_and_not_shown(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.hypervisor.faults["inventory"] = [RuntimeError("the inside")]
    with bench.store.write() as tx:
        tx.execute(
            "INSERT INTO sandbox (vmid, name, profile, state, address, mac, tap, network, created,"
            " changed) VALUES (1000, 'a', 'demo', 'READY', '127.0.0.9', 'm', 't', 'off', 0, 0)"
        )
    wire = bench.wire()
    reply = wire.send(request("GET", "/v1/sandboxes")).reply()
    assert reply.status == 500
    assert b"inside the daemon" in reply.body
    assert b"the inside" not in reply.body
    assert [each.levelname for each in caplog.records].count("ERROR") == 1
    assert wire.send(request("GET", "/v1/status")).reply().status == 200


def test_one_connection_too_many(tmp_path: Path) -> None:
    with open_bench(tmp_path, most=2) as bench:
        kept = [bench.wire() for _ in range(2)]
        for wire in kept:
            assert wire.send(request("GET", "/v1/status")).reply().status == 200
        reply = bench.wire().reply()
        assert (reply.status, reply.document["code"]) == (503, "unavailable")
        kept[0].close()

        def served() -> bool:
            with contextlib.suppress(OSError, AssertionError):  # refused while we were sending
                return bench.ask("GET", "/v1/status").status == 200
            return False

        until(served)


def test_peer_credentials_are_logged_with_what_changes(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.ask("GET", "/v1/status")
    bench.ask("POST", "/v1/jobs", bench.job_request())
    lines = [each.getMessage() for each in caplog.records if "/v1/" in each.getMessage()]
    assert len(lines) == 1
    who = f"pid {os.getpid()} uid {os.getuid()} gid {os.getgid()}"
    assert lines[0].startswith(f"POST /v1/jobs by {who}: 202")


def test_clients_that_leave_make_no_noise(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.wire().close()
    bench.wire().send(b"GET /v1/st").close()
    wire = bench.wire().send(request("GET", "/v1/events?wait=1&after=99"))
    wire.close()
    assert bench.ask("GET", "/v1/events?wait=0.3&after=99").status == 200
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_a_stop_ends_idle_connections_and_long_polls(tmp_path: Path) -> None:
    with open_bench(tmp_path) as bench:
        idle, polling = bench.wire(), bench.wire()
        assert idle.send(request("GET", "/v1/status")).reply().status == 200
        until(lambda: all(each.idle for each in bench.api._connections()))
        polling.send(request("GET", "/v1/events?wait=50&after=9"))
        until(lambda: not all(each.idle for each in bench.api._connections()))
        since = time.monotonic()
        bench.daemon.stopping.set()
        bench.store.wake_waiters()
        bench.api.stop(30)
        assert time.monotonic() - since < 20
        assert polling.reply().document["events"] == []
        assert idle.closed()
        assert not bench.world.config.socket.exists()


def test_the_socket_is_for_its_group_only(bench: Bench) -> None:
    assert bench.world.config.socket.stat().st_mode & 0o777 == 0o660

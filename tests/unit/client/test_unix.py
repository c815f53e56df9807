"""The HTTP reader: everything that can be at the other end of the socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.client import unix
from agentlab.errors import AgentLabError, Busy, Denied, NotFound, Unavailable, Unreachable
from tests.waiting import ended


@contextlib.contextmanager
def saying(path: Path, *pieces: bytes, hold: float = 0.0) -> Iterator[str]:
    """A server that says `pieces` to whoever connects, then hangs up after `hold` seconds."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    done = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = server.accept()
                with link, contextlib.suppress(OSError):
                    link.recv(65536)
                    for piece in pieces:
                        link.sendall(piece)
                    done.wait(hold)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield str(path)
    finally:
        done.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        ended(thread)


def get(path: str, timeout: float = 5) -> unix.Reply:
    return unix.request(path, "GET", "/x", timeout=timeout)


def test_body_by_content_length_in_pieces(tmp_path: Path) -> None:
    with saying(
        tmp_path / "s", b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 5\r\n\r\nhe", b"lloX"
    ) as s:
        assert get(s).body() == b"hello"


def test_body_until_the_connection_closes(tmp_path: Path) -> None:
    with saying(tmp_path / "s", b"HTTP/1.1 200 OK\r\nX-Final: 1\r\n\r\nhel", b"lo") as s:
        reply = get(s)
        assert reply.headers["x-final"] == "1"
        assert reply.body() == b"hello"


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (b"garbage\r\n\r\n", "no HTTP status"),
        (b"HTTP/1.1 abc\r\n\r\n", "no HTTP status"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "bad Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9" + b"9" * 20 + b"\r\n\r\n", "bad Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer encoding"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40000 + b"\r\n\r\n", "endless headers"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400000, "endless headers"),
    ],
)  # fmt: skip
def test_nonsense_is_unreachable_and_says_why(tmp_path: Path, head: bytes, why: str) -> None:
    with saying(tmp_path / "s", head) as s, pytest.raises(Unreachable, match=why):
        get(s)


def test_reply_that_breaks_off_is_lost(tmp_path: Path) -> None:
    with (
        saying(tmp_path / "s", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe") as s,
        pytest.raises(unix.Lost, match="broke off"),
    ):
        get(s).body()


def test_no_reply_is_lost(tmp_path: Path) -> None:
    with saying(tmp_path / "s") as s, pytest.raises(unix.Lost, match="without an answer"):
        get(s)


def test_silence_is_a_timeout_in_the_guides_words(tmp_path: Path) -> None:
    with (
        saying(tmp_path / "s", b"HTTP/1.1", hold=5) as s,
        pytest.raises(Unreachable, match="timeout waiting for daemon response") as caught,
    ):
        get(s, timeout=0.1)
    assert "--timeout 5m" in caught.value.hint
    assert caught.value.exit_status == 6


def test_body_larger_than_allowed(tmp_path: Path) -> None:
    with (
        saying(tmp_path / "s", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100) as s,
        pytest.raises(Unavailable, match="longer than 10 bytes"),
    ):
        get(s).body(10)


def test_absent_socket(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"cannot reach the daemon at .*invalid socket path") as e:
        get(str(tmp_path / "none"))
    assert "systemctl status agentlabd" in e.value.hint


def test_socket_path_that_is_too_long() -> None:
    with pytest.raises(Unreachable, match="invalid socket path"):
        get("/x" * 100)


def test_nobody_listens(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.close()
    with pytest.raises(Unreachable, match="invalid socket path: nobody listens there") as refused:
        get(str(tmp_path / "s"))
    assert refused.value.exit_status == 6
    assert "systemctl status agentlabd" in refused.value.hint


def test_permission_denied_names_the_group() -> None:
    error = unix._unreachable("/s", PermissionError(13, "Permission denied"))
    assert "group agentlab" in error.hint


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (404, b'{"error":"no job x","code":"not_found","hint":"h"}', NotFound, "no job x"),
        (409, b'{"error":"busy","code":"busy"}', Busy, "busy"),
        (403, b"<html>", Denied, "the daemon answered 403"),
        (500, b'["list"]', AgentLabError, "the daemon answered 500"),
        (418, b'{"error":5,"code":{}}', AgentLabError, "the daemon answered 418"),
        (503, b"[" * 100000, Unavailable, "the daemon answered 503"),
    ],
)
def test_failures_come_back_as_their_class(
    tmp_path: Path, status: int, body: bytes, kind: type[AgentLabError], text: str
) -> None:
    with saying(tmp_path / "s", b"HTTP/1.1 %d X\r\n\r\n" % status + body) as s:
        error = get(s).failure()
    assert isinstance(error, kind)
    assert error.message == text


def test_code_that_is_not_ours_is_kept(tmp_path: Path) -> None:
    with saying(tmp_path / "s", b'HTTP/1.1 405 X\r\n\r\n{"error":"e","code":"new_code"}') as s:
        assert get(s).failure().code == "new_code"


def test_headers_cannot_be_injected(tmp_path: Path) -> None:
    with pytest.raises(AgentLabError, match="line break"):
        unix.request(str(tmp_path / "s"), "GET", "/", timeout=1, headers={"A": "b\r\nC: d"})


def test_quote_leaves_nothing_that_ends_a_segment() -> None:
    assert unix.quote("a/b?c d#é\r\n") == "a%2Fb%3Fc%20d%23%C3%A9%0D%0A"
    assert unix.quote("a/b", "/") == "a/b"

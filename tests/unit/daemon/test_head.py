"""The head of a request: what is taken, and what is not."""

from __future__ import annotations

import pytest

from agentlab.daemon.head import parse_head
from agentlab.errors import Invalid

GET = b"GET /v1/status HTTP/1.1"


def test_a_plain_head() -> None:
    head = parse_head([GET, b"Host: x", b"Accept:  a ", b"accept: b", b"X-Empty:"])
    assert (head.method, head.target, head.minor, head.length) == ("GET", "/v1/status", 1, 0)
    assert head.headers == {"host": "x", "accept": "a, b", "x-empty": ""}
    assert head.keep_alive


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [(1, "", True), (1, "close", False), (1, "x, Close", False), (0, "", False), (0, "keep-alive", True)],
)  # fmt: skip
def test_who_keeps_the_connection(version: int, connection: str, keeps: bool) -> None:
    lines = [f"GET / HTTP/1.{version}".encode()]
    lines += [f"Connection: {connection}".encode()] if connection else []
    assert parse_head(lines).keep_alive is keeps


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([b"GET /"], 400),
        ([b""], 400),
        ([b"\x16\x03\x01\x02\x00\x01"], 400),
        ([b"get / HTTP/1.1"], 400),
        ([b"GET  / HTTP/1.1"], 400),
        ([b"GET /\x00 HTTP/1.1"], 400),
        ([b"GET /\xc3\xa4 HTTP/1.1"], 400),
        ([b"GET / HTTP/2.0"], 505),
        ([b"GET / HTTP/1.7"], 505),
        ([GET, b"no colon"], 400),
        ([GET, b"Name : x"], 400),
        ([GET, b"Name: x", b" folded"], 400),
        ([GET, b"Name: a\x00b"], 400),
        ([GET, b"Name: a\rb"], 400),
        ([GET, b": x"], 400),
        ([GET, b"Host: a", b"Host: b"], 400),
        ([GET, *[b"X: y"] * 101], 431),
        ([b"POST / HTTP/1.1"], 411),
        ([b"PUT / HTTP/1.1"], 411),
        ([b"POST / HTTP/1.1", b"Content-Length: -1"], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: +1"], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: 1, 1"], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: 0x1"], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: " + b"9" * 16], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: 1", b"Content-Length: 1"], 400),
        ([b"POST / HTTP/1.1", b"Transfer-Encoding: chunked"], 501),
        ([b"POST / HTTP/1.1", b"Content-Length: 1", b"Transfer-Encoding: identity"], 501),
    ],
)
def test_what_is_refused(lines: list[bytes], status: int) -> None:
    with pytest.raises(Invalid) as caught:
        parse_head(lines)
    assert caught.value.http_status == status

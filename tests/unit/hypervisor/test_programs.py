"""What a guest says about a program: parsed as from somebody who lies."""

from __future__ import annotations

import base64
import gzip

import pytest

from agentlab.errors import Invalid, Unavailable
from agentlab.hypervisor.base import ExecResult
from agentlab.hypervisor.program_scripts import OUT_AT_ONCE
from agentlab.hypervisor.programs import Heard, Order, parse_heard, render_program


def said(text: bytes, *, truncated: bool = False) -> ExecResult:
    return ExecResult(0, text, b"", truncated)


def b64(content: bytes) -> bytes:
    return base64.b64encode(content)


def test_what_it_says() -> None:
    text = b"out 3 5 plain " + b64(b"\0a\n") + b"\nerr 0 1 plain " + b64(b"b") + b"\nend running \n"
    assert parse_heard(said(text), 3, 0) == Heard(b"\0a\n", b"b", 5, 1)
    packed = b64(gzip.compress(b"a" * 65536) + gzip.compress(b"b"))
    heard = parse_heard(said(b"out 3 5 gzip " + packed + b"\nend running \n"), 3, 0)
    assert (heard.out, heard.next_out) == (b"a" * 65536 + b"b", 5)
    assert parse_heard(said(b"end 137 \n"), 8, 2) == Heard(b"", b"", 8, 2, 137)
    assert parse_heard(said(b"end 0 cut\n"), 0, 0).cut
    assert parse_heard(said(b"end 0 cut broken\n"), 0, 0).broken
    assert parse_heard(said(b"end 0  broken\n"), 0, 0) == Heard(b"", b"", 0, 0, 0, broken=True)
    assert parse_heard(said(b"end lost \n"), 0, 0).lost


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"end",
        b"end 0",
        b"end 256 \n",
        b"end -1 \n",
        b"end done \n",
        b"end 0 \nend 0 \n",
        b"out 3 4 plain YQ==\n",
        b"out 2 3 plain YQ==\nend 0 \n",
        b"out 3 3 plain YQ==\nend 0 \n",
        b"out 3 2 plain YQ==\nend 0 \n",
        b"out 3 4 plain \nend 0 \n",
        b"out 3 4 plain YQ=\nend 0 \n",
        b"out 3 4 plain Y\xff==\nend 0 \n",
        b"out 3 4 plain YQ==\nout 3 4 plain YQ==\nend 0 \n",
        b"out 3 %d plain YQ==\nend 0 \n" % (3 + OUT_AT_ONCE + 1),
        b"out 3 999999999999999999999 plain YQ==\nend 0 \n",
        b"out 3 4 plain " + b64(bytes(65537)) + b"\nend 0 \n",
        b"x" * (2 << 20) + b"\n",
        "out 3 \u0664 plain YQ==\nend 0 \n".encode(),
        b"out 3 4 gzip YQ==\nend 0 \n",
        b"out 3 4 zip YQ==\nend 0 \n",
        b"out 3 4 gzip " + b64(gzip.compress(bytes(100 << 20), mtime=0)) + b"\nend 0 \n",
        b"out 3 4 gzip " + b64(gzip.compress(b"abc", mtime=0)[:-4]) + b"\nend 0 \n",
        b"out 3 4 gzip " + b64(gzip.compress(b"", mtime=0)) + b"\nend 0 \n",
    ],
)
def test_what_it_cannot_say(text: bytes) -> None:
    with pytest.raises(Unavailable, match="an answer of no kind"):
        parse_heard(said(text), 3, 0)


def test_half_an_answer_is_none() -> None:
    with pytest.raises(Unavailable):
        parse_heard(said(b"end 0 \n", truncated=True), 0, 0)


def test_a_program_as_a_shell_reads_it() -> None:
    order = Order(["echo", "a'b", "$(id)"], env={"A": "1 2"}, workdir="/a b")
    assert render_program(order).decode().splitlines() == [
        "exec 9<&-",
        "cd -- '/a b' || exit 126",
        "export A='1 2'",
        "exec echo 'a'\"'\"'b' '$(id)'",
    ]


@pytest.mark.parametrize(
    "order",
    [
        Order([]),
        Order([""]),
        Order(["a\0b"]),
        Order(["a"], user=""),
        Order(["a"], user="-u"),
        Order(["a"], user="a b"),
        Order(["a"], user="root\n"),
        Order(["a"], env={"A=B": "c"}),
        Order(["a"], env={"": "c"}),
        Order(["a"], env={"A;id": "c"}),
        Order(["a"], env={"A": "\0"}),
        Order(["a"], workdir="\0"),
    ],
)
def test_an_order_that_cannot_be(order: Order) -> None:
    with pytest.raises(Invalid):
        render_program(order)

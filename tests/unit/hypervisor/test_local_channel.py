"""QMP and the guest agent over a socket pair, with a peer that says what it should not."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.clock import Deadline
from agentlab.errors import DeadlineExceeded, Unavailable
from agentlab.hypervisor.base import ExecResult
from agentlab.hypervisor.local.agent import (
    AgentRefused,
    Conversation,
    parse_exec_status,
    parse_interfaces,
    synchronise,
)
from agentlab.hypervisor.local.channel import Channel, decode
from agentlab.hypervisor.local.qmp import Qmp, QmpRefused, greet


@contextmanager
def pair(peer: Callable[[socket.socket], None], limit: int = 4096) -> Iterator[Channel]:
    """A channel whose other end is played by `peer` in a thread."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=peer, args=(theirs,))
        thread.start()
        yield Channel(ours, "the peer", limit)
        ours.close()
        thread.join()


def says(*answers: bytes) -> Callable[[socket.socket], None]:
    def peer(connection: socket.socket) -> None:
        for answer in answers:
            connection.sendall(answer)

    return peer


def test_events_between_question_and_answer_are_passed_over() -> None:
    with pair(says(b'{"event": "RESUME"}\r\n{"return": {"status": "running"}}\r\n')) as channel:
        assert Qmp(channel).status() == "running"


def test_a_refusal_of_qemu_is_said_in_its_words() -> None:
    answer = b'{"error": {"class": "GenericError", "desc": "no such device\\n"}}\n'
    with pair(says(answer)) as channel, pytest.raises(QmpRefused, match="no such device"):
        Qmp(channel).execute("device_del", id="x")


def test_what_does_not_greet_is_not_qemu() -> None:
    with pair(says(b'{"hello": 1}\n')) as channel, pytest.raises(Unavailable):
        greet(channel, Deadline.after(1))


@pytest.mark.parametrize(
    "answer", [b"hello\n", b"[1]\n", b"\xff\xfe\n", b"null\n", b"[" * 3000 + b"\n", b"x" * 9000]
)
def test_a_hostile_line_is_an_error_of_ours(answer: bytes) -> None:
    with pair(says(answer)) as channel, pytest.raises(Unavailable):
        Conversation(channel).call("guest-ping", 1)


def test_a_peer_that_is_silent_costs_only_the_time_it_was_given() -> None:
    with pair(says()) as channel, pytest.raises(DeadlineExceeded):
        Conversation(channel).call("guest-ping", 0.05)


def test_an_error_of_the_agent_cannot_forge_a_line() -> None:
    answer = json.dumps({"error": {"desc": "no\nERROR forged"}}).encode() + b"\n"
    with pair(says(answer)) as channel, pytest.raises(AgentRefused) as raised:
        Conversation(channel).call("guest-ping", 1)
    assert "\n" not in raised.value.message


def test_the_agent_is_found_behind_old_answers() -> None:
    def agent(connection: socket.socket) -> None:
        request = json.loads(connection.recv(4096).lstrip(b"\xff"))
        token = request["arguments"]["id"]
        connection.sendall(b'{"return": 1}\n\xff{"return": 7}\ngarb\xffage')
        connection.sendall(b'\xff{"return": %d}\n' % token)
        connection.recv(4096)
        connection.sendall(b'{"return": {}}\n')

    with pair(agent) as channel:
        assert synchronise(channel, 2).call("guest-ping", 1) == {}


def test_a_lost_first_question_is_asked_again() -> None:
    def agent(connection: socket.socket) -> None:
        connection.recv(4096)
        request = json.loads(connection.recv(4096).lstrip(b"\xff"))
        connection.sendall(b'\xff{"return": %d}\n' % request["arguments"]["id"])

    with pair(agent) as channel:
        synchronise(channel, 5)


def test_exec_status() -> None:
    assert parse_exec_status({"exited": False}) is None
    out = base64.b64encode(b"a\0b").decode()
    full = {"exited": True, "exitcode": 3, "out-data": out, "out-truncated": True}
    assert parse_exec_status(full) == ExecResult(3, b"a\0b", b"", truncated=True)
    assert parse_exec_status({"exited": True, "signal": 9}) == ExecResult(-9, b"", b"")


@pytest.mark.parametrize(
    "answer",
    [{"exited": True}, {"exited": True, "exitcode": "0"}, {"exited": True, "exitcode": True},
     {"exited": True, "exitcode": 0, "out-data": "?"}],
)  # fmt: skip
def test_an_exec_status_that_makes_no_sense(answer: dict[str, object]) -> None:
    with pytest.raises(Unavailable):
        parse_exec_status(answer)


def test_interfaces_are_read_where_they_make_sense() -> None:
    addresses = [
        {"ip-address-type": "ipv4", "ip-address": "10.77.0.5", "prefix": 16},
        {"ip-address-type": "ipv4", "ip-address": "not one"},
        {"ip-address-type": "ipv6", "ip-address": "fe80::1"},
        5,
    ]
    name = {"name": "eth0", "hardware-address": "52:54:00:AA:00:05", "ip-addresses": addresses}
    (found,) = parse_interfaces([name, "no"])
    assert found.mac == "52:54:00:aa:00:05"
    assert found.addresses == (IPv4Address("10.77.0.5"),)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "ip-addresses", "ip-address", "ip-address-type", "exited"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_json)
def test_no_answer_breaks_the_reader_of_interfaces(answer: object) -> None:
    try:
        parse_interfaces(answer)
    except Unavailable:
        pass


@given(st.binary(max_size=64))
def test_no_line_breaks_the_reader_of_lines(line: bytes) -> None:
    try:
        decode(line, "the peer")
    except Unavailable:
        pass


def test_a_peer_that_never_falls_silent_has_no_more_time_than_others() -> None:
    def floods(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(b"{}\n" * 100)
        except OSError:
            return

    with pair(floods) as channel:
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            synchronise(channel, 0.5)
        assert time.monotonic() - begun < 5

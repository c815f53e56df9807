"""Signs of life, in the words of ss(8) and of the kernel."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.network import activity
from agentlab.network.activity import parse_connections, parse_conntrack, tap_bytes

SS = """\
0      0             10.77.0.1:41832         10.77.0.5:22
0      0          127.0.0.1:2222             127.0.0.1:50022
0      36    [::ffff:10.77.0.1]:41833  [::ffff:10.77.0.6]:22
0      0      [2001:db8::1]:22           [2001:db8::2]:22
0      0             10.77.0.1:8844          10.77.0.7:40000
0      0             10.77.0.1:22            10.77.0.8:40001
"""
FLOW = (
    "ipv4     2 tcp      6 {left} {state} src=100.64.0.9 dst={to} sport=50000 dport={port} "
    "src={to} dst=100.64.0.9 sport={port} dport=50000 [ASSURED] mark=1005 zone=0 use=2"
)

FROM_INSIDE = (
    "ipv4 2 tcp 6 431999 ESTABLISHED src=10.77.0.5 dst=140.82.121.4 sport=50000 dport=22 "
    "src=140.82.121.4 dst=192.0.2.1 sport=22 dport=50000 [ASSURED] use=1"
)


def flow(left: int = 431_999, state: str = "ESTABLISHED", to: str = "10.77.0.5", port: int = 22) -> str:  # fmt: skip
    return FLOW.format(left=left, state=state, to=to, port=port)


def test_peers_on_port_22_are_told_by_ss() -> None:
    assert [str(each) for each in parse_connections(SS)] == ["10.77.0.5", "10.77.0.6"]
    assert list(parse_connections("")) == []


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        (flow(), True),
        (flow(left=431_999 - 7_200), True),  # two hours of silence: keepalive speaks now
        (flow(left=431_999 - 8_000), False),  # its other end is gone
        (flow(state="TIME_WAIT", left=100), False),
        (flow(port=443), False),
        (flow().replace("[ASSURED]", "[UNREPLIED]"), False),
        (flow().replace("ipv4", "ipv6"), False),
        ("ipv4     2 udp      17 20 src=1.1.1.1 dst=10.77.0.5 sport=5 dport=22 src=1", False),
        # an agent that is connected to somebody's port 22, and not the other way round
        (FROM_INSIDE, False),
        ("", False),
    ],
)
def test_forwarded_connections_are_told_by_conntrack(line: str, counts: bool) -> None:
    found = IPv4Address("10.77.0.5") in set(parse_conntrack(line, 432_000))
    assert found is counts


@given(st.text(alphabet="ipv4 =ESTABLISHED0123456789.\nsrcdport", max_size=200))
def test_lines_of_no_form_are_no_connections(text: str) -> None:
    list(parse_connections(text))


def test_bytes_of_a_tap_are_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "_NET", tmp_path)
    folder = tmp_path / "tap1000i0" / "statistics"
    folder.mkdir(parents=True)
    (folder / "rx_bytes").write_text("100\n")
    assert tap_bytes("tap1000i0") is None
    (folder / "tx_bytes").write_text("23\n")
    assert tap_bytes("tap1000i0") == 123
    assert tap_bytes("tap1001i0") is None


def test_a_kernel_that_does_not_list_flows_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "_CONNTRACK", tmp_path / "none")
    monkeypatch.setattr(activity, "_LASTS", tmp_path / "none")
    assert activity._lasts() == 432_000
    assert list(parse_conntrack(activity._read(tmp_path / "none"), 432_000)) == []

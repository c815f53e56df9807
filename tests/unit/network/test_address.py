"""Addresses, MACs and tap names."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.errors import Invalid, Unavailable
from agentlab.model.profile import NetworkMode
from agentlab.network.address import allot, bridge_mac, mac_for, tap_name, tap_of
from agentlab.network.settings import Member

NET, HOST = IPv4Network("10.77.0.0/29"), IPv4Address("10.77.0.1")
VMIDS = st.integers(1, 999_999_999)


def at(*numbers: int) -> set[IPv4Address]:
    return {IPv4Address(f"10.77.0.{number}") for number in numbers}


@pytest.mark.parametrize(
    ("taken", "after", "expected"),
    [
        (set(), None, 2),
        ({2, 3}, None, 4),
        (set(), 3, 4),
        ({4}, 3, 5),
        (set(), 6, 2),  # round the end, past network, broadcast and host
        ({2, 4, 5, 6}, 5, 3),
        (set(), 99, 2),  # the last one is of another subnet
    ],
)
def test_next_free_address(taken: set[int], after: int | None, expected: int) -> None:
    last = IPv4Address(f"10.77.0.{after}") if after else None
    assert allot(NET, HOST, at(*taken), after=last) == IPv4Address(f"10.77.0.{expected}")


def test_full_subnet_is_named() -> None:
    with pytest.raises(Unavailable, match=r"10\.77\.0\.0/29"):
        allot(NET, HOST, at(2, 3, 4, 5, 6))


@pytest.mark.parametrize("prefix", [30, 31, 32])
def test_tiny_subnets_are_full_not_wrong(prefix: int) -> None:
    net = IPv4Network(f"10.77.0.0/{prefix}")
    with pytest.raises(Unavailable):
        allot(net, HOST, at(2))


@given(st.sets(st.integers(2, 6), max_size=4), st.integers(0, 7))
def test_allotted_address_is_usable_and_free(taken: set[int], after: int) -> None:
    got = allot(NET, HOST, at(*taken), after=IPv4Address(f"10.77.0.{after}"))
    assert got in set(NET.hosts()) - at(*taken) - {HOST}


def test_an_address_that_came_back_rests() -> None:
    last = allot(NET, HOST, set())
    given_out = [last := allot(NET, HOST, set(), after=last) for _ in range(4)]
    assert len({*given_out}) == 4


@given(VMIDS, VMIDS)
def test_two_vmids_never_share_a_mac_or_a_tap(one: int, two: int) -> None:
    assert (mac_for("here", one) == mac_for("here", two)) == (one == two)
    assert (tap_name("vmbr1", one) == tap_name("vmbr1", two)) == (one == two)
    assert (tap_of(one) == tap_of(two)) == (one == two)
    assert tap_name("vmbr1", one) != tap_of(two)


@given(st.text(min_size=1), st.text(min_size=1), VMIDS)
def test_macs_are_unicast_and_local_and_names_fit(name: str, bridge: str, vmid: int) -> None:
    mac = mac_for(name, vmid)
    assert int(mac[:2], 16) & 3 == 2
    assert bridge_mac(name, bridge) != mac
    assert int(bridge_mac(name, bridge)[:2], 16) & 3 == 2
    assert len(tap_name(bridge, vmid)) <= 15
    assert len(tap_of(vmid)) <= 15
    Member(vmid, tap_name(bridge, vmid), mac, HOST, NetworkMode.NAT)
    Member(vmid, tap_of(vmid), mac, HOST, NetworkMode.NAT)


@pytest.mark.parametrize("vmid", [0, -1, 1_000_000_000])
def test_what_is_no_vmid_is_refused(vmid: int) -> None:
    with pytest.raises(Invalid):
        mac_for("here", vmid)
    with pytest.raises(Invalid):
        tap_name("vmbr1", vmid)
    with pytest.raises(Invalid):
        tap_of(vmid)

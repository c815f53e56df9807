"""What a turn of the fence does first, and what it compares the kernel with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from types import SimpleNamespace
from typing import Any

import pytest

from agentlab.control import fence_watch
from agentlab.errors import AgentLabError, Conflict, NotFound, Unavailable
from agentlab.model.profile import NetworkMode
from agentlab.network import bridge, nft
from agentlab.network.fence import Fence
from agentlab.network.settings import Member, NetworkSettings
from tests.fakes.hypervisor import FakeHypervisor

SETTINGS = NetworkSettings(
    "lab", "vmbr1", IPv4Network("10.77.0.0/16"), IPv4Address("10.77.0.1"), 8844
)


def member(number: int) -> Member:
    mac, address = f"02:00:00:00:00:{number:02x}", IPv4Address(f"10.77.1.{number}")
    return Member(1000 + number, f"tap{number}", mac, address, NetworkMode.OFF)


A, B, C = member(1), member(2), member(3)


@dataclass
class Host:
    """A kernel: its devices as ip(8) lists them, and the rules that it has."""

    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    rules: tuple[Member, ...] = ()
    refuse: AgentLabError | None = None  # why no rules can be put in place

    def tap(self, name: str) -> None:
        self.devices[name] = {
            "ifname": name, "flags": ["UP"], "ifalias": SETTINGS.mark, "master": SETTINGS.bridge,
            "linkinfo": {"info_kind": "tun", "info_slave_data": {"isolated": True}},
        }  # fmt: skip

    def neighbour(self) -> None:
        """Somebody else's device with an address in our subnet."""
        address = {"family": "inet", "local": "10.77.9.9", "prefixlen": 24}
        self.devices["eth7"] = {"ifname": "eth7", "addr_info": [address]}

    def batch(self, lines: Sequence[str], what: str) -> None:
        for line in lines:
            if line.startswith("link delete dev "):
                del self.devices[line.split()[-1]]
            elif line.startswith("link add name "):
                name = line.split()[3]
                self.devices[name] = {
                    "ifname": name, "flags": ["UP"], "ifalias": SETTINGS.mark,
                    "linkinfo": {"info_kind": "bridge"},
                }  # fmt: skip

    def apply(self, _: NetworkSettings, members: Sequence[Member]) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.rules = tuple(members)

    def verify(self, _: NetworkSettings, members: Sequence[Member]) -> None:
        if tuple(members) != self.rules:
            raise Unavailable("the packet filter is not as asked")

    @property
    def taps(self) -> set[str]:
        return {name for name in self.devices if name.startswith("tap")}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()
    monkeypatch.setattr(
        bridge, "_devices", lambda: bridge.parse_devices(json.dumps([*made.devices.values()]))
    )
    monkeypatch.setattr(bridge, "_batch", made.batch)
    monkeypatch.setattr(bridge, "_make_tap", lambda _, name: made.tap(name))
    monkeypatch.setattr(bridge, "_ensure_sysctl", lambda _path, _value: None)
    monkeypatch.setattr(nft, "apply_ruleset", made.apply)
    monkeypatch.setattr(nft, "verify_ruleset", made.verify)
    monkeypatch.setattr(nft, "ensure_ruleset", lambda _: None)
    return made


def these(*members: Member) -> Callable[[], list[Member]]:
    return lambda: list(members)


def test_a_neighbour_in_the_subnet_does_not_keep_anybody_in(host: Host) -> None:
    fence = Fence(SETTINGS)
    fence.sync(these(A, B))
    assert host.taps == {A.tap, B.tap}
    host.neighbour()
    fence.sync(these(A))
    assert (host.taps, host.rules) == ({A.tap}, (A,))
    with pytest.raises(Conflict, match="cannot use subnet"):
        fence.sync(these(A, C))
    assert host.taps == {A.tap}, "nobody is let in beside a neighbour"
    with pytest.raises(Conflict, match="cannot use subnet"):
        fence.sync(these(C))
    assert (host.taps, host.rules) == (set(), (C,)), "who leaves is out all the same"
    fence.sync(these())
    assert host.rules == ()


def test_a_bridge_that_was_deleted_is_made_again(host: Host) -> None:
    fence = Fence(SETTINGS)
    fence.sync(these(A))
    del host.devices[SETTINGS.bridge]
    host.devices[A.tap]["master"] = ""  # as the kernel does
    fence.sync(these(A))
    assert SETTINGS.bridge in host.devices


def test_rules_come_before_a_bridge_and_its_taps(host: Host) -> None:
    fence = Fence(SETTINGS)
    host.refuse = Unavailable("cannot fence")
    with pytest.raises(Unavailable, match="cannot fence"):
        fence.sync(these(A))
    assert host.devices == {}


def test_what_is_compared_with_is_what_was_applied(host: Host) -> None:
    fence = Fence(SETTINGS)
    host.rules = (B,)
    fence.verify()  # an earlier process put them there: nothing to compare with yet
    fence.sync(these(A))
    fence.verify()
    host.refuse = Unavailable("cannot fence")
    with pytest.raises(Unavailable):
        fence.sync(these(A, B))
    fence.verify()
    host.rules = ()
    with pytest.raises(Unavailable, match="not as asked"):
        fence.verify()


def test_the_watch_blames_nobody_for_what_we_do(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = [A]
    fence = Fence(SETTINGS)
    world: Any = SimpleNamespace(
        fence=fence,
        hypervisor=FakeHypervisor(),
        sync_fence=lambda: fence.sync(lambda: list(wanted)),
    )
    world.sync_fence()
    wanted.append(B)
    assert fence_watch.check(world)
    assert caplog.records == []
    world.sync_fence()
    host.rules = ()
    host.neighbour()  # the rules are put back all the same
    assert not fence_watch.check(world)
    assert host.rules == (A, B)
    assert "changed by others" in caplog.text
    assert fence_watch.check(world)


RULES_ONLY = replace(SETTINGS, own_taps=False)


def test_taps_that_are_not_ours_are_neither_made_nor_removed(host: Host) -> None:
    fence = Fence(RULES_ONLY)
    fence.sync(these(A, B))
    assert (host.taps, host.rules) == (set(), (A, B))
    assert SETTINGS.bridge in host.devices
    for name in (A.tap, "tap4711i0"):
        host.tap(name)
    fence.sync(these(B))
    assert (host.taps, host.rules) == ({A.tap, "tap4711i0"}, (B,))


def test_without_rules_there_is_no_word_that_power_may_come(host: Host) -> None:
    fence = Fence(RULES_ONLY)
    host.refuse = Unavailable("cannot fence")
    with pytest.raises(Unavailable, match="cannot fence"):
        fence.sync(these(A))
    assert host.devices == {}


def test_rules_alone_let_nobody_in_beside_a_neighbour_and_everybody_out(host: Host) -> None:
    fence = Fence(RULES_ONLY)
    fence.sync(these(A, B))
    host.neighbour()
    fence.sync(these(A))
    assert host.rules == (A,)
    for _ in range(2):
        with pytest.raises(Conflict, match="cannot use subnet"):
            fence.sync(these(A, C))
    fence.sync(these(A))


def test_a_port_is_where_the_rules_see_it(host: Host) -> None:
    fence = Fence(RULES_ONLY)
    host.tap(A.tap)
    fence.check_port(A.tap)
    host.devices[A.tap]["master"] = "fwbr1001i0"
    with pytest.raises(Conflict, match="is on fwbr1001i0") as refused:
        fence.check_port(A.tap)
    assert "firewall=1" in refused.value.hint
    with pytest.raises(Conflict, match="is not on this host"):
        fence.check_port(B.tap)


def test_a_look_at_the_bridge_tells_whose_it_is(host: Host) -> None:
    fence = Fence(SETTINGS)
    with pytest.raises(NotFound, match="no bridge vmbr1"):
        fence.look_at_bridge()
    fence.sync(these(A))
    with pytest.raises(Conflict, match="down or without"):
        fence.look_at_bridge()
    address = {"family": "inet", "local": "10.77.0.1", "prefixlen": 16}
    host.devices[SETTINGS.bridge]["addr_info"] = [address]
    assert fence.look_at_bridge() is True
    host.devices[SETTINGS.bridge]["ifalias"] = ""
    assert fence.look_at_bridge() is False
    host.neighbour()
    with pytest.raises(Conflict, match="cannot use subnet"):
        fence.look_at_bridge()

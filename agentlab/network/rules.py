"""What may pass, as data: three nftables tables for the members of the fence.

Every port of the agent bridge is a stranger until `ports` lists it.  The bridge table vouches for
a frame by a packet mark; the inet and arp tables drop whatever comes from the bridge without it.
So no rule needs `meta ibrname`, which not every kernel has, and no other bridge is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from agentlab.errors import Conflict, Invalid, Unsupported
from agentlab.model.profile import NetworkMode
from agentlab.network.settings import Member, NetworkSettings

_VOUCHED = 0x0A9E17AB  # set and cleared on the way from the bridge's port to its inet hooks
FAMILIES = ("inet", "bridge", "arp")

Element = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A statement, and why; the reason goes into the kernel too, as the rule's comment."""

    statement: str
    why: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain when it has a `hook`; all policies are accept, for other bridges' sake."""

    name: str
    rules: tuple[Rule, ...]
    hook: str = ""
    priority: int = 0
    kind: str = "filter"


@dataclass(frozen=True, slots=True)
class Set:
    """A named set, or a map when the type has a colon; then the last word of an element is data."""

    name: str
    type: str
    elements: frozenset[Element]
    interval: bool = False

    @property
    def keyword(self) -> str:
        return "map" if ":" in self.type else "set"


@dataclass(frozen=True, slots=True)
class Table:
    family: str
    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]


def _refuse(settings: NetworkSettings, members: Sequence[Member]) -> None:
    for member in members:
        if member.mode is NetworkMode.ALLOWLIST:
            raise Unsupported(
                f"cannot fence sandbox {member.vmid}: network mode allowlist does not exist yet",
                hint="choose nat or off",
            )
        if member.address not in settings.subnet or member.address in (
            settings.host,
            settings.subnet.network_address,
            settings.subnet.broadcast_address,
        ):
            raise Invalid(
                f"cannot fence sandbox {member.vmid}: {member.address} is not a guest's address "
                f"in {settings.subnet}"
            )
    for what in ("vmid", "tap", "mac", "address"):
        seen: dict[object, int] = {}
        for member in members:
            value = getattr(member, what)
            if value in seen:
                raise Conflict(
                    f"cannot fence sandbox {member.vmid}: {what} {value} also belongs to "
                    f"sandbox {seen[value]}"
                )
            seen[value] = member.vmid


def plan_tables(settings: NetworkSettings, members: Sequence[Member]) -> tuple[Table, ...]:
    """All rules for these members and no others; Unsupported, Invalid, Conflict."""
    _refuse(settings, members)
    return (
        _plan_inet(settings, members),
        _plan_bridge(settings, members),
        _plan_arp(settings),
    )


def _owner(settings: NetworkSettings) -> Chain:
    return Chain("owner", (Rule("return", settings.mark),))


def as_elements(items: Iterable[IPv4Address | IPv4Network]) -> frozenset[Element]:
    return frozenset((str(item),) for item in items)


def _plan_inet(settings: NetworkSettings, members: Sequence[Member]) -> Table:
    """What a guest may send beyond its own port: layer 3, where the kernel tracks flows."""
    bridge = f'"{settings.bridge}"'
    nat = [member for member in members if member.mode is NetworkMode.NAT]
    closed = collapse_addresses((*settings.private, settings.subnet))
    icmp = "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
    return Table(
        "inet",
        settings.table,
        (
            Set("taps", "ifname", frozenset((m.tap,) for m in members)),
            Set("members", "ipv4_addr", as_elements(m.address for m in members)),
            Set("nat", "ipv4_addr", as_elements(m.address for m in nat)),
            Set("dns", "ipv4_addr", as_elements(settings.dns)),
            Set("private", "ipv4_addr", as_elements(closed), interval=True),
            Set(
                "vmids",
                "ipv4_addr : mark",
                frozenset((str(m.address), str(m.vmid)) for m in nat),
            ),
            Set(
                "flows",
                "ipv4_addr . mark",
                frozenset((str(m.address), str(m.vmid)) for m in nat),
            ),
        ),
        (
            _owner(settings),
            Chain(
                "prerouting",
                (
                    Rule("iifname @taps drop", "frames that the bridge passed up on the port"),
                    Rule(
                        f"iifname {bridge} meta mark != {_VOUCHED:#x} drop",
                        "strangers, IPv6, forged sources",
                    ),
                    Rule(f"iifname {bridge} meta mark set 0", "the mark is ours alone"),
                ),
                "prerouting",
                -450,  # before defragmentation: each fragment by itself
            ),
            Chain(
                "input",
                (
                    Rule(f"iifname {bridge} goto guest_to_host", "from guests"),
                    Rule(
                        f'iifname != {{ {bridge}, "lo" }} ip saddr {settings.subnet} drop',
                        "outsiders posing as guests",
                    ),
                    Rule(
                        f'iifname != {{ {bridge}, "lo" }} ip daddr {settings.host} '
                        f"tcp dport {settings.guest_port} drop",
                        "the guest listener is for guests",
                    ),
                ),
                "input",
                -10,
            ),
            Chain(
                "guest_to_host",
                (
                    Rule("ip saddr != @members drop", "not admitted"),
                    Rule(
                        f"ip daddr {settings.host} tcp dport {settings.guest_port} accept",
                        "the guest listener",
                    ),
                    Rule("ct state established ct direction reply accept", "answers to the host"),
                    Rule(f"ct state related {icmp} accept", "errors in answer to the host"),
                    Rule("drop", "all other ports and addresses of the host"),
                ),
            ),
            Chain(
                "forward",
                (
                    Rule(f"iifname {bridge} goto guest_to_outside", "from guests"),
                    Rule(f"oifname {bridge} goto outside_to_guest", "to guests"),
                ),
                "forward",
                -10,
            ),
            Chain(
                "guest_to_outside",
                (
                    Rule(f"oifname {bridge} drop", "guest to guest by way of the host"),
                    Rule("ip saddr != @nat drop", "not admitted, or mode off"),
                    Rule(
                        "ct direction original ct mark set ip saddr map @vmids",
                        "a flow belongs to the sandbox that sends on it",
                    ),
                    Rule("ip daddr @dns udp dport 53 accept", "the resolver"),
                    Rule("ip daddr @dns tcp dport 53 accept", "the resolver"),
                    Rule("ip daddr @private drop", "LAN, tailnet, link-local, multicast"),
                    Rule("accept", "the Internet"),
                ),
            ),
            Chain(
                "outside_to_guest",
                (
                    Rule(
                        "ct state established ct direction reply ip daddr . ct mark @flows accept",
                        "answers to the sandbox that asked",
                    ),
                    Rule(
                        f"ct state related {icmp} ip daddr . ct mark @flows accept",
                        "errors in answer to it",
                    ),
                    Rule("drop", "nobody outside begins"),
                ),
            ),
            Chain(
                "postrouting",
                (Rule(f"ip saddr @nat oifname != {bridge} masquerade", "leaves as the host"),),
                "postrouting",
                100,
                "nat",
            ),
        ),
    )


def _plan_bridge(settings: NetworkSettings, members: Sequence[Member]) -> Table:
    """Who a frame is from: layer 2, the only place where the port is known."""
    vouch = f"meta mark set {_VOUCHED:#x} accept"
    arp = "ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4"
    sender = "iifname . arp saddr ether . arp saddr ip @ports"
    frame = "iifname . ether saddr @stations"
    return Table(
        "bridge",
        settings.table,
        (
            Set("taps", "ifname", frozenset((m.tap,) for m in members)),
            Set(
                "stations",
                "ifname . ether_addr",
                frozenset((m.tap, m.mac) for m in members),
            ),
            Set(
                "ports",
                "ifname . ether_addr . ipv4_addr",
                frozenset((m.tap, m.mac, str(m.address)) for m in members),
            ),
            Set("members", "ipv4_addr", as_elements(m.address for m in members)),
        ),
        (
            _owner(settings),
            Chain(
                "prerouting",
                (
                    # Plain frames only: "ether type" reads the frame, so a VLAN tag is no IPv4.
                    Rule(
                        "ether type ip ip hdrlength 5 "
                        f"iifname . ether saddr . ip saddr @ports {vouch}",
                        "IPv4 from its own tap, MAC and address, without options",
                    ),
                    Rule(
                        f"{arp} arp operation request {frame} {sender} "
                        f"arp daddr ip {settings.host} {vouch}",
                        "asks for the host",
                    ),
                    Rule(
                        f"{arp} arp operation request {frame} {sender} "
                        f"arp daddr ip @members {vouch}",
                        "announces itself",
                    ),
                    Rule(f"{arp} arp operation reply {frame} {sender} {vouch}", "answers ARP"),
                    Rule("iifname @taps drop", "all else from a sandbox"),
                ),
                "prerouting",
                -300,
            ),
            Chain(
                "input",
                (
                    # Frames to 802.1D's reserved addresses skip prerouting and reach the port's
                    # own IP stack (br_handle_frame in net/bridge/br_input.c).
                    Rule(
                        "iifname @taps ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop",
                        "reserved addresses",
                    ),
                ),
                "input",
                -200,
            ),
            Chain(
                "forward",
                (
                    Rule("iifname @taps drop", "guest to guest"),
                    Rule("oifname @taps drop", "strangers to guest"),
                ),
                "forward",
                -200,
            ),
            Chain(
                "output",
                (
                    Rule("oifname . ether daddr @stations accept", "to the one it is for"),
                    Rule(
                        "oifname @taps ether type arp ether daddr ff:ff:ff:ff:ff:ff accept",
                        "the host asks",
                    ),
                    Rule("oifname @taps drop", "flooded frames meant for others"),
                ),
                "output",
                -200,
            ),
        ),
    )


def _plan_arp(settings: NetworkSettings) -> Table:
    """Keeps the host's neighbour table clean of what the bridge table did not vouch for."""
    return Table(
        "arp",
        settings.table,
        (),
        (
            _owner(settings),
            Chain(
                "input",
                (
                    Rule(
                        f'iifname "{settings.bridge}" meta mark != {_VOUCHED:#x} drop',
                        "strangers and forged senders",
                    ),
                ),
                "input",
                -10,
            ),
        ),
    )

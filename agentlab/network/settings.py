"""What the network is made of: one bridge, its rules, and the sandboxes that it admits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from agentlab.errors import Invalid
from agentlab.model.profile import NetworkMode

# What a device or table name may hold: safe in nft text, in ip(8) and in a path below /proc/sys.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,14}")
_INSTALLATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")

# IANA's special-purpose IPv4 registry, less the documentation nets, plus multicast and class E.
PRIVATE = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier NAT, and every tailnet
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, and the clouds' metadata address
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """One installation's network.  `private` is never reachable, save port 53 of `dns`.

    `own_taps`: we make the taps, isolate them, and take them away.  Without, the hypervisor makes
    each one with the power, and puts it on the bridge: there are only our rules, which wait for it.
    """

    installation: str
    bridge: str
    subnet: IPv4Network
    host: IPv4Address
    guest_port: int
    table: str = "agentlab"
    dns: tuple[IPv4Address, ...] = ()
    private: tuple[IPv4Network, ...] = PRIVATE
    own_taps: bool = True

    def __post_init__(self) -> None:
        if not _INSTALLATION.fullmatch(self.installation):
            raise Invalid(f"cannot use {self.installation!r} as the name of an installation")
        for name in (self.bridge, self.table):
            if not _NAME.fullmatch(name):
                raise Invalid(f"cannot use {name!r} as the name of a bridge or an nftables table")
        edges = (self.subnet.network_address, self.subnet.broadcast_address)
        if self.host not in self.subnet or self.host in edges:
            raise Invalid(f"{self.host} is not an address that a host of {self.subnet} can have")
        if not 0 < self.guest_port < 65536:
            raise Invalid(f"{self.guest_port} is not a port")
        inside = [str(server) for server in self.dns if server in self.subnet]
        if inside:
            raise Invalid(
                f"DNS server {inside[0]} lies in the sandboxes' own network {self.subnet}",
                hint="name a resolver outside; sandboxes reach only the guest port of the host",
            )

    @property
    def interface(self) -> IPv4Interface:
        """The host's address on the bridge, with the prefix length."""
        return IPv4Interface((self.host, self.subnet.prefixlen))

    @property
    def mark(self) -> str:
        """The text that bridge, taps and rules of this installation carry."""
        return f"agentlab {self.installation}"


@dataclass(frozen=True, slots=True)
class Member:
    """A sandbox that the fence admits: the only source that its tap may send from."""

    vmid: int
    tap: str
    mac: str  # lower case, with colons, unicast
    address: IPv4Address
    mode: NetworkMode

    def __post_init__(self) -> None:
        if not 0 < self.vmid < 1 << 32:
            raise Invalid(f"{self.vmid} is not a VMID")
        if not _NAME.fullmatch(self.tap):
            raise Invalid(f"cannot use {self.tap!r} as the name of a tap")
        if not _MAC.fullmatch(self.mac):
            raise Invalid(f"{self.mac!r} is not a unicast MAC address in lower case")

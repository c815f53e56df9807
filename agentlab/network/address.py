"""Addresses and names that we give out ourselves, before boot."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network

from agentlab.errors import Invalid, Unavailable

_BIGGEST_VMID = 999_999_999  # PVE::JSONSchema, pve-vmid


def allot(
    subnet: IPv4Network,
    host: IPv4Address,
    taken: Collection[IPv4Address],
    *,
    after: IPv4Address | None = None,
) -> IPv4Address:
    """The next free address behind `after`, the one given out last, going round at the end.

    So an address that came back rests for as long as there are others.  Unavailable when full.
    """
    first, last = int(subnet.network_address) + 1, int(subnet.broadcast_address) - 1
    closed = {int(address) for address in taken} | {int(host)}
    count = max(last - first + 1, 0)
    begin = int(after) + 1 - first if after is not None and after in subnet else 0
    for step in range(count):
        number = first + (begin + step) % count
        if number not in closed:
            return IPv4Address(number)
    raise Unavailable(
        f"cannot give out an address: all {count} of {subnet} are in use",
        hint="destroy sandboxes that are no longer needed, or set a larger subnet",
    )


def _digest(*words: str) -> bytes:
    return hashlib.sha256("\0".join(words).encode()).digest()


def _checked(vmid: int) -> int:
    if not 0 < vmid <= _BIGGEST_VMID:
        raise Invalid(f"{vmid} is not a VMID")
    return vmid


def mac_for(installation: str, vmid: int) -> str:
    """`02:hh:vv:vv:vv:vv`: locally administered, unicast; the VMID makes it unique here."""
    return (b"\x02" + _digest(installation)[:1] + _checked(vmid).to_bytes(4, "big")).hex(":")


def bridge_mac(installation: str, bridge: str) -> str:
    """The bridge's own fixed address, `06:…`, so that no guest's can be the same."""
    return (b"\x06" + _digest(installation, bridge)[:5]).hex(":")


def tap_name(bridge: str, vmid: int) -> str:
    """`tap<vmid>x<hh>`, at most 15 characters.

    Those that a hypervisor makes itself are `tap_of(vmid)`; the two digits tell bridges of one
    host apart.
    """
    return f"tap{_checked(vmid)}x{_digest(bridge)[:1].hex()}"


def tap_of(vmid: int) -> str:
    """The tap that Proxmox makes for a VM's first interface, when it gives it power."""
    return f"tap{_checked(vmid)}i0"

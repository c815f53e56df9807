"""What a guest agent tells, whichever way it comes.  The guest may be hostile: all is bounded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from ipaddress import IPv4Address

from agentlab.errors import Invalid, Unavailable
from agentlab.hypervisor.base import GuestInterface
from agentlab.log import one_line

READY = "/run/agentlab/ready"  # the runner makes it when it is up and waits
_INTERFACES_LIMIT = 64


def parse_interfaces(answer: object) -> tuple[GuestInterface, ...]:
    """What can be read of the guest's list; what cannot is left out."""
    if not isinstance(answer, list):
        raise Unavailable("the guest agent gave a list of interfaces that is none")
    found = []
    for entry in answer[:_INTERFACES_LIMIT]:
        if not isinstance(entry, dict):
            continue
        addresses = entry.get("ip-addresses")
        found.append(
            GuestInterface(
                name=one_line(str(entry.get("name", "")))[:32],
                mac=one_line(str(entry.get("hardware-address", ""))).lower()[:32],
                addresses=_addresses(addresses if isinstance(addresses, list) else []),
            )
        )
    return tuple(found)


def _addresses(entries: Sequence[object]) -> tuple[IPv4Address, ...]:
    found = []
    for entry in entries[:_INTERFACES_LIMIT]:
        if isinstance(entry, dict) and entry.get("ip-address-type") == "ipv4":
            with contextlib.suppress(ValueError):
                found.append(IPv4Address(str(entry.get("ip-address"))))
    return tuple(found)


def plain(word: str) -> str:
    """Words that the agent is known to survive: some of its versions die of others."""
    if not word.isascii() or "\0" in word:
        raise Invalid("cannot run a program in the guest: its arguments must be plain ASCII")
    return word

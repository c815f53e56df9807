"""Signs of life on the network: bytes on a tap, and ssh connections that are open to guests."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from agentlab.run import run

_log = logging.getLogger(__name__)
_NET = Path("/sys/class/net")
_CONNTRACK = Path("/proc/net/nf_conntrack")
_LASTS = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
_TIMEOUT = 10.0
_SSH = 22
# The kernel's own keepalive, which sshd asks for, speaks after two hours (tcp(7)); what was silent
# for longer is a connection whose other end is gone, and conntrack remembers it for five days.
_SILENT = 2.2 * 3600
_PEER = re.compile(r"\[?(?:::ffff:)?([0-9.]+)\]?:(\d+)")


def tap_bytes(tap: str) -> int | None:
    """Bytes that went through a tap of this host, both ways; None when there is none."""
    try:
        return sum(
            int((_NET / tap / "statistics" / name).read_text()) for name in ("rx_bytes", "tx_bytes")
        )
    except (OSError, ValueError):
        return None


def open_ssh() -> set[IPv4Address]:
    """Addresses to whose port 22 a TCP connection is open, from this host or through it.

    Raises what `ss` raises.  Where the kernel does not list forwarded connections, these are not
    known; their bytes still are, on the tap.
    """
    listed = run(["ss", "-Htn", "state", "established"], timeout=_TIMEOUT)
    return {*parse_connections(listed.text), *parse_conntrack(_read(_CONNTRACK), _lasts())}


def parse_connections(text: str) -> Iterator[IPv4Address]:
    """The peers on port 22 in what `ss -Htn state established` says (ss(8))."""
    for line in text.splitlines():
        words = line.split()
        peer = _PEER.fullmatch(words[3]) if len(words) >= 4 else None
        if peer and int(peer[2]) == _SSH:
            yield IPv4Address(peer[1])


def parse_conntrack(text: str, lasts: int) -> Iterator[IPv4Address]:
    """Whom flows to port 22 go to that are established and not silent (nf_conntrack_standalone.c).

    `lasts` is for how many seconds the kernel remembers a silent one.
    """
    for line in text.splitlines():
        words = line.split()
        if words[:1] != ["ipv4"] or "ESTABLISHED" not in words or "[UNREPLIED]" in words:
            continue
        first: dict[str, str] = {}  # of the original direction; the answers' come second
        for word in words:
            key, equals, value = word.partition("=")
            if equals:
                first.setdefault(key, value)
        silent = lasts - int(words[4])
        if first.get("dport") == str(_SSH) and silent < _SILENT:
            yield IPv4Address(first["dst"])


def _lasts() -> int:
    text = _read(_LASTS).strip()
    return int(text) if text else 432_000


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        _log.debug("cannot read %s: %s", path, error)
        return ""

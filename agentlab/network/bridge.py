"""The agent bridge and its taps, made with ip(8).  What does not carry our mark is never touched.

The mark is the device's alias, "agentlab <installation>".  A device exists for a moment before
it can have one; the bridge is known by its MAC until then, and a tap goes away by itself when we
die before it is marked.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from agentlab.errors import Conflict, NotFound, Unavailable, Unsupported
from agentlab.network.address import bridge_mac
from agentlab.network.settings import NetworkSettings
from agentlab.run import CommandFailed, run

_log = logging.getLogger(__name__)
_TIMEOUT = 30.0
_SYSCTL = Path("/proc/sys/net")

# A bridge that forwards from the first moment and sends nothing by itself.
_QUIET = "stp_state 0 forward_delay 0 mcast_snooping 0"

# linux/if_tun.h
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000


@dataclass(frozen=True, slots=True)
class Device:
    """A network device as `ip -json -details address` shows it."""

    name: str
    kind: str  # "bridge", "tun" (taps too), "veth", … or "" for hardware
    alias: str
    mac: str
    master: str
    up: bool
    isolated: bool
    addresses: tuple[IPv4Interface, ...]


def parse_devices(text: str) -> dict[str, Device]:
    """All devices by name."""
    devices = {}
    for entry in json.loads(text):
        info = entry.get("linkinfo", {})
        devices[entry["ifname"]] = Device(
            name=entry["ifname"],
            kind=info.get("info_kind", ""),
            alias=entry.get("ifalias", ""),
            mac=entry.get("address", ""),
            master=entry.get("master", ""),
            up="UP" in entry.get("flags", ()),
            isolated=info.get("info_slave_data", {}).get("isolated", False),
            addresses=tuple(
                IPv4Interface(f"{address['local']}/{address['prefixlen']}")
                for address in entry.get("addr_info", ())
                if address.get("family") == "inet"
            ),
        )
    return devices


def _devices() -> dict[str, Device]:
    listing = run(["ip", "-json", "-details", "address", "show"], timeout=_TIMEOUT)
    return parse_devices(listing.text)


def _batch(lines: Sequence[str], what: str) -> None:
    """Runs ip(8) commands in one process, up to the first that fails."""
    if not lines:
        return
    try:
        run(["ip", "-batch", "-"], timeout=_TIMEOUT, stdin="\n".join((*lines, "")).encode())
    except CommandFailed as failed:
        raise Unavailable(f"cannot {what}: {failed.message}") from failed


def _ensure_sysctl(path: str, value: str) -> None:
    place = _SYSCTL / path
    try:
        if place.read_text().strip() == value:
            return
        place.write_text(value)
    except OSError as error:
        raise Unavailable(
            f"cannot set {place} to {value}: {error.strerror or error}",
            hint="the daemon must be root, and /proc/sys must be writable",
        ) from error
    _log.info("set %s to %s", place, value)


def ensure_bridge(settings: NetworkSettings) -> None:
    """Makes the bridge, up, with the host's address and without IPv6, or finishes making it.

    A bridge with just our address that the administrator made is used as it is and never marked
    or removed.  Anything else of that name, or another device in our subnet: Conflict.
    """
    devices = _devices()
    _refuse_neighbours(settings, devices)
    found = devices.get(settings.bridge)
    if found is None:
        mac = bridge_mac(settings.installation, settings.bridge)
        _batch(
            [f"link add name {settings.bridge} address {mac} type bridge {_QUIET}"],
            f"make bridge {settings.bridge}",
        )
        _log.info("made bridge %s with %s", settings.bridge, settings.interface)
    elif not _ours(settings, found):
        _check_administrators(settings, found)
        return
    _ensure_no_ipv6(settings.bridge)
    lines = [f'link set dev {settings.bridge} alias "{settings.mark}"']
    # Bridged frames need not cross the inet chains; the rules hold either way.
    lines.append(
        f"link set dev {settings.bridge} type bridge "
        "nf_call_iptables 0 nf_call_ip6tables 0 nf_call_arptables 0"
    )
    if found is None or settings.interface not in found.addresses:
        lines.append(f"address add {settings.interface} dev {settings.bridge}")
    lines.append(f"link set dev {settings.bridge} up")
    _batch(lines, f"set up bridge {settings.bridge}")


def _ours(settings: NetworkSettings, found: Device) -> bool:
    """Whether the bridge is ours; Conflict when ours with other settings, or in another's hands."""
    if found.kind != "bridge":
        raise Conflict(
            f"cannot use {settings.bridge} as the agent bridge: it is not a bridge",
            hint="choose another bridge name in config.yaml",
        )
    unfinished = not found.alias and found.mac == bridge_mac(settings.installation, found.name)
    if found.alias != settings.mark and not unfinished:
        if found.alias.startswith("agentlab "):
            raise Conflict(
                f'cannot use bridge {settings.bridge}: it belongs to "{found.alias}", '
                f'and this is "{settings.mark}"',
                hint="each installation on a host needs a bridge and a subnet of its own",
            )
        return False
    others = [str(address) for address in found.addresses if address != settings.interface]
    if others:
        raise Conflict(
            f"cannot use bridge {settings.bridge}: it has {others[0]}, not {settings.interface}",
            hint=f"with no sandbox running, `ip link delete {settings.bridge}` and try again",
        )
    return True


def _check_administrators(settings: NetworkSettings, found: Device) -> None:
    if found.addresses != (settings.interface,) or not found.up:
        have = ", ".join(str(address) for address in found.addresses) or "no address"
        raise Conflict(
            f"cannot use bridge {settings.bridge}: AgentLab did not make it, and it has {have} "
            f"and is {'up' if found.up else 'down'}, where {settings.interface} and up are needed",
            hint="choose another bridge name or subnet in config.yaml, or set the bridge up so",
        )


def _refuse_neighbours(settings: NetworkSettings, devices: dict[str, Device]) -> None:
    for device in devices.values():
        for address in device.addresses:
            if device.name != settings.bridge and address.ip in settings.subnet:
                raise Conflict(
                    f"cannot use subnet {settings.subnet}: {device.name} has {address} in it",
                    hint="choose another subnet in config.yaml",
                )


def _ensure_no_ipv6(device: str) -> None:
    if (_SYSCTL / "ipv6" / "conf" / device).is_dir():
        _ensure_sysctl(f"ipv6/conf/{device}/disable_ipv6", "1")


def look_at_bridge(settings: NetworkSettings) -> bool:
    """Whether the bridge is ours, rather than the administrator's; changes nothing.

    NotFound when there is none; Conflict when it, or a neighbour of it, is in the way.
    """
    devices = _devices()
    _refuse_neighbours(settings, devices)
    found = devices.get(settings.bridge)
    if found is None:
        raise NotFound(f"there is no bridge {settings.bridge}")
    if not _ours(settings, found):
        _check_administrators(settings, found)
        return False
    if settings.interface not in found.addresses or not found.up:
        raise Conflict(
            f"bridge {settings.bridge} is ours, and down or without {settings.interface}",
            hint="agentlabd puts it in order when it starts: systemctl restart agentlabd",
        )
    return True


def ensure_forwarding() -> None:
    """Lets the host route, which mode nat needs; the log says when this changes the host."""
    _ensure_sysctl("ipv4/ip_forward", "1")


def ensure_taps(settings: NetworkSettings, names: Collection[str]) -> None:
    """Makes these taps, or finishes making them; a foreign device of such a name: Conflict.

    They are persistent, isolated on the bridge, and for `-netdev tap,ifname=…,script=no`.
    """
    devices = _devices()
    for name in sorted(names):
        found = devices.get(name)
        if found is None:
            _make_tap(settings, name)
        elif found.kind != "tun" or found.alias != settings.mark:
            raise Conflict(
                f'cannot use {name} as a tap: it does not carry the mark "{settings.mark}"',
                hint="find out whose it is with `ip -details link show`",
            )
        elif not _joined(settings, found):
            _batch(_join(settings, name), f"set up tap {name}")


def taps_ready(settings: NetworkSettings, names: Collection[str]) -> bool:
    """Whether `ensure_taps` would have nothing to do."""
    devices = _devices() if names else {}
    return all(
        name in devices
        and (devices[name].kind, devices[name].alias) == ("tun", settings.mark)
        and _joined(settings, devices[name])
        for name in names
    )


def _joined(settings: NetworkSettings, tap: Device) -> bool:
    return (tap.master, tap.up, tap.isolated) == (settings.bridge, True, True)


def _join(settings: NetworkSettings, name: str) -> list[str]:
    """A tap is isolated before it is up: it never meets another."""
    return [
        f"link set dev {name} addrgenmode none",
        f"link set dev {name} master {settings.bridge}",
        f"link set dev {name} type bridge_slave isolated on",
        f"link set dev {name} up",
    ]


def _make_tap(settings: NetworkSettings, name: str) -> None:
    with _new_tap(name) as descriptor:
        _batch(
            [f'link set dev {name} alias "{settings.mark}"', *_join(settings, name)],
            f"set up tap {name}",
        )
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)


@contextmanager
def _new_tap(name: str) -> Iterator[int]:
    """A tap that lasts as long as its descriptor, unless it is made persistent."""
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as missing:
        raise Unsupported(
            f"cannot make tap {name}: /dev/net/tun: {missing.strerror}",
            hint="the daemon must be root and the kernel must have tun",
        ) from missing
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        except OSError as refused:
            raise Unavailable(f"cannot make tap {name}: {refused.strerror}") from refused
        yield descriptor
    finally:
        os.close(descriptor)


def taps(settings: NetworkSettings) -> set[str]:
    """The taps that carry our mark, on the bridge or not."""
    return {
        device.name
        for device in _devices().values()
        if device.kind == "tun" and device.alias == settings.mark
    }


def check_port(settings: NetworkSettings, name: str) -> None:
    """Conflict unless the tap is a port of the bridge itself: elsewhere our rules do not see it."""
    found = _devices().get(name)
    if found is not None and found.master == settings.bridge:
        return
    where = "is not on this host" if found is None else f"is on {found.master or 'no bridge'}"
    raise Conflict(
        f"the tap {name} {where}, and the rules that fence it are for {settings.bridge} here",
        hint="agentlabd must run on the node that runs the VM, and its net0 must be on "
        f"{settings.bridge} without firewall=1",
    )


def remove_taps(settings: NetworkSettings, names: Collection[str]) -> None:
    """Removes taps of ours, also from under a running machine; absent: returns."""
    devices = _devices()
    present = sorted(name for name in names if name in devices)
    for name in present:
        if devices[name].kind != "tun" or devices[name].alias != settings.mark:
            raise Conflict(
                f'cannot remove tap {name}: it does not carry the mark "{settings.mark}"'
            )
    _batch([f"link delete dev {name}" for name in present], "remove taps")


def remove_bridge(settings: NetworkSettings) -> None:
    """Absent, or the administrator's own: returns.  Another installation's: Conflict."""
    found = _devices().get(settings.bridge)
    if found is None or not _ours(settings, found):
        return
    _batch([f"link delete dev {settings.bridge}"], f"remove bridge {settings.bridge}")

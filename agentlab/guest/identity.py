"""Makes a clone of a memory snapshot a machine of its own (part 1 of the guest protocol)."""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentlab import run
from agentlab.errors import Invalid
from agentlab.guest.bootstrap import replace
from agentlab.guest.paths import Paths

# linux/random.h
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_ETHERNET = "1"  # ARPHRD_ETHER in /sys/class/net/*/type

_IPV4 = r"(?:\d{1,3}\.){3}\d{1,3}"
_SHAPES = {
    "nonce": r"[0-9a-f]{1,128}",
    "hostname": r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62})",
    "machine_id": r"[0-9a-f]{32}",
    "mac": r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}",
    "address": _IPV4 + r"/\d{1,2}",
    "gateway": _IPV4,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes this machine another than its siblings; `time` in seconds since the epoch."""

    nonce: str
    entropy: bytes
    time: float
    hostname: str
    machine_id: str
    mac: str
    address: str
    gateway: str
    dns: tuple[str, ...]


def parse_identity(document: dict[str, Any]) -> Identity:
    """Raises Invalid with the first key that is not as the protocol says."""
    words: dict[str, str] = {}
    for key, shape in _SHAPES.items():
        value = document.get(key)
        if not isinstance(value, str) or not re.fullmatch(shape, value):
            raise Invalid(f"cannot take the identity: `{key}` is missing or malformed")
        words[key] = value
    try:
        entropy = base64.b64decode(document["entropy"], validate=True)
        now = float(document["time"])
    except (KeyError, TypeError, ValueError, binascii.Error) as problem:
        raise Invalid("cannot take the identity: `entropy` or `time` is malformed") from problem
    dns = document.get("dns", [])
    if len(entropy) < 32 or not isinstance(dns, list):
        raise Invalid("cannot take the identity: too little `entropy`, or `dns` is no list")
    if not all(isinstance(one, str) and re.fullmatch(_IPV4, one) for one in dns):
        raise Invalid("cannot take the identity: `dns` holds something else than IPv4 addresses")
    return Identity(entropy=entropy, time=now, dns=tuple(dns), **words)


def render_ip_batch(identity: Identity, interface: str) -> str:
    """The lines for `ip -batch`: one process instead of six, which counts under emulation."""
    return (
        f"link set dev {interface} down\n"
        f"link set dev {interface} address {identity.mac}\n"
        f"address flush dev {interface}\n"
        f"address add {identity.address} broadcast + dev {interface}\n"
        f"link set dev {interface} up\n"
        f"route replace default via {identity.gateway} dev {interface}\n"
    )


def render_hosts(text: str, hostname: str) -> str:
    """/etc/hosts with this machine's name at 127.0.1.1, so that it resolves itself."""
    kept = [line for line in text.splitlines() if line.split()[:1] != ["127.0.1.1"]]
    return "\n".join([*kept, f"127.0.1.1 {hostname}"]) + "\n"


def first_ethernet(sys_net: Path) -> str:
    """The Ethernet interface that the kernel found first; bridges and the like are no devices."""
    found = [
        (int((path / "ifindex").read_text()), path.name)
        for path in sys_net.iterdir()
        if (path / "type").read_text().strip() == _ETHERNET and (path / "device").exists()
    ]
    if not found:
        raise Invalid("cannot take the identity: this machine has no Ethernet interface")
    return min(found)[1]


def _credit_entropy(data: bytes) -> None:
    """Credits the host's bytes and makes the generator use them now (random(4))."""
    device = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        request = struct.pack(f"ii{len(data)}s", len(data) * 8, len(data), data)
        fcntl.ioctl(device, _RNDADDENTROPY, request)
        fcntl.ioctl(device, _RNDRESEEDCRNG)
    finally:
        os.close(device)


def _set_clock(now: float) -> None:
    time.clock_settime(time.CLOCK_REALTIME, now)


def _run(argv: list[str], stdin: str = "") -> None:
    run.run(argv, timeout=60, stdin=stdin.encode())


@dataclass(frozen=True, slots=True)
class Kernel:
    """The calls that change the whole machine; replaced in tests."""

    credit_entropy: Callable[[bytes], None] = field(default=_credit_entropy)
    set_clock: Callable[[float], None] = field(default=_set_clock)
    set_hostname: Callable[[str], None] = field(default=socket.sethostname)
    run: Callable[[list[str], str], None] = field(default=_run)


def adopt(identity: Identity, paths: Paths, kernel: Kernel) -> None:
    """Takes the identity on, entropy first, and says that it is done; may be done again."""
    kernel.credit_entropy(identity.entropy)
    kernel.set_clock(identity.time)
    _name_the_machine(identity, paths.etc, kernel)
    interface = first_ethernet(paths.sys_net)
    kernel.run(["ip", "-batch", "-"], render_ip_batch(identity, interface))
    servers = "".join(f"nameserver {one}\n" for one in identity.dns)
    replace(paths.etc / "resolv.conf", servers, 0o644)
    _renew_host_keys(paths, kernel)
    replace(paths.identity_done, identity.nonce)


def _name_the_machine(identity: Identity, etc: Path, kernel: Kernel) -> None:
    kernel.set_hostname(identity.hostname)
    replace(etc / "hostname", identity.hostname + "\n", 0o644)
    hosts = etc / "hosts"
    old = hosts.read_text() if hosts.exists() else "127.0.0.1 localhost\n"
    replace(hosts, render_hosts(old, identity.hostname), 0o644)
    # In place: systemd may have mounted something over it, and then a rename is refused.
    (etc / "machine-id").write_text(identity.machine_id + "\n")


def _renew_host_keys(paths: Paths, kernel: Kernel) -> None:
    """New ssh host keys, where sshd is installed.

    Ed25519 alone: an RSA key takes seconds under emulation, and every sshd of today has it.
    """
    ssh = paths.etc / "ssh"
    if not ssh.is_dir():
        return
    for old in ssh.glob("ssh_host_*key*"):
        old.unlink()
    key = ssh / "ssh_host_ed25519_key"
    kernel.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)], "")
    if (paths.system_run / "systemd/system").is_dir():
        kernel.run(["systemctl", "--no-block", "try-restart", "ssh.service"], "")
    else:
        with suppress(OSError, ValueError):
            os.kill(int((paths.system_run / "sshd.pid").read_text()), signal.SIGHUP)

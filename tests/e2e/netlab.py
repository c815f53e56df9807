"""A small world of network namespaces: a host with the real fence, guests, a LAN, the Internet.

A guest is a namespace whose `eth0` is joined to the real tap of the sandbox by a pump, a process
that does what QEMU does: it opens the tap by name and copies frames.  Code runs inside a
namespace on a thread that has moved there (setns is per thread).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

from agentlab.model.profile import NetworkMode
from agentlab.network.address import mac_for, tap_name, tap_of
from agentlab.network.fence import Fence
from agentlab.network.settings import Member, NetworkSettings
from tests.waiting import seen

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

HOST, PORT = "10.77.0.1", 8844
HOST_LAN, HOST_TAILNET, HOST_OUTSIDE = "192.168.77.2", "100.64.7.2", "203.0.113.2"
LAN, TAILNET, LINK_LOCAL, METADATA = (
    "192.168.77.1",
    "100.64.7.1",
    "169.254.7.1",
    "169.254.169.254",
)
OUTSIDE, OUTSIDE_FAR = "203.0.113.1", "198.51.100.9"
SERVED_TCP, SERVED_UDP = (22, 80, PORT), (53, 5353)


def shell(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{argv}: {done.stderr}")
    return done.stdout


def usable() -> str:
    """Why this machine cannot run the lab, or ""."""
    if os.geteuid() != 0:
        return "needs root"
    name = f"alprobe{os.getpid()}"
    try:
        shell("ip", "netns", "add", name)
        shell("ip", "netns", "delete", name)
        shell("nft", "--version")
    except (AssertionError, FileNotFoundError) as failed:
        return f"needs ip netns and nft: {failed}"
    return "" if Path("/dev/net/tun").exists() else "needs /dev/net/tun"


def move(netns: str) -> None:
    """Takes this thread into a namespace for good."""
    with Path(f"/run/netns/{netns}").open() as handle:
        if _libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {netns}")


def inside(netns: str, work: Callable[[], T]) -> T:
    """Runs `work` on a thread of its own in the namespace; processes it starts are there too."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            move(netns)
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def open_tap(name: str) -> int:
    """As QEMU opens `-netdev tap,ifname=…`, but without offload headers."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000))
    return descriptor


def _pump(one: int, other: int) -> None:
    while True:
        ready, _, _ = select.select([one, other], [], [])
        for source in ready:
            with contextlib.suppress(OSError):  # a tap that is down, or gone
                os.write(other if source is one else one, os.read(source, 70000))


@dataclass
class Guest:
    """A sandbox as seen from within."""

    netns: str
    member: Member
    pump: int

    @property
    def address(self) -> str:
        return str(self.member.address)

    def ip(self, text: str) -> None:
        shell("ip", "-n", self.netns, *text.split())


@dataclass
class Lab:
    """The world.  `host` is the namespace in which the daemon would run."""

    tag: str
    settings: NetworkSettings
    fence: Fence
    netns: list[str] = field(default_factory=list)
    pumps: list[int] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)
    wanted: dict[int, Member] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"{self.tag}host"

    # --- the fence, as the daemon uses it

    def sync(self, members: Sequence[Member] | None = None) -> None:
        if members is not None:
            self.wanted = {member.vmid: member for member in members}
        inside(self.host, lambda: self.fence.sync(lambda: list(self.wanted.values())))

    def nft(self, text: str) -> str:
        return shell("ip", "netns", "exec", self.host, "nft", "-f", "-", stdin=text)

    def ruleset(self) -> str:
        return shell("ip", "netns", "exec", self.host, "nft", "list", "ruleset")

    @contextlib.contextmanager
    def no_fence(self) -> Iterator[None]:
        """Takes rules and isolation away for a while: the positive control of every probe."""
        taps = inside(self.host, self.fence.taps)
        bridge = self.settings.bridge
        table = self.settings.table
        lines = [f"link set dev {tap} type bridge_slave isolated off" for tap in taps]
        shell("ip", "-n", self.host, "-batch", "-", stdin="\n".join((*lines, "")))
        self.nft(
            f"delete table inet {table}\ndelete table bridge {table}\ndelete table arp {table}\n"
            "table ip control {\n chain postrouting {\n type nat hook postrouting priority srcnat\n"
            f' ip saddr {self.settings.subnet} oifname != "{bridge}" masquerade\n }}\n}}\n'
        )
        try:
            yield
        finally:
            self.nft("delete table ip control\n")
            self.sync()

    # --- making the world

    def add_netns(self, name: str) -> str:
        full = f"{self.tag}{name}"
        shell("ip", "netns", "add", full)
        self.netns.append(full)
        shell("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def add_neighbour(self, name: str, near: str, far: Sequence[str]) -> str:
        """A namespace beside the host; `near` is the host's address there, `far` its own."""
        netns = self.add_netns(name)
        shell(
            "ip", "-n", self.host, "link", "add", name, "type", "veth",
            "peer", "name", "eth0", "netns", netns,
        )  # fmt: skip
        shell("ip", "-n", self.host, "address", "add", near, "dev", name)
        shell("ip", "-n", self.host, "link", "set", name, "up")
        for address in far:
            shell("ip", "-n", netns, "address", "add", address, "dev", "eth0")
        shell("ip", "-n", netns, "link", "set", "eth0", "up")
        return netns

    def add_bridge(self, kind: str) -> None:
        """The administrator's own, as Proxmox makes it from /etc/network/interfaces."""
        name = self.settings.bridge
        shell("ip", "-n", self.host, "link", "add", name, "type", *kind.split())
        shell("ip", "-n", self.host, "address", "add", str(self.settings.interface), "dev", name)
        shell("ip", "-n", self.host, "link", "set", name, "up")

    def member(self, number: int, mode: NetworkMode = NetworkMode.NAT) -> Member:
        vmid = 1000 + number
        own = self.settings.own_taps
        return Member(
            vmid,
            tap_name(self.settings.bridge, vmid) if own else tap_of(vmid),
            mac_for(self.settings.installation, vmid),
            IPv4Address("10.77.0.0") + 10 + number,
            mode,
        )

    def attach(self, name: str, member: Member) -> Guest:
        """A guest behind the tap of `member`, which `sync` has made.

        Where the taps are not ours, it is made here, as Proxmox does it: with the power, up, a
        port of the bridge, not isolated.
        """
        netns = self.add_netns(name)
        far = inside(netns, lambda: open_tap("eth0"))
        near = inside(self.host, lambda: open_tap(member.tap))
        if not self.settings.own_taps:
            join = f"link set {member.tap} master {self.settings.bridge} up"
            shell("ip", "-n", self.host, *join.split())
        pump = os.fork()
        if pump == 0:
            try:
                _pump(near, far)
            finally:
                os._exit(0)
        self.pumps.append(pump)
        os.close(near)
        os.close(far)
        guest = Guest(netns, member, pump)
        guest.ip(f"link set eth0 address {member.mac}")
        guest.ip(f"address add {member.address}/16 dev eth0")
        guest.ip("link set eth0 up")
        guest.ip(f"route add default via {HOST}")
        self.serve(netns)
        return guest

    def serve(self, netns: str) -> None:
        """TCP servers that say who asked, and UDP servers that send back what they got."""

        def listen() -> None:
            for port in SERVED_TCP:
                server = socket.socket()
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(("0.0.0.0", port))
                server.listen(16)
                self.sockets.append(server)
                threading.Thread(target=_serve_tcp, args=(server,), daemon=True).start()
            # One socket an address, so that the answer comes from the one that was asked.
            own = shell("ip", "-n", netns, "-4", "-oneline", "address", "show").splitlines()
            for any_address in ("::", *(line.split()[3].partition("/")[0] for line in own)):
                for port in SERVED_UDP:
                    v6 = any_address == "::"
                    echo = socket.socket(
                        socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM
                    )
                    if v6:
                        echo.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    echo.bind((any_address, port))
                    self.sockets.append(echo)
                    threading.Thread(target=_serve_udp, args=(echo,), daemon=True).start()

        inside(netns, listen)

    def close(self) -> None:
        for pump in self.pumps:
            os.kill(pump, signal.SIGKILL)
            os.waitpid(pump, 0)
        for server in self.sockets:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        for netns in self.netns:
            shell("ip", "netns", "delete", netns)


def _serve_tcp(server: socket.socket) -> None:
    while True:
        try:
            connection, peer = server.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(connection, peer[0]), daemon=True).start()


def _echo(connection: socket.socket, peer: str) -> None:
    with connection, contextlib.suppress(OSError):
        connection.sendall(peer.encode().ljust(16))
        while data := connection.recv(100):
            connection.sendall(data)


def _serve_udp(echo: socket.socket) -> None:
    while True:
        try:
            data, peer = echo.recvfrom(2000)
            if not data:
                return
            echo.sendto(data, peer)
        except OSError:
            if echo.fileno() < 0:
                return


@contextlib.contextmanager
def lab(*, own_taps: bool = True, bridge: str = "") -> Iterator[Lab]:
    """The host with its bridge and fence, a LAN, a tailnet and the Internet, all with servers.

    With `bridge`, words of ip(8) for its kind, the bridge is there before the fence is.
    """
    tag = f"al{uuid.uuid4().hex[:5]}"
    settings = NetworkSettings(
        installation="lab",
        bridge="vmbr1",
        subnet=IPv4Network("10.77.0.0/16"),
        host=IPv4Address(HOST),
        guest_port=PORT,
        dns=(IPv4Address("192.168.77.53"),),
        own_taps=own_taps,
    )
    world = Lab(tag, settings, Fence(settings))
    try:
        world.add_netns("host")
        world.add_neighbour("lan", f"{HOST_LAN}/24", [f"{LAN}/24", "192.168.77.53/24"])
        world.add_neighbour("tail", f"{HOST_TAILNET}/10", [f"{TAILNET}/10"])
        world.add_neighbour("cloud", "169.254.7.2/16", [f"{LINK_LOCAL}/16", f"{METADATA}/16"])
        world.add_neighbour("out", f"{HOST_OUTSIDE}/24", [f"{OUTSIDE}/24", f"{OUTSIDE_FAR}/32"])
        shell("ip", "-n", world.host, "route", "add", "default", "via", OUTSIDE)
        for name in world.netns:
            if not name.endswith("host"):
                # So that a lost masquerade shows as an answer, not as silence.
                gateway = {"lan": HOST_LAN, "tail": HOST_TAILNET, "cloud": "169.254.7.2"}
                near = next((a for end, a in gateway.items() if name.endswith(end)), HOST_OUTSIDE)
                shell("ip", "-n", name, "route", "add", "10.77.0.0/16", "via", near)
        if bridge:
            world.add_bridge(bridge)
        inside(world.host, world.fence.ensure)
        for name in world.netns:
            world.serve(name)
        yield world
    finally:
        world.close()


# --- probes: each says whether something came back; where it must, it is asked again ------------


def tcp(netns: str, address: str, port: int, *, timeout: float = 0.7) -> str:
    """Who the server saw, or "" when there was no connection."""

    def work() -> str:
        with socket.socket() as client:
            client.settimeout(timeout)
            try:
                client.connect((address, port))
                return client.recv(16).decode().strip()
            except OSError:
                return ""

    return inside(netns, work)


def reached(netns: str, address: str, port: int) -> str:
    """As `tcp`, where there is a way: who was cut off is told "no route" until it asks anew."""
    return seen(lambda: tcp(netns, address, port))


def udp(netns: str, address: str, port: int, *, timeout: float = 0.7) -> str:
    def work() -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(timeout)
            try:
                client.connect(socket.getaddrinfo(address, port)[0][4])
                client.send(b"hello")
                return client.recv(100).decode()
            except OSError:
                return ""

    return inside(netns, work)


def ping(netns: str, address: str) -> str:
    """An ICMP echo by a raw socket."""

    def work() -> str:
        body = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"hello!"
        words = struct.unpack(f"!{len(body) // 2}H", body)
        total = sum(words)
        total = (total & 0xFFFF) + (total >> 16)
        body = body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.settimeout(0.7)
            try:
                raw.sendto(body, (address, 0))
                while True:
                    answer, peer = raw.recvfrom(2000)
                    if peer[0] == address and answer[20] == 0:
                        return "pong"
            except OSError:
                return ""

    return inside(netns, work)


def frame_heard(
    sender: str, frame: bytes, listener: str, device: str, marker: bytes, *, wanted: bool = False
) -> bool:
    """Whether a frame put on `sender`'s eth0 shows up, with its marker, on a device elsewhere.

    It goes out with a marker of its own, so that nobody hears it for another one that is late.
    One that is `wanted` is sent until it is heard.
    """
    own = secrets.token_hex(len(marker))[: len(marker)].encode()

    def listen() -> socket.socket:
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        ear.bind((device, 3))
        ear.settimeout(0.5)
        return ear

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
            mouth.bind(("eth0", 0))
            mouth.send(frame.replace(marker, own))

    with inside(listener, listen) as ear:

        def heard() -> bool:
            inside(sender, send)
            return hears(ear, own)

        return seen(heard) if wanted else heard()


def hears(ear: socket.socket, marker: bytes) -> bool:
    """Whether a packet with this marker comes before there is silence for as long as it listens."""
    try:
        while marker not in ear.recv(2000):
            pass
    except TimeoutError:
        return False
    return True

"""What a guest can reach, with real packets; each "no" beside the same probe without the fence."""

from __future__ import annotations

import dataclasses
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agentlab.errors import AgentLabError, Conflict, Unavailable
from agentlab.model.profile import NetworkMode
from agentlab.network import bridge, nft
from agentlab.network.address import bridge_mac
from agentlab.network.fence import Fence
from agentlab.run import CommandFailed, Completed
from tests.waiting import seen

sys.path.insert(0, str(Path(__file__).parent))
import netlab  # a module beside this file, whatever the import mode
from netlab import (
    HOST,
    PORT,
    Guest,
    Lab,
    frame_heard,
    hears,
    inside,
    ping,
    reached,
    shell,
    tcp,
    udp,
)

REFUSED = netlab.usable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REFUSED != "", reason=REFUSED)]

B = "10.77.0.12"


@dataclasses.dataclass
class World:
    lab: Lab
    a: Guest  # nat
    b: Guest  # nat
    c: Guest  # off

    def restore(self) -> None:
        self.lab.sync([self.a.member, self.b.member, self.c.member])


@pytest.fixture(scope="module", params=["1", "0"], ids=["netfilter-bridged", "plain-bridge"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with netlab.lab() as lab:

        def call_iptables() -> None:
            for name in ("iptables", "arptables", "ip6tables"):
                place = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
                if place.exists():
                    place.write_text(request.param)

        inside(lab.host, call_iptables)
        members = [lab.member(1), lab.member(2), lab.member(3, NetworkMode.OFF)]
        lab.sync(members)
        yield World(
            lab,
            lab.attach("a", members[0]),
            lab.attach("b", members[1]),
            lab.attach("c", members[2]),
        )


# --- the table: probe, address, port, from a nat guest, from an off guest

Reach = tuple[str, str, int, bool, bool]
REACH: tuple[Reach, ...] = (
    ("tcp", HOST, PORT, True, True),
    ("tcp", HOST, 22, False, False),
    ("udp", HOST, 53, False, False),
    ("udp", HOST, 5353, False, False),
    ("ping", HOST, 0, False, False),
    ("tcp", netlab.HOST_LAN, PORT, False, False),
    ("tcp", netlab.HOST_LAN, 22, False, False),
    ("tcp", netlab.HOST_TAILNET, 22, False, False),
    ("tcp", netlab.HOST_OUTSIDE, 22, False, False),
    ("ping", netlab.HOST_OUTSIDE, 0, False, False),
    ("tcp", netlab.LAN, 80, False, False),
    ("udp", netlab.LAN, 53, False, False),
    ("ping", netlab.LAN, 0, False, False),
    ("tcp", netlab.TAILNET, 80, False, False),
    ("tcp", netlab.LINK_LOCAL, 80, False, False),
    ("tcp", netlab.METADATA, 80, False, False),
    ("tcp", B, 22, False, False),
    ("udp", B, 5353, False, False),
    ("ping", B, 0, False, False),
    ("tcp", netlab.OUTSIDE, 80, True, False),
    ("udp", netlab.OUTSIDE, 5353, True, False),
    ("ping", netlab.OUTSIDE, 0, True, False),
    ("tcp", netlab.OUTSIDE_FAR, 22, True, False),
    ("udp", "192.168.77.53", 53, True, False),  # the resolver that the settings name
    ("udp", "192.168.77.53", 5353, False, False),
    ("tcp", "192.168.77.53", 80, False, False),
)


def probe(guest: Guest, reach: Reach) -> str:
    kind, address, port = reach[:3]
    if kind == "ping":
        return ping(guest.netns, address)
    return (tcp if kind == "tcp" else udp)(guest.netns, address, port)


def probe_all(guest: Guest, wanted: Callable[[Reach], bool] = lambda _: False) -> dict[Reach, bool]:
    """What answers; what is `wanted` is asked until it does."""

    def answers(reach: Reach) -> bool:
        return bool(seen(lambda: probe(guest, reach), 60 if wanted(reach) else 0))

    with ThreadPoolExecutor(len(REACH)) as pool:
        return dict(zip(REACH, pool.map(answers, REACH), strict=True))


def all_of(_: Reach) -> bool:
    return True


def from_nat(reach: Reach) -> bool:
    return reach[3]


def from_off(reach: Reach) -> bool:
    return reach[4]


def test_every_probe_works_without_the_fence(world: World) -> None:
    with world.lab.no_fence():
        for guest in (world.a, world.c):
            silent = [reach for reach, answered in probe_all(guest, all_of).items() if not answered]
            assert silent == []


def test_nat_guest_reaches_the_table_and_nothing_else(world: World) -> None:
    assert probe_all(world.a, from_nat) == {reach: from_nat(reach) for reach in REACH}


def test_off_guest_reaches_only_the_guest_listener(world: World) -> None:
    assert probe_all(world.c, from_off) == {reach: from_off(reach) for reach in REACH}


def test_guest_leaves_with_the_hosts_address(world: World) -> None:
    assert reached(world.a.netns, netlab.OUTSIDE, 80) == netlab.HOST_OUTSIDE


def test_host_reaches_guests_and_sees_their_own_address(world: World) -> None:
    assert reached(world.lab.host, world.a.address, 22) == HOST
    assert reached(world.lab.host, world.c.address, 22) == HOST
    assert reached(world.a.netns, HOST, PORT) == world.a.address


@pytest.mark.parametrize("where", ["lan", "tail", "out"])
def test_outsiders_reach_neither_guest_nor_guest_listener(world: World, where: str) -> None:
    outsider = world.lab.tag + where
    assert reached(outsider, HOST, 22), "other ports of the host are the administrator's"
    targets = [(world.a.address, 22), (world.c.address, 80), (HOST, PORT)]
    assert [tcp(outsider, *target) for target in targets] == ["", "", ""]
    with world.lab.no_fence():
        assert all(reached(outsider, *target) for target in targets)


def test_outsider_posing_as_guest_reaches_no_port_of_the_host(world: World) -> None:
    with inside(world.lab.host, _mailbox) as box:

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
                mouth.bind((world.a.address, 0))
                mouth.sendto(b"posing", (netlab.HOST_LAN, 7777))

        def mailed() -> bytes:
            inside(lan, send)
            return _mail(box)

        lan = world.lab.tag + "lan"
        posing = ("address", "add", f"{world.a.address}/32", "dev", "lo")
        shell("ip", "-n", lan, *posing)
        assert mailed() == b""
        with world.lab.no_fence():
            assert seen(mailed) == b"posing"
        shell("ip", "-n", lan, posing[0], "delete", *posing[2:])


def _mailbox() -> socket.socket:
    box = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    box.bind(("0.0.0.0", 7777))
    box.settimeout(0.5)
    return box


def _mail(box: socket.socket) -> bytes:
    try:
        return box.recv(100)
    except TimeoutError:
        return b""


# --- IPv6


def _v6(guest: Guest) -> str:
    shown = shell("ip", "-n", guest.netns, "-6", "-o", "address", "show", "dev", "eth0")
    return shown.split()[3].partition("/")[0] + "%eth0"


def test_no_ipv6_between_guests_nor_to_the_host(world: World) -> None:
    lab, target = world.lab, _v6(world.b)
    off = f"/proc/sys/net/ipv6/conf/{lab.settings.bridge}/disable_ipv6"
    assert inside(lab.host, lambda: Path(off).read_text()).strip() == "1"
    assert udp(world.a.netns, target, 5353) == ""
    with lab.no_fence():
        assert seen(lambda: udp(world.a.netns, target, 5353)) == "hello"


# --- frames as no honest guest sends them


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


EVERYONE = b"\xff" * 6
MARKER = b"-the-marker-of-this-frame-"


def ip_packet(
    source: str, target: str, *, protocol: int = 17, payload: bytes = b"", options: bytes = b""
) -> bytes:
    if protocol == 17:
        payload = struct.pack("!HHHH", 4000, 7777, 8 + len(MARKER), 0) + MARKER
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + len(payload), 1, 0, 9, protocol, 0,
        IPv4Address(source).packed, IPv4Address(target).packed,
    ) + options  # fmt: skip
    total = sum(struct.unpack(f"!{words * 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:] + payload


def ip6_packet() -> bytes:
    udp_packet = struct.pack("!HHHH", 4000, 7777, 8 + len(MARKER), 0) + MARKER
    ends = bytes.fromhex("fe80000000000000000000000000000afe80000000000000000000000000000b")
    return struct.pack("!IHBB", 6 << 28, len(udp_packet), 17, 9) + ends + udp_packet


def arp(operation: int, sender_mac: bytes, sender: str, target: str) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    addresses = sender_mac + IPv4Address(sender).packed + bytes(6) + IPv4Address(target).packed
    return b"\x08\x06" + head + addresses + MARKER


def frames(world: World) -> dict[str, tuple[bool, bytes]]:
    """By name: whether the host may hear it, and the frame."""
    me, other = world.a.address, world.b.address
    mine, others = mac(world.a.member.mac), mac(world.b.member.mac)
    host = mac(bridge_mac(world.lab.settings.installation, world.lab.settings.bridge))
    ipv4 = b"\x08\x00"
    good = ip_packet(me, HOST)
    return {
        "honest IPv4": (True, host + mine + ipv4 + good),
        "honest ARP request": (True, EVERYONE + mine + arp(1, mine, me, HOST)),
        "honest ARP reply": (True, host + mine + arp(2, mine, me, HOST)),
        "honest ARP announcement": (True, EVERYONE + mine + arp(1, mine, me, me)),
        "forged address": (False, host + mine + ipv4 + ip_packet(other, HOST)),
        "the host's address": (False, host + mine + ipv4 + ip_packet(HOST, HOST)),
        "an unused address": (False, host + mine + ipv4 + ip_packet("10.77.9.9", HOST)),
        "no address": (False, host + mine + ipv4 + ip_packet("0.0.0.0", HOST)),
        "an outside address": (False, host + mine + ipv4 + ip_packet("198.51.100.1", HOST)),
        "forged MAC": (False, host + others + ipv4 + good),
        "forged MAC and address": (False, host + others + ipv4 + ip_packet(other, HOST)),
        "IPv4 options": (
            False,
            host + mine + ipv4 + ip_packet(me, HOST, options=b"\x83\x07\x04\x0a\x4d\x00\x0c\x00"),
        ),
        "ARP in another's name": (False, host + mine + arp(2, mine, other, HOST)),
        "ARP in the host's name": (False, EVERYONE + mine + arp(1, mine, HOST, HOST)),
        "ARP with another's MAC": (False, host + mine + arp(2, others, me, HOST)),
        "ARP from another's MAC": (False, host + others + arp(2, mine, me, HOST)),
        "ARP for the host's LAN address": (
            False,
            EVERYONE + mine + arp(1, mine, me, netlab.HOST_LAN),
        ),
        "VLAN tag": (False, host + mine + b"\x81\x00\x00\x05" + ipv4 + good),
        "priority tag": (False, host + mine + b"\x81\x00\x00\x00" + ipv4 + good),
        "IPv6": (False, host + mine + b"\x86\xdd" + ip6_packet()),
        "DHCP": (False, EVERYONE + mine + ipv4 + ip_packet("0.0.0.0", "255.255.255.255")),
        "unknown protocol": (False, host + mine + b"\x88\xb5" + MARKER),
        "spanning tree": (False, mac("01:80:c2:00:00:00") + mine + b"\x00\x26" + MARKER),
    }


def test_host_hears_honest_frames_only(world: World) -> None:
    def heard(*, fenced: bool) -> dict[str, bool]:
        return {
            name: frame_heard(
                world.a.netns, frame, lab.host, lab.settings.bridge, MARKER,
                wanted=honest or not fenced,
            )
            for name, (honest, frame) in frames(world).items()
        }  # fmt: skip

    lab = world.lab
    assert heard(fenced=True) == {name: honest for name, (honest, _) in frames(world).items()}
    with lab.no_fence():
        assert heard(fenced=False) == dict.fromkeys(frames(world), True)


def test_other_guests_hear_nothing(world: World) -> None:
    mine, others = mac(world.a.member.mac), mac(world.b.member.mac)
    packet = ip_packet(world.a.address, world.b.address)
    sent = {
        "broadcast ARP": EVERYONE + mine + arp(1, mine, world.a.address, world.b.address),
        "ARP reply": others + mine + arp(2, mine, world.a.address, world.b.address),
        "IPv4": others + mine + b"\x08\x00" + packet,
        "broadcast IPv4": EVERYONE + mine + b"\x08\x00" + packet,
        "unknown MAC": mac("02:00:00:00:99:99") + mine + b"\x08\x00" + packet,
    }

    def heard(*, wanted: bool) -> dict[str, bool]:
        return {
            name: frame_heard(world.a.netns, frame, world.b.netns, "eth0", MARKER, wanted=wanted)
            for name, frame in sent.items()
        }

    assert heard(wanted=False) == dict.fromkeys(sent, False)
    with world.lab.no_fence():
        assert heard(wanted=True) == dict.fromkeys(sent, True)


def test_each_layer_alone_keeps_guests_apart(world: World) -> None:
    lab, tap_a, tap_b = world.lab, world.a.member.tap, world.b.member.tap
    mine, others = mac(world.a.member.mac), mac(world.b.member.mac)
    frame = others + mine + b"\x08\x00" + ip_packet(world.a.address, world.b.address)

    def heard(*, wanted: bool = False) -> bool:
        return frame_heard(world.a.netns, frame, world.b.netns, "eth0", MARKER, wanted=wanted)

    def isolated(state: str) -> None:
        for tap in (tap_a, tap_b):
            shell("ip", "-n", lab.host, "link", "set", tap, "type", "bridge_slave",
                  "isolated", state)  # fmt: skip

    with lab.no_fence():
        assert heard(wanted=True)
        isolated("on")
        assert not heard()
    isolated("off")
    assert not heard()
    isolated("on")


def test_reserved_multicast_frame_does_not_reach_the_hosts_stack(world: World) -> None:
    """Such frames skip the bridge's prerouting and come up on the port itself."""
    mine = mac(world.a.member.mac)
    frame = mac("01:80:c2:00:00:0e") + mine + b"\x08\x00" + ip_packet(world.a.address, HOST)

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
            mouth.bind(("eth0", 0))
            mouth.send(frame)

    with inside(world.lab.host, _mailbox) as box:

        def mailed() -> bytes:
            inside(world.a.netns, send)
            return _mail(box)

        assert mailed() == b""
        with world.lab.no_fence():
            assert seen(mailed) == MARKER


def test_flooded_unicast_for_one_guest_is_not_heard_by_another(world: World) -> None:
    lab = world.lab
    stale = "02:00:00:00:77:77"
    shell("ip", "-n", lab.host, "neigh", "replace", "10.77.5.5", "lladdr", stale,
          "dev", lab.settings.bridge)  # fmt: skip

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
            mouth.sendto(MARKER, ("10.77.5.5", 7777))

    def heard() -> bool:
        def listen() -> socket.socket:
            ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            ear.bind(("eth0", 3))
            ear.settimeout(0.5)
            return ear

        with inside(world.b.netns, listen) as ear:
            inside(lab.host, send)
            return hears(ear, MARKER)

    assert not heard()
    with lab.no_fence():
        assert seen(heard)


# --- coming and going


def test_stranger_on_the_bridge_reaches_nothing(world: World) -> None:
    """A tap that is there but not listed: rules alone, before the tap is taken away."""
    lab, rest = world.lab, [world.b.member, world.c.member]
    mine = mac(world.a.member.mac)
    question = EVERYONE + mine + arp(1, mine, B, HOST)

    def posed() -> bool:
        frame_heard(world.a.netns, question, lab.host, lab.settings.bridge, MARKER)
        return world.a.member.mac in _neighbour(lab, B)

    inside(lab.host, lambda: nft.apply_ruleset(lab.settings, rest))
    try:
        assert probe_all(world.a) == dict.fromkeys(REACH, False)
        assert reached(world.b.netns, HOST, PORT) == B
        # its ARP in another's name does not enter the host's neighbour table
        assert not posed()
    finally:
        world.restore()
    assert reached(world.a.netns, HOST, PORT) == world.a.address
    with lab.no_fence():
        assert seen(posed)  # the kernel takes no second change within a second
    shell("ip", "-n", lab.host, "neigh", "flush", "dev", lab.settings.bridge)


def _neighbour(lab: Lab, address: str) -> str:
    return shell("ip", "-n", lab.host, "neigh", "show", address)


def test_running_connections_end_with_admission(world: World) -> None:
    lab = world.lab
    talks = [
        inside(world.a.netns, lambda target=target: socket.create_connection(target, 60))
        for target in ((HOST, PORT), (netlab.OUTSIDE, 80))
    ]

    def answers(*wanted: bool) -> list[bool]:
        return [_answers(talk, wanted=yes) for talk, yes in zip(talks, wanted, strict=True)]

    for talk in talks:
        assert talk.recv(16)
    assert answers(True, True) == [True, True]
    lab.sync(
        [dataclasses.replace(world.a.member, mode=NetworkMode.OFF), world.b.member, world.c.member]
    )
    assert answers(True, False) == [True, False]
    inside(lab.host, lambda: nft.apply_ruleset(lab.settings, [world.b.member, world.c.member]))
    assert answers(False, False) == [False, False]
    world.restore()
    for talk in talks:
        talk.close()


def _answers(talk: socket.socket, *, wanted: bool) -> bool:
    """It is asked once: an answer that came late would be one to the next question."""
    talk.settimeout(60 if wanted else 0.7)
    try:
        talk.send(b"still there?")
        return talk.recv(100) != b""
    except OSError:
        return False


def test_new_owner_of_an_address_gets_nothing_of_the_old_flows(world: World) -> None:
    lab, old = world.lab, world.a.member

    def listen() -> socket.socket:
        return socket.create_server((netlab.OUTSIDE, 9000))

    def ear() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind(("eth0", 3))
        made.settimeout(60)
        return made

    with inside(lab.tag + "out", listen) as server:
        talk = inside(world.a.netns, lambda: socket.create_connection((netlab.OUTSIDE, 9000), 60))
        far, _ = server.accept()
        with inside(world.a.netns, ear) as listener:
            far.send(MARKER)
            assert hears(listener, MARKER)
            inside(
                lab.host,
                lambda: nft.apply_ruleset(
                    lab.settings,
                    # the same port, so that the frame could be heard; only the VMID is another
                    [dataclasses.replace(old, vmid=4001), world.b.member, world.c.member],
                ),
            )
            assert reached(world.a.netns, netlab.OUTSIDE, 80), "its own new flows work"
            far.send(MARKER[::-1])  # the first one may come again
            listener.settimeout(0.5)
            assert not hears(listener, MARKER[::-1])
        far.close()
        talk.close()
    world.restore()


def test_second_sync_changes_nothing(world: World) -> None:
    before = world.lab.ruleset()
    world.lab.sync()
    assert world.lab.ruleset() == before


def test_kernel_lets_through_just_the_members(world: World) -> None:
    found = inside(world.lab.host, lambda: nft.read_members(world.lab.settings))
    assert found == {(g.member.tap, g.member.mac, g.address) for g in (world.a, world.b, world.c)}


@pytest.mark.parametrize(
    "change",
    [
        "flush chain inet agentlab forward",
        "delete element bridge agentlab taps { TAP }",
        "insert rule inet agentlab guest_to_host accept",
        "add chain inet agentlab input { policy drop; }",
        "delete table arp agentlab",
        "flush ruleset",
    ],
)
def test_verify_sees_a_change_and_sync_heals_it(world: World, change: str) -> None:
    lab = world.lab
    inside(lab.host, lab.fence.verify)
    lab.nft(change.replace("TAP", world.a.member.tap) + "\n")
    with pytest.raises(Unavailable, match="not as asked"):
        inside(lab.host, lab.fence.verify)
    lab.sync()
    inside(lab.host, lab.fence.verify)


def test_rules_that_cannot_be_put_in_place_leave_no_tap(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, new = world.lab, world.lab.member(9)

    def refuse(argv: list[str], **options: object) -> Completed:
        if argv[1] == "-f":
            raise CommandFailed(Completed(tuple(argv), 1, b"", b"Error: no"))
        return real(argv, **options)  # type: ignore[arg-type]  # passed on as it came

    real = nft.run
    with monkeypatch.context() as patch:
        patch.setattr(nft, "run", refuse)
        with pytest.raises(Unavailable, match="cannot fence"):
            lab.sync([world.a.member, world.b.member, world.c.member, new])
    assert new.tap not in inside(lab.host, lab.fence.taps)
    assert reached(world.a.netns, HOST, PORT), "the rules from before still stand"
    world.restore()


def test_many_callers_at_once_end_with_the_newest_list(world: World) -> None:
    lab = world.lab
    extra = [lab.member(20 + number) for number in range(12)]

    def admit(number: int) -> None:
        lab.wanted[extra[number].vmid] = extra[number]
        inside(lab.host, lambda: lab.fence.sync(lambda: list(lab.wanted.values())))
        assert extra[number].tap in inside(lab.host, lab.fence.taps)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(admit, range(12)))
    world.restore()
    assert inside(lab.host, lab.fence.taps) == {g.member.tap for g in (world.a, world.b, world.c)}


# --- whose is it


@pytest.fixture
def lab() -> Iterator[Lab]:
    with netlab.lab() as made:
        yield made


def test_remove_leaves_nothing_of_ours_and_all_else(lab: Lab) -> None:
    before = shell("ip", "-n", lab.host, "-o", "link", "show").count("\n") - 1  # less the bridge
    shell("ip", "-n", lab.host, "tuntap", "add", "dev", "tap1i0", "mode", "tap")
    lab.nft("table inet other {\n}\n")
    lab.sync([lab.member(1), lab.member(2)])
    inside(lab.host, lab.fence.remove)
    inside(lab.host, lab.fence.remove)
    links = shell("ip", "-n", lab.host, "-o", "link", "show")
    assert links.count("\n") == before + 1
    assert "tap1i0" in links
    assert "agentlab" not in links
    assert lab.ruleset().split() == ["table", "inet", "other", "{", "}"]


def test_taps_come_and_go_with_the_list(lab: Lab) -> None:
    one, two = lab.member(1), lab.member(2)
    for members in ([one], [one, two], [two], []):
        lab.sync(members)
        assert inside(lab.host, lab.fence.taps) == {member.tap for member in members}


def test_tap_opens_as_qemu_opens_it(lab: Lab) -> None:
    """With offload headers, and again after a restart of the machine."""
    lab.sync([lab.member(1)])
    for _ in range(2):
        inside(lab.host, lambda: _open_with_headers(lab.member(1).tap))


def _open_with_headers(name: str) -> None:
    import fcntl
    import os

    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    flags = 0x0002 | 0x1000 | 0x4000
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", name.encode(), flags))
    os.close(descriptor)


def test_forwarding_is_switched_on_for_the_first_nat_member_only(lab: Lab) -> None:
    def forwarding() -> str:
        return inside(lab.host, lambda: Path("/proc/sys/net/ipv4/ip_forward").read_text().strip())

    inside(lab.host, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("0"))
    lab.sync([lab.member(1, NetworkMode.OFF)])
    assert forwarding() == "0"
    lab.sync([lab.member(1, NetworkMode.NAT)])
    assert forwarding() == "1"


def foreign_table(lab: Lab) -> None:
    lab.nft("delete table inet agentlab\ntable inet agentlab {\n}\n")


def other_installation(lab: Lab) -> None:
    lab.fence = Fence(dataclasses.replace(lab.settings, installation="other"))


def other_bridge_same_table(lab: Lab) -> None:
    lab.fence = Fence(dataclasses.replace(lab.settings, installation="other", bridge="vmbr9"))


def other_mark_on_bridge(lab: Lab) -> None:
    shell("ip", "-n", lab.host, "link", "set", "vmbr1", "alias", "agentlab other")


def other_address(lab: Lab) -> None:
    shell("ip", "-n", lab.host, "address", "add", "10.66.0.1/16", "dev", "vmbr1")


def not_a_bridge(lab: Lab) -> None:
    shell("ip", "-n", lab.host, "link", "delete", "vmbr1")
    shell("ip", "-n", lab.host, "tuntap", "add", "dev", "vmbr1", "mode", "tap")


def bridge_of_the_administrator(lab: Lab) -> None:
    shell("ip", "-n", lab.host, "link", "delete", "vmbr1")
    shell("ip", "-n", lab.host, "link", "add", "vmbr1", "type", "bridge")


def neighbour_in_the_subnet(lab: Lab) -> None:
    shell("ip", "-n", lab.host, "address", "add", "10.77.8.1/24", "dev", "lan")


def foreign_tap(lab: Lab) -> None:
    shell("ip", "-n", lab.host, "tuntap", "add", "dev", lab.member(1).tap, "mode", "tap")


@pytest.mark.parametrize(
    "disturb",
    [
        foreign_table, other_installation, other_bridge_same_table, other_mark_on_bridge,
        other_address, not_a_bridge, bridge_of_the_administrator, neighbour_in_the_subnet,
        foreign_tap,
    ],
)  # fmt: skip
def test_what_is_not_ours_is_left_alone(lab: Lab, disturb: Callable[[Lab], None]) -> None:
    disturb(lab)
    before = _addresses(lab)
    with pytest.raises(Conflict) as refused:
        lab.sync([lab.member(1)])
    assert refused.value.message.startswith(("cannot use", "the nftables table"))
    assert _addresses(lab) == before


def _addresses(lab: Lab) -> str:
    """Those of the host; that the kernel has stopped asking whether others have them is no change."""
    return shell("ip", "-n", lab.host, "-o", "address", "show").replace(" tentative", "")


def test_administrators_own_bridge_is_used_and_never_removed(lab: Lab) -> None:
    shell("ip", "-n", lab.host, "link", "delete", "vmbr1")
    shell("ip", "-n", lab.host, "link", "add", "vmbr1", "type", "bridge")
    shell("ip", "-n", lab.host, "address", "add", "10.77.0.1/16", "dev", "vmbr1")
    shell("ip", "-n", lab.host, "link", "set", "vmbr1", "up")
    lab.sync([lab.member(1)])
    inside(lab.host, lab.fence.remove)
    links = shell("ip", "-n", lab.host, "-o", "link", "show")
    assert "vmbr1" in links
    assert "agentlab" not in links


def test_bridge_cut_off_half_way_is_finished(lab: Lab) -> None:
    own = bridge_mac("lab", "vmbr1")
    shell("ip", "-n", lab.host, "link", "delete", "vmbr1")
    shell("ip", "-n", lab.host, "link", "add", "vmbr1", "address", own, "type", "bridge")
    inside(lab.host, lab.fence.ensure)
    shown = shell("ip", "-n", lab.host, "address", "show", "vmbr1")
    assert "10.77.0.1/16" in shown
    assert "alias agentlab lab" in shell("ip", "-n", lab.host, "link", "show", "vmbr1")
    assert own in shown


def test_tap_cut_off_half_way_is_gone(lab: Lab) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    def half() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bridge, "_batch", die)
            bridge.ensure_taps(lab.settings, ["tapx"])

    with pytest.raises(Killed):
        inside(lab.host, half)
    assert "tapx" not in shell("ip", "-n", lab.host, "link", "show")


def test_errors_have_a_hint(lab: Lab) -> None:
    other_installation(lab)
    with pytest.raises(AgentLabError) as refused:
        inside(lab.host, lab.fence.ensure)
    assert refused.value.hint

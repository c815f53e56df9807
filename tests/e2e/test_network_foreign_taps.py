"""Rules alone, as on Proxmox: the bridge is the administrator's, taps come with the power.

They are not isolated and nobody tells us of them, so the rules wait for them; each "no" stands
beside the same probe without the rules.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.errors import Conflict, NotFound, Unavailable
from agentlab.model.profile import NetworkMode
from agentlab.network import nft
from agentlab.run import CommandFailed, Completed
from tests.waiting import seen

sys.path.insert(0, str(Path(__file__).parent))
import netlab  # modules beside this file, whatever the import mode
import test_network_fence as fenced
from netlab import HOST, PORT, Guest, Lab, frame_heard, inside, reached, shell, tcp
from test_network_fence import (
    EVERYONE,
    MARKER,
    REACH,
    World,
    all_of,
    arp,
    frames,
    from_nat,
    from_off,
    ip_packet,
    mac,
    probe_all,
)

REFUSED = netlab.usable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REFUSED != "", reason=REFUSED)]


@pytest.fixture(scope="module", params=["1", "0"], ids=["netfilter-bridged", "plain-bridge"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with netlab.lab(own_taps=False, bridge="bridge forward_delay 0") as lab:

        def call_iptables() -> None:
            for name in ("iptables", "arptables", "ip6tables"):
                place = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
                if place.exists():
                    place.write_text(request.param)

        inside(lab.host, call_iptables)
        members = [lab.member(1), lab.member(2), lab.member(3, NetworkMode.OFF)]
        lab.sync(members)
        assert taps(lab) == set(), "rules come before power, and no tap is made by us"
        yield World(
            lab,
            lab.attach("a", members[0]),
            lab.attach("b", members[1]),
            lab.attach("c", members[2]),
        )


def links(lab: Lab) -> dict[str, dict[str, object]]:
    listed = json.loads(shell("ip", "-n", lab.host, "-json", "-details", "link", "show"))
    return {each["ifname"]: each for each in listed}


def taps(lab: Lab) -> set[str]:
    return {name for name in links(lab) if name.startswith("tap")}


def reaches(guest: Guest) -> list[tuple[str, str, int]]:
    """What answers, but for itself."""
    return [each[:3] for each, yes in probe_all(guest).items() if yes and each[1] != guest.address]


def test_taps_are_as_the_hypervisor_made_them(world: World) -> None:
    found = links(world.lab)
    assert taps(world.lab) == {"tap1001i0", "tap1002i0", "tap1003i0"}
    for name in taps(world.lab):
        info = found[name]["linkinfo"]
        assert isinstance(info, dict)
        assert info["info_slave_data"]["isolated"] is False
        assert "ifalias" not in found[name]
    assert "ifalias" not in found["vmbr1"]


def test_a_look_changes_nothing(world: World) -> None:
    lab = world.lab
    before = lab.ruleset(), _names(lab)
    assert inside(lab.host, lab.fence.look_at_bridge) is False, "it is the administrator's"
    assert inside(lab.host, lab.fence.look_at_rules) == 3
    assert (lab.ruleset(), _names(lab)) == before
    lab.nft("flush ruleset\n")
    with pytest.raises(NotFound, match="no nftables table"):
        inside(lab.host, lab.fence.look_at_rules)
    assert lab.ruleset() == ""
    world.restore()


def _names(lab: Lab) -> dict[str, tuple[object, ...]]:
    keys = ("ifalias", "master", "operstate", "address")
    return {name: tuple(each.get(key) for key in keys) for name, each in links(lab).items()}


def test_guests_reach_what_their_mode_says(world: World) -> None:
    assert probe_all(world.a, from_nat) == {reach: from_nat(reach) for reach in REACH}
    assert probe_all(world.c, from_off) == {reach: from_off(reach) for reach in REACH}
    with world.lab.no_fence():
        for guest in (world.a, world.c):
            found = probe_all(guest, all_of)
            assert [reach for reach, answered in found.items() if not answered] == []


def test_nobody_poses_as_another(world: World) -> None:
    def heard(*, fenced: bool) -> dict[str, bool]:
        return {
            name: frame_heard(
                world.a.netns, frame, lab.host, lab.settings.bridge, MARKER,
                wanted=honest or not fenced,
            )
            for name, (honest, frame) in sent.items()
        }  # fmt: skip

    lab = world.lab
    bridge_mac = str(links(lab)["vmbr1"]["address"])
    sent = {  # the administrator's bridge has its own MAC
        name: (honest, _to(frame, bridge_mac, lab))
        for name, (honest, frame) in frames(world).items()
    }
    assert heard(fenced=True) == {name: honest for name, (honest, _) in sent.items()}
    with lab.no_fence():
        assert heard(fenced=False) == dict.fromkeys(sent, True)


def _to(frame: bytes, bridge_mac: str, lab: Lab) -> bytes:
    ours = mac(fenced.bridge_mac(lab.settings.installation, lab.settings.bridge))
    return mac(bridge_mac) + frame[6:] if frame.startswith(ours) else frame


def test_guests_hear_nothing_of_each_other_without_isolation(world: World) -> None:
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


@pytest.fixture(scope="module")
def stranger(world: World) -> Guest:
    """Another VM that somebody has put on our bridge; no list of ours names it."""
    return world.lab.attach("x", world.lab.member(80))


def test_a_stranger_on_the_bridge_reaches_nothing_and_nobody(world: World, stranger: Guest) -> None:
    lab = world.lab
    mine, others = mac(stranger.member.mac), mac(world.b.member.mac)
    posing = EVERYONE + mine + arp(1, mine, world.b.address, HOST)
    to_guest = others + mine + b"\x08\x00" + ip_packet(stranger.address, world.b.address)
    to_stranger = mine + others + b"\x08\x00" + ip_packet(world.b.address, stranger.address)

    def meet(*, wanted: bool) -> list[bool]:
        seconds = 60 if wanted else 0
        return [
            bool(seen(lambda: reaches(stranger), seconds)),
            frame_heard(stranger.netns, to_guest, world.b.netns, "eth0", MARKER, wanted=wanted),
            frame_heard(world.b.netns, to_stranger, stranger.netns, "eth0", MARKER, wanted=wanted),
            seen(lambda: tcp(lab.host, stranger.address, 22), seconds) != "",
        ]

    assert meet(wanted=False) == [False] * 4
    frame_heard(stranger.netns, posing, lab.host, lab.settings.bridge, MARKER)
    neighbour = shell("ip", "-n", lab.host, "neigh", "show", world.b.address)
    assert stranger.member.mac not in neighbour
    assert reached(world.b.netns, HOST, PORT) == world.b.address
    with lab.no_fence():
        assert meet(wanted=True) == [True] * 4


def test_the_first_frame_of_a_tap_that_appears_is_fenced(world: World) -> None:
    """Power comes after the rules: there is no moment in which the tap is free."""
    lab, late = world.lab, world.lab.member(90)
    lab.sync([*lab.wanted.values(), late])
    assert late.tap not in taps(lab)
    guest = lab.attach("late", late)
    mine = mac(late.mac)
    forged = EVERYONE + mine + b"\x08\x00" + ip_packet(HOST, "255.255.255.255")
    assert not frame_heard(guest.netns, forged, lab.host, lab.settings.bridge, MARKER)
    assert reached(guest.netns, HOST, PORT) == guest.address
    with lab.no_fence():
        assert frame_heard(guest.netns, forged, lab.host, lab.settings.bridge, MARKER, wanted=True)
    world.restore()


def test_who_leaves_is_shut_out_and_its_tap_is_left_alone(world: World) -> None:
    lab, before = world.lab, taps(world.lab)
    lab.sync([world.a.member, world.c.member])
    try:
        assert not reaches(world.b)
        assert taps(lab) == before
        assert links(lab)[world.b.member.tap]["master"] == "vmbr1"
    finally:
        world.restore()
    assert reached(world.b.netns, HOST, PORT) == world.b.address


def test_without_rules_nothing_may_have_power(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = world.lab

    def refuse(argv: list[str], **options: object) -> Completed:
        if argv[1] == "-f":
            raise CommandFailed(Completed(tuple(argv), 1, b"", b"Error: no"))
        return real(argv, **options)  # type: ignore[arg-type]  # passed on as it came

    real = nft.run
    with monkeypatch.context() as patch:
        patch.setattr(nft, "run", refuse)
        with pytest.raises(Unavailable, match="cannot fence"):
            lab.sync([*lab.wanted.values(), lab.member(9)])
    world.restore()


def test_rules_that_are_flushed_are_seen_and_put_back(world: World) -> None:
    lab = world.lab
    lab.nft("flush ruleset\n")
    with pytest.raises(Unavailable, match="not as asked"):
        inside(lab.host, lab.fence.verify)
    lab.sync()
    inside(lab.host, lab.fence.verify)
    assert not tcp(world.a.netns, HOST, 22)


def test_a_tap_elsewhere_than_on_our_bridge_is_refused(world: World) -> None:
    """As with `firewall=1`, where it sits on a bridge of its own; or with the VM on another node."""
    lab, tap = world.lab, world.a.member.tap
    inside(lab.host, lambda: lab.fence.check_port(tap))
    with pytest.raises(Conflict, match="tap4711i0 is not on this host"):
        inside(lab.host, lambda: lab.fence.check_port("tap4711i0"))
    shell("ip", "-n", lab.host, "link", "add", "fwbr1001i0", "type", "bridge")
    shell("ip", "-n", lab.host, "link", "set", tap, "master", "fwbr1001i0")
    try:
        with pytest.raises(Conflict, match="is on fwbr1001i0"):
            inside(lab.host, lambda: lab.fence.check_port(tap))
    finally:
        shell("ip", "-n", lab.host, "link", "set", tap, "master", "vmbr1")


def test_the_end_leaves_bridge_and_taps_and_no_rule(world: World) -> None:
    lab = world.lab
    before = links(lab).keys()
    inside(lab.host, lab.fence.remove)
    assert links(lab).keys() == before
    assert "agentlab" not in lab.ruleset()
    inside(lab.host, lab.fence.ensure)
    world.restore()
    assert reached(world.a.netns, HOST, PORT) == world.a.address


def test_the_bridge_must_have_our_address(world: World) -> None:
    lab = world.lab
    shell("ip", "-n", lab.host, "address", "add", "10.66.0.1/16", "dev", "vmbr1")
    try:
        with pytest.raises(Conflict, match="AgentLab did not make it"):
            lab.sync([*lab.wanted.values(), lab.member(9)])
        lab.sync([world.a.member])  # who leaves is out all the same
        assert not reaches(world.b)
    finally:
        shell("ip", "-n", lab.host, "address", "delete", "10.66.0.1/16", "dev", "vmbr1")
        world.restore()

"""The ruleset as text, and the kernel's answer read back."""

import dataclasses
import json
import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.errors import AgentLabError, Conflict, Invalid, Unsupported
from agentlab.model.profile import NetworkMode
from agentlab.network.address import mac_for, tap_name
from agentlab.network.nft import describe_tables, parse_listing, render_tables
from agentlab.network.rules import plan_tables
from agentlab.network.settings import PRIVATE, Member, NetworkSettings

SETTINGS = NetworkSettings(
    installation="lab",
    bridge="vmbr1",
    subnet=IPv4Network("10.77.0.0/16"),
    host=IPv4Address("10.77.0.1"),
    guest_port=8844,
    dns=(IPv4Address("192.168.77.53"),),
)
SAMPLE = Path(__file__).parent / "ruleset.json"  # nft 1.0.6 -j list ruleset, of `recorded`


def member(number: int, mode: NetworkMode = NetworkMode.NAT) -> Member:
    vmid = 1000 + number
    address = SETTINGS.subnet[number + 10]
    return Member(vmid, tap_name("vmbr1", vmid), mac_for("lab", vmid), address, mode)


recorded = [member(1), member(2), member(3, NetworkMode.OFF)]


def render_ruleset(settings: NetworkSettings, members: list[Member]) -> str:
    return render_tables(plan_tables(settings, members))


def body(text: str, kind: str, name: str) -> str:
    found = re.findall(rf"^\t{kind} {name} {{\n(.*?)^\t}}$", text, re.MULTILINE | re.DOTALL)
    return "\n".join(found)


def test_tables_are_replaced_in_one_transaction() -> None:
    text = render_ruleset(SETTINGS, recorded)
    for family in ("inet", "bridge", "arp"):
        start = f"add table {family} agentlab\ndelete table {family} agentlab\ntable {family} "
        assert text.count(start) == 1
    assert "flush" not in text


def test_same_members_give_the_same_text() -> None:
    assert render_ruleset(SETTINGS, recorded) == render_ruleset(SETTINGS, recorded[::-1])


def test_nobody_is_let_through_without_members() -> None:
    text = render_ruleset(SETTINGS, [])
    for name in ("taps", "members", "nat", "ports", "stations", "flows"):
        assert "elements" not in body(text, "set", name)


def test_off_members_are_not_in_nat() -> None:
    text = render_ruleset(SETTINGS, recorded)
    assert "10.77.0.13" in body(text, "set", "members")
    for kind, name in (("set", "nat"), ("set", "flows"), ("map", "vmids")):
        assert "10.77.0.12" in body(text, kind, name)
        assert "10.77.0.13" not in body(text, kind, name)


@pytest.mark.parametrize("chain", ["guest_to_host", "outside_to_guest"])
def test_what_no_rule_allows_is_dropped(chain: str) -> None:
    rules = body(render_ruleset(SETTINGS, recorded), "chain", chain).strip().splitlines()
    assert rules[-1].strip().startswith("drop ")


def test_private_ranges_come_before_the_internet() -> None:
    rules = body(render_ruleset(SETTINGS, recorded), "chain", "guest_to_outside")
    assert rules.index("@private drop") < rules.index("\taccept")


@given(st.lists(st.sampled_from(PRIVATE), max_size=5), st.integers(8, 30))
def test_own_subnet_is_always_closed(private: list[IPv4Network], prefix: int) -> None:
    subnet = IPv4Network(f"203.0.112.0/{prefix}", strict=False)
    settings = dataclasses.replace(
        SETTINGS, subnet=subnet, host=subnet[1], private=tuple(private), dns=()
    )
    text = body(render_ruleset(settings, []), "set", "private")
    closed = [IPv4Network(found) for found in re.findall(r"[\d.]+/\d+", text)]
    assert all(any(net.subnet_of(other) for other in closed) for net in (*private, subnet))
    assert not any(a.overlaps(b) for a in closed for b in closed if a is not b)


@given(st.sets(st.integers(1, 60000), max_size=30), st.randoms())
def test_every_member_is_admitted_once_and_no_other(numbers, random) -> None:
    members = [member(n, random.choice([NetworkMode.NAT, NetworkMode.OFF])) for n in numbers]
    ports = body(render_ruleset(SETTINGS, members), "set", "ports")
    triples = re.findall(r"(\S+) \. (\S+) \. ([\d.]+)", ports)
    assert sorted(triples) == sorted((m.tap, m.mac, str(m.address)) for m in members)


def test_allowlist_is_refused_not_opened() -> None:
    with pytest.raises(Unsupported, match="1001"):
        render_ruleset(SETTINGS, [member(1, NetworkMode.ALLOWLIST)])


@pytest.mark.parametrize("shared", ["vmid", "tap", "mac", "address"])
def test_two_members_never_share(shared: str) -> None:
    second = dataclasses.replace(member(2), **{shared: getattr(member(1), shared)})
    with pytest.raises(Conflict, match=shared):
        render_ruleset(SETTINGS, [member(1), second])


@pytest.mark.parametrize("address", ["10.77.0.0", "10.77.0.1", "10.77.255.255", "10.78.0.5"])
def test_address_that_no_guest_can_have(address: str) -> None:
    wrong = dataclasses.replace(member(1), address=IPv4Address(address))
    with pytest.raises(Invalid, match=re.escape(address)):
        render_ruleset(SETTINGS, [wrong])


@pytest.mark.parametrize(
    "change",
    [
        {"tap": 'x" accept'}, {"tap": "a" * 16}, {"tap": ""}, {"tap": "a/b"}, {"tap": "a\n"},
        {"mac": "03:00:00:00:00:01"}, {"mac": "02:00:00:00:00:0A"}, {"mac": "02:00"},
        {"vmid": 0}, {"vmid": 1 << 32},
    ],
)  # fmt: skip
def test_members_that_cannot_be_written_down(change: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        dataclasses.replace(member(1), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"installation": 'x" }'}, {"installation": ""}, {"bridge": "vm br"}, {"bridge": "b" * 16},
        {"table": "in et"}, {"host": IPv4Address("10.77.0.0")}, {"host": IPv4Address("10.1.0.1")},
        {"guest_port": 0}, {"guest_port": 65536}, {"dns": (IPv4Address("10.77.0.1"),)},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(AgentLabError):
        dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]


# --- reading back


def test_recorded_listing_is_what_was_asked_for() -> None:
    facts = parse_listing(SAMPLE.read_text(), "agentlab")
    assert facts == describe_tables(plan_tables(SETTINGS, recorded))


def test_listing_of_others_says_nothing_of_ours() -> None:
    assert parse_listing(SAMPLE.read_text(), "other") == {}


def _entries() -> list[dict[str, dict[str, object]]]:
    entries: list[dict[str, dict[str, object]]] = json.loads(SAMPLE.read_text())["nftables"]
    return entries


@pytest.mark.parametrize("index", range(1, len(_entries())))
def test_any_missing_part_is_seen(index: int) -> None:
    entries = _entries()
    del entries[index]
    facts = parse_listing(json.dumps({"nftables": entries}), "agentlab")
    assert facts != describe_tables(plan_tables(SETTINGS, recorded))


def test_sleeping_table_is_seen() -> None:
    entries = _entries()
    next(e for e in entries if "table" in e)["table"]["flags"] = ["dormant"]
    facts = parse_listing(json.dumps({"nftables": entries}), "agentlab")
    assert facts != describe_tables(plan_tables(SETTINGS, recorded))


@pytest.mark.parametrize("other", [[], recorded[:2], [*recorded, member(4)]])
def test_other_members_are_seen(other: list[Member]) -> None:
    facts = parse_listing(SAMPLE.read_text(), "agentlab")
    assert facts != describe_tables(plan_tables(SETTINGS, other))

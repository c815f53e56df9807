"""The packet filter: tables as data, rendered to one nft transaction, and compared with the kernel.

Every port of the agent bridge is a stranger until `ports` lists it.  The bridge table vouches for
a frame by a packet mark; the inet and arp tables drop whatever comes from the bridge without it.
So no rule needs `meta ibrname`, which not every kernel has, and no other bridge is touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses, summarize_address_range

from agentlab.errors import Conflict, Invalid, Unavailable, Unsupported
from agentlab.network.settings import Member, Mode, NetworkSettings
from agentlab.run import CommandFailed, run

_TIMEOUT = 30.0
_VOUCHED = 0x0A9E17AB  # set and cleared on the way from the bridge's port to its inet hooks
_FAMILIES = ("inet", "bridge", "arp")

Element = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A statement, and why; the reason goes into the kernel too, as the rule's comment."""

    statement: str
    why: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain when it has a `hook`; all policies are accept, for other bridges' sake."""

    name: str
    rules: tuple[Rule, ...]
    hook: str = ""
    priority: int = 0
    kind: str = "filter"


@dataclass(frozen=True, slots=True)
class Set:
    """A named set, or a map when the type has a colon; then the last word of an element is data."""

    name: str
    type: str
    elements: frozenset[Element]
    interval: bool = False

    @property
    def keyword(self) -> str:
        return "map" if ":" in self.type else "set"


@dataclass(frozen=True, slots=True)
class Table:
    family: str
    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]


def _refuse(settings: NetworkSettings, members: Sequence[Member]) -> None:
    for member in members:
        if member.mode is Mode.ALLOWLIST:
            raise Unsupported(
                f"cannot fence sandbox {member.vmid}: network mode allowlist does not exist yet",
                hint="choose nat or off",
            )
        if member.address not in settings.subnet or member.address in (
            settings.host,
            settings.subnet.network_address,
            settings.subnet.broadcast_address,
        ):
            raise Invalid(
                f"cannot fence sandbox {member.vmid}: {member.address} is not a guest's address "
                f"in {settings.subnet}"
            )
    for what in ("vmid", "tap", "mac", "address"):
        seen: dict[object, int] = {}
        for member in members:
            value = getattr(member, what)
            if value in seen:
                raise Conflict(
                    f"cannot fence sandbox {member.vmid}: {what} {value} also belongs to "
                    f"sandbox {seen[value]}"
                )
            seen[value] = member.vmid


def plan_tables(settings: NetworkSettings, members: Sequence[Member]) -> tuple[Table, ...]:
    """All rules for these members and no others; Unsupported, Invalid, Conflict."""
    _refuse(settings, members)
    return (
        _plan_inet(settings, members),
        _plan_bridge(settings, members),
        _plan_arp(settings),
    )


def _owner(settings: NetworkSettings) -> Chain:
    return Chain("owner", (Rule("return", settings.mark),))


def _addresses(items: Iterable[IPv4Address | IPv4Network]) -> frozenset[Element]:
    return frozenset((str(item),) for item in items)


def _plan_inet(settings: NetworkSettings, members: Sequence[Member]) -> Table:
    """What a guest may send beyond its own port: layer 3, where the kernel tracks flows."""
    bridge = f'"{settings.bridge}"'
    nat = [member for member in members if member.mode is Mode.NAT]
    closed = collapse_addresses((*settings.private, settings.subnet))
    icmp = "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
    return Table(
        "inet",
        settings.table,
        (
            Set("taps", "ifname", frozenset((m.tap,) for m in members)),
            Set("members", "ipv4_addr", _addresses(m.address for m in members)),
            Set("nat", "ipv4_addr", _addresses(m.address for m in nat)),
            Set("dns", "ipv4_addr", _addresses(settings.dns)),
            Set("private", "ipv4_addr", _addresses(closed), interval=True),
            Set(
                "vmids",
                "ipv4_addr : mark",
                frozenset((str(m.address), str(m.vmid)) for m in nat),
            ),
            Set(
                "flows",
                "ipv4_addr . mark",
                frozenset((str(m.address), str(m.vmid)) for m in nat),
            ),
        ),
        (
            _owner(settings),
            Chain(
                "prerouting",
                (
                    Rule("iifname @taps drop", "frames that the bridge passed up on the port"),
                    Rule(
                        f"iifname {bridge} meta mark != {_VOUCHED:#x} drop",
                        "strangers, IPv6, forged sources",
                    ),
                    Rule(f"iifname {bridge} meta mark set 0", "the mark is ours alone"),
                ),
                "prerouting",
                -450,  # before defragmentation: each fragment by itself
            ),
            Chain(
                "input",
                (
                    Rule(f"iifname {bridge} goto guest_to_host", "from guests"),
                    Rule(
                        f'iifname != {{ {bridge}, "lo" }} ip saddr {settings.subnet} drop',
                        "outsiders posing as guests",
                    ),
                    Rule(
                        f'iifname != {{ {bridge}, "lo" }} ip daddr {settings.host} '
                        f"tcp dport {settings.guest_port} drop",
                        "the guest listener is for guests",
                    ),
                ),
                "input",
                -10,
            ),
            Chain(
                "guest_to_host",
                (
                    Rule("ip saddr != @members drop", "not admitted"),
                    Rule(
                        f"ip daddr {settings.host} tcp dport {settings.guest_port} accept",
                        "the guest listener",
                    ),
                    Rule("ct state established ct direction reply accept", "answers to the host"),
                    Rule(f"ct state related {icmp} accept", "errors in answer to the host"),
                    Rule("drop", "all other ports and addresses of the host"),
                ),
            ),
            Chain(
                "forward",
                (
                    Rule(f"iifname {bridge} goto guest_to_outside", "from guests"),
                    Rule(f"oifname {bridge} goto outside_to_guest", "to guests"),
                ),
                "forward",
                -10,
            ),
            Chain(
                "guest_to_outside",
                (
                    Rule(f"oifname {bridge} drop", "guest to guest by way of the host"),
                    Rule("ip saddr != @nat drop", "not admitted, or mode off"),
                    Rule(
                        "ct direction original ct mark set ip saddr map @vmids",
                        "a flow belongs to the sandbox that sends on it",
                    ),
                    Rule("ip daddr @dns udp dport 53 accept", "the resolver"),
                    Rule("ip daddr @dns tcp dport 53 accept", "the resolver"),
                    Rule("ip daddr @private drop", "LAN, tailnet, link-local, multicast"),
                    Rule("accept", "the Internet"),
                ),
            ),
            Chain(
                "outside_to_guest",
                (
                    Rule(
                        "ct state established ct direction reply ip daddr . ct mark @flows accept",
                        "answers to the sandbox that asked",
                    ),
                    Rule(
                        f"ct state related {icmp} ip daddr . ct mark @flows accept",
                        "errors in answer to it",
                    ),
                    Rule("drop", "nobody outside begins"),
                ),
            ),
            Chain(
                "postrouting",
                (Rule(f"ip saddr @nat oifname != {bridge} masquerade", "leaves as the host"),),
                "postrouting",
                100,
                "nat",
            ),
        ),
    )


def _plan_bridge(settings: NetworkSettings, members: Sequence[Member]) -> Table:
    """Who a frame is from: layer 2, the only place where the port is known."""
    vouch = f"meta mark set {_VOUCHED:#x} accept"
    arp = "ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4"
    sender = "iifname . arp saddr ether . arp saddr ip @ports"
    frame = "iifname . ether saddr @stations"
    return Table(
        "bridge",
        settings.table,
        (
            Set("taps", "ifname", frozenset((m.tap,) for m in members)),
            Set(
                "stations",
                "ifname . ether_addr",
                frozenset((m.tap, m.mac) for m in members),
            ),
            Set(
                "ports",
                "ifname . ether_addr . ipv4_addr",
                frozenset((m.tap, m.mac, str(m.address)) for m in members),
            ),
            Set("members", "ipv4_addr", _addresses(m.address for m in members)),
        ),
        (
            _owner(settings),
            Chain(
                "prerouting",
                (
                    # Plain frames only: "ether type" reads the frame, so a VLAN tag is no IPv4.
                    Rule(
                        "ether type ip ip hdrlength 5 "
                        f"iifname . ether saddr . ip saddr @ports {vouch}",
                        "IPv4 from its own tap, MAC and address, without options",
                    ),
                    Rule(
                        f"{arp} arp operation request {frame} {sender} "
                        f"arp daddr ip {settings.host} {vouch}",
                        "asks for the host",
                    ),
                    Rule(
                        f"{arp} arp operation request {frame} {sender} "
                        f"arp daddr ip @members {vouch}",
                        "announces itself",
                    ),
                    Rule(f"{arp} arp operation reply {frame} {sender} {vouch}", "answers ARP"),
                    Rule("iifname @taps drop", "all else from a sandbox"),
                ),
                "prerouting",
                -300,
            ),
            Chain(
                "input",
                (
                    # Frames to 802.1D's reserved addresses skip prerouting and reach the port's
                    # own IP stack (br_handle_frame in net/bridge/br_input.c).
                    Rule(
                        "iifname @taps ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop",
                        "reserved addresses",
                    ),
                ),
                "input",
                -200,
            ),
            Chain(
                "forward",
                (
                    Rule("iifname @taps drop", "guest to guest"),
                    Rule("oifname @taps drop", "strangers to guest"),
                ),
                "forward",
                -200,
            ),
            Chain(
                "output",
                (
                    Rule("oifname . ether daddr @stations accept", "to the one it is for"),
                    Rule(
                        "oifname @taps ether type arp ether daddr ff:ff:ff:ff:ff:ff accept",
                        "the host asks",
                    ),
                    Rule("oifname @taps drop", "flooded frames meant for others"),
                ),
                "output",
                -200,
            ),
        ),
    )


def _plan_arp(settings: NetworkSettings) -> Table:
    """Keeps the host's neighbour table clean of what the bridge table did not vouch for."""
    return Table(
        "arp",
        settings.table,
        (),
        (
            _owner(settings),
            Chain(
                "input",
                (
                    Rule(
                        f'iifname "{settings.bridge}" meta mark != {_VOUCHED:#x} drop',
                        "strangers and forged senders",
                    ),
                ),
                "input",
                -10,
            ),
        ),
    )


def render_tables(tables: Iterable[Table]) -> str:
    """One nft transaction that replaces the tables whole: no moment has half of the rules."""
    return "".join(_render_table(table) for table in tables)


def render_ruleset(settings: NetworkSettings, members: Sequence[Member]) -> str:
    """`nft -f -` text for these members and no others; Unsupported, Invalid, Conflict."""
    return render_tables(plan_tables(settings, members))


def _render_table(table: Table) -> str:
    name = f"{table.family} {table.name}"
    body = "".join(_render_set(item) for item in table.sets)
    body += "".join(_render_chain(chain) for chain in table.chains)
    # "delete" fails on what is not there, and "add" never fails: together they always work.
    return f"add table {name}\ndelete table {name}\ntable {name} {{\n{body}}}\n"


def _render_set(item: Set) -> str:
    lines = [f"type {item.type}"]
    if item.interval:
        lines.append("flags interval")
    if item.elements:
        joint = " : " if item.keyword == "map" else " . "
        lines.append(
            "elements = {\n"
            + ",\n".join(f"\t\t\t{joint.join(element)}" for element in sorted(item.elements))
            + " }"
        )
    body = "".join(f"\t\t{line}\n" for line in lines)
    return f"\t{item.keyword} {item.name} {{\n{body}\t}}\n"


def _render_chain(chain: Chain) -> str:
    lines = []
    if chain.hook:
        lines.append(
            f"type {chain.kind} hook {chain.hook} priority {chain.priority}; policy accept;"
        )
    lines += [f'{rule.statement} comment "{rule.why}"' for rule in chain.rules]
    body = "".join(f"\t\t{line}\n" for line in lines)
    return f"\tchain {chain.name} {{\n{body}\t}}\n"


# --- reading back ----------------------------------------------------------------------------

Facts = dict[str, object]


def describe_tables(tables: Iterable[Table]) -> Facts:
    """What must be seen in the kernel: the hooks, every rule in its order, every element."""
    facts: Facts = {}
    for table in tables:
        place = f"{table.family} {table.name}"
        facts[f"table {place}"] = ()
        for item in table.sets:
            facts[f"{item.keyword} {place} {item.name}"] = _joined(item.elements, item.interval)
        for chain in table.chains:
            hook = (chain.kind, chain.hook, chain.priority, "accept") if chain.hook else ()
            facts[f"chain {place} {chain.name}"] = (
                hook,
                tuple((rule.statement.split()[-1], rule.why) for rule in chain.rules),
            )
    return facts


def _joined(elements: Iterable[Element], interval: bool) -> frozenset[Element]:
    """Intervals in one canonical form: nft may show neighbours as one range."""
    if not interval:
        return frozenset(elements)
    nets: list[IPv4Network] = []
    for (text,) in elements:
        first, dash, last = text.partition("-")
        nets += (
            summarize_address_range(IPv4Address(first), IPv4Address(last))
            if dash
            else [IPv4Network(text)]
        )
    return _addresses(collapse_addresses(nets))


def parse_listing(text: str, table: str) -> Facts:
    """The same facts from `nft -j list ruleset` (libnftables-json(5))."""
    facts: Facts = {}
    hooks: dict[str, tuple[object, ...]] = {}
    rules: dict[str, list[tuple[str, str]]] = {}
    for entry in json.loads(text)["nftables"]:
        ((kind, body),) = entry.items()
        if kind == "metainfo" or body["family"] not in _FAMILIES:
            continue
        if (body["name"] if kind == "table" else body["table"]) != table:
            continue
        place = f"{body['family']} {table}"
        if kind == "table":
            facts[f"table {place}"] = tuple(body.get("flags", ()))
        elif kind in ("set", "map"):
            facts[f"{kind} {place} {body['name']}"] = _parse_elements(body)
        elif kind == "chain":
            keys = ("type", "hook", "prio", "policy") if "hook" in body else ()
            hooks[f"chain {place} {body['name']}"] = tuple(body.get(key) for key in keys)
        elif kind == "rule":
            rules.setdefault(f"chain {place} {body['chain']}", []).append(
                (_parse_last(body["expr"][-1]), body.get("comment", ""))
            )
        else:
            facts[f"{kind} {place} {body.get('name', body.get('handle'))}"] = ()
    for name, hook in hooks.items():
        facts[name] = (hook, tuple(rules.get(name, ())))
    return facts


def _parse_elements(body: dict[str, object]) -> frozenset[Element]:
    interval = "interval" in _words(body.get("flags"))
    elements = [_parse_element(element) for element in _words(body.get("elem"))]
    return _joined(elements, interval)


def _parse_last(expression: object) -> str:
    """What a rule does in the end: the last word of its statement."""
    match expression:
        case {"goto": {"target": target}} | {"jump": {"target": target}}:
            return str(target)
        case {"mangle": {"value": {"map": {"data": data}}}}:
            return str(data)
        case {"mangle": {"value": value}}:
            return str(value)
        case {**rest}:
            return " ".join(str(key) for key in rest)
        case _:
            return str(expression)


def _words(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _parse_element(value: object) -> Element:
    match value:
        case {"elem": {"val": inner}}:
            return _parse_element(inner)
        case {"concat": [*parts]}:
            return tuple(str(part) for part in parts)
        case {"prefix": {"addr": address, "len": length}}:
            return (f"{address}/{length}",)
        case {"range": [first, last]}:
            return (f"{first}-{last}",)
        case [key, data]:
            return (str(key), str(data))
        case _:
            return (str(value),)


def apply_ruleset(settings: NetworkSettings, members: Sequence[Member]) -> None:
    """Replaces our rules in the kernel in one transaction, and reads them back.

    Returns only when the kernel has just what was asked for; Unavailable when it has not, and
    then nothing new may be given power.  Another installation's table: Conflict.
    """
    tables = plan_tables(settings, members)
    _refuse_foreign(settings, read_facts(settings))
    try:
        run(["nft", "-f", "-"], timeout=_TIMEOUT, stdin=render_tables(tables).encode())
    except CommandFailed as failed:
        raise Unavailable(
            f"cannot fence the sandboxes on {settings.bridge}: {failed.message}",
            hint="the rules from before are still in place; see docs/explanation/network.md",
        ) from failed
    verify_ruleset(settings, members)


def ensure_ruleset(settings: NetworkSettings) -> None:
    """Where our rules are missing, puts up rules that let nobody through; others stay."""
    facts = read_facts(settings)
    _refuse_foreign(settings, facts)
    if not all(f"table {family} {settings.table}" in facts for family in _FAMILIES):
        apply_ruleset(settings, ())


def verify_ruleset(settings: NetworkSettings, members: Sequence[Member]) -> None:
    """Raises Unavailable when the kernel's rules are not those for these members."""
    asked, found = describe_tables(plan_tables(settings, members)), read_facts(settings)
    wrong = sorted(
        name for name in asked.keys() | found.keys() if asked.get(name) != found.get(name)
    )
    if wrong:
        raise Unavailable(
            f"the packet filter for {settings.bridge} is not as asked: {', '.join(wrong[:5])}",
            hint="does another program change nftables? see `nft list ruleset`",
            details={"different": wrong},
        )


def read_facts(settings: NetworkSettings) -> Facts:
    """What the kernel has in tables of our name; empty when there are none."""
    listing = run(["nft", "-j", "list", "ruleset"], timeout=_TIMEOUT)
    return parse_listing(listing.text, settings.table)


def read_members(settings: NetworkSettings) -> frozenset[Element]:
    """The (tap, MAC, address) triples that the kernel lets through now."""
    found = read_facts(settings).get(f"set bridge {settings.table} ports", frozenset())
    return found if isinstance(found, frozenset) else frozenset()


def _refuse_foreign(settings: NetworkSettings, facts: Facts) -> None:
    """Every table of our name must carry our mark."""
    for family in _FAMILIES:
        place = f"{family} {settings.table}"
        if f"table {place}" not in facts:
            continue
        owner = facts.get(f"chain {place} owner", ((), ()))
        if owner != ((), (("return", settings.mark),)):
            raise Conflict(
                f"the nftables table {place} is not ours: it does not carry "
                f'the mark "{settings.mark}"',
                hint="another installation on this host needs a table and a bridge of its own",
            )


def remove_ruleset(settings: NetworkSettings) -> None:
    """Takes our tables away, with all that they forbade; absent: returns."""
    facts = read_facts(settings)
    _refuse_foreign(settings, facts)
    names = [f"{family} {settings.table}" for family in _FAMILIES]
    text = "".join(f"delete table {name}\n" for name in names if f"table {name}" in facts)
    if text:
        run(["nft", "-f", "-"], timeout=_TIMEOUT, stdin=text.encode())

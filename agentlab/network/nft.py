"""Puts the tables of `rules` into the kernel as one nft transaction, and compares what is there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses, summarize_address_range

from agentlab.errors import Conflict, NotFound, Unavailable
from agentlab.network.rules import (
    FAMILIES,
    Chain,
    Element,
    Set,
    Table,
    as_elements,
    plan_tables,
)
from agentlab.network.settings import Member, NetworkSettings
from agentlab.run import CommandFailed, run

_TIMEOUT = 30.0


def render_tables(tables: Iterable[Table]) -> str:
    """One nft transaction that replaces the tables whole: no moment has half of the rules."""
    return "".join(_render_table(table) for table in tables)


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
    return as_elements(collapse_addresses(nets))


def parse_listing(text: str, table: str) -> Facts:
    """The same facts from `nft -j list ruleset` (libnftables-json(5))."""
    facts: Facts = {}
    hooks: dict[str, tuple[object, ...]] = {}
    rules: dict[str, list[tuple[str, str]]] = {}
    for entry in json.loads(text)["nftables"]:
        ((kind, body),) = entry.items()
        if kind == "metainfo" or body["family"] not in FAMILIES:
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
    if not all(f"table {family} {settings.table}" in facts for family in FAMILIES):
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


def look_at_ruleset(settings: NetworkSettings) -> int:
    """How many sandboxes the kernel's rules admit; changes nothing.

    NotFound when our tables are not all there; Conflict when one is another's.
    """
    facts = read_facts(settings)
    _refuse_foreign(settings, facts)
    absent = [name for name in FAMILIES if f"table {name} {settings.table}" not in facts]
    if absent:
        raise NotFound(f"there is no nftables table {absent[0]} {settings.table}")
    return len(read_members(settings))


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
    for family in FAMILIES:
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
    names = [f"{family} {settings.table}" for family in FAMILIES]
    text = "".join(f"delete table {name}\n" for name in names if f"table {name}" in facts)
    if text:
        run(["nft", "-f", "-"], timeout=_TIMEOUT, stdin=text.encode())

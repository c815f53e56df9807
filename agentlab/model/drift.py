"""Where records and the hypervisor's inventory differ, by names; decided, and nothing done.

A VMID alone proves nothing: only a machine that carries our mark is ever compared with a record,
and only one of those is ever destroyed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from agentlab.model.sandbox import SANDBOX, Sandbox, SandboxEvent, SandboxState

GONE = "its VM is gone from the hypervisor"
LOST_POWER = "its VM lost its power, and nobody told us"


class Kind(StrEnum):
    """The names of what can differ."""

    MISSING = "missing VM"
    STOPPED = "stopped behind our back"
    RUNNING = "running though stopped"
    PAUSED = "paused behind our back"
    RESUMED = "resumed behind our back"
    STRANGER = "stranger in the range"
    WRONG_NODE = "wrong node"
    LEFTOVER = "leftover"
    LOCKED = "locked"


class Mend(StrEnum):
    """What is done about it, in words; none when that is for a person."""

    NONE = ""
    FAIL = "its record becomes FAILED"
    CLOSE = "its record is closed"
    OFF = "its record becomes STOPPED, and its rules go"
    TAKE_UP = "it is taken up: fenced, looked at, and given a lease"
    PAUSE = "its record becomes SUSPENDED"
    RESUME = "its record becomes what it was before the pause"
    DESTROY = "it is destroyed"


class Seen(Protocol):
    """A machine as one inventory has it; see `hypervisor.base.Machine`."""

    @property
    def vmid(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def power(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def lock(self) -> str: ...
    @property
    def template(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where our sandboxes are.  `volumes` are VMIDs that only volumes carry.

    `node` is where the fence is, "" where machines have no node.
    """

    installation: str
    vmids: range
    volumes: range = range(0)
    node: str = ""


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference.  `by_itself` is what the daemon does unasked, `asked` what `--apply` does.

    `record` is the sandbox's record as it was when this was seen; None where none is about it.
    """

    kind: Kind
    vmid: int
    name: str
    detail: str
    by_itself: Mend = Mend.NONE
    asked: Mend = Mend.NONE
    remedy: str = ""
    record: Sandbox | None = None


_S = SandboxState
# Their operation has not made the machine yet, or it is gone: an inventory says nothing of them.
_WITHOUT = frozenset({_S.REQUESTED, _S.PROVISIONING, _S.DESTROYED})
_RUNS = frozenset({_S.BOOTING, _S.READY, _S.RUNNING})
# One that is just being made shows its mark a moment later, one that goes has lost it before.
_BEING_MADE = ("clone", "create", "destroyed")


def plan_drift(
    records: Sequence[Sandbox], busy: Collection[int], machines: Iterable[Seen], place: Place
) -> list[Drift]:
    """All differences between the live records and the machines of one whole inventory, by VMID.

    `busy` are the VMIDs that an unfinished operation names: whatever differs there is its affair.
    """
    there = {machine.vmid: machine for machine in machines}
    live = [record for record in records if not SANDBOX.final(record.state)]
    found: list[Drift] = []
    for record in live:
        if record.vmid not in busy and record.state not in _WITHOUT:
            found += _of_record(record, there.get(record.vmid), place)
    unsettled = {*busy, *(record.vmid for record in live if record.state in _WITHOUT)}
    known = {record.vmid for record in live}
    for machine in there.values():
        if not (machine.template or machine.vmid in place.volumes or machine.vmid in unsettled):
            found += _of_machine(machine, known, place)
    return sorted(found, key=lambda drift: (drift.vmid, drift.kind))


def is_blind(records: Sequence[Sandbox], machines: Iterable[Seen], place: Place) -> bool:
    """Whether an inventory shows none of our machines though there should be two or more.

    It is whole, so the driver says; but that all of them are gone is less likely than that
    somebody has mounted, restored or forbidden something.
    """
    expected = [one for one in records if one.state not in _WITHOUT]
    return len(expected) >= 2 and not any(
        machine.owner == place.installation for machine in machines
    )


def _of_record(record: Sandbox, machine: Seen | None, place: Place) -> list[Drift]:
    if machine is None:
        return [_missing(record, f"there is no VM {record.vmid}", occupied=False)]
    if machine.template or machine.power == "unknown":
        return []
    if machine.owner != place.installation:
        if machine.lock in _BEING_MADE:
            return []
        there = f"VM {record.vmid} does not carry our mark: it is {_whose(machine)}"
        return [_missing(record, there, occupied=True)]
    found = []
    if place.node and machine.node and machine.node != place.node:
        found.append(_wrong_node(record, machine, place))
    if machine.lock:  # whatever holds it may well give it power, or take it
        return [*found, _locked(record, machine)]
    power = _of_power(record, machine, elsewhere=bool(found))
    return [*found, power] if power else found


def _missing(record: Sandbox, there: str, *, occupied: bool) -> Drift:
    """Where another machine has the VMID, somebody may have taken the mark off ours: a person looks."""
    may_fail = SandboxEvent.FAIL in SANDBOX.allowed(record.state)
    return Drift(
        Kind.MISSING, record.vmid, record.name,
        f"sandbox {record.vmid} is {record.state}, and {there}",
        Mend.FAIL if may_fail and not occupied else Mend.NONE,
        Mend.CLOSE,
        f"agentlab sandbox destroy --force {record.vmid}",
        record,
    )  # fmt: skip


def _wrong_node(record: Sandbox, machine: Seen, place: Place) -> Drift:
    return Drift(
        Kind.WRONG_NODE, record.vmid, record.name,
        f"VM {record.vmid} is on node {machine.node}, and the rules that fence it are on node "
        f"{place.node}",
        remedy=f"as root on node {machine.node}: qm migrate {record.vmid} {place.node}",
        record=record,
    )  # fmt: skip


def _locked(record: Sandbox, machine: Seen) -> Drift:
    where = f"as root on node {machine.node}, " if machine.node else ""
    return Drift(
        Kind.LOCKED, record.vmid, record.name,
        f"VM {record.vmid} is locked ({machine.lock}), and no operation of ours holds it",
        remedy=f"wait for who holds it; {where}when no task does any more: qm unlock {record.vmid}",
        record=record,
    )  # fmt: skip


def _of_power(record: Sandbox, machine: Seen, *, elsewhere: bool) -> Drift | None:
    """`elsewhere`: it is on a node where it cannot be fenced, so that it is not taken up."""
    vmid, state = record.vmid, record.state

    def drift(kind: Kind, detail: str, by_itself: Mend, asked: Mend, remedy: str) -> Drift:
        return Drift(kind, vmid, record.name, detail, by_itself, asked, remedy, record)

    if machine.power == "stopped" and (state in _RUNS or state is _S.SUSPENDED):
        detail = f"sandbox {vmid} is {state}, and VM {vmid} has no power"
        return drift(
            Kind.STOPPED, detail, Mend.OFF, Mend.OFF, f"agentlab sandbox start {vmid}"
        )  # fmt: skip
    if machine.power != "stopped" and state is _S.STOPPED:
        detail = f"sandbox {vmid} is STOPPED, and VM {vmid} is {machine.power}"
        mend = Mend.NONE if elsewhere else Mend.TAKE_UP
        remedy = f"qm stop {vmid}" if elsewhere else f"agentlab sandbox start {vmid}"
        return drift(Kind.RUNNING, detail, mend, mend, remedy)
    if machine.power == "paused" and state in _RUNS:
        detail = f"sandbox {vmid} is {state}, and VM {vmid} is paused"
        asked = Mend.PAUSE if SandboxEvent.PAUSE in SANDBOX.allowed(state) else Mend.NONE
        remedy = f"agentlab sandbox reconcile --apply, then agentlab sandbox resume {vmid}"
        return drift(Kind.PAUSED, detail, Mend.NONE, asked, remedy)
    if machine.power == "running" and state is _S.SUSPENDED:
        detail = f"sandbox {vmid} is SUSPENDED, and VM {vmid} runs"
        return drift(
            Kind.RESUMED, detail, Mend.NONE, Mend.RESUME, f"agentlab sandbox resume {vmid}"
        )  # fmt: skip
    return None


def _of_machine(machine: Seen, known: Collection[int], place: Place) -> list[Drift]:
    if machine.power == "unknown":
        return []  # it cannot be read, and so not whose it is
    if machine.owner == place.installation:
        return [] if machine.vmid in known else [_leftover(machine)]
    if machine.vmid not in place.vmids:
        return []
    detail = f"VM {machine.vmid} has a VMID that sandboxes may have, and is {_whose(machine)}"
    remedy = "give AgentLab a vmid_range in the settings that nobody else takes VMIDs from"
    return [Drift(Kind.STRANGER, machine.vmid, machine.name, detail, remedy=remedy)]


def _leftover(machine: Seen) -> Drift:
    vmid, detail = machine.vmid, f"VM {machine.vmid} carries our mark, and no record is about it"
    if machine.lock and machine.lock != "clone":  # that one a clone that died may have left
        where = f"as root on node {machine.node}, " if machine.node else ""
        return Drift(
            Kind.LEFTOVER, vmid, machine.name, f"{detail}; it is locked ({machine.lock})",
            remedy=f"wait for who holds it; {where}when no task does any more: qm unlock {vmid}",
        )  # fmt: skip
    lock = f"; it is locked ({machine.lock})" if machine.lock else ""
    return Drift(
        Kind.LEFTOVER, vmid, machine.name, detail + lock, asked=Mend.DESTROY,
        remedy="agentlab sandbox reconcile --apply",
    )  # fmt: skip


def _whose(machine: Seen) -> str:
    return f"the installation {machine.owner}'s" if machine.owner else "a stranger"

"""One look at records and inventory: what differs, and whether all of it could be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentlab.errors import AgentLabError
from agentlab.hypervisor.base import Machine, Power
from agentlab.model.drift import Drift, Kind, Place, is_blind, plan_drift
from agentlab.model.sandbox import Sandbox
from agentlab.operations.context import World
from agentlab.store import operations, sandboxes
from agentlab.store.db import Tx

# An inventory may be some seconds behind; these are asked of the machine itself before they count.
_DOUBTFUL = frozenset({Kind.MISSING, Kind.STOPPED, Kind.RUNNING, Kind.PAUSED, Kind.RESUMED})


@dataclass(frozen=True, slots=True)
class Found:
    """What a look has found.

    `complete` False: the inventory could not be read whole, nothing is known, and `problem` says
    why.  `blind`: it was read, and is not to be believed without a person; `problem` says why.
    """

    drifts: Sequence[Drift]
    complete: bool = True
    blind: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Records:
    """The live records, and the VMIDs that unfinished operations name."""

    live: Sequence[Sandbox]
    busy: frozenset[int]


def place_of(world: World) -> Place:
    """Where this installation's sandboxes may be."""
    config = world.config
    given = config.proxmox
    return Place(
        world.installation,
        config.vmids,
        given.volume_vmids if given else range(0),
        given.node if given else "",
    )


def read_records(world: World) -> Records:
    """What the database says now."""
    with world.store.read() as tx:
        busy = frozenset(each.vmid for each in operations.unfinished(tx))
        return Records(sandboxes.live(tx), busy)


def look(world: World) -> Found:
    """One inventory; a machine that seems to differ is asked itself.  Nothing is changed.

    Only records that were the same before and after it, and that no operation held at either
    time, are compared.
    """
    before = read_records(world)
    try:
        machines = {machine.vmid: machine for machine in world.hypervisor.inventory()}
    except AgentLabError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return Found((), complete=False, problem=f"{error.message}{hint}")
    place = place_of(world)
    blind = is_blind(before.live, machines.values(), place)
    for drift in plan_drift(before.live, before.busy, machines.values(), place):
        if drift.kind in _DOUBTFUL:
            _ask(world, machines, drift)
    after = read_records(world)
    live, busy = _settled(before, after)
    drifts = plan_drift(live, busy, machines.values(), place)
    return Found(drifts, blind=blind, problem=_why_blind(before) if blind else "")


def _why_blind(records: Records) -> str:
    return (
        f"the inventory has none of our VMs, and there are {len(records.live)} sandboxes: "
        "see that nothing is unmounted or forbidden before you believe it"
    )


def _ask(world: World, machines: dict[int, Machine], drift: Drift) -> None:
    """Puts in what the machine itself says; one that cannot be asked is one that is not known."""
    try:
        machine = world.hypervisor.status(drift.vmid)
    except AgentLabError:
        machine = Machine(drift.vmid, drift.name, "", Power.UNKNOWN)
    if machine is not None:
        was = machines.get(drift.vmid)
        machines[drift.vmid] = replace(machine, cpu=was.cpu if was else None)
    else:
        machines.pop(drift.vmid, None)


def _settled(before: Records, after: Records) -> tuple[list[Sandbox], frozenset[int]]:
    """Records that stayed as they were, and the VMIDs of which nothing can be said now."""
    was = {one.id: one for one in before.live}
    stayed = [one for one in after.live if one.id in was and same(was[one.id], one)]
    moving = {one.vmid for one in (*before.live, *after.live)} - {one.vmid for one in stayed}
    return stayed, before.busy | after.busy | moving


def same(seen: Sandbox, now: Sandbox) -> bool:
    """Whether it is the same sandbox, and has not moved since."""
    return (seen.id, seen.state, seen.changed) == (now.id, now.state, now.changed)


def unheld(tx: Tx, seen: Sandbox | None) -> Sandbox | None:
    """The same sandbox as it is now, when nothing holds it, waits for it, or has moved it."""
    one = sandboxes.find(tx, seen.vmid) if seen is not None else None
    if one is None or seen is None or not same(seen, one):
        return None
    subject = f"sandbox:{one.vmid}"
    if operations.holder_of(tx, subject) is not None or operations.waiting_for(tx, subject):
        return None
    return one

"""`sandbox prune`: TIMEOUT entries whose VM is gone; nothing else, and nothing on a doubt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from agentlab.control.drift import read_records, unheld
from agentlab.errors import AgentLabError
from agentlab.model.drift import GONE
from agentlab.model.sandbox import Sandbox, SandboxState
from agentlab.operations.boot import close_record
from agentlab.operations.context import World
from agentlab.store import events, sandboxes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pruned:
    """`removed` as they are now; `kept` are VMIDs of TIMEOUT entries that have, or may have, a VM."""

    removed: Sequence[Sandbox]
    kept: Sequence[int]


def prune(world: World) -> Pruned:
    """Closes the records of TIMEOUT sandboxes that nothing holds and whose VM is surely absent.

    Raises what the inventory raises, and nothing is removed then.
    """
    orphans = [one for one in read_records(world).live if one.state is SandboxState.TIMEOUT]
    there = {machine.vmid for machine in world.hypervisor.inventory()} if orphans else set()
    kept = [one.vmid for one in orphans if one.vmid in there or not _is_absent(world, one.vmid)]
    gone = [one for one in orphans if one.vmid not in kept]
    unfenced = [_unfence(world, one) for one in gone]
    if any(unfenced):
        world.sync_fence()
    removed = [done for one in gone if (done := _remove(world, one)) is not None]
    return Pruned(removed, kept)


def _is_absent(world: World, vmid: int) -> bool:
    try:
        return world.hypervisor.status(vmid) is None
    except AgentLabError as error:
        _log.info("keeping sandbox %d, whose VM cannot be looked at: %s", vmid, error)
        return False


def _unfence(world: World, seen: Sandbox) -> bool:
    with world.store.write() as tx:
        one = unheld(tx, seen)
        if one is not None:
            sandboxes.set_fenced(tx, one.vmid, fenced=False)
        return one is not None


def _remove(world: World, seen: Sandbox) -> Sandbox | None:
    """None when it has changed since it was seen, or something holds it."""
    with world.store.write() as tx:
        one = unheld(tx, seen)
        if one is None:
            return None
        close_record(tx, one.vmid, GONE, "", surely=False)
        events.append(
            tx, "sandbox.pruned", f"sandbox {one.vmid} was pruned: {GONE}", job=one.job,
            vmid=one.vmid,
        )  # fmt: skip
        return sandboxes.find(tx, one.vmid)

"""The leases of workspaces, renewed for every sandbox that is there; the daemon is their clock.

A sandbox whose machine is surely gone renews nothing: its lease grows stale, and a person, or the
sandbox's own end, clears it.  What cannot be looked at is not gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentlab.errors import AgentLabError
from agentlab.model.sandbox import SANDBOX, SandboxState
from agentlab.model.workspace import Workspace
from agentlab.operations.context import World
from agentlab.operations.workspace_turn import subject_of
from agentlab.store import operations, sandboxes, workspaces
from agentlab.store.db import Tx

EVERY = 15.0  # seconds; a lease is four times as long
_MAKING = (SandboxState.REQUESTED, SandboxState.PROVISIONING)


def renew(world: World) -> int:
    """Renews what is held by sandboxes that are there; gives how many.  One inventory at most."""
    with world.store.read() as tx:
        held = [each for each in workspaces.live(tx) if each.nonce]
    if not held:
        return 0
    _settle(world, held)
    there = _machines(world)
    with world.store.write() as tx:
        return sum(
            workspaces.renew(tx, each.id, each.nonce)
            for each in held
            if _is_there(tx, each.vmid, each.holder, there)
        )


def _settle(world: World, held: Sequence[Workspace]) -> None:
    """Frees what a sandbox had that is gone, as soon as surely no machine has the volume."""
    with world.store.read() as tx:
        orphans = [each for each in held if _is_over(tx, each)]
    if not orphans:
        return
    for each in orphans:
        try:
            volume = world.volume(each.volid)
        except AgentLabError:
            continue  # looked at again soon
        if volume is None or not volume.attached:
            with world.store.write() as tx:
                workspaces.release(tx, each.id, each.nonce, reason="its sandbox is gone")


def _is_over(tx: Tx, workspace: Workspace) -> bool:
    """Whether the sandbox that has the lease is gone, and nothing is under way with either."""
    sandbox = sandboxes.find(tx, workspace.vmid)
    if sandbox is not None and sandbox.id == workspace.holder and not SANDBOX.final(sandbox.state):
        return False
    return operations.holder_of(tx, subject_of(workspace.id)) is None


def _machines(world: World) -> frozenset[int] | None:
    """VMIDs of the machines that are ours; None when nobody can tell."""
    try:
        found = world.hypervisor.inventory()
    except AgentLabError:
        return None
    return frozenset(each.vmid for each in found if each.owner == world.installation)


def _is_there(tx: Tx, vmid: int, holder: int, there: frozenset[int] | None) -> bool:
    sandbox = sandboxes.find(tx, vmid)
    if sandbox is None or sandbox.id != holder or SANDBOX.final(sandbox.state):
        return False
    return there is None or vmid in there or sandbox.state in _MAKING

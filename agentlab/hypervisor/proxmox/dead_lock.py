"""Locks that a task about a snapshot has left: it failed on the storage, or died.

PVE::AbstractConfig sets them in snapshot_rollback, snapshot_delete and snapshot_create, and takes
them away only when all went well.  A disk may be half of one state and half of another by then, so
that such a machine never gets power; it is destroyed, or a person unlocks it.
"""

from __future__ import annotations

from agentlab.errors import AgentLabError, Conflict
from agentlab.hypervisor.proxmox.inventory import Found, Inventory

# The word of the lock: the task that has it, and what people call that.
_TASKS = {
    "rollback": ("qmrollback", "a rollback"),
    "snapshot": ("qmsnapshot", "a snapshot"),
    "snapshot-delete": ("qmdelsnapshot", "the deletion of a snapshot"),
}


def is_dead(found: Found, inventory: Inventory) -> bool:
    """Whether it has such a lock, and no task that could have it runs."""
    if found.lock not in _TASKS or inventory.task_runs(_TASKS[found.lock][0], found.vmid):
        return False
    again = inventory.find(found.vmid)  # the task may have ended well since that was read
    return again is not None and again.lock == found.lock


def refuse_dead(found: Found, inventory: Inventory, what: str) -> None:
    """Conflict, since nobody would ever take such a lock away."""
    if is_dead(found, inventory):
        raise refusal(found, what)


def refusal(found: Found, what: str) -> Conflict:
    task = _TASKS[found.lock][1]
    return Conflict(
        f"{what}: {task} that failed has left it locked ({found.lock})",
        hint=_hint(found),
        details={"lock": found.lock},
    )


def final(error: AgentLabError, found: Found, inventory: Inventory) -> AgentLabError:
    """The same error when its task has left no lock; else a Conflict, with the remedy."""
    again = inventory.find(found.vmid)
    if again is None or not is_dead(again, inventory):
        return error
    details = {**error.details, "lock": again.lock}
    return Conflict(error.message, hint=_hint(again), details=details)


def _hint(found: Found) -> str:
    return (
        f"as root on node {found.node}: qm unlock {found.vmid}; its disk may be half of each "
        "state, so then revert it, or destroy it"
    )

"""A workspace looked at: what its record, its volume and the machines say of each other."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab import clock
from agentlab.hypervisor.base import Volume
from agentlab.model.sandbox import SANDBOX, Sandbox
from agentlab.model.workspace import Workspace, WorkspaceState
from agentlab.operations.context import World
from agentlab.operations.workspace_turn import subject_of
from agentlab.store import operations, sandboxes, workspaces


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be: one word, a sentence, and the command that mends it."""

    name: str
    problem: str
    remedy: str


def check(world: World, name: str) -> list[Finding]:
    """All findings, none when all is well; raises what the hypervisor's list of volumes raises."""
    with world.store.read() as tx:
        workspace = workspaces.get(tx, name)
        busy = operations.holder_of(tx, subject_of(workspace.id))
        sandbox = sandboxes.find(tx, workspace.vmid) if workspace.vmid else None
        records = {one.vmid: one for one in sandboxes.live(tx)}
    if busy is not None:
        return [
            Finding(
                "busy", f"{busy.kind} {busy.id} is under way", f"agentlab workspace show {name}"
            )
        ]
    volume = world.volume(workspace.volid) if workspace.volid else None
    there = {each.vmid for each in world.hypervisor.inventory() if each.owner == world.installation}
    return find(workspace, volume, sandbox, records, there, clock.now())


def find(
    workspace: Workspace,
    volume: Volume | None,
    sandbox: Sandbox | None,
    records: dict[int, Sandbox],
    there: set[int],
    now: float,
) -> list[Finding]:
    """What is wrong with one workspace.  `sandbox` has its VMID, `records` are all that live.

    `there` are the VMIDs of our machines.
    """
    name, vmid = workspace.name, workspace.vmid
    if workspace.state is WorkspaceState.CREATING:
        return [Finding("unmade", "nothing makes it any more", f"agentlab workspace delete {name}")]
    if volume is None:
        return [
            Finding(
                "volume-missing",
                f"its volume {workspace.volid} is not there",
                f"put the storage back, or: agentlab workspace delete {name}",
            )
        ]
    found = [*_of_volume(name, volume), *_of_lease(workspace, volume, sandbox, there, now)]
    for other in volume.attached:
        if other != vmid:
            has = "a sandbox" if other in records else "a machine of ours without a record"
            found.append(
                Finding(
                    "attached-elsewhere",
                    f"VM {other}, {has}, has its volume without a lease",
                    f"agentlab sandbox stop {other}, then see agentlab sandbox reconcile",
                )
            )
    if volume.size != workspace.size:
        found.append(
            Finding(
                "size",
                f"its volume has {volume.size} MiB, its record says {workspace.size}",
                f"agentlab workspace resize {name} --size {max(volume.size, workspace.size)}M",
            )
        )
    return found


def _of_volume(name: str, volume: Volume) -> list[Finding]:
    if len(volume.attached) < 2:
        return []
    which = ", ".join(str(each) for each in volume.attached)
    return [
        Finding(
            "attached-twice",
            f"machines {which} have it at once, which ruins its file system",
            f"stop all of them but one: agentlab sandbox stop {volume.attached[-1]}; then "
            f"agentlab workspace fsck {name}",
        )
    ]


def _of_lease(
    workspace: Workspace, volume: Volume, sandbox: Sandbox | None, there: set[int], now: float
) -> list[Finding]:
    """What is wrong with who has it; one thing at a time, the first cause of all."""
    name, vmid = workspace.name, workspace.vmid
    if not workspace.nonce:
        return []
    mine = sandbox is not None and sandbox.id == workspace.holder
    if not mine or sandbox is None or SANDBOX.final(sandbox.state):
        return [
            Finding(
                "lease-orphaned",
                f"sandbox {vmid}, which has its lease, is gone",
                f"agentlab workspace lease clear {name}",
            )
        ]
    if vmid not in there:
        return [
            Finding(
                "machine-missing",
                f"sandbox {vmid} has it, and its VM is gone",
                f"agentlab sandbox destroy --force {vmid}",
            )
        ]
    if vmid not in volume.attached:
        return [
            Finding(
                "not-attached",
                f"sandbox {vmid} has its lease, and its VM has not the volume",
                f"agentlab workspace detach --force {name}",
            )
        ]
    if workspace.stale(now):
        return [
            Finding(
                "lease-stale",
                "its lease is not renewed: is the daemon well?",
                "journalctl -u agentlabd",
            )
        ]
    return []

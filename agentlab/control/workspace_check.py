"""A workspace looked at: what its record, its volume and the machines say of each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from agentlab import clock
from agentlab.hypervisor.base import Volume
from agentlab.model.sandbox import Sandbox
from agentlab.model.workspace import Workspace, WorkspaceState
from agentlab.operations.context import World
from agentlab.operations.workspace_attach import ATTACHABLE
from agentlab.operations.workspace_turn import subject_of
from agentlab.store import operations, sandboxes, sessions, workspaces


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be: one word, a sentence, and the command that mends it."""

    name: str
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a workspace is looked at with.

    `session` is the name of its session, `sandbox` the one that has its lease, where that lives.
    `records` are all sandboxes that live, `there` the VMIDs of our machines.
    """

    workspace: Workspace
    session: str
    sandbox: Sandbox | None
    records: Mapping[int, Sandbox]
    there: Collection[int]
    now: float

    @property
    def name(self) -> str:
        return self.workspace.name

    @property
    def delete(self) -> str:
        """The command that deletes it."""
        if self.session:
            return f"agentlab session delete {self.session} --with-workspace"
        return f"agentlab workspace delete {self.name}"

    def detached(self, command: str) -> str:
        """A command that needs it detached."""
        first = f"agentlab workspace detach {self.name}, then " if self.workspace.nonce else ""
        return first + command


def check(world: World, name: str) -> list[Finding]:
    """All findings, none when all is well; raises what the hypervisor's list of volumes raises.

    The commands of all of them in this order leave nothing to be found.
    """
    with world.store.read() as tx:
        workspace = workspaces.get(tx, name)
        making = operations.of_made(tx, workspace.id)
        busy = operations.holder_of(tx, subject_of(workspace.id)) or making
        session = sessions.of_workspace(tx, workspace.id)
        records = {one.vmid: one for one in sandboxes.live(tx)}
    if busy is not None:
        return [
            Finding(
                "busy", f"{busy.kind} {busy.id} is under way", f"agentlab workspace show {name}"
            )
        ]
    volume = world.volume(workspace.volid) if workspace.volid else None
    there = {each.vmid for each in world.hypervisor.inventory() if each.owner == world.installation}
    sandbox = records.get(workspace.vmid)
    mine = sandbox if sandbox is not None and sandbox.id == workspace.holder else None
    return _find(
        _Seen(workspace, session.name if session else "", mine, records, there, clock.now()), volume
    )


def _find(seen: _Seen, volume: Volume | None) -> list[Finding]:
    workspace = seen.workspace
    if workspace.state is WorkspaceState.CREATING:
        return [Finding("unmade", "nothing makes it any more", seen.delete)]
    if volume is None:
        return [
            Finding(
                "volume-missing",
                f"its volume {workspace.volid} is not there",
                f"put the storage back, or: {seen.detached(seen.delete)}",
            )
        ]
    found = [*_elsewhere(seen, volume), *_of_lease(seen, volume)]
    if volume.size != workspace.size:
        most = max(volume.size, workspace.size)
        found.append(
            Finding(
                "size",
                f"its volume has {volume.size} MiB, its record says {workspace.size}",
                seen.detached(f"agentlab workspace resize {seen.name} --size {most}M"),
            )
        )
    return found


def _elsewhere(seen: _Seen, volume: Volume) -> list[Finding]:
    """Who has its volume without a lease; and that two have it, when all of those are gone."""
    mine = seen.sandbox.vmid if seen.sandbox else 0
    found = [
        Finding("attached-elsewhere", *_other(seen, volume, vmid))
        for vmid in volume.attached
        if vmid != mine
    ]
    if len(volume.attached) > 1:
        which = ", ".join(str(each) for each in volume.attached)
        name = seen.name
        found.append(
            Finding(
                "attached-twice",
                f"machines {which} have it at once, which ruins its file system",
                f"when that is mended: agentlab workspace detach {name}, then "
                f"agentlab workspace fsck {name} --repair",
            )
        )
    return found


def _other(seen: _Seen, volume: Volume, vmid: int) -> tuple[str, str]:
    """What a machine is that has it without a lease, and what takes it away from that."""
    record = seen.records.get(vmid)
    has = "has its volume without a lease"
    if vmid not in seen.there:
        by_hand = f"end it, or take {volume.volid} out of it, by hand"
        return f"VM {vmid}, which does not carry our mark, {has}", by_hand
    if record is None:
        said = f"VM {vmid}, a machine of ours without a record, {has}"
        return said, "agentlab sandbox reconcile --apply"
    alone = not seen.workspace.nonce and len(volume.attached) == 1
    if alone and record.state in ATTACHABLE:  # with a lease its guest can let go of it
        mend = (
            f"agentlab workspace attach {seen.name} {vmid}, then "
            f"agentlab workspace detach {seen.name}"
        )
    else:
        mend = f"agentlab sandbox destroy --force {vmid}"
    return f"VM {vmid}, a sandbox, {has}", mend


def _of_lease(seen: _Seen, volume: Volume) -> list[Finding]:
    """What is wrong with who has it; one thing at a time, the first cause of all."""
    workspace, name = seen.workspace, seen.name
    vmid = workspace.vmid
    if not workspace.nonce:
        return []
    if seen.sandbox is None:
        return [
            Finding(
                "lease-orphaned",
                f"sandbox {vmid}, which has its lease, is gone",
                f"agentlab workspace detach {name}",
            )
        ]
    if vmid not in seen.there:
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
    if workspace.stale(seen.now):
        return [
            Finding(
                "lease-stale",
                "its lease is not renewed: is the daemon well?",
                "journalctl -u agentlabd",
            )
        ]
    return []

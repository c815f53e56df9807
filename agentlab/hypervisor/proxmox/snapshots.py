"""Snapshots of machines of Proxmox.

A work disk is part of what Proxmox snapshots and rolls back, so it has to be detached before:
a rollback would rewind it, or drop it into `unused0`.  A snapshot that somebody else took while one
was attached names it for ever, whoever has it by then; so it is neither gone back to nor deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from agentlab.errors import Busy, Conflict, NotFound, Unavailable, Unsupported
from agentlab.hypervisor.base import Power
from agentlab.hypervisor.proxmox.dead_lock import final, refuse_dead
from agentlab.hypervisor.proxmox.inventory import Found
from agentlab.hypervisor.proxmox.machines import ProxmoxMachines
from agentlab.hypervisor.proxmox.names import Drive, check_snapshot, parse_drives, volume_owner
from agentlab.hypervisor.proxmox.transport import NoSuchSnapshot, NotNewest, Refused

_CHANGES_DISK = ("qmstart", "qmrollback", "hastart")
# Storages that go back to their newest snapshot only: PVE::Storage::ZFSPoolPlugin, which ZFSPlugin
# inherits, in volume_rollback_is_possible; from Proxmox VE 9 on also those of type lvm, dir and
# others that keep snapshots as a chain of volumes (LVMPlugin and Plugin, the same function).
_NEWEST_ONLY = ("zfspool", "zfs")
_CHAIN = "snapshot-as-volume-chain"


class ProxmoxSnapshots(ProxmoxMachines):
    """Implements `base.Snapshots`."""

    def snapshot(self, vmid: int, name: str, *, owner: str) -> None:
        check_snapshot(name)
        self._settled(lambda: self._snapshot(vmid, name, owner))

    def _snapshot(self, vmid: int, name: str, owner: str) -> None:
        found = self._inventory.ours(vmid, owner, "take a snapshot of")
        _refuse_volumes(found, "take a snapshot of")
        if self._power(found.node, vmid) is not Power.STOPPED:
            raise Conflict(f"cannot take a snapshot of VM {vmid}: it has power")
        there = {entry.name: entry for entry in self._list(found)}
        what = f"cannot take snapshot {name} of VM {vmid}"
        if name in there:
            self._refuse_half(found, there[name], what)
            if self._unchanged(found, there[name].time):
                return
            raise Conflict(
                f"{what}: there is one of that name already",
                hint="choose another name, or delete that one first",
            )
        refuse_dead(found, self._inventory, what)
        try:
            with self._lock_told(found):
                self._api.act(
                    "POST",
                    f"{found.path}/snapshot",
                    {"snapname": name, "description": "made by AgentLab"},
                    what=what,
                    turns=self._turn(found.node),
                    before=lambda: self._inventory.sure(found, owner, "change the disk of"),
                )
        except Unsupported as error:  # said by the task before it changes anything
            disks = [drive.volid for drive in parse_drives(found.config) if not drive.cdrom]
            raise Unsupported(
                f"{what}: its storage has no snapshots, or not of such disks ({', '.join(disks)})",
                hint="keep the template on a storage that has them: lvmthin, zfspool, btrfs, rbd, "
                "or qcow2 on dir or nfs",
                details=error.details,
            ) from error

    def _unchanged(self, found: Found, since: int) -> bool:
        """Whether the disk cannot have changed since the snapshot: nothing ran in between."""
        tasks = self._api.get(
            f"/nodes/{found.node}/tasks",
            what=f"cannot read the tasks of VM {found.vmid}",
            vmid=found.vmid,
            since=since,
            limit=500,
            source="all",
        )
        return isinstance(tasks, list) and not any(
            task.get("type") in _CHANGES_DISK and int(task.get("starttime", 0)) >= since
            for task in tasks
        )

    def rollback(self, vmid: int, name: str, *, owner: str) -> None:
        check_snapshot(name)
        self._settled(lambda: self._rollback(vmid, name, owner))

    def _rollback(self, vmid: int, name: str, owner: str) -> None:
        found = self._inventory.ours(vmid, owner, "roll back")
        _refuse_volumes(found, "roll back")
        there = {entry.name: entry for entry in self._list(found)}
        if name not in there:
            raise NotFound(f"cannot roll back VM {vmid}: it has no snapshot {name}")
        if there[name].memory:  # it would have power when it is back, whatever the rules are
            raise Conflict(
                f"cannot roll back VM {vmid} to {name}: that snapshot has the memory in it",
                hint="take one without: AgentLab's own are",
            )
        if self._power(found.node, vmid) is not Power.STOPPED:
            raise Conflict(f"cannot roll back VM {vmid}: it has power")
        what = f"cannot roll back VM {vmid} to {name}"
        self._refuse_half(found, there[name], what)
        self._refuse_taken_with(found, name, what)
        refuse_dead(found, self._inventory, what)
        # after a lost reply once more: without power in between, twice is as once
        try:
            with self._lock_told(found):
                self._api.act(
                    "POST",
                    f"{found.path}/snapshot/{name}/rollback",
                    what=what,
                    turns=self._turn(found.node),
                    before=lambda: self._inventory.sure(found, owner, "change the disk of"),
                )
        except NotNewest as error:  # looked at before the machine is locked or stopped
            raise _not_newest(what, later_than(name, [*there]), error) from error

    def blockers(self, vmid: int, name: str) -> Sequence[str]:
        found = self._listed(vmid)
        names = [entry.name for entry in self._list(found)]
        if name not in names:
            raise NotFound(f"VM {vmid} has no snapshot {name}")
        what = f"cannot roll back VM {vmid} to {name}"
        self._refuse_taken_with(found, name, what)
        later = later_than(name, names)
        if not later or not self._newest_only(found, name):
            return []
        for each in later:
            self._refuse_taken_with(found, each, f"{what}, since {each} came later and would go")
        return later

    def _drives_in(self, found: Found, name: str) -> list[Drive]:
        what = f"cannot read snapshot {name} of VM {found.vmid}"
        config = self._api.get(f"{found.path}/config", what=what, snapshot=name)
        if not isinstance(config, dict):
            raise Unavailable(f"{what}: Proxmox gave no configuration")
        return parse_drives(config)

    def _refuse_taken_with(self, found: Found, name: str, what: str) -> None:
        """Conflict for a snapshot that was taken while a volume of ours was attached."""
        for drive in self._drives_in(found, name):
            if volume_owner(drive.volid)[0]:
                raise Conflict(
                    f"{what}: snapshot {name} of VM {found.vmid} has volume {drive.volid} in it, "
                    "which would be changed too, whoever has it now",
                    hint="use another snapshot; whoever took this one deletes it while no VM with "
                    f"the volume runs, as root on node {found.node}: "
                    f"qm delsnapshot {found.vmid} {name}",
                    details={"snapshot": name, "volume": drive.volid},
                )

    def _refuse_half(self, found: Found, entry: _Entry, what: str) -> None:
        """Busy for one that is being taken or deleted, Conflict when nothing does that any more."""
        if not entry.half:
            return
        now = self._listed(found.vmid)  # the lock comes before the half, and goes with it
        refuse_dead(now, self._inventory, what)
        if now.lock or not any(each.half and each.name == entry.name for each in self._list(now)):
            raise Busy(f"{what}: Proxmox is still at work on it, or has just ended")
        raise Conflict(
            f"{what}: there is half of one, which a task that died has left",
            hint=f"as root on node {found.node}: qm delsnapshot {found.vmid} {entry.name} --force",
        )

    def _newest_only(self, found: Found, name: str) -> bool:
        """Whether a disk in the snapshot is on a storage that goes back to the newest one only."""
        on = {drive.storage for drive in self._drives_in(found, name) if not drive.cdrom}
        storages = self._api.get("/storage", what="cannot list the storages")
        return any(
            entry.get("type") in _NEWEST_ONLY or str(entry.get(_CHAIN, 0)) == "1"
            for entry in (storages if isinstance(storages, list) else [])
            if entry.get("storage") in on
        )

    def snapshots(self, vmid: int, *, half: bool = False) -> Sequence[str]:
        entries = self._list(self._listed(vmid))
        return [entry.name for entry in entries if half or not entry.half]

    def _listed(self, vmid: int) -> Found:
        found = self._inventory.find(vmid)
        if found is None:
            raise NotFound(f"cannot list the snapshots of VM {vmid}: there is no such VM")
        return found

    def delete_snapshot(self, vmid: int, name: str, *, owner: str) -> None:
        check_snapshot(name)
        self._settled(lambda: self._delete_snapshot(vmid, name, owner))

    def _delete_snapshot(self, vmid: int, name: str, owner: str) -> None:
        found = self._inventory.ours(vmid, owner, "delete a snapshot of")
        if name not in [entry.name for entry in self._list(found)]:
            return
        what = f"cannot delete snapshot {name} of VM {vmid}"
        refuse_dead(found, self._inventory, what)
        try:
            self._refuse_taken_with(found, name, what)
            with self._lock_told(found):
                self._api.act(
                    "DELETE",
                    f"{found.path}/snapshot/{name}",
                    what=what,
                    turns=self._turn(found.node),
                    before=lambda: self._inventory.sure(found, owner, "change the disk of"),
                )
        except NoSuchSnapshot:
            return

    @contextmanager
    def _lock_told(self, found: Found) -> Iterator[None]:
        """A task that leaves its lock is not worth another try: its error has the remedy."""
        try:
            yield
        except (Refused, Unavailable) as error:
            raise final(error, found, self._inventory) from error

    def _list(self, found: Found) -> list[_Entry]:
        what = f"cannot list the snapshots of VM {found.vmid}"
        return parse_snapshots(self._api.get(f"{found.path}/snapshot", what=what))


def later_than(name: str, names: Sequence[str]) -> list[str]:
    """Of names oldest first, those after this one, newest first."""
    return [*reversed(names[names.index(name) + 1 :])]


def _not_newest(what: str, later: Sequence[str], error: NotNewest) -> NotNewest:
    details: dict[str, object] = {**error.details, "later": [*later]}
    if not later:
        return NotNewest(
            f"{what}: its storage has a later snapshot that Proxmox does not know of",
            hint="as root on the node: zfs list -t snapshot; and delete it there",
            details=details,
        )
    return NotNewest(
        f"{what}: the storage goes back to its newest snapshot only, and there "
        + (f"are later ones: {', '.join(later)}" if later[1:] else f"is a later one: {later[0]}"),
        hint="delete the later snapshots first, the newest before the others",
        details=details,
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    """A snapshot: when it was taken, in seconds since the epoch; `memory` when it has that too.

    `half` while it is being taken or deleted, and when the task that did that has died.
    """

    name: str
    time: int
    parent: str
    memory: bool
    half: bool


def parse_snapshots(data: object) -> list[_Entry]:
    """`GET …/snapshot`, oldest first; those of the same second by their line of descent."""
    entries = [
        _Entry(
            name=str(entry["name"]),
            time=int(entry.get("snaptime") or 0),
            parent=str(entry.get("parent") or ""),
            memory=str(entry.get("vmstate", 0)) == "1",
            half=bool(entry.get("snapstate")),
        )
        for entry in (data if isinstance(data, list) else [])
        if isinstance(entry, Mapping) and entry.get("name") not in (None, "current")
    ]
    parents = {entry.name: entry.parent for entry in entries}

    def depth(name: str) -> int:
        steps = 0
        while name in parents and steps <= len(parents):
            name, steps = parents[name], steps + 1
        return steps

    return sorted(entries, key=lambda entry: (entry.time, depth(entry.name)))


def _refuse_volumes(found: Found, verb: str) -> None:
    held = [drive for drive in parse_drives(found.config) if volume_owner(drive.volid)[0]]
    if held:
        raise Conflict(
            f"cannot {verb} VM {found.vmid}: volume {held[0].volid} is attached to it, and would "
            "be a part of it",
            hint="detach the workspace first: agentlab workspace detach",
        )

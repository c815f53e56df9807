"""Volumes of Proxmox that outlive machines: allotted under numbers of their own.

Proxmox itself guards nothing here: it attaches one volume to two machines, and frees one that is
attached.  The name carries the owner, since the allotting call writes nothing else.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence

from agentlab.errors import (
    AgentLabError,
    Busy,
    Conflict,
    Invalid,
    NotFound,
    NotOurs,
    Unavailable,
    Unsupported,
)
from agentlab.hypervisor.base import Volume, VolumeCheck
from agentlab.hypervisor.fsck import unsupported_path
from agentlab.hypervisor.proxmox.dead_lock import is_dead, refusal, refuse_dead
from agentlab.hypervisor.proxmox.inventory import Found
from agentlab.hypervisor.proxmox.names import (
    check_snapshot,
    parse_drives,
    volume_name,
    volume_owner,
)
from agentlab.hypervisor.proxmox.part import Part, as_read
from agentlab.hypervisor.proxmox.storage_plan import (
    FILE_TYPES,
    Storage,
    Verb,
    parse_storage,
    said_of,
)
from agentlab.hypervisor.proxmox.transport import Exists, NoSuchVolume, ReplyLost
from agentlab.hypervisor.qemu_img import Progress

WORK = "scsi1"  # the drive that a work disk is; a template keeps it free


class ProxmoxVolumes(Part):
    """Implements `base.Volumes`."""

    def volumes(self, *, owner: str, storage: str | None = None) -> Sequence[Volume]:
        named = () if storage is None else (self._named(storage),)
        attached: dict[str, list[int]] = {}
        for vmid, held in self._holdings(owner):
            for volid in held:
                attached.setdefault(volid, []).append(vmid)
        return [
            Volume(volid, size, tuple(attached.get(volid, ())))
            for volid, size in self._content(owner, *named).items()
        ]

    def attached(self, vmid: int, *, owner: str) -> Sequence[str]:
        held = self._held(self._inventory.ours(vmid, owner, "look at the volumes of"))
        return sorted(volid for volid in held if volume_owner(volid)[1] == owner)

    def _content(self, owner: str, *storages: str) -> dict[str, int]:
        """Volumes with this owner's name: size in MiB by volid.

        On these storages, or on all of the node; what cannot be seen whole there is no list.
        """
        listed = self._api.get(
            f"/nodes/{self._node}/storage", what="cannot list the storages", content="images"
        )
        there = {
            str(each["storage"]): each for each in (listed if isinstance(listed, list) else [])
        }
        found: dict[str, int] = {}
        for storage in storages or there:
            if str(there.get(storage, {}).get("active", 0)) != "1":
                raise Unavailable(f"cannot list volumes: storage {storage} is not active")
            self._inventory.need_volumes(storage)
            path = f"/nodes/{self._node}/storage/{storage}/content"
            what = f"cannot list the volumes of {storage}"
            volumes = self._api.get(path, what=what, content="images")
            for volume in volumes if isinstance(volumes, list) else []:
                if volume_owner(str(volume["volid"]))[1] == owner:
                    found[str(volume["volid"])] = int(volume.get("size") or 0) >> 20
        return found

    @property
    def _node(self) -> str:
        if self._settings.node:
            return self._settings.node
        return min(self._settings.allowed or self._nodes_online())

    def _machines(self, owner: str) -> list[Found]:
        """Machines that may have a volume of ours, with their configurations, each read now.

        Ours, and whatever else has a VMID of our range: one whose mark somebody has edited away
        still has its disk.
        """
        mine = self._settings.vmids
        asked = [
            each.vmid
            for each in self._inventory.machines()
            if each.owner == owner.lower() or each.vmid in mine
        ]
        found = (self._inventory.find(vmid) for vmid in asked)
        return [
            each
            for each in found
            if each is not None and (each.owner == owner or each.vmid in mine)
        ]

    def _holders(self, volid: str, owner: str) -> list[int]:
        """Ours, and where we are root on the node, those of anybody."""
        found = [vmid for vmid, held in self._holdings(owner) if volid in held]
        if self._tools.available_on(self._node):
            found += [vmid for vmid in self._tools.holders(volid) if vmid not in found]
        return found

    def _holdings(self, owner: str) -> Iterator[tuple[int, set[str]]]:
        """Machines and the volumes that each has; one that is destroyed meanwhile has none."""
        for found in self._machines(owner):
            try:
                held = self._held(found)
            except NotFound:
                continue
            yield found.vmid, held

    def _held(self, found: Found) -> set[str]:
        """Volumes that a machine has, or still has: a change that waits is shown as if it were made."""
        configs = [found.config, self._live(found)]
        return {drive.volid for config in configs for drive in parse_drives(config)}

    def _live(self, found: Found) -> Mapping[str, object]:
        """The configuration without the changes that wait."""
        live = self._api.get(
            f"{found.path}/config", what=f"cannot read VM {found.vmid}", current=True
        )
        return live if isinstance(live, dict) else {}

    def _is_off(self, found: Found) -> bool:
        path = f"/nodes/{found.node}/qemu/{found.vmid}/status/current"
        now = self._api.get(path, what=f"cannot look at VM {found.vmid}")
        return isinstance(now, dict) and now.get("status") == "stopped"

    def _storage(self, name: str) -> Storage:
        """From the list: a storage's own page takes Datastore.Allocate, which we do not ask for."""
        listed = self._api.get("/storage", what=f"cannot read the configuration of storage {name}")
        for entry in listed if isinstance(listed, list) else []:
            if entry.get("storage") == name:
                return parse_storage(entry)
        raise NotFound(
            f"there is no storage {name} that can be seen",
            hint=f"see `pvesm status`; seeing it takes Datastore.Audit on /storage/{name}",
        )

    def allot(self, number: int, size: int, *, storage: str = "", owner: str) -> str:
        if number not in self._settings.volume_vmids:
            raise Invalid(f"cannot make volume {number}: it is outside of volume_vmids")
        if size < 1:
            raise Invalid(f"cannot make volume {number}: it needs at least 1 MiB")
        return self._settled(lambda: self._allot(self._taking(storage), number, size, owner))

    def storage_of(self, volid: str) -> str:
        return volid.partition(":")[0] or self._settings.storage

    def check_storage(self, storage: str = "", *, tools: bool = False) -> None:
        found = self._taking(storage)
        self._inventory.need_volumes(found.id)
        if tools:
            number = self._settings.volume_vmids[0]
            volume = _volid(found, number, "x").partition(":")[2]
            for verb in ("snapshot", "clone", "grow"):
                self._need_tool(found, volume, verb)

    def _taking(self, storage: str) -> Storage:
        """The storage of this name ("": of the settings), which takes volumes."""
        found = self._storage(self._named(storage))
        if "images" not in found.content:
            raise Unsupported(
                f"cannot make a volume on storage {found.id}: it takes no disk images",
                hint=f"pvesm set {found.id} --content "
                f"{','.join(sorted({*found.content, 'images'}))}",
            )
        return found

    def _named(self, storage: str) -> str:
        name = storage or self._settings.storage
        if not name:
            raise Invalid(
                "cannot make a volume: no storage is named",
                hint="set proxmox.storage in the settings, or name one",
            )
        return name

    def _allot(self, storage: Storage, number: int, size: int, owner: str) -> str:
        volid = _volid(storage, number, owner)
        params: dict[str, str | int] = {
            "vmid": number,
            "filename": posixpath.basename(volid.partition(":")[2]),
            "size": f"{size}M",
            "format": "qcow2" if storage.type in FILE_TYPES else "raw",
        }
        path = f"/nodes/{self._node}/storage/{storage.id}/content"
        what = f"cannot make volume {number}"
        try:
            return str(self._api.change("POST", path, params, what=what))
        except Exists:
            return volid
        except ReplyLost:
            found = self._api.get(path, what=what, vmid=number)
            if not isinstance(found, list) or volid not in [str(each["volid"]) for each in found]:
                raise  # it was not made: it may be asked for again
            return volid

    def attach(self, vmid: int, volid: str, *, owner: str) -> None:
        self._need_ours(volid, owner, "attach")
        self._settled(lambda: self._attach(vmid, volid, owner))

    def _attach(self, vmid: int, volid: str, owner: str) -> None:
        found = self._inventory.ours(vmid, owner, "attach a volume to")
        held = {drive.key: drive for drive in parse_drives(found.config)}
        if WORK in held and held[WORK].volid == volid:
            return
        if WORK in held:
            raise Conflict(f"cannot attach {volid} to VM {vmid}: it has {held[WORK].volid} already")
        others = [each for each in self._holders(volid, owner) if each != vmid]
        if others:
            raise Conflict(
                f"cannot attach {volid} to VM {vmid}: VM {others[0]} has it",
                hint="detach it there first",
            )
        what = f"cannot attach {volid} to VM {vmid}"
        change = {WORK: f"{volid},discard=on,serial=work"}
        if volid in self._held(found):
            if _keys(self._live(found), volid) != [WORK]:
                raise Busy(f"{what}: it is still being detached there")
            change = {"revert": WORK}  # its guest has not let go of it, and keeps it
        refuse_dead(found, self._inventory, what)
        self._inventory.sure(found, owner, "attach a volume to")
        self._api.change("PUT", f"{found.path}/config", {**change, **as_read(found)}, what=what)

    def detach(self, vmid: int, volid: str, *, owner: str) -> None:
        self._need_ours(volid, owner, "detach")
        self._settled(lambda: self._detach(vmid, volid, owner))

    def _detach(self, vmid: int, volid: str, owner: str) -> None:
        try:
            found = self._inventory.ours(vmid, owner, "detach a volume from")
        except NotFound:
            return
        keys = _keys(found.config, volid)
        if (
            not keys
        ):  # of a guest that has powered itself off, what waits is made by the next change
            live = _keys(self._live(found), volid)
            keys = live if live and self._is_off(found) else []
        if keys:
            self._inventory.sure(found, owner, "detach a volume from")
            if is_dead(found, self._inventory):
                if not self._tools.available_on(found.node):
                    raise refusal(found, f"cannot detach {volid} from VM {vmid}")
                self._tools.detach_locked(vmid, keys)
            else:
                self._api.change(
                    "PUT",
                    f"{found.path}/config",
                    {"delete": ",".join(keys), **as_read(found)},
                    what=f"cannot detach {volid} from VM {vmid}",
                )
            found = self._inventory.ours(vmid, owner, "detach a volume from")
        if volid in self._held(found):
            raise Busy(
                f"cannot detach {volid} from VM {vmid}: its guest holds it until it is stopped",
                hint="stop the sandbox, or let it give the disk up",
            )

    def free(self, volid: str, *, owner: str) -> None:
        self._need_ours(volid, owner, "free")
        self._settled(lambda: self._free(volid, owner))

    def _free(self, volid: str, owner: str) -> None:
        self._need_detached(volid, owner, "free")
        self._settle(volid)
        path = f"/nodes/{self._node}/storage/{volid.partition(':')[0]}/content/{volid}"
        try:
            self._api.act("DELETE", path, what=f"cannot free {volid}", turns=self._turn(self._node))
        except NoSuchVolume:
            return

    def _settle(self, volid: str) -> None:
        """Proxmox takes its snapshots along, and does not know what half a rollback has left."""
        name, _, volume = volid.partition(":")
        if self._tools.available_on(self._node):
            with contextlib.suppress(NotFound, Invalid, Unsupported):
                self._tools.settle(self._storage(name), volume)

    def _need_ours(self, volid: str, owner: str, verb: str) -> int:
        """The volume's number when its name carries this owner; NotOurs."""
        number, name = volume_owner(volid)
        if name != owner:
            whose = f"the installation {name}" if name else "someone else"
            raise NotOurs(f"cannot {verb} volume {volid}: it belongs to {whose}")
        return number

    def _need_detached(self, volid: str, owner: str, verb: str) -> None:
        holders = self._holders(volid, owner)
        if holders:
            raise Conflict(
                f"cannot {verb} {volid}: it is attached to VM {holders[0]}",
                hint="detach it first",
            )

    # --- what REST lacks, by the node's own programs ---

    def _tool(
        self, volid: str, owner: str, verb: Verb, *, attached: bool = False
    ) -> tuple[Storage, str]:
        """Storage and volume name for a tool that works on a detached volume of ours.

        With `attached` it may be attached: the tool only looks.
        """
        self._need_ours(volid, owner, verb)
        name, _, volume = volid.partition(":")
        storage = self._storage(name)
        self._need_tool(storage, volume, verb)
        if not attached:
            self._need_detached(volid, owner, verb)
        return storage, volume

    def _need_tool(self, storage: Storage, volume: str, verb: Verb) -> None:
        """Unsupported, before anything is done."""
        self._tools.check(storage, volume, verb)
        if self._tools.available_on(self._node):
            return
        name = f"{storage.id}:{volume}"
        why = (
            "Proxmox's API has no call for it, and agentlabd does not run as root on node"
            f" {self._node}"
        )
        if verb == "check":
            raise unsupported_path(name, why)
        raise Unsupported(f"cannot {said_of(verb)} volume {name}: {why}")

    def move(self, volid: str, storage: str, *, owner: str) -> str:
        """By a copy: the old one goes when the new one is whole, and the new one when it fails."""
        number = self._need_ours(volid, owner, "move")
        if volid.partition(":")[0] == storage:
            return volid
        target = self._storage(storage)
        sizes = self._content(owner, volid.partition(":")[0], storage)
        if volid not in sizes:
            moved = [each for each in sizes if each.startswith(f"{storage}:")]
            there = next((each for each in moved if volume_owner(each) == (number, owner)), None)
            if there is None:
                raise NotFound(f"cannot move volume {volid}: there is no such volume")
            return there
        source, volume = self._tool(volid, owner, "copy")
        copy = _volid(target, number, owner).partition(":")[2]
        self._tools.check(target, copy, "copy")
        made = self.allot(number, sizes[volid], storage=storage, owner=owner)
        try:
            self._tools.copy(source, volume, target, copy)
        except AgentLabError:
            self.free(made, owner=owner)
            raise
        self.free(volid, owner=owner)
        return made

    def grow(self, volid: str, size: int, *, owner: str) -> None:
        self._need_ours(volid, owner, "grow")
        have = self._content(owner, volid.partition(":")[0]).get(volid)
        if have is None:
            raise NotFound(f"cannot make volume {volid} larger: there is no such volume")
        if size < have:
            raise Invalid(f"cannot make volume {volid} smaller: it has {have} MiB")
        if size > have:
            storage, volume = self._tool(volid, owner, "grow")
            self._tools.grow(storage, volume, size)

    def snapshot_volume(self, volid: str, name: str, *, owner: str) -> None:
        check_snapshot(name)
        storage, volume = self._tool(volid, owner, "snapshot")
        self._tools.snapshot(storage, volume, name)

    def rollback_volume(self, volid: str, name: str, *, owner: str) -> None:
        check_snapshot(name)
        storage, volume = self._tool(volid, owner, "rollback")
        self._tools.rollback(storage, volume, name)

    def delete_volume_snapshot(self, volid: str, name: str, *, owner: str) -> None:
        check_snapshot(name)
        storage, volume = self._tool(volid, owner, "delete_snapshot")
        self._tools.delete_snapshot(storage, volume, name)

    def volume_snapshots(self, volid: str, *, owner: str) -> Sequence[str]:
        storage, volume = self._tool(volid, owner, "snapshots", attached=True)
        return self._tools.snapshots(storage, volume)

    def clone_volume(
        self,
        volid: str,
        number: int,
        *,
        snapshot: str = "",
        owner: str,
        progress: Progress | None = None,
    ) -> str:
        if number not in self._settings.volume_vmids:
            raise Invalid(f"cannot make volume {number}: it is outside of volume_vmids")
        storage, volume = self._tool(volid, owner, "clone")
        ending = posixpath.splitext(volume)[1] if "/" in volume else ""
        name = volume_name(number, owner, ending)
        target = f"{number}/{name}" if "/" in volume else name
        self._tools.clone(storage, volume, target, snapshot=snapshot, progress=progress)
        return f"{storage.id}:{target}"

    def clones_thin(self, volid: str) -> bool:
        return self._storage(volid.partition(":")[0]).type == "lvmthin"

    def check_volume(self, volid: str, *, repair: bool, owner: str) -> VolumeCheck:
        storage, volume = self._tool(volid, owner, "check")
        return self._tools.check_volume(storage, volume, repair=repair)


def _keys(config: Mapping[str, object], volid: str) -> list[str]:
    """Where a volume is in a configuration."""
    return [drive.key for drive in parse_drives(config) if drive.volid == volid] + [
        key
        for key, value in config.items()
        if key.startswith("unused") and str(value).partition(",")[0] == volid
    ]


def _volid(storage: Storage, number: int, owner: str) -> str:
    """What a volume of ours is called on a storage."""
    if storage.type in FILE_TYPES:
        return f"{storage.id}:{number}/{volume_name(number, owner, '.qcow2')}"
    return f"{storage.id}:{volume_name(number, owner)}"

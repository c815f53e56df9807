"""Volumes of Proxmox that outlive machines: allotted under numbers of their own.

The name carries the owner, since the allotting call writes nothing else.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Sequence

from agentlab.errors import (
    AgentLabError,
    Invalid,
    NotFound,
    Unavailable,
    Unsupported,
)
from agentlab.hypervisor.base import Volume, VolumeCheck
from agentlab.hypervisor.fsck import unsupported_path
from agentlab.hypervisor.proxmox.attachments import ProxmoxAttachments
from agentlab.hypervisor.proxmox.names import (
    check_snapshot,
    volume_name,
    volume_owner,
)
from agentlab.hypervisor.proxmox.storage_plan import (
    FILE_TYPES,
    Storage,
    Verb,
    parse_storage,
    said_of,
)
from agentlab.hypervisor.proxmox.transport import Exists, NoSuchVolume, ReplyLost
from agentlab.hypervisor.qemu_img import Progress


class ProxmoxVolumes(ProxmoxAttachments):
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


def _volid(storage: Storage, number: int, owner: str) -> str:
    """What a volume of ours is called on a storage."""
    if storage.type in FILE_TYPES:
        return f"{storage.id}:{number}/{volume_name(number, owner, '.qcow2')}"
    return f"{storage.id}:{volume_name(number, owner)}"

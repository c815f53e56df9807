"""Volumes of the local hypervisor: directories of their own, which no machine's end can take along.

Which machine has a volume is in that machine's record, written while both are held, the machine
first.  Snapshots are inside a volume's image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from agentlab.errors import AgentLabError, Busy, Conflict, Invalid, NotFound, NotOurs
from agentlab.hypervisor import fsck
from agentlab.hypervisor.base import Power, Volume, VolumeCheck
from agentlab.hypervisor.files import new_directory, put_in_place, remove_tree, sweep, sync_tree
from agentlab.hypervisor.local import images
from agentlab.hypervisor.local.machine_dir import MachineDir, Record
from agentlab.hypervisor.local.place import Place
from agentlab.hypervisor.local.plug import plug, unplug
from agentlab.hypervisor.local.power import look, power_off
from agentlab.hypervisor.local.snapshots import check_snapshot
from agentlab.hypervisor.local.volume_dir import (
    IMAGE,
    STORAGE,
    VolumeDir,
    VolumeRecord,
    parse_volid,
    volume_id,
)
from agentlab.hypervisor.qemu_img import Progress

_UNPLUG = 20.0  # seconds that a guest has to let go of a disk


class LocalVolumes(Place):
    """Implements `base.Volumes`."""

    def volumes(self, *, owner: str, storage: str | None = None) -> Sequence[Volume]:
        _need_storage(storage or "")
        found = []
        numbers, holders = self.volume_numbers(), self._holders()
        sweep(self.volume_root)
        for number in numbers:
            volume = self.volume(number)
            record = volume.read()
            if record is None or record.owner != owner:
                continue
            volid = volume_id(number, owner)
            try:
                size = images.header_size(volume.image)
            except FileNotFoundError:
                continue  # freed meanwhile
            found.append(Volume(volid, size, tuple(holders.get(volid, ()))))
        return found

    def attached(self, vmid: int, *, owner: str) -> Sequence[str]:
        record = self.machine(vmid).owned(owner, "look at the volumes of")
        return (record.volume,) if record.volume else ()

    def _holders(self) -> dict[str, list[int]]:
        """The machines that have a volume, by its volid."""
        holders: dict[str, list[int]] = {}
        for vmid in self.vmids():
            record = self.machine(vmid).read()
            if record is not None and record.volume:
                holders.setdefault(record.volume, []).append(vmid)
        return holders

    def storage_of(self, volid: str) -> str:
        return volid.partition(":")[0] or STORAGE

    def check_storage(self, storage: str = "", *, tools: bool = False) -> None:  # noqa: ARG002  # they are all there
        _need_storage(storage)

    def allot(self, number: int, size: int, *, storage: str = "", owner: str) -> str:
        volid = volume_id(number, owner)
        _need_storage(storage)
        if size < 1:
            raise Invalid(f"cannot make volume {number}: it needs at least 1 MiB")
        self._make_volume(number, owner, lambda image: images.create_empty(image, size))
        return volid

    def _make_volume(self, number: int, owner: str, fill: Callable[[Path], None]) -> None:
        """Makes a volume whole before it is seen, or finds ours; NotOurs."""
        volume = self.volume(number)
        if volume.path.exists():
            volume.owned(owner, "make")
            return
        self.volume_root.mkdir(mode=0o700, exist_ok=True)
        sweep(self.volume_root)
        with new_directory(self.volume_root, str(number)) as work:
            fill(work / IMAGE)
            VolumeDir(work).write(VolumeRecord(number, owner))
            sync_tree(work)
            if not put_in_place(work, volume.path):
                volume.owned(owner, "make")

    # --- attachment ---

    def attach(self, vmid: int, volid: str, *, owner: str) -> None:
        verb = "attach a volume to"
        _need_ours(volid, owner, "attach")
        machine = self.machine(vmid)
        with machine.locked(verb):
            before = machine.owned(owner, verb)
            if before.volume not in ("", volid):
                raise Conflict(
                    f"cannot attach {volid} to machine {vmid}: it has {before.volume} already"
                )
            record = self._note_attached(machine, before, volid, owner)
            if look(machine, record) is Power.STOPPED:
                return
            image = self.volume(parse_volid(volid)[0]).image
            try:
                plug(machine.path, image)
            except AgentLabError:
                # QEMU may have it all the same: a reply can be lost.  One that was attached before
                # may be mounted, and stays.
                if before.volume != volid:
                    with contextlib.suppress(AgentLabError):
                        if unplug(machine.path, _UNPLUG):
                            machine.write(before)
                raise

    def _note_attached(self, machine: MachineDir, record: Record, volid: str, owner: str) -> Record:
        with self._held(volid, owner, "attach"):
            others = [vmid for vmid in self._holders().get(volid, ()) if vmid != record.vmid]
            if others:
                raise Conflict(
                    f"cannot attach {volid} to machine {record.vmid}: machine {others[0]} has it",
                    hint="detach it there first",
                    details={"vmid": others[0]},
                )
            return record if record.volume else machine.write(replace(record, volume=volid))

    def detach(self, vmid: int, volid: str, *, owner: str) -> None:
        verb = "detach a volume from"
        _need_ours(volid, owner, "detach")
        machine = self.machine(vmid)
        if not machine.path.exists():
            return
        try:
            with machine.locked(verb):
                record = machine.owned(owner, verb)
                if record.volume != volid:
                    return
                power = look(machine, record)
                if power is Power.STOPPED:
                    # A start that was cut off may have left a QEMU that holds it.
                    record = power_off(machine, record)
                # one that is paused would let go when it is resumed, and nobody would expect that
                elif power is Power.PAUSED or not unplug(machine.path, _UNPLUG):
                    raise Busy(
                        f"cannot detach {volid} from machine {vmid}: "
                        + (
                            "it is paused" if power is Power.PAUSED else "its guest does not let go"
                        ),
                        hint="resume the sandbox if it is paused, or stop it",
                    )
                # Only now: until QEMU has let go, nobody else may have it.
                machine.write(replace(record, volume=""))
        except NotFound:
            return

    def free(self, volid: str, *, owner: str) -> None:
        number = _need_ours(volid, owner, "free")
        volume = self.volume(number)
        if not volume.path.exists():
            return
        try:
            with volume.locked("free"):
                volume.owned(owner, "free")
                self._need_detached(volid, "free")
                remove_tree(volume.path)
        except NotFound:
            return

    # --- detached volumes ---

    @contextmanager
    def _held(self, volid: str, owner: str, verb: str) -> Iterator[VolumeDir]:
        """A volume of ours that nobody else works on; a rollback that was cut off is ended."""
        volume = self.volume(_need_ours(volid, owner, verb))
        with volume.locked(verb):
            record = volume.owned(owner, verb)
            if record.rollback:
                _put_back(volume, record)
                images.mend_leaks(volume.image)
            yield volume

    @contextmanager
    def _detached(self, volid: str, owner: str, verb: str) -> Iterator[VolumeDir]:
        with self._held(volid, owner, verb) as volume:
            self._need_detached(volid, verb)
            yield volume

    def _need_detached(self, volid: str, verb: str) -> None:
        holders = self._holders().get(volid)
        if holders:
            raise Conflict(
                f"cannot {verb} {volid}: it is attached to machine {holders[0]}",
                hint="detach it first",
                details={"vmid": holders[0]},
            )

    def move(self, volid: str, storage: str, *, owner: str) -> str:
        """There is one storage, on which it is already."""
        number = _need_ours(volid, owner, "move")
        self.volume(number).owned(owner, "move")
        _need_storage(storage)
        return volid

    def grow(self, volid: str, size: int, *, owner: str) -> None:
        with self._detached(volid, owner, "make larger") as volume:
            have = images.header_size(volume.image)
            if size < have:
                raise Invalid(f"cannot make volume {volid} smaller: it has {have} MiB")
            images.grow(volume.image, size)

    def snapshot_volume(self, volid: str, name: str, *, owner: str) -> None:
        check_snapshot(name)
        with self._detached(volid, owner, "take a snapshot of") as volume:
            if name in images.snapshots(volume.image):
                raise Conflict(
                    f"cannot take snapshot {name} of volume {volid}: there is one of that name",
                    hint="choose another name, or delete that one first",
                )
            images.take_snapshot(volume.image, name)

    def rollback_volume(self, volid: str, name: str, *, owner: str) -> None:
        check_snapshot(name)
        with self._detached(volid, owner, "roll back") as volume:
            names = images.snapshots(volume.image)
            if name not in names:
                raise NotFound(
                    f"cannot roll back volume {volid}: it has no snapshot {name}",
                    hint="it has " + (", ".join(names) or "none"),
                )
            record = volume.owned(owner, "roll back")
            _put_back(volume, volume.write(replace(record, rollback=name)))

    def delete_volume_snapshot(self, volid: str, name: str, *, owner: str) -> None:
        check_snapshot(name)
        with self._detached(volid, owner, "delete a snapshot of") as volume:
            if name in images.snapshots(volume.image):
                images.delete_snapshot(volume.image, name)

    def volume_snapshots(self, volid: str, *, owner: str) -> Sequence[str]:
        volume = self.volume(_need_ours(volid, owner, "list the snapshots of"))
        volume.owned(owner, "list the snapshots of")
        return images.snapshots(volume.image)

    def clone_volume(
        self,
        volid: str,
        number: int,
        *,
        snapshot: str = "",
        owner: str,
        progress: Progress | None = None,
    ) -> str:
        """A copy: an overlay would keep its source from being changed or freed."""
        made = volume_id(number, owner)
        with self._detached(volid, owner, "clone") as volume:
            if snapshot and snapshot not in images.snapshots(volume.image):
                raise NotFound(f"cannot clone volume {volid}: it has no snapshot {snapshot}")

            def fill(image: Path) -> None:
                images.copy_volume(image, volume.image, snapshot, progress)

            self._make_volume(number, owner, fill)
        if progress:
            progress(1.0)
        return made

    def clones_thin(self, volid: str) -> bool:  # noqa: ARG002  # none does
        return False

    def check_volume(self, volid: str, *, repair: bool, owner: str) -> VolumeCheck:
        with self._detached(volid, owner, "check") as volume:
            return fsck.check_image(volume.image, "qcow2", volid, repair=repair)


def _put_back(volume: VolumeDir, record: VolumeRecord) -> None:
    images.apply_snapshot(volume.image, record.rollback)
    volume.write(replace(record, rollback=""))


def _need_ours(volid: str, owner: str, verb: str) -> int:
    """The volume's number when its name carries this owner; NotOurs."""
    number, name = parse_volid(volid)
    if name != owner:
        whose = f"the installation {name}" if name else "someone else"
        raise NotOurs(f"cannot {verb} volume {volid}: it belongs to {whose}")
    return number


def _need_storage(storage: str) -> None:
    if storage not in ("", STORAGE):
        raise NotFound(f"there is no storage {storage}", hint=f"there is {STORAGE}")

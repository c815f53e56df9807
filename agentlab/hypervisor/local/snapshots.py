"""Snapshots of a machine's root disk, inside its image.

Only of a machine without power: a snapshot of a running one would need its memory as well, and
`base.Snapshots` leaves that to the driver.  The record is what counts; a snapshot that is in the
image and not in the record was cut off, and is made again under its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from agentlab.errors import Conflict, Invalid, NotFound
from agentlab.hypervisor.base import Power
from agentlab.hypervisor.local import images
from agentlab.hypervisor.local.machine_dir import DISK, MachineDir, Mark, Record
from agentlab.hypervisor.local.place import Place
from agentlab.hypervisor.local.power import look, power_off

# the rule of Proxmox, so that a name is one everywhere
_NAME = re.compile(r"(?!(?i:current|pending)$)[A-Za-z][A-Za-z0-9_-]{1,39}")


def check_snapshot(name: str) -> str:
    """The name as it is; Invalid with the rule."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"not a name for a snapshot: {name!r}",
            hint="2 to 40 letters, digits, _ and -, first a letter; not `current` or `pending`",
        )
    return name


class LocalSnapshots(Place):
    """Implements `base.Snapshots`."""

    def snapshot(self, vmid: int, name: str, *, owner: str) -> None:
        check_snapshot(name)
        with self._stopped(vmid, owner, "take a snapshot of") as (machine, record):
            _refuse_volume(record, "take a snapshot of")
            for mark in record.marks:
                if mark.name == name and mark.state == record.state:
                    return
                if mark.name == name:
                    raise Conflict(f"machine {vmid} has a snapshot {name} of another time")
            disk = machine.path / DISK
            if name in images.snapshots(disk):
                images.delete_snapshot(disk, name)
            images.take_snapshot(disk, name)
            machine.write(replace(record, marks=(*record.marks, Mark(name, record.state))))

    def rollback(self, vmid: int, name: str, *, owner: str) -> None:
        with self._stopped(vmid, owner, "roll back") as (machine, record):
            _refuse_volume(record, "roll back")
            for mark in record.marks:
                if mark.name == name:
                    # until it is done, the disk is in no state that anything fits
                    adrift = machine.write(replace(record, state=f"rollback-{name}"))
                    images.apply_snapshot(machine.path / DISK, name)
                    machine.write(replace(adrift, state=mark.state))
                    return
            raise NotFound(
                f"machine {vmid} has no snapshot {name}",
                hint="it has " + (", ".join(mark.name for mark in record.marks) or "none"),
            )

    def blockers(self, vmid: int, name: str) -> Sequence[str]:
        """None: an image holds its snapshots beside each other."""
        if name not in self.snapshots(vmid):
            raise NotFound(f"machine {vmid} has no snapshot {name}")
        return ()

    def snapshots(self, vmid: int, *, half: bool = False) -> Sequence[str]:  # noqa: ARG002  # never here
        record = self.machine(vmid).read()
        if record is None:
            raise NotFound(f"cannot list snapshots of machine {vmid}: there is no such machine")
        return [mark.name for mark in record.marks]

    def delete_snapshot(self, vmid: int, name: str, *, owner: str) -> None:
        machine = self.machine(vmid)
        record = machine.owned(owner, "delete a snapshot of")
        if all(mark.name != name for mark in record.marks):
            return
        with self._stopped(vmid, owner, "delete a snapshot of") as (machine, record):
            marks = tuple(mark for mark in record.marks if mark.name != name)
            machine.write(replace(record, marks=marks))
            if name in images.snapshots(machine.path / DISK):
                images.delete_snapshot(machine.path / DISK, name)

    @contextmanager
    def _stopped(self, vmid: int, owner: str, verb: str) -> Iterator[tuple[MachineDir, Record]]:
        machine = self.machine(vmid)
        with machine.locked(verb):
            record = machine.owned(owner, verb)
            if look(machine, record) is not Power.STOPPED:
                raise Conflict(f"cannot {verb} machine {vmid}: it has power", hint="stop it first")
            # A start that was cut off may have left a QEMU that holds the disk.
            yield machine, power_off(machine, record)


def _refuse_volume(record: Record, verb: str) -> None:
    # As on Proxmox, where it would be a part of them.
    if record.volume:
        raise Conflict(
            f"cannot {verb} machine {record.vmid}: volume {record.volume} is attached to it",
            hint="detach the workspace first: agentlab workspace detach",
        )

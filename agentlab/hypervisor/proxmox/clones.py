"""Clones, from the free VMID to the machine that is whole; and what one that died has left."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from agentlab.clock import Deadline
from agentlab.errors import Busy, Denied, NotOurs, Unavailable
from agentlab.hypervisor.load import Resource
from agentlab.hypervisor.proxmox.inventory import Found, prove
from agentlab.hypervisor.proxmox.names import parse_drives, parse_storages, render_description
from agentlab.hypervisor.proxmox.part import Part
from agentlab.hypervisor.proxmox.placement import Place
from agentlab.hypervisor.proxmox.transport import Exists, ReplyLost, VolumeExists

_LONG = 3600.0  # seconds that a clone may take
_LOOK_AGAIN = 0.5
_FREE_THEM = "as root on the node: see `pvesm list`, and free what nobody needs with `pvesm free`"
_FINISHED = 2.0  # between the end of a clone's task and the end of its lock


class Clones(Part, ABC):
    """The part of `base.Machines` that makes them."""

    @abstractmethod
    def _remove(self, found: Found, owner: str) -> None:
        """Destroys a machine that is whole, or half a clone without a lock."""

    def clone(self, template: str, vmid: int, *, name: str, owner: str, full: bool = False) -> None:
        full = full or self._settings.full
        self._settled(lambda: self._clone(template, vmid, name, owner, full))

    def _clone(self, template: str, vmid: int, name: str, owner: str, full: bool) -> None:
        with self._placement.place(template, full=full) as place:
            self._refuse_leftovers(place, vmid)
            params: dict[str, str | int | bool] = {
                "newid": vmid,
                "name": name,
                "description": render_description(owner, vmid, place.storages),
                "full": full,
            }
            params.update({"target": place.target} if place.target else {})
            params.update({"pool": self._settings.pool} if self._settings.pool else {})
            if full and self._settings.storage:
                params["storage"] = self._settings.storage
            source = place.template
            try:
                self._api.act(
                    "POST",
                    f"{source.path}/clone",
                    params,
                    what=f"cannot clone template {source.vmid} to VM {vmid} on node {place.node}",
                    turns=[
                        Resource("node", source.node),
                        Resource("template", str(source.vmid)),
                        Resource("storage", place.storage),
                    ],
                    patience=_LONG,  # it keeps its turn until it ends
                )
            except VolumeExists as exists:  # our rights may have hidden it from the look before
                if not self._adopt(place.template, vmid, owner):
                    raise NotOurs(
                        f"cannot take VMID {vmid}: there is a volume of a VM that is gone: "
                        f"{exists.details.get('said', exists.message)}",
                        hint=_FREE_THEM,
                    ) from exists
            except Exists:
                if not self._adopt(place.template, vmid, owner):
                    raise Busy(
                        f"cannot clone to VM {vmid}: it was there a moment ago, and is gone"
                    ) from None
            except ReplyLost:
                if not self._adopt(place.template, vmid, owner):
                    raise  # nothing has begun: it may be asked for again

    def _refuse_leftovers(self, place: Place, vmid: int) -> None:
        """Volumes of a VM that is gone would go with ours: such a VMID is not taken."""
        volumes: list[str] = []
        for storage in sorted(place.storages):
            volumes += self._inventory.disks_of(vmid, place.node, storage)
        if volumes and self._inventory.find(vmid) is None:
            raise NotOurs(
                f"cannot take VMID {vmid}: there are volumes of a VM that is gone: {volumes[0]}",
                hint=_FREE_THEM,
                details={"volumes": volumes[:10]},
            )

    def _adopt(self, template: Found, vmid: int, owner: str) -> bool:
        """True when the VMID is taken by a whole clone of ours, False when by nobody."""
        found = self._marked(vmid)
        if found is None:
            return False
        prove(found, owner, "clone to")
        if found.lock == "clone":
            found = self._await_clone(found, owner)
        wanted = {drive.key for drive in parse_drives(template.config)}
        missing = wanted - {drive.key for drive in parse_drives(found.config)}
        if missing:
            self._remove(found, owner)
            raise Busy(
                f"cannot go on with VM {vmid}: half a clone was there, without "
                f"{', '.join(sorted(missing))}, and was removed"
            )
        return True

    def _marked(self, vmid: int) -> Found | None:
        """The machine, when it shows whose it is; None when it is gone; NotOurs when hidden.

        A clone that has begun may show its mark, and with rights on a pool itself, only at its
        end: while any clone runs it is waited for, and then Busy.
        """
        deadline = Deadline.after(self._settings.patience)
        while True:
            runs = self._inventory.task_runs("qmclone")  # asked first: it may end meanwhile
            try:
                found = self._inventory.find(vmid)
            except Denied as hidden:
                if not runs:
                    raise NotOurs(f"cannot take VMID {vmid}: {hidden.message}") from hidden
            else:
                if found is None or found.owner or found.lock != "clone":
                    return found
                if not runs:
                    return prove(found, "", "clone to")  # NotOurs, with what it takes to clean up
            if deadline.passed:
                raise Busy(f"cannot clone to VM {vmid}: a clone runs, perhaps to it")
            time.sleep(_LOOK_AGAIN)

    def _await_clone(self, found: Found, owner: str) -> Found:
        """Until our own clone, begun by a call whose reply we do not have, is whole.

        One that died is cleaned away, and Busy asks for another try.
        """
        deadline = Deadline.after(self._settings.patience)
        while self._clone_runs(found):
            again = self._inventory.find(found.vmid)
            if again is None:
                raise Busy(f"cannot go on with VM {found.vmid}: its clone failed and was removed")
            found = prove(again, owner, "clone to")
            if found.lock != "clone":
                return found
            if deadline.passed:
                raise Busy(f"cannot go on with VM {found.vmid}: its clone still runs")
            time.sleep(_LOOK_AGAIN)
        self._bury(found, owner)
        raise Busy(f"cannot go on with VM {found.vmid}: its clone died and was cleaned away")

    def _clone_runs(self, found: Found) -> bool:
        """Whether a clone's task is active that could be this one's, or has just ended.

        Looks twice: the lock goes a moment after the task.
        """
        for attempt in range(2):
            if self._inventory.task_runs("qmclone"):
                return True
            again = self._inventory.find(found.vmid)
            if again is None or again.lock != "clone":
                return True  # it has just ended: whoever waits looks again
            if attempt == 0:
                time.sleep(_FINISHED)
        return False

    def _bury(self, found: Found, owner: str) -> None:
        """Takes away what a clone that died has left: it carries our mark and a lock.

        Its disks first, while our own configuration still holds the VMID, and only where there
        was none before the clone began; then all the rest by one command, lock or no lock.
        """
        node, vmid = found.node, found.vmid
        if not self._tools.available_on(node):
            raise Unavailable(
                f"cannot clean up VM {vmid}: a clone that died has left it locked, and an API "
                "token cannot take that away",
                hint=f"as root on node {node}: qm destroy {vmid} --skiplock 1 --purge 1",
            )
        named = {drive.volid for drive in parse_drives(found.config)}
        for storage in parse_storages(found.config.get("description")):
            for volid in self._inventory.disks_of(vmid, node, storage):
                if volid not in named:
                    self._inventory.sure(found, owner, "clean up")
                    self._tools.free(volid)
        self._inventory.sure(found, owner, "clean up")
        self._tools.destroy_locked(vmid)

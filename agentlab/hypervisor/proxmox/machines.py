"""Machines of Proxmox, from clone to destroy.

Everything that changes a machine reads its mark first, by the configuration as it is now: a
record, a cache or a tag proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from agentlab.clock import Deadline
from agentlab.errors import Busy, Conflict, Denied, NotFound, NotOurs, Unavailable
from agentlab.hypervisor.base import Machine, MachineSpec, Power, Template
from agentlab.hypervisor.load import Resource
from agentlab.hypervisor.proxmox.dead_lock import is_dead, refusal, refuse_dead
from agentlab.hypervisor.proxmox.inventory import Found, Inventory, prove
from agentlab.hypervisor.proxmox.names import (
    check_spec,
    parse_drives,
    parse_storages,
    render_config,
    render_description,
    root_drive,
    same,
    surplus,
    tagged_owner,
    volume_owner,
)
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.placement import Place, Placement
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.hypervisor.proxmox.tasks import Api, settled
from agentlab.hypervisor.proxmox.transport import (
    Exists,
    NoSuchVM,
    NotRunning,
    PowerdownTimeout,
    ReplyLost,
    Running,
    VolumeExists,
)

T = TypeVar("T")

_LONG = 3600.0  # seconds that a clone may take
_LOOK_AGAIN = 0.5
_FREE_THEM = "as root on the node: see `pvesm list`, and free what nobody needs with `pvesm free`"
_FINISHED = 2.0  # between the end of a clone's task and the end of its lock


class Part:
    """What each part of the driver works with."""

    def __init__(self, api: Api, settings: Settings, tools: NodeTools) -> None:
        self._api = api
        self._settings = settings
        self._tools = tools
        self._inventory = Inventory(api, settings)
        self._placement = Placement(api, self._inventory, settings)

    def _settled(self, attempt: Callable[[], T]) -> T:
        return settled(attempt, patience=self._settings.patience)

    def _turn(self, node: str) -> list[Resource]:
        return [Resource("node", node)]

    def _nodes_online(self) -> list[str]:
        nodes = self._inventory.resources().nodes.values()
        allowed = self._settings.allowed
        near = [
            node.name for node in nodes if node.online and (not allowed or node.name in allowed)
        ]
        return near or [node.name for node in nodes if node.online]


class ProxmoxMachines(Part):
    """Implements `base.Machines`."""

    def inventory(self) -> Sequence[Machine]:
        """A paused machine counts as running here, and power is up to 10 s old: pvestatd's."""
        return self._inventory.machines()

    def templates(self) -> Sequence[Template]:
        resources = self._inventory.resources()
        return [
            Template(
                guest.name,
                ready=resources.nodes[guest.node].online
                if guest.node in resources.nodes
                else False,
                detail=f"VM {guest.vmid} on node {guest.node}",
            )
            for guest in resources.guests.values()
            if guest.template and guest.kind == "qemu"
        ]

    def status(self, vmid: int) -> Machine | None:
        """From the machine's own node: the inventory of the cluster is up to 10 s behind it.

        `cpu` is not told: each of the node's workers has looks of its own, and a first one says 0.
        """
        try:
            found = self._inventory.find(vmid)
            if found is None:
                return None
            name, power = str(found.config.get("name") or ""), self._power(found.node, vmid)
            return Machine(
                vmid, name, found.owner, power, found.node, found.lock, template=found.template
            )
        except (Unavailable, NoSuchVM):
            pass  # its node is offline, or it is just being moved
        guest = self._inventory.guest(vmid)
        if guest is None:
            return None
        owner = tagged_owner(guest.tags, vmid)
        return Machine(
            vmid, guest.name, owner, Power.UNKNOWN, guest.node, guest.lock, template=guest.template
        )

    def _power(self, node: str, vmid: int) -> Power:
        """What QEMU says; `status` alone calls a paused machine running."""
        path = f"/nodes/{node}/qemu/{vmid}/status/current"
        now = self._api.get(path, what=f"cannot look at VM {vmid}")
        if not isinstance(now, dict):
            return Power.UNKNOWN
        if now.get("status") != "running":
            return Power.STOPPED if now.get("status") == "stopped" else Power.UNKNOWN
        return Power.RUNNING if now.get("qmpstatus", "running") == "running" else Power.PAUSED

    # --- clone ---

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

    # --- configure ---

    def configure(self, vmid: int, spec: MachineSpec, *, owner: str) -> None:
        check_spec(spec)
        self._settled(lambda: self._configure(vmid, spec, owner))

    def _configure(self, vmid: int, spec: MachineSpec, owner: str) -> None:
        found = self._inventory.ours(vmid, owner, "configure")
        if found.lock == "clone":
            self._await_clone(found, owner)
            found = self._inventory.ours(vmid, owner, "configure")
        wanted = render_config(spec, bridge=self._settings.bridge, owner=owner, vmid=vmid)
        changed = {
            key: value for key, value in wanted.items() if not same(found.config, key, value)
        }
        unwanted = surplus(found.config, wanted)
        root = root_drive(found.config)
        if root is None:
            raise Conflict(
                f"cannot configure VM {vmid}: it has no disk",
                hint="see `agentlab template check`",
            )
        if not any(drive.cloudinit for drive in parse_drives(found.config)):
            raise Conflict(
                f"cannot configure VM {vmid}: its template has no cloud-init drive",
                hint="see `agentlab template check`",
            )
        larger = root.size < spec.disk
        if not (changed or unwanted or larger):
            return
        if self._power(found.node, vmid) is not Power.STOPPED:
            raise Conflict(f"cannot configure VM {vmid}: it has power")
        if larger:  # first: a tag says that all of it was done
            self._api.act(
                "PUT",
                f"{found.path}/resize",
                {"disk": root.key, "size": f"{spec.disk}M"},
                what=f"cannot make the disk of VM {vmid} larger",
                turns=self._turn(found.node),
                before=lambda: self._inventory.sure(found, owner, "configure"),
            )
            found = self._inventory.ours(vmid, owner, "configure")
        if changed or unwanted:
            params: dict[str, str | int] = dict(changed)
            params.update({"delete": ",".join(unwanted)} if unwanted else {})
            params.update(as_read(found))
            self._api.change(
                "PUT", f"{found.path}/config", params, what=f"cannot configure VM {vmid}"
            )

    # --- power ---

    def start(self, vmid: int, *, owner: str) -> None:
        self._settled(lambda: self._start(vmid, owner))

    def _start(self, vmid: int, owner: str) -> None:
        found = self._inventory.ours(vmid, owner, "start")
        if tagged_owner(found.config.get("tags"), vmid) != owner.lower():
            raise Conflict(f"cannot start VM {vmid}: it was never configured")
        refuse_dead(found, self._inventory, f"cannot start VM {vmid}")
        self._need_rules(found, "start")
        try:
            self._api.act(
                "POST",
                f"{found.path}/status/start",
                what=f"cannot start VM {vmid}",
                turns=self._turn(found.node),
                before=lambda: self._inventory.sure(found, owner, "start"),
            )
        except Running:
            if self._power(found.node, vmid) is Power.PAUSED:
                self._resume(found, owner)
        except ReplyLost:
            if self._power(found.node, vmid) is not Power.RUNNING:
                raise

    def _need_rules(self, found: Found, verb: str) -> None:
        """Conflict on a node whose rules are not ours: there it gets no power, paused or not."""
        vmid, node = found.vmid, self._settings.node
        if node and found.node != node:
            raise Conflict(
                f"cannot {verb} VM {vmid}: it is on node {found.node}, and the rules that fence "
                f"it are in place on node {node} only",
                hint=f"migrate it: qm migrate {vmid} {node}, as root on {found.node}",
            )

    def shutdown(self, vmid: int, *, owner: str, timeout: float) -> bool:
        found = self._inventory.ours(vmid, owner, "shut down")
        if self._power(found.node, vmid) is Power.STOPPED:
            return True
        try:
            self._settled(
                lambda: self._api.act(
                    "POST",
                    f"{found.path}/status/shutdown",
                    {"timeout": max(1, int(timeout))},  # without it: ten minutes
                    what=f"cannot shut down VM {vmid}",
                    # no turn: guests that take their time must not keep others waiting
                    patience=timeout + self._settings.patience,
                    before=lambda: self._inventory.sure(found, owner, "shut down"),
                )
            )
        except PowerdownTimeout:
            return False
        except NotRunning:
            return True
        return self._power(found.node, vmid) is Power.STOPPED

    def stop(self, vmid: int, *, owner: str) -> None:
        self._settled(lambda: self._stop(vmid, owner))

    def _stop(self, vmid: int, owner: str) -> None:
        try:
            found = self._inventory.ours(vmid, owner, "stop")
        except NotFound:
            return
        self._off(found, owner)

    def _off(self, found: Found, owner: str) -> None:
        if self._power(found.node, found.vmid) is not Power.STOPPED:
            self._api.act(
                "POST",
                f"{found.path}/status/stop",
                what=f"cannot stop VM {found.vmid}",
                turns=self._turn(found.node),
                before=lambda: self._inventory.sure(found, owner, "stop"),
            )

    def pause(self, vmid: int, *, owner: str) -> None:
        self._switch(vmid, owner, "pause", Power.PAUSED)

    def resume(self, vmid: int, *, owner: str) -> None:
        self._switch(vmid, owner, "resume", Power.RUNNING)

    def _switch(self, vmid: int, owner: str, verb: str, wanted: Power) -> None:
        def attempt() -> None:
            found = self._inventory.ours(vmid, owner, verb)
            power = self._power(found.node, vmid)
            if power is Power.STOPPED:
                raise Conflict(f"cannot {verb} VM {vmid}: it has no power")
            if wanted is Power.RUNNING:
                self._need_rules(found, verb)
            if power is wanted:
                return
            if wanted is Power.RUNNING:
                self._resume(found, owner)
            else:
                self._api.act(
                    "POST",
                    f"{found.path}/status/suspend",
                    what=f"cannot pause VM {vmid}",
                    turns=self._turn(found.node),
                    before=lambda: self._inventory.sure(found, owner, "pause"),
                )

        self._settled(attempt)

    def _resume(self, found: Found, owner: str) -> None:
        self._api.act(
            "POST",
            f"{found.path}/status/resume",
            what=f"cannot resume VM {found.vmid}",
            turns=self._turn(found.node),
            before=lambda: self._inventory.sure(found, owner, "resume"),
        )

    # --- destroy ---

    def destroy(self, vmid: int, *, owner: str) -> None:
        self._settled(lambda: self._destroy(vmid, owner))

    def _destroy(self, vmid: int, owner: str) -> None:
        try:
            found = self._inventory.ours(vmid, owner, "destroy")
        except NotFound:
            return
        if found.lock == "clone":
            if self._clone_runs(found):
                raise Busy(f"cannot destroy VM {vmid}: its clone still runs")
            self._bury(found, owner)
            return
        if is_dead(found, self._inventory):
            self._destroy_locked(found, owner)
            return
        self._remove(found, owner)

    def _destroy_locked(self, found: Found, owner: str) -> None:
        """One that a task about a snapshot has left locked; work disks stay, as in `_remove`."""
        if not self._tools.available_on(found.node):
            raise refusal(found, f"cannot destroy VM {found.vmid}")
        self._off(found, owner)
        held = _volumes_in(found)
        if held:
            self._inventory.sure(found, owner, "destroy")
            self._tools.detach_locked(found.vmid, held)
        self._inventory.sure(found, owner, "destroy")
        self._tools.destroy_locked(found.vmid)

    def _remove(self, found: Found, owner: str) -> None:
        """Without the sweep for other disks of this VMID: they would not be proven to be ours."""
        self._off(found, owner)
        self._keep_volumes(found, owner)
        self._api.act(
            "DELETE",
            found.path,
            {"purge": True},
            what=f"cannot destroy VM {found.vmid}",
            turns=self._turn(found.node),
            before=lambda: self._inventory.sure(found, owner, "destroy"),
        )

    def _keep_volumes(self, found: Found, owner: str) -> None:
        """Work disks are detached first, though destroying the machine would leave them."""
        held = _volumes_in(found)
        if held:
            self._inventory.sure(found, owner, "destroy")
            self._api.change(
                "PUT",
                f"{found.path}/config",
                {"delete": ",".join(held), **as_read(found)},
                what=f"cannot detach the volumes of VM {found.vmid}",
            )


def _volumes_in(found: Found) -> list[str]:
    """The drives of a machine that are work disks."""
    return [
        drive.key
        for drive in parse_drives(found.config)
        if volume_owner(drive.volid)[0] not in (0, found.vmid)
    ]


def as_read(found: Found) -> dict[str, str]:
    """Has Proxmox refuse the change when the configuration is no longer the one that we read."""
    return {"digest": str(found.config["digest"])} if "digest" in found.config else {}

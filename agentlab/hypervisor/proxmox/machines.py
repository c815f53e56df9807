"""Machines of Proxmox, from clone to destroy.

Everything that changes a machine reads its mark first, by the configuration as it is now: a
record, a cache or a tag proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentlab.errors import Busy, Conflict, NotFound, Unavailable
from agentlab.hypervisor.base import Machine, MachineSpec, Power, Template
from agentlab.hypervisor.proxmox.clones import Clones
from agentlab.hypervisor.proxmox.dead_lock import is_dead, refusal, refuse_dead
from agentlab.hypervisor.proxmox.inventory import Found
from agentlab.hypervisor.proxmox.names import (
    check_spec,
    parse_drives,
    render_config,
    root_drive,
    same,
    surplus,
    tagged_owner,
    volume_owner,
)
from agentlab.hypervisor.proxmox.part import as_read
from agentlab.hypervisor.proxmox.transport import (
    NoSuchVM,
    NotRunning,
    PowerdownTimeout,
    ReplyLost,
    Running,
)


class ProxmoxMachines(Clones):
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

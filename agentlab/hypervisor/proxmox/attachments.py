"""Which machine has a volume, and how it gets and loses one: by its configuration alone.

Proxmox itself guards nothing here: it attaches one volume to two machines, and frees one that is
attached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from agentlab.errors import Busy, Conflict, NotFound, NotOurs
from agentlab.hypervisor.proxmox.dead_lock import is_dead, refusal, refuse_dead
from agentlab.hypervisor.proxmox.inventory import Found
from agentlab.hypervisor.proxmox.names import parse_drives, volume_owner
from agentlab.hypervisor.proxmox.part import Part, as_read
from agentlab.hypervisor.proxmox.transport import Refused

WORK = "scsi1"  # the drive that a work disk is; a template keeps it free


class ProxmoxAttachments(Part):
    """The part of `base.Volumes` that is about machines."""

    def attached(self, vmid: int, *, owner: str) -> Sequence[str]:
        held = self._held(self._inventory.ours(vmid, owner, "look at the volumes of"))
        return sorted(volid for volid in held if volume_owner(volid)[1] == owner)

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
        refuse_dead(found, self._inventory, what)
        self._inventory.sure(found, owner, "attach a volume to")
        if volid in self._held(found):
            if _keys(self._live(found), volid) != [WORK]:
                raise Busy(f"{what}: it is still being detached there")
            found = self._taken_out(found, owner, what)
            if volid in self._held(found):
                change = {"revert": WORK}  # its guest has not let go of it, and keeps it
        self._api.change("PUT", f"{found.path}/config", {**change, **as_read(found)}, what=what)

    def _taken_out(self, found: Found, owner: str, what: str) -> Found:
        """Asks once more for a change that waits.

        QEMU gives the disk up first and its controller then: when only that was late, the disk is
        out, `revert` would plug nothing in, and this is done at once (PVE::QemuServer,
        vm_deviceunplug and vmconfig_update_disk).
        """
        with contextlib.suppress(Refused):
            asked = {"delete": WORK, **as_read(found)}
            self._api.change("PUT", f"{found.path}/config", asked, what=what)
        return self._inventory.ours(found.vmid, owner, "attach a volume to")

    def detach(self, vmid: int, volid: str, *, owner: str) -> None:
        self._need_ours(volid, owner, "detach")
        self._settled(lambda: self._detach(vmid, volid, owner))

    def _detach(self, vmid: int, volid: str, owner: str) -> None:
        try:
            found = self._inventory.ours(vmid, owner, "detach a volume from")
        except NotFound:
            return
        keys = _keys(found.config, volid)
        if not keys:
            live = _keys(self._live(found), volid)
            # what waits when a guest powers itself off is made by the next change only
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

    # --- who has it ---

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

    @property
    def _node(self) -> str:
        if self._settings.node:
            return self._settings.node
        return min(self._settings.allowed or self._nodes_online())

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


def _keys(config: Mapping[str, object], volid: str) -> list[str]:
    """Where a volume is in a configuration."""
    return [drive.key for drive in parse_drives(config) if drive.volid == volid] + [
        key
        for key, value in config.items()
        if key.startswith("unused") and str(value).partition(",")[0] == volid
    ]

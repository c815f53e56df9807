"""Templates in Proxmox: made from a disk image, found again by their mark, replaced by newer ones.

The mark is a line of the description, which the call that makes the VM writes.  It holds the VMID:
an administrator's copy, which takes the description along, is not ours.  A VM that carries it and
is no template yet is a build that failed or was cut off: it is removed, and made anew.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentlab.errors import (
    AgentLabError,
    Conflict,
    Invalid,
    NotFound,
    NotOurs,
    Unavailable,
    Unsupported,
)
from agentlab.hypervisor.base import TemplateReport
from agentlab.hypervisor.proxmox import root_view
from agentlab.hypervisor.proxmox.check import check_template
from agentlab.hypervisor.proxmox.inventory import Found, Inventory, Resources
from agentlab.hypervisor.proxmox.names import check_owner, parse_storages, root_drive
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.hypervisor.proxmox.tasks import Api, settled
from agentlab.hypervisor.proxmox.template_import import LONG, held, import_disk
from agentlab.hypervisor.proxmox.transport import Exists, InUse, Locked, NoSuchVM

TAG = "agentlab-template"
_MARK = re.compile(
    r"^agentlab-template: (?P<owner>[A-Za-z0-9._-]+) vmid=(?P<vmid>[0-9]+) "
    r"name=(?P<name>[A-Za-z0-9.-]+) key=(?P<key>[0-9a-f]+)\s*$",
    re.MULTILINE,
)
# PVE::JSONSchema pve_verify_dns_name
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_UNUSED = re.compile(r"unused\d+")
_FILE_TYPES = ("dir", "nfs", "cifs", "glusterfs")  # where only qcow2 has snapshots
_SETTLE = 600.0  # for starting over after a reply that was lost
_TRIES = 1000  # VMIDs that may be taken
_CPU = "x86-64-v2-AES"  # what current programs ask for, and every processor of ten years has


@dataclass(frozen=True, slots=True)
class Mark:
    """What the description of a template of ours says."""

    owner: str
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Order:
    """What to make.  `key` names the content, `image` makes the qcow2 file when it is needed.

    `first` is the lowest VMID that it may have.  `work` is a directory of ours on the node.
    """

    name: str
    owner: str
    key: str
    image: Callable[[], Path]
    first: int
    work: Path
    storage: str = ""  # "": of the settings, else the one with most room


def render_description(mark: Mark, vmid: int, storage: str) -> str:
    """What people and we read in a template's notes.

    `storage` is that of its disk; it had no volume of this VMID before.
    """
    return (
        "A template of AgentLab: sandboxes are cloned from it.\n\n"
        f"agentlab-template: {check_owner(mark.owner)} vmid={vmid} "
        f"name={mark.name} key={mark.key}\n"
        f"agentlab-storage: {storage}\n"
    )


def parse_mark(description: object, vmid: int) -> Mark | None:
    """The mark in a description; None when there is none or it is that of another VMID."""
    found = _MARK.search(description) if isinstance(description, str) else None
    if found is None or int(found["vmid"]) != vmid:
        return None
    return Mark(found["owner"], found["name"], found["key"])


def render_vm(order: Order, vmid: int, *, bridge: str, storage: str) -> dict[str, str | int]:
    """The VM as it is made, all but its disk."""
    mark = Mark(order.owner, order.name, order.key)
    return {
        "vmid": vmid,
        "name": order.name,
        "description": render_description(mark, vmid, storage),
        "tags": TAG,
        "ostype": "l26",
        "cpu": _CPU,
        "cores": 2,
        "memory": 2048,
        "agent": 1,
        "serial0": "socket",
        "vga": "serial0",
        "scsihw": "virtio-scsi-single",
        "scsi2": f"{storage}:cloudinit",
        "boot": "order=scsi0",
        "net0": f"virtio,bridge={bridge}",
    }


def pick_storage(answer: object, wanted: str) -> tuple[str, str]:
    """Name and type of the storage, of `GET /nodes/N/storage?content=images`.

    The wanted one, or else the one with most room; NotFound tells which there are.
    """
    found = {
        str(entry["storage"]): entry
        for entry in (answer if isinstance(answer, list) else [])
        if str(entry.get("active", 1)) == "1" and str(entry.get("enabled", 1)) == "1"
    }
    if wanted and wanted not in found:
        raise NotFound(
            f"there is no storage {wanted} for disk images on this node",
            hint=f"known: {', '.join(sorted(found)) or 'none'}; see `pvesm status --content images`",
        )
    if not found:
        raise NotFound(
            "there is no storage for disk images on this node",
            hint="allow one to hold them: pvesm set <STORAGE> --content images",
        )
    name = wanted or max(found, key=lambda each: int(found[each].get("avail") or 0))
    return name, str(found[name].get("type", ""))


class Templates:
    """Builds and checks templates, on the node that the daemon runs on."""

    def __init__(self, api: Api, settings: Settings, tools: NodeTools) -> None:
        self._api = api
        self._settings = settings
        self._tools = tools
        self._inventory = Inventory(api, settings)

    # --- check ---

    def check(self, name: str) -> TemplateReport:
        """What a template, or a VM that is to be one, lacks; by name or VMID.  NotFound."""
        guests = self._inventory.resources("vm").guests.values()
        named = [
            guest for guest in guests if guest.kind == "qemu" and name in (guest.name, str(guest.vmid))
        ]  # fmt: skip
        found = next(
            (
                each
                for guest in sorted(named, key=lambda each: not each.template)
                if (each := self._inventory.find(guest.vmid)) is not None
            ),
            None,
        )
        if found is None:
            there = ", ".join(sorted({guest.name for guest in guests if guest.template})) or "none"
            raise NotFound(
                f"there is no template {name} in Proxmox",
                hint=f"templates that can be seen: {there}; `agentlab template build` makes one",
            )
        findings = check_template(found.vmid, found.config, bridge=self._settings.bridge)
        detail = f"VM {found.vmid} on node {found.node}"
        return TemplateReport(str(found.config.get("name", name)), detail, tuple(findings))

    # --- build ---

    def build(self, order: Order, on_step: Callable[[str], None]) -> int:
        """Makes the template, or finds the one with this name and key; its VMID.

        Older ones of ours with this name are removed, or only renamed while linked clones need
        them.  Unsupported, before anything is done, where we are not root on the node: a token may
        not import a disk from a file.
        """
        if not _NAME.fullmatch(order.name) or order.name.isdecimal():
            raise Invalid(
                f"cannot build template {order.name}: Proxmox takes no such name",
                hint="use letters, digits, '-' and '.', and not digits alone",
            )
        with held(order.work) as lock:
            try:
                vmid = settled(
                    lambda: self._attempt(order, on_step, lock),
                    patience=max(self._settings.patience, _SETTLE),
                )
            except AgentLabError:
                with contextlib.suppress(AgentLabError):  # why it failed is what matters
                    self._need_node()
                    resources = self._inventory.resources("vm")
                    self._remove_halves(order, self._marked(resources, order.name), on_step)
                raise
            self._retire_others(order, vmid, on_step)
        return vmid

    def _attempt(self, order: Order, on_step: Callable[[str], None], lock: int) -> int:
        resources = self._inventory.resources("vm")
        ours = self._marked(resources, order.name)
        for found, mark in ours:
            here = mark.owner == order.owner or found.node == self._settings.node
            if _finished(found) and mark.key == order.key and here:
                return found.vmid
        self._refuse_namesake(resources, order, {found.vmid for found, _ in ours})
        self._need_node()
        self._remove_halves(order, ours, on_step)
        image = order.image()
        storage, kind = self._storage(order.storage)
        vmid = self._create(order, storage)
        on_step(f"importing the disk into VM {vmid} on {storage}")
        begun = time.monotonic()
        import_disk(vmid, image, storage, "qcow2" if kind in _FILE_TYPES else "", lock)
        path = f"/nodes/{self._settings.node}/qemu/{vmid}"
        self._attach(path, vmid)
        what = f"cannot make VM {vmid} a template"
        self._api.act("POST", f"{path}/template", what=what, patience=LONG)
        took = time.monotonic() - begun
        on_step(f"template {order.name} is VM {vmid} ({took:.0f} s)")
        return vmid

    def _remove_halves(
        self, order: Order, ours: list[tuple[Found, Mark]], on_step: Callable[[str], None]
    ) -> None:
        for found, mark in ours:
            if not _finished(found) and mark.owner == order.owner:
                on_step(f"removing VM {found.vmid}, which a build that was cut off has left")
                self._remove_unfinished(found, mark)

    def _need_node(self) -> None:
        if not self._tools.available_on(self._settings.node):
            where = f"on node {self._settings.node}" if self._settings.node else "on a node"
            raise Unsupported(
                f"cannot build the template: agentlabd does not run as root {where}, and an API "
                "token may not import a disk from a file",
                hint="run `agentlab template build` with an agentlabd that runs as root on the node",
            )

    def _marked(self, resources: Resources, name: str) -> list[tuple[Found, Mark]]:
        """VMs and templates that carry a mark with this name, whatever they are called now."""
        found = []
        for guest in resources.guests.values():
            if guest.kind != "qemu" or not (TAG in guest.tags.split(";") or guest.name == name):
                continue
            machine = self._inventory.find(guest.vmid)
            mark = parse_mark(machine.config.get("description"), guest.vmid) if machine else None
            if machine and mark and mark.name == name:
                found.append((machine, mark))
        return found

    def _refuse_namesake(self, resources: Resources, order: Order, marked: set[int]) -> None:
        """Two templates of one name would be taken for each other."""
        for guest in resources.guests.values():
            if guest.template and guest.name == order.name and guest.vmid not in marked:
                raise Conflict(
                    f"cannot build template {order.name}: VM {guest.vmid} on node {guest.node} is "
                    "a template of that name, and not ours",
                    hint=f"see what it lacks: agentlab template check {guest.vmid}; or rename it: "
                    f"qm set {guest.vmid} --name NAME",
                )

    def _storage(self, wanted: str) -> tuple[str, str]:
        node = self._settings.node
        what = f"cannot read the storages of node {node}"
        answer = self._api.get(f"/nodes/{node}/storage", what=what, content="images", enabled=1)
        return pick_storage(answer, wanted or self._settings.storage)

    def _create(self, order: Order, storage: str) -> int:
        """Makes the VM under the first VMID that is free, with its mark; its VMID."""
        taken = set(self._inventory.resources("vm").guests)
        storages = root_view.image_storages(self._settings.node)
        for vmid in range(order.first, order.first + _TRIES):
            if vmid in taken or vmid in self._settings.vmids:
                continue
            if vmid in self._settings.volume_vmids:
                continue
            params = render_vm(order, vmid, bridge=self._settings.bridge, storage=storage)
            params.update({"pool": self._settings.pool} if self._settings.pool else {})
            path, what = f"/nodes/{self._settings.node}/qemu", f"cannot make VM {vmid}"
            try:
                self._api.get("/cluster/nextid", what=f"cannot look up VMID {vmid}", vmid=vmid)
                if any(root_view.disks_of(vmid, self._settings.node, each) for each in storages):
                    continue  # of a VM that is gone, or of another cluster
                self._api.act("POST", path, params, what=what, patience=LONG)
            except Exists:
                continue
            return vmid
        raise Conflict(
            f"cannot make a template: the VMIDs from {order.first} on are all taken",
            hint="set proxmox.template_vmid to a number with room above it",
        )

    def _attach(self, path: str, vmid: int) -> None:
        config = self._api.get(f"{path}/config", what=f"cannot read VM {vmid}")
        disks = [
            str(value)
            for key, value in (config.items() if isinstance(config, dict) else [])
            if _UNUSED.fullmatch(str(key))
        ]
        if len(disks) != 1:
            raise Unavailable(f"cannot build the template: VM {vmid} has no disk after the import")
        params = {"scsi0": f"{disks[0]},discard=on", "boot": "order=scsi0"}
        what = f"cannot attach the disk of VM {vmid}"
        self._api.change("PUT", f"{path}/config", params, what=what)

    def _remove(self, found: Found, mark: Mark) -> None:
        """A whole template, with the disks that it names and no other; InUse, Locked, NoSuchVM."""
        self._api.act(
            "DELETE",
            found.path,
            {"purge": True},
            what=f"cannot remove template {found.vmid}",
            before=lambda: self._prove(found, mark),
        )

    def _remove_unfinished(self, found: Found, mark: Mark) -> None:
        """With what its import has left on the storage where there was none of this VMID before,
        and which the VM does not name.  Of locks it takes away that of its own making only.
        """
        here = self._tools.available_on(found.node)
        if found.lock == "create" and here:
            self._prove(found, mark)
            self._tools.unlock(found.vmid)
        named = {str(value).partition(",")[0] for value in found.config.values()}
        for storage in parse_storages(found.config.get("description")) if here else ():
            for volid in root_view.disks_of(found.vmid, found.node, storage):
                if volid not in named:
                    self._prove(found, mark)
                    self._tools.free(volid)
        self._api.act(
            "DELETE",
            found.path,
            {"purge": True},
            what=f"cannot remove VM {found.vmid}",
            before=lambda: self._prove(found, mark),
        )

    def _prove(self, found: Found, mark: Mark) -> None:
        """Raises NotOurs when the VM does not carry the same mark now."""
        now = self._inventory.find(found.vmid)
        if now is None or parse_mark(now.config.get("description"), found.vmid) != mark:
            raise NotOurs(f"cannot remove VM {found.vmid}: it is not the template that it was")

    def _retire_others(self, order: Order, vmid: int, on_step: Callable[[str], None]) -> None:
        """What went before has another name first, so that nothing is cloned from it any more."""
        for found, mark in self._marked(self._inventory.resources("vm"), order.name):
            if found.vmid == vmid or mark.owner != order.owner or not _finished(found):
                continue
            name = f"{order.name}-old-{found.vmid}"
            if found.config.get("name") != name:
                what = f"cannot rename template {found.vmid}"
                self._api.change("PUT", f"{found.path}/config", {"name": name}, what=what)
            try:
                self._remove(found, mark)
                on_step(f"removed template {found.vmid}, which went before")
            except NoSuchVM:
                continue
            except InUse:
                on_step(f"template {found.vmid} stays as {name} while linked clones need it")
            except Locked as locked:
                on_step(f"template {found.vmid} stays as {name}: {locked.message}")


def _finished(found: Found) -> bool:
    """A template whose disk is one to clone from: Proxmox sets the flag before it makes that."""
    root = root_drive(found.config)
    return found.template and root is not None and "base-" in root.volid

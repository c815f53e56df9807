"""What is where: machines, nodes and storages, mostly from one call for all of the cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agentlab.errors import Busy, Denied, NotFound, NotOurs, Unavailable
from agentlab.hypervisor.base import Machine, Power
from agentlab.hypervisor.proxmox.names import parse_disks, parse_owner, tagged_owner
from agentlab.hypervisor.proxmox.rights import Granted, holds, parse_permissions
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.hypervisor.proxmox.tasks import Api
from agentlab.hypervisor.proxmox.transport import Exists, NoSuchVM, Parameter, Refused
from agentlab.hypervisor.proxmox.transport import Template as IsTemplate

# Locks under which Proxmox itself writes a configuration without a description, and the tasks
# that hold them (PVE::API2::Qemu clone_vm until the first drive is whole, destroy_vm at its end).
_UNMARKED = {"clone": "qmclone", "destroyed": "qmdestroy"}
_MOMENT = 0.3  # seconds for which a configuration is believed before something is changed
_RIGHTS_LAST = 60.0  # seconds for which a look at our own rights is believed


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM or container as `/cluster/resources` shows it.  Memory is in bytes.

    `cpu` is the share of its own processors, between two looks of pvestatd (10 s); 0 before the
    second one (PVE::QemuServer::vmstatus).
    """

    vmid: int
    kind: str  # "qemu" or "lxc"
    node: str
    name: str
    status: str  # "running" (a paused one too), "stopped", "unknown"
    template: bool
    tags: str
    maxmem: int
    lock: str = ""
    cpu: float | None = None

    @property
    def power(self) -> Power:
        # without a name, pvestatd has not looked at it yet
        if not self.name or self.status not in ("running", "stopped"):
            return Power.UNKNOWN
        return Power(self.status)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster; memory in bytes."""

    name: str
    online: bool
    maxmem: int
    mem: int


@dataclass(frozen=True, slots=True)
class StorageAt:
    """A storage as one node sees it."""

    name: str
    node: str
    available: bool
    shared: bool
    content: frozenset[str]


@dataclass(frozen=True, slots=True)
class Resources:
    """One look at the cluster."""

    guests: Mapping[int, Guest]
    nodes: Mapping[str, Node]
    storages: Mapping[tuple[str, str], StorageAt]  # by (node, storage)


def parse_resources(data: object) -> Resources:
    """`GET /cluster/resources`; Unavailable when it is not what it should be."""
    if not isinstance(data, list):
        raise Unavailable("Proxmox gave an inventory that is no list")
    guests: dict[int, Guest] = {}
    nodes: dict[str, Node] = {}
    storages: dict[tuple[str, str], StorageAt] = {}
    for entry in data:
        try:
            match str(entry["type"]):
                case "qemu" | "lxc" as kind:
                    guest = _guest(kind, entry)
                    guests[guest.vmid] = guest
                case "node":
                    nodes[str(entry["node"])] = Node(
                        str(entry["node"]),
                        entry.get("status") == "online",
                        int(entry.get("maxmem") or 0),
                        int(entry.get("mem") or 0),
                    )
                case "storage":
                    place = (str(entry["node"]), str(entry["storage"]))
                    storages[place] = StorageAt(
                        name=place[1],
                        node=place[0],
                        available=entry.get("status") == "available",
                        shared=str(entry.get("shared", 0)) == "1",
                        content=frozenset(str(entry.get("content", "")).split(",")),
                    )
        except (KeyError, TypeError, ValueError) as error:
            raise Unavailable(f"Proxmox gave an inventory that cannot be read: {error}") from error
    return Resources(guests, nodes, storages)


def _guest(kind: str, entry: Mapping[str, object]) -> Guest:
    return Guest(
        vmid=int(str(entry["vmid"])),
        kind=kind,
        node=str(entry["node"]),
        name=str(entry.get("name") or ""),
        status=str(entry.get("status") or "unknown"),
        template=str(entry.get("template", 0)) == "1",
        tags=str(entry.get("tags") or ""),
        maxmem=int(float(str(entry.get("maxmem") or 0))),
        lock=str(entry.get("lock") or ""),
        cpu=_share(entry.get("cpu")) if entry.get("status") == "running" else None,
    )


def _share(value: object) -> float | None:
    """QEMU's other threads count too, so that Proxmox may tell of more than all."""
    return None if value is None else min(1.0, max(0.0, float(str(value))))


@dataclass(frozen=True, slots=True)
class Found:
    """A machine and its configuration as it is now."""

    vmid: int
    node: str
    config: Mapping[str, object] = field(repr=False)
    read: float = field(default_factory=time.monotonic, compare=False)

    @property
    def age(self) -> float:
        """Seconds since it was read."""
        return time.monotonic() - self.read

    @property
    def owner(self) -> str:
        return parse_owner(self.config.get("description"), self.vmid)

    @property
    def lock(self) -> str:
        return str(self.config.get("lock") or "")

    @property
    def template(self) -> bool:
        return str(self.config.get("template", 0)) == "1"

    @property
    def path(self) -> str:
        return f"/nodes/{self.node}/qemu/{self.vmid}"


class Inventory:
    """Finds machines wherever they are; remembers only on which node one was seen last."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self._seen: dict[int, str] = {}
        self._rights: tuple[float, Granted] = (0.0, {})
        self._lock = threading.Lock()

    def resources(self, kind: str = "") -> Resources:
        """`kind` is "vm" for guests alone; Unavailable when it cannot be read."""
        what = "cannot read the inventory of the cluster"
        params = {"type": kind} if kind else {}
        found = parse_resources(self._read("/cluster/resources", what, **params))
        self._seen.update({guest.vmid: guest.node for guest in found.guests.values()})
        return found

    def machines(self) -> Sequence[Machine]:
        """All guests of the cluster, strangers too.

        A configuration is read only for what lies in our range and carries no tag: a clone that
        has just begun, or a stranger.  Denied when our rights do not show us everything that may
        be ours: a shorter list is never given.
        """
        self._need_audit()
        found = self.resources("vm")
        return [
            Machine(
                vmid=guest.vmid,
                name=guest.name,
                owner=self._owner(guest),
                power=guest.power,
                node=guest.node,
                lock=guest.lock,
                cpu=guest.cpu if guest.power is Power.RUNNING else None,
                template=guest.template,
            )
            for guest in sorted(found.guests.values(), key=lambda each: each.vmid)
        ]

    def _owner(self, guest: Guest) -> str:
        if guest.kind != "qemu" or guest.template:
            return ""
        owner = tagged_owner(guest.tags, guest.vmid)
        if owner or guest.vmid not in self._settings.vmids:
            return owner
        try:
            return self._config(guest.vmid, guest.node).owner
        except (NotFound, Denied, Unavailable):
            return ""  # gone meanwhile, a stranger's, or on a node that is offline

    def _need_audit(self) -> None:
        """VM.Audit on all VMs, or on our pool; without it lists are silently shorter."""
        path = f"/pool/{self._settings.pool}" if self._settings.pool else "/vms"

        def enough(given: Granted) -> bool:
            # the value says whether it holds for what is below, too
            return any(given.get(each, {}).get("VM.Audit") for each in {"/", "/vms", path})

        if not self._may(enough):
            raise Denied(
                f"cannot read the inventory: the API token lacks VM.Audit on {path}, so that "
                "machines would seem to be gone",
                hint="see `agentlab init` and docs/how-to/proxmox.md",
            )

    def need_volumes(self, storage: str) -> None:
        """What shows all volumes of ours on a storage; without it lists are silently shorter.

        PVE::Storage check_volume_access shows them by VM.Config.Disk on their VMIDs as well, but
        nothing else lets us free them (PVE::API2::Storage::Content).
        """
        path = f"/storage/{storage}"
        if not self._may(lambda given: holds(given, path, "Datastore.Allocate")):
            raise Denied(
                f"cannot list the volumes of {storage}: the API token lacks Datastore.Allocate on "
                f"{path}, so that volumes would seem to be gone",
                hint=f"give the token and its user the role PVEDatastoreAdmin on {path}; "
                "see docs/how-to/workspaces.md",
            )

    def _may(self, enough: Callable[[Granted], bool]) -> bool:
        """Whether our rights are enough; a yes is believed for a while."""
        with self._lock:
            looked, given = self._rights
            if not enough(given) or time.monotonic() - looked > _RIGHTS_LAST:
                what = "cannot read our own rights"
                given = parse_permissions(self._api.get("/access/permissions", what=what))
                self._rights = (time.monotonic(), given)
            return enough(given)

    def find(self, vmid: int) -> Found | None:
        """A machine wherever it is now; None only when no guest of the cluster has this VMID.

        Denied when it is there and we may not see it; Unavailable when its node is offline.
        """
        node = self._seen.get(vmid)
        if node is not None:
            try:
                return self._config(vmid, node)
            except NoSuchVM:
                self._seen.pop(vmid, None)  # migrated by someone, or gone
        guest = self.guest(vmid)
        if guest is None:
            return None
        if guest.kind != "qemu":
            return Found(vmid, guest.node, {})
        try:
            return self._config(vmid, guest.node)
        except NoSuchVM as moving:
            if self._free(vmid):
                return None
            raise Unavailable(f"cannot read VM {vmid}: it is just being moved") from moving

    def disks_of(self, vmid: int, node: str, storage: str) -> list[str]:
        """The disk images on a storage that carry this VMID, as far as our rights show them.

        Without `content` Proxmox adds all snippets and import images, whatever the VMID, and the
        backups of it (PVE::Storage::Plugin list_volumes).
        """
        path = f"/nodes/{node}/storage/{storage}/content"
        what = f"cannot look for volumes of VMID {vmid} on {storage}"
        return parse_disks(self._api.get(path, what=what, vmid=vmid, content="images"), vmid)

    def node_of(self, vmid: int) -> str | None:
        """Where it was seen last, or is; None only when no guest has this VMID."""
        node = self._seen.get(vmid)
        if node is None:
            guest = self.guest(vmid)
            node = guest.node if guest else None
        return node

    def forget(self, vmid: int) -> None:
        """It is not where it was seen last."""
        self._seen.pop(vmid, None)

    def guest(self, vmid: int) -> Guest | None:
        """Its line of the inventory; None only when no guest of the cluster has this VMID."""
        guest = self.resources("vm").guests.get(vmid)
        if guest is not None or self._free(vmid):
            return guest
        raise Denied(
            f"cannot see VM {vmid}: it exists, and the API token may not look at it",
            hint="it is a stranger's, or VM.Audit is missing; see `agentlab init`",
        )

    def _free(self, vmid: int) -> bool:
        """Asked of the cluster's own list, which does not depend on our rights."""
        try:
            self._read("/cluster/nextid", f"cannot look up VMID {vmid}", vmid=vmid)
        except Exists:
            return False
        return True

    def _config(self, vmid: int, node: str) -> Found:
        path = f"/nodes/{node}/qemu/{vmid}/config"
        config = self._read(path, f"cannot read VM {vmid}")
        if not isinstance(config, dict):
            raise Unavailable(f"cannot read VM {vmid}: its configuration is no mapping")
        self._seen[vmid] = node
        return Found(vmid, node, config)

    def _read(self, path: str, what: str, **params: Parameter) -> object:
        """Whatever Proxmox says instead of an answer means that it is not known."""
        try:
            return self._api.get(path, what=what, **params)
        except Refused as refused:
            raise Unavailable(refused.message, details=refused.details) from refused

    def ours(self, vmid: int, owner: str, verb: str) -> Found:
        """A machine that carries our mark now; NotFound, NotOurs, Busy, Denied, Unavailable."""
        found = self.find(vmid)
        if found is None:
            raise NotFound(f"cannot {verb} VM {vmid}: there is no such VM")
        if not found.owner and found.lock in _UNMARKED and self.task_runs(_UNMARKED[found.lock]):
            raise Busy(f"cannot {verb} VM {vmid}: it is just being made or destroyed")
        return prove(found, owner, verb)

    def sure(self, found: Found, owner: str, verb: str) -> None:
        """Proves once more what was read more than a moment ago; as `ours`, and NoSuchVM."""
        if found.age > _MOMENT:
            prove(self._config(found.vmid, found.node), owner, verb)

    def task_runs(self, kind: str, vmid: int = 0) -> bool:
        """Whether a task of this type (about this VM) is active on any node that is online.

        A clone's task is filed under the template and names no target, so any one counts.
        """
        for node in self.resources().nodes.values():
            if not node.online:
                continue
            tasks = self._read(
                f"/nodes/{node.name}/tasks",
                f"cannot read the tasks of node {node.name}",
                source="active",
                typefilter=kind,
            )
            for task in tasks if isinstance(tasks, list) else []:
                about = not vmid or str(task.get("id")) == str(vmid)
                if task.get("type") == kind and about and not task.get("endtime"):
                    return True
        return False


def prove(found: Found, owner: str, verb: str) -> Found:
    """The same machine when its description says that it is this owner's."""
    if found.owner == owner and not found.template:
        return found
    if found.owner == owner:
        raise IsTemplate(f"cannot {verb} VM {found.vmid}: somebody has made it a template")
    whose = f"the installation {found.owner}" if found.owner else "someone else"
    hint = "choose another vmid_range in the settings"
    if not found.owner and found.lock in _UNMARKED:
        whose = "nobody that it names: a task that died has left it"
        hint = (
            f"when nobody misses it, as root on node {found.node}: "
            f"qm destroy {found.vmid} --skiplock 1 --purge 1"
        )
    raise NotOurs(
        f"cannot {verb} VM {found.vmid} on node {found.node}: it belongs to {whose}",
        hint=hint,
        details={"vmid": found.vmid, "node": found.node},
    )

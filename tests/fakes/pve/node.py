"""A node of Proxmox VE that is not there: fakepve, put right where Proxmox's own programs were seen
to do otherwise.

fakepve is imported and subclassed, never copied.  Every correction names, in brackets, the
recordings that show it: of REST, unless said otherwise (tests/data/proxmox/).
"""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web
from fakepve.model import FakeVm, PveError, TaskError
from fakepve.routing import die
from fakepve.server import FakePve, params

from tests.fakes.pve.front import Fault, Front, LoadModel
from tests.fakes.pve.guests import Agents, MissingProgram, SimulatedGuests
from tests.fakes.pve.machines import Machines, split_tags
from tests.fakes.pve.tasks import Tasks

__all__ = [
    "TOKEN",
    "FakeVm",
    "Fault",
    "LoadModel",
    "MissingProgram",
    "ProxmoxNode",
    "PveError",
    "SimulatedGuests",
    "TaskError",
]

TOKEN = ("root@pam!bench", "5f0b6c2e-3f0e-4a39-9f0e-0c6d2b7f4a11")
_CONTENT = "images,rootdir,iso,vztmpl,backup,snippets"


class ProxmoxNode(Front, Agents, Machines, Tasks, FakePve):
    """`time_scale` is real seconds for each PVE second; at 0 a task has ended when its call returns.

    `guests` plays what runs inside the machines; `load` makes the node busy.  `nodes` are the names
    of the cluster's nodes.  `version` is "8.2.4" or a later one.
    """

    OWN_CLASSES: tuple[type, ...] = (Machines, Agents)

    def __init__(
        self,
        *,
        nodes: tuple[str, ...] = ("pve",),
        storage: str = "local",
        time_scale: float = 0.0,
        guests: SimulatedGuests | None = None,
        load: LoadModel | None = None,
        broadcast_secs: float = 0.0,
        version: str = "8.2.4",
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__(host=host, port=port, load=load)
        self.nodes = {name: {"online": True} for name in nodes}
        self.node = nodes[0]
        self.storage = storage
        self.storages = {}
        self.add_dir_storage(storage)
        self.time_scale = time_scale
        self.guests = guests
        # PVE seconds until cluster/resources knows more of a new machine than its number
        self.broadcast_secs = broadcast_secs
        self.version = version
        self.release_version = version.rpartition(".")[0]
        self.apitokens[TOKEN[0]] = TOKEN[1]
        self.executor = ThreadPoolExecutor(max_workers=32, thread_name_prefix="pve")

    @property
    def token(self) -> str:
        """The API token as text; a token of root, which is not root."""
        return "=".join(TOKEN)

    def add_dir_storage(self, name: str, *, avail: int = 100 * 1024**3, **more: Any) -> None:
        """A storage of type `dir`; `shared=1`, `nodes="pve1,pve2"`, `content="iso"`…"""
        self.storages[name] = {
            "type": "dir", "path": "/var/lib/vz" if name == "local" else f"/mnt/{name}",
            "active": 1, "content": _CONTENT, "files": set(), "volumes": {}, "avail": avail, **more,
        }  # fmt: skip

    def add_block_storage(self, name: str, kind: str, **more: Any) -> None:
        """A storage whose volumes are no files: `zfspool` (`pool=`), `lvm` or `lvmthin` (`vgname=`)."""
        self.storages[name] = {
            "type": kind, "active": 1, "content": "images,rootdir", "files": set(), "volumes": {},
            "avail": 100 * 1024**3, **more,
        }  # fmt: skip

    def make_template(
        self,
        vmid: int = 9000,
        name: str = "agentlab-template",
        *,
        node: str | None = None,
        storage: str | None = None,
        size: int = 4 * 1024**3,
        cloudinit: bool = True,
        agent: bool = True,
        tags: str = "",
        **config: Any,
    ) -> FakeVm:
        """A template as a right one is: its base volume and its cloud-init drive are on the
        storage, and its config says `template: 1`.  `config` adds to the config; None takes away."""
        storage = storage or self.storage
        volumes = self.storages[storage]["volumes"]
        files = self.storages[storage]["type"] == "dir"
        base = f"{vmid}/base-{vmid}-disk-0.qcow2" if files else f"base-{vmid}-disk-0"
        volumes[base] = _volume(vmid, size, "qcow2" if files else "raw")
        given: dict[str, Any] = {
            "name": name, "template": 1, "cores": 2, "memory": "2048", "ostype": "l26",
            "scsihw": "virtio-scsi-single", "serial0": "socket", "vga": "serial0",
            "net0": "virtio=BC:24:11:00:90:00,bridge=vmbr0",
            "scsi0": f"{storage}:{base},size={size // 1024**3}G",
            "boot": "order=scsi0", "smbios1": "uuid=9d2cf2f4-3c1e-4d0e-8c59-3f0c1e9f9000",
            "vmgenid": "7f7c1f4e-52a8-4a3c-9a52-f3f1b7d09000",
        }  # fmt: skip
        if agent:
            given["agent"] = "1"
        if tags:
            given["tags"] = split_tags(tags)
        if cloudinit:
            drive = f"{vmid}/vm-{vmid}-cloudinit.qcow2" if files else f"vm-{vmid}-cloudinit"
            volumes[drive] = _volume(vmid, 4 * 1024**2, "qcow2" if files else "raw")
            given["ide2"] = f"{storage}:{drive},media=cdrom,size=4M"
        given.update(config)
        given = {key: value for key, value in given.items() if value is not None}
        return self.add_vm(vmid, name, node=node or self.node, config=given, template=True)

    def make_vm(self, vmid: int, name: str = "", **config: Any) -> FakeVm:
        """A machine with no disk, that nobody of ours made."""
        name = name or f"vm{vmid}"
        return self.add_vm(vmid, name, node=self.node, config={"memory": "512", **config})

    def volumes_of(self, vmid: int) -> list[str]:
        """The volume ids, on all storages, that carry this VMID."""
        return sorted(
            f"{sid}:{name}"
            for sid, store in self.storages.items()
            for name, volume in store.get("volumes", {}).items()
            if volume.get("vmid") == vmid
        )

    def put_file(self, name: str, storage: str | None = None) -> str:
        """A file of a storage, like `snippets/x.yaml` or `backup/vzdump-qemu-100-….vma`; its id."""
        store = self.storages[storage or self.storage]
        kind, vmid, _ = self._parse_volname(store, name)
        store["content"] = ",".join(dict.fromkeys([*store["content"].split(","), kind]))
        store["volumes"][name] = {**_volume(vmid, 4096, "raw"), "content": kind}
        return f"{storage or self.storage}:{name}"

    def leave_dead_clone(
        self, vmid: int, template: int = 9000, description: str | None = None
    ) -> FakeVm:
        """What a clone that was killed hard leaves: `lock: clone` and disks."""
        source = self.vm(template)
        assert source is not None
        vm = self.add_vm(vmid, f"VM {vmid}", node=source.node)
        vm.config = {"description": description or " qmclone temporary file"}
        self._qm_lock(vm, "clone")
        self._allot(self.storage, vmid, "qcow2", 4 * 1024**2, f"vm-{vmid}-cloudinit")
        return vm

    async def stop(self) -> None:
        for running in list(self._running.values()):
            running.cancel()
        await super().stop()
        self.executor.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------------- lists

    async def _resources(self, request: web.Request) -> web.Response:
        """What pvestatd has not yet told of, or of a node that is away, has the status "unknown"
        and little else (654, 837); tags and template show."""
        self._verify(request, await params(request))  # 056
        response = await super()._resources(request)
        items = json.loads(response.text)["data"]
        for item in items:
            vm = self.vm(item["vmid"]) if item.get("type") == "qemu" else None
            if vm is None:
                continue
            born = getattr(vm, "born_at", None)
            fresh = born is not None and (
                time.monotonic() - born < self.broadcast_secs * self.time_scale
            )
            if fresh or not self.nodes[vm.node].get("online", True):
                known = ("id", "type", "node", "vmid", "lock", "tags", "pool", "hastate")
                few = {key: value for key, value in item.items() if key in known}
                item.clear()
                item.update(few, status="unknown")
        return web.json_response({"data": items})

    async def _version(self, request: web.Request) -> web.Response:
        """Takes no parameters (071)."""
        self._verify(request, await params(request))
        told = {"version": self.version, "release": self.release_version}
        return web.json_response({"data": {**told, "repoid": "faa83925c9641325"}})

    async def _cluster_status(self, request: web.Request) -> web.Response:
        """A node of its own has no line about a cluster (042)."""
        response = await super()._cluster_status(request)
        if len(self.nodes) > 1:
            return response
        only = {"type": "node", "id": f"node/{self.node}", "name": self.node, "nodeid": 0}
        return web.json_response(
            {"data": [{**only, "level": "", "ip": "192.0.2.2", "local": 1, "online": 1}]}
        )

    # ------------------------------------------------------------------------- storage

    @staticmethod
    def _guest_volumes(guests: Any, name: str) -> dict[str, Any]:
        """A volume is on the storage or it is not, whatever configs say."""
        return {}

    def _parse_volname(self, store: Any, volname: str) -> Any:
        """A linked clone's volume is called after its base, too (254)."""
        linked = re.fullmatch(r"(?:\d+/)?base-[^/]+/((?:\d+/)?[^/]+)", volname)
        return super()._parse_volname(store, linked[1] if linked else volname)

    def _item(self, name: str, volname: str, volume: Any) -> dict[str, Any]:
        """`parent` names the base (254)."""
        item = super()._item(name, volname, volume)
        if item["content"] == "images":
            linked = re.fullmatch(r"((?:\d+/)?base-[^/]+)/(?:\d+/)?[^/]+", volname)
            above = "../" if "." in volname else ""
            item["parent"] = f"{above}{linked[1]}" if linked else None
            item.setdefault("used", 266240)
        return item

    async def _content_list(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        """A VMID narrows down images and backups; there are no ISO images and container templates
        then, and all snippets and import images (PVE::Storage::Plugin list_volumes)."""
        wanted = v.get("vmid")
        found = await super()._content_list({**v, "vmid": None}, user)
        if wanted is None:
            return list(found)
        return [
            each
            for each in found
            if each["content"] in ("snippets", "import")
            or (each["content"] not in ("iso", "vztmpl") and each.get("vmid") == wanted)
        ]

    async def _content_create(self, v: dict[str, Any], user: str) -> str:
        """A file's name must be of the form `vm-<vmid>-…` with its format's ending (483)."""
        store = self.storages.get(v["storage"])
        if store is not None and store.get("type") == "dir":
            wanted = rf"vm-{v['vmid']}-[^/\s]+\.(?:raw|qcow2|vmdk)"
            if not re.fullmatch(wanted, v["filename"]):
                raise die(f"unable to parse volume filename '{v['filename']}'")
        volid = await super()._content_create(v, user)
        volume = self._qm_volume(volid)
        try:
            await self.blocking(self.on_allot, volid, int(volume["size"]))
        except Exception:
            self._qm_free(volid)
            raise
        return volid

    async def _content_delete(self, v: dict[str, Any], user: str) -> str | None:
        """A base in use stays (532 to 534); what is not there is freed all the same (529)."""
        sid, volname, volid, _store, vtype, owner, _format = self._volume_target(v)
        if vtype != "images":
            return await super()._content_delete(v, user)
        self.require(user, f"/storage/{sid}", "Datastore.Allocate")

        async def body() -> str:
            if self._in_use(volid):
                raise TaskError(f"base volume '{volname}' is still in use by linked clones")
            await self.takes("imgdel")
            await self._free(volid)
            return f"Removed volume '{volid}'"

        return await self.task(v["node"], "imgdel", f"{owner}@{sid}", user, body)


def _volume(vmid: int, size: int, image: str = "qcow2") -> dict[str, Any]:
    return {
        "content": "images", "format": image, "size": size, "vmid": vmid, "ctime": 1795443888,
    }  # fmt: skip

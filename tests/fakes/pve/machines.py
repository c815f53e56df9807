"""Virtual machines as Proxmox keeps them: config, power, snapshots, clones, volumes.

The ids in brackets name recordings of Proxmox's own programs (tests/data/proxmox/).
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from fakepve import schema as pve_schema
from fakepve.lxc import SIZE_UNITS, format_size
from fakepve.model import FakeVm, PveError, TaskError, lock_timeout
from fakepve.qemu import (
    DRIVE_KEY,
    NEW_DISK,
    drives_of,
    is_cdrom,
    join_drive,
    split_drive,
    volume_ref,
    with_mac,
)
from fakepve.routing import die, param_error, split_list
from fakepve.server import API, USER, params

from tests.fakes.pve.guests import has_agent
from tests.fakes.pve.tasks import RECORD

Values = dict[str, Any]
Config = dict[str, Any]

NO_PATHS = (
    "Only root can pass arbitrary filesystem paths. at /usr/share/perl5/PVE/Storage.pm line 543."
)
TEMPORARY = " qmclone temporary file"
HIDDEN = "**********"
# What a running machine takes at once; anything else waits for the next start.
AT_ONCE = re.compile(
    r"name|description|onboot|tags|protection|hookscript|startup|lock|agent"
    r"|ci\w+|ipconfig\d+|sshkeys|nameserver|searchdomain"
    r"|scsi\d+|virtio\d+|net\d+|unused\d+"
)
_TEXTS = ("memory", "agent", "balloon")  # numbers that Proxmox gives as text
_NOT_IN_SNAPSHOT = ("description", "digest", "lock", "snapstate", "snaptime", "vmstate")
_NOT_IN_CLONE = ("lock", "template", "parent", "snaptime", "snapstate", "vmstate", "digest")


def yes(value: object) -> bool:
    return str(value) in ("1", "True", "true", "yes", "on")


def split_tags(text: object) -> str:
    """Lower case, sorted, split at blanks, once each (263)."""
    return ";".join(sorted({tag.lower() for tag in re.split(r"[;,\s]+", str(text)) if tag}))


def owner_of(volid: str) -> int | None:
    found = re.findall(r"\b(?:vm|base)-(\d+)-", volid.rsplit("/", 1)[-1])
    return int(found[-1]) if found else None


def no_config(node: str, vmid: object) -> str:
    return f"Configuration file 'nodes/{node}/qemu-server/{vmid}.conf' does not exist"


def not_found(node: str, vmid: object) -> str:
    return f"unable to find configuration file for VM {vmid} on node '{node}'"


def at_once(config: Config, key: str) -> bool:
    """Whether a running machine takes a change at once: of a drive when `hotplug` has disks."""
    words = str(config.get("hotplug", "1"))
    disks = words == "1" or "disk" in words.split(",")
    return bool(AT_ONCE.fullmatch(key)) and (disks or not DRIVE_KEY.match(key))


def image_size(text: object) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", str(text))
    if found is None:
        raise ValueError(f"no size: {text}")
    return int(float(found[1]) * SIZE_UNITS.get(found[2], 1))


class Machines:
    """Part of ProxmoxNode: what FakePve does otherwise than Proxmox, about machines."""

    # ------------------------------------------------------------------------- extension points
    #
    # Called in a thread from within the tasks, while the machine's lock is held; they may block,
    # and what they raise fails the task.  Here they do nothing.

    def on_create(self, vm: FakeVm) -> None:
        """A new machine's disks are allotted."""

    def on_clone(self, source: FakeVm, vm: FakeVm, full: bool) -> None:
        """The clone's disks are to be made: `vm.config` names them."""

    def on_start(self, vm: FakeVm) -> None:
        """The machine gets power.  `vm.config` is what it starts with."""

    def on_stop(self, vm: FakeVm) -> None:
        """Its power is taken away, at once."""

    def on_shutdown(self, vm: FakeVm, timeout: float) -> bool:
        """The guest is asked to power off; whether it has within `timeout` PVE seconds."""
        return True

    def on_reset(self, vm: FakeVm) -> None: ...

    def on_pause(self, vm: FakeVm) -> None: ...

    def on_resume(self, vm: FakeVm) -> None: ...

    def on_destroy(self, vm: FakeVm) -> None:
        """The machine is to go; its own volumes are freed after this."""

    def on_snapshot(self, vm: FakeVm, name: str, memory: bool) -> None: ...

    def on_rollback(self, vm: FakeVm, name: str, memory: bool) -> None: ...

    def on_delete_snapshot(self, vm: FakeVm, name: str) -> None: ...

    def on_resize(self, vm: FakeVm, disk: str, size: int) -> None: ...

    def on_attach(self, vm: FakeVm, key: str, volid: str, serial: str) -> None:
        """A volume is put into a machine that runs."""

    def on_detach(self, vm: FakeVm, key: str, volid: str) -> None:
        """A volume is taken out of a machine that runs."""

    def on_allot(self, volid: str, size: int) -> None:
        """A volume is made on a storage, through the storage's own call."""

    def on_free(self, volid: str) -> None:
        """A volume is freed, by whatever call."""

    async def blocking(self, call: Callable[..., Any], *args: Any) -> Any:
        """Runs an extension point: in a thread if somebody has overridden it."""
        own = getattr(call, "__func__", None)
        inherited = [vars(cls).get(call.__name__) for cls in self.OWN_CLASSES]
        if own in inherited:
            return call(*args)
        return await asyncio.get_running_loop().run_in_executor(self.executor, call, *args)

    # ------------------------------------------------------------------------- power

    def powered_on(self, vm: FakeVm) -> None:
        vm.status = vm.qmpstatus = "running"
        vm.started_at = time.time()
        vm.booted_at = time.monotonic()

    def powered_off(self, vm: FakeVm) -> None:
        """It has no power any more: asked for, or because the guest turned it off."""
        vm.status = vm.qmpstatus = "stopped"
        vm.started_at = vm.booted_at = None
        vm.apply_pending()
        if self.guests is not None:
            self.guests.forget(vm.vmid)

    async def _status_action(self, request: web.Request) -> web.Response:
        """start, stop and shutdown of a missing machine are tasks that fail (078 to 085), with
        their own words each; the rest is refused at once (087 to 090)."""
        action = request.match_info["action"]
        handler = getattr(self, "_do_" + action, None)
        node, user = request.match_info["node"], request[USER]
        if handler is None:
            vmid = request.match_info["vmid"]
            raise PveError(
                501,
                f"Method '{request.method} /nodes/{node}/qemu/{vmid}/status/{action}' "
                "not implemented",
            )
        match = self.resolve(request, API)
        values, wrong = pve_schema.validate(
            match.methods["POST"].get("parameters"), {**await params(request), **match.params}
        )
        if wrong:
            raise param_error(**wrong)
        vmid = int(values["vmid"])
        self.require(user, f"/vms/{vmid}", "VM.PowerMgmt")
        self._root_only(user, values)
        vm = self._vm_on(node, vmid)
        self.need_quorum()
        if vm is None:
            if action not in ("start", "stop", "shutdown"):
                raise die(not_found(node, vmid))
            words = no_config(node, vmid) if action == "start" else not_found(node, vmid)
            upid = await self.task(node, "qm" + action, vmid, user, failing(words))
        else:
            upid = await handler(vm, user, values)
        return web.json_response({"data": upid})

    def _vm_on(self, node: str, vmid: object) -> FakeVm | None:
        vm = self.vm(int(str(vmid)))
        return vm if vm is not None and vm.node == node else None

    def _root_only(self, user: str, values: Values) -> None:
        """Skipping locks is root's own, and a token of root is not root (460, 462, 463)."""
        if user != "root@pam":
            for key in ("skiplock",):
                if key in values:
                    raise param_error(**{key: "Only root may use this option."})

    def _task_lock(self, vm: FakeVm, values: Values, *allowed: str) -> None:
        if vm.lock and vm.lock not in allowed and not yes(values.get("skiplock")):
            raise TaskError(f"VM is locked ({vm.lock})")

    async def _do_start(self, vm: FakeVm, user: str, values: Values) -> str:
        """220 (a template), 304 (running), 623 (locked), 842 (waits for a clone's end), 927."""

        async def body() -> None:
            self._still_there(vm)
            self._task_lock(vm, values, "suspended")
            if vm.template:
                raise TaskError("you can't start a vm if it's a template")
            if vm.status == "running":
                raise TaskError(f"VM {vm.vmid} already running")
            for part in str(vm.config.get("cicustom", "")).split(","):
                volid = part.partition("=")[2]
                if volid and self._qm_volume(volid) is None:
                    raise TaskError(f"volume '{volid}' does not exist")
            for _key, volume, _ in drives_of(vm.config, skip_cdrom=True):
                if volume_ref(volume)[0] and self._qm_volume(volume) is None:
                    raise TaskError(f"volume '{volume}' does not exist")
            vm.apply_pending()
            await self.takes("qmstart")
            await self.pause(vm.start_secs)
            if vm.start_error:
                raise TaskError(vm.start_error)
            await self.blocking(self.on_start, vm)
            if vm.lock == "suspended":
                self._qm_lock(vm, None)
            self.powered_on(vm)

        return await self.task(vm.node, "qmstart", vm.vmid, user, body, vm=vm)

    def _still_there(self, vm: FakeVm) -> None:
        if vm not in self.vms:
            raise TaskError(no_config(vm.node, vm.vmid))

    async def _do_stop(self, vm: FakeVm, user: str, values: Values) -> str:
        """A stopped machine stops again without a word, even a locked one (419, 626)."""

        async def body() -> None:
            if vm.status != "running":
                return
            self._task_lock(vm, values)
            await self.takes("qmstop")
            await self.pause(vm.stop_secs)
            await self.blocking(self.on_stop, vm)
            self.powered_off(vm)

        return await self.task(vm.node, "qmstop", vm.vmid, user, body, vm=vm)

    async def _powerdown(self, vm: FakeVm, p: Values) -> str | None:
        """503 (time-out), 507 (forceStop); with an agent that is silent the default is 600 s."""
        default = 600 if has_agent(vm) else self.shutdown_default_timeout
        timeout = float(p.get("timeout") or default)
        began = time.monotonic()

        def left() -> float:
            spent = (time.monotonic() - began) / self.time_scale if self.time_scale else 0.0
            return timeout - spent

        able = vm.acpi and vm.shutdown_secs <= timeout
        if able and self.guests is not None and has_agent(vm):
            while self.time_scale and not self.guests.is_up(vm, self.time_scale) and left() > 0:
                await self.pause(min(0.5, max(left(), 0.01)))
            able = self.guests.is_up(vm, self.time_scale)
        if able:
            await self.pause(vm.shutdown_secs)
            able = await self.blocking(self.on_shutdown, vm, max(left(), 0.0))
        else:
            await self.pause(max(left(), 0.0))
        if able:
            self.powered_off(vm)
            return None
        if not yes(p.get("forceStop")):
            raise TaskError("VM quit/powerdown failed - got timeout")
        await self.blocking(self.on_stop, vm)
        self.powered_off(vm)
        return "VM still running - terminating now with SIGTERM"

    async def _do_shutdown(self, vm: FakeVm, user: str, values: Values) -> str:
        """Of a stopped machine: a task that succeeds (416, 629)."""

        async def body() -> str | None:
            if vm.status != "running":
                return None
            self._task_lock(vm, values)
            return await self._powerdown(vm, values)

        return await self.task(vm.node, "qmshutdown", vm.vmid, user, body, vm=vm)

    async def _do_reboot(self, vm: FakeVm, user: str, values: Values) -> str:
        self._need_running(vm)

        async def body() -> None:
            self._task_lock(vm, values)
            await self._powerdown(vm, values)
            await self.takes("qmstart")
            await self.blocking(self.on_start, vm)
            self.powered_on(vm)

        return await self.task(vm.node, "qmreboot", vm.vmid, user, body, vm=vm)

    async def _do_reset(self, vm: FakeVm, user: str, values: Values) -> str:
        self._need_running(vm)

        async def body() -> None:
            self._task_lock(vm, values)
            await self.blocking(self.on_reset, vm)
            if self.guests is not None:
                self.guests.forget(vm.vmid)
            self.powered_on(vm)

        return await self.task(vm.node, "qmreset", vm.vmid, user, body, vm=vm)

    async def _do_suspend(self, vm: FakeVm, user: str, values: Values) -> str:
        """The task's type is qmpause (359); the machine still counts as running."""
        self._need_running(vm)
        to_disk = yes(values.get("todisk", 0))

        async def body() -> None:
            self._task_lock(vm, values)
            if to_disk:
                await self.blocking(self.on_stop, vm)
                self.powered_off(vm)
                self._qm_lock(vm, "suspended")
            else:
                await self.blocking(self.on_pause, vm)
                vm.qmpstatus = "paused"

        kind = "qmsuspend" if to_disk else "qmpause"
        return await self.task(vm.node, kind, vm.vmid, user, body, vm=vm)

    async def _do_resume(self, vm: FakeVm, user: str, values: Values) -> str:
        """Of a running one: nothing, with success."""
        self._need_running(vm)

        async def body() -> None:
            if vm.qmpstatus == "paused":
                await self.blocking(self.on_resume, vm)
            vm.qmpstatus = "running"

        return await self.task(vm.node, "qmresume", vm.vmid, user, body, vm=vm)

    # ------------------------------------------------------------------------- config

    async def _config_get(self, request: web.Request) -> web.Response:
        """What waits for the next start is shown as if it were there, unless `current=1` (352,
        353); a snapshot's config by its name (385, 386); passwords as stars (934)."""
        vm = self._vm(request, "VM.Audit")
        values = self._verify(request, await params(request))
        config: Config = dict(vm.config)
        if name := values.get("snapshot"):
            if name not in vm.snapshots:
                raise die(f"snapshot '{name}' does not exist")
            config = {k: v for k, v in vm.snapshots[name].items() if k != "snapstate"}
        elif not yes(values.get("current", 0)):
            for key, value in vm.pending.items():
                if value is None:
                    config.pop(key, None)
                else:
                    config[key] = value
        return web.json_response({"data": {**shown(config), "digest": vm.digest()}})

    async def _config_put(self, request: web.Request) -> web.Response:
        """Waits for the machine's lock (841); past ten seconds it is a 500 (479)."""
        vm, values = await self._config_asked(request)
        try:
            await self.acquire(vm, request)
        except TaskError as error:
            raise die(str(error)) from None
        try:
            await self._configure(vm, request[USER], values)
        except TaskError as error:
            raise die(str(error)) from None
        finally:
            self.release(vm, request)
        return web.json_response({"data": None})

    async def _config_post(self, request: web.Request) -> web.Response:
        vm, values = await self._config_asked(request)
        user = request[USER]
        if vm.lock and not yes(values.get("skiplock")):
            raise die(f"VM is locked ({vm.lock})")  # 643

        async def body() -> None:
            await self._configure(vm, user, values)

        upid = await self.task(vm.node, "qmconfig", vm.vmid, user, body, vm=vm)
        return web.json_response({"data": upid})

    async def _config_asked(self, request: web.Request) -> tuple[FakeVm, Values]:
        """The checks that come before the lock (267, 268, 284, 428, 461, 462)."""
        user = request[USER]
        values = self._verify(request, await params(request))
        values = {k: v for k, v in values.items() if k not in ("node", "vmid")}
        vm = self._vm(request)
        self._root_only(user, values)
        deletes = split_list(values.get("delete"))
        changes = set(values) - {"digest", "skiplock", "background_delay", "force"}
        if not changes:
            raise die("no options specified")
        known = pve_schema.load().paths["/nodes/{node}/qemu/{vmid}/config"]["PUT"]
        for key in deletes:
            plain = re.sub(r"\d+$", "[n]", key)
            properties = known["parameters"]["properties"]
            if key not in properties and plain not in properties:
                raise param_error(delete=f"unknown option '{key}'")
        for key in [*sorted(changes - {"delete", "revert"}), *deletes]:
            self._may_set(user, vm, key, str(values.get(key, "")))
        self._check_boot(vm, values)
        self.need_quorum()
        return vm, values

    def _may_set(self, user: str, vm: FakeVm, key: str, value: str) -> None:
        """`args` and `lock` are root's own, and a token of root is not root (284, 428, 461)."""
        if key in ("args", "lock"):
            if user != "root@pam":
                raise die(f"only root can set '{key}' config")
            return
        if DRIVE_KEY.match(key) and split_drive(value)[0].startswith("/") and user != "root@pam":
            raise die(NO_PATHS)
        privilege = self._config_priv(key)
        if re.match(r"ci\w+$|ipconfig\d|sshkeys|nameserver|searchdomain", key):
            privilege = "VM.Config.Cloudinit"
        if key.startswith("ide") and "media=cdrom" in value:
            privilege = "VM.Config.CDROM"
        if privilege != "root":
            self.require(user, f"/vms/{vm.vmid}", privilege)

    def _check_boot(self, vm: FakeVm, values: Values) -> None:
        order = str(values.get("boot", ""))
        if order.startswith("order="):
            known = {*vm.config, *vm.pending, *values}
            for device in filter(None, order.removeprefix("order=").split(";")):
                if device not in known:
                    raise param_error(boot=f"invalid bootorder: device '{device}' does not exist'")

    async def _configure(self, vm: FakeVm, user: str, asked: Values) -> None:
        """Carries a change out; the machine's lock is held."""
        self._still_there(vm)
        values = {k: v for k, v in asked.items() if k not in ("skiplock", "background_delay")}
        digest = values.pop("digest", None)
        if digest and digest != vm.digest():
            raise TaskError("checksum missmatch (file change by other user?)")  # 270
        if vm.lock and not yes(asked.get("skiplock")):
            raise TaskError(f"VM is locked ({vm.lock})")
        self.say(f"update VM {vm.vmid}: " + " ".join(words_of(asked)))
        values.pop("force", None)
        for key in split_list(values.pop("revert", None)):
            vm.pending.pop(key, None)
        for key in split_list(values.pop("delete", None)):
            await self._unset(vm, key)
        for key in sorted(values):
            await self._set(vm, key, values[key])
        vm.name = vm.config.get("name") or f"VM {vm.vmid}"

    async def _unset(self, vm: FakeVm, key: str) -> None:
        vm.pending.pop(key, None)
        if key not in vm.config:
            self.warn(f"cannot delete '{key}' - not set in current configuration!")
            return
        if key == "lock":
            self._qm_lock(vm, None)
            return
        if vm.status == "running" and not at_once(vm.config, key):
            vm.pending[key] = None
            return
        old = str(vm.config[key])
        if key.startswith("unused"):
            volume = split_drive(old)[0]
            if owner_of(volume) == vm.vmid:
                await self._free(volume)
        elif DRIVE_KEY.match(key):
            with self._waiting(vm, key, None):
                await self._take_out(vm, key, old)
        vm.config.pop(key, None)

    async def _set(self, vm: FakeVm, key: str, value: Any) -> None:
        if key == "lock":
            self._qm_lock(vm, value)
            return
        if key == "tags":
            value = split_tags(value)
        elif re.fullmatch(r"net\d+", key):
            value = with_mac(value)
        elif DRIVE_KEY.match(key):
            value = await self._new_drive(vm, key, str(value))
        if vm.status == "running" and not at_once(vm.config, key):
            vm.pending[key] = value
            return
        vm.pending.pop(key, None)
        if DRIVE_KEY.match(key):
            volume, old = split_drive(value)[0], str(vm.config.get(key, ""))
            if old and split_drive(old)[0] != volume:
                await self._take_out(vm, key, old)
                old = ""
            if not old and vm.status == "running":
                serial = split_drive(value)[1].get("serial", "")
                with self._waiting(vm, key, value):
                    await self.blocking(self.on_attach, vm, key, volume, serial)
            for unused in [k for k in vm.config if re.fullmatch(r"unused\d+", k)]:
                if split_drive(str(vm.config[unused]))[0] == volume:
                    del vm.config[unused]
        vm.config[key] = value

    @staticmethod
    @contextmanager
    def _waiting(vm: FakeVm, key: str, value: Any) -> Iterator[None]:
        """A change that a guest does not follow is an error, and waits for its next start (956)."""
        try:
            yield
        except TaskError:
            if vm.status == "running":
                vm.pending[key] = value
            raise

    async def _take_out(self, vm: FakeVm, key: str, old: str) -> None:
        """A drive leaves its place: an own volume becomes unusedN, a foreign one is let go
        , a cloud-init drive is freed."""
        volume, props = split_drive(old)
        if vm.status == "running" and not is_cdrom(volume, props):
            await self.blocking(self.on_detach, vm, key, volume)
        if owner_of(volume) != vm.vmid:
            return
        if "cloudinit" in volume:
            await self._free(volume)
        elif not is_cdrom(volume, props):
            self._set_aside(vm.config, volume)

    @staticmethod
    def _set_aside(config: Config, volume: str) -> None:
        kept = {split_drive(str(v))[0] for k, v in config.items() if re.fullmatch(r"unused\d+", k)}
        if volume in kept:
            return
        number = next(n for n in range(256) if f"unused{n}" not in config)
        config[f"unused{number}"] = volume

    async def _new_drive(self, vm: FakeVm, key: str, value: str) -> str:
        """The line that a drive gets: a new disk, a cloud-init drive, or a volume that must exist
        (500 "volume '…' does not exist"), with its size added."""
        return self._qm_new_drive(vm.vmid, key, value, None)[0]

    def _qm_new_drive(
        self, vmid: int, key: str, value: str, default: str | None
    ) -> tuple[str, list[str]]:
        volume, props = split_drive(value)
        sid, name = volume_ref(volume)
        new = NEW_DISK.match(volume)
        if name == "cloudinit" or new:
            sid = (new.group(1) if new else sid) or default
            store = self._store(str(sid))
            fmt = props.pop("format", None)
            source = props.pop("import-from", None)
            if name == "cloudinit":
                size = 4 * 1024**2
                volid = self._allot(str(sid), vmid, fmt or "qcow2", size, f"vm-{vmid}-cloudinit")
                props = {"media": "cdrom"}
            else:
                size = int(float(new.group(2)) * 1024**3) if new else 0
                if source:
                    known = self._qm_volume(source)
                    size = int(known["size"]) if known and known.get("size") else 1024**3
                volid = self._allot(str(sid), vmid, fmt or store.get("format"), size)
                props["size"] = format_size(size)
            line = join_drive(volid, props)
            self.say(f"{key}: successfully created disk '{line}'")
            return line, [volid]
        if sid is not None:
            self._store(sid)
            known = self._qm_volume(volume)
            if known is None:
                raise die(f"volume '{volume}' does not exist")
            if not is_cdrom(volume, props) and known.get("size"):
                props["size"] = format_size(int(known["size"]))
        return join_drive(volume, props), []

    def _allot(
        self,
        sid: str,
        vmid: int,
        fmt: str | None,
        size: int,
        name: str | None = None,
        linked: str | None = None,
    ) -> str:
        volid, fmt = self._qm_alloc(sid, vmid, fmt, size, linked_from=linked)
        if name is not None:
            volid = self._rename(volid, re.sub(r"vm-\d+-disk-\d+", name, volid))
        if linked is not None and self.storages[sid].get("type") == "zfspool":
            # PVE::Storage::ZFSPoolPlugin clone_image
            volid = self._rename(volid, f"{sid}:{linked.rsplit('/', 1)[-1]}/{volume_ref(volid)[1]}")
        new = volid.rsplit("/", 1)[-1]
        if linked is not None:
            self.say(f"clone {linked}: images, {new}, {vmid} to {new} (base=../{linked})")
        path = self._base_path(sid)
        self.say(f"Formatting '{path}/images/{vmid}/{new}', {formatting(str(fmt), size, linked)}")
        return volid

    def _rename(self, volid: str, wanted: str) -> str:
        """523, and lvcreate's own words."""
        sid, name = volume_ref(wanted)
        store = self.storages[sid]
        volumes = store["volumes"]
        if name in volumes:
            self._qm_free(volid)
            if store.get("type") == "dir":
                raise die(f"disk image '{self._base_path(sid)}/images/{name}' already exists")
            where = f"{store.get('vgname', 'pve')}/{name}"
            raise die(
                f"lvcreate '{where}' error:   Logical Volume \"{name}\" already exists in volume "
                f'group "{store.get("vgname", "pve")}"'
            )
        volumes[volume_ref(wanted)[1]] = volumes.pop(volume_ref(volid)[1])
        return wanted

    async def _free(self, volid: str) -> None:
        if self._qm_volume(volid) is not None:
            await self.blocking(self.on_free, volid)
            self._qm_free(volid)

    # ------------------------------------------------------------------------- create, destroy

    async def _qm_create(self, v: Values, user: str) -> str:
        """Tags as for a change; `args` by root only (127)."""
        v = dict(v)
        for key in ("args", "lock"):
            if key in v and user != "root@pam":
                raise die(f"only root can set '{key}' config")
        for key, value in v.items():
            if DRIVE_KEY.match(key):
                volume, props = split_drive(value)
                paths = [volume, props.get("import-from", "")]
                if user != "root@pam" and any(path.startswith("/") for path in paths):
                    raise die(NO_PATHS)
        if v.get("tags"):
            v["tags"] = split_tags(v["tags"])
        return await super()._qm_create(v, user)

    def _in_use(self, volid: str) -> bool:
        sid, name = volume_ref(volid)
        store = self.storages.get(sid, {})
        base = name.rsplit("/", 1)[-1]
        return base.startswith("base-") and any(
            other.startswith(name + "/") for other in store.get("volumes", {})
        )

    def _own_volumes(self, vm: FakeVm) -> list[str]:
        """The volumes in its config and its snapshots that carry its own VMID."""
        found: dict[str, None] = {}
        for config in (vm.config, *vm.snapshots.values()):
            for key, value in config.items():
                if DRIVE_KEY.match(key) or re.fullmatch(r"unused\d+", key):
                    volume = split_drive(str(value))[0]
                    if owner_of(volume) == vm.vmid:
                        found[volume] = None
        return list(found)

    async def _qm_destroy(self, v: Values, user: str) -> str:
        """A template in use stays (259); a locked one too (872), unless suspended;
        volumes of others survive whatever is said."""
        self._root_only(user, v)
        vm = self.find(v["node"], v["vmid"])
        vmid = vm.vmid
        self._qm_check_protection(vm, f"can't remove VM {vmid}")
        if vm.status == "running":
            raise die(f"VM {vmid} is running - destroy failed")

        async def body() -> None:
            self._still_there(vm)
            self._task_lock(vm, v, "suspended")
            if vm.status == "running":
                raise TaskError(f"VM {vmid} is running - destroy failed")
            own = self._own_volumes(vm)
            for volume in own:
                if self._in_use(volume):
                    raise TaskError(f"base volume '{volume}' is still in use by linked cloned")
            self._qm_lock(vm, "destroyed")
            await self.takes("qmdestroy")
            await self.blocking(self.on_destroy, vm)
            if yes(v.get("destroy-unreferenced-disks", 0)):
                for sid, store in self.storages.items():
                    for name, volume in list(store.get("volumes", {}).items()):
                        if volume.get("vmid") == vmid and volume.get("content") == "images":
                            own.append(f"{sid}:{name}")
            for volume in own:
                await self._free(volume)
            if yes(v.get("purge", 0)):
                self.say(f"purging VM {vmid} from related configurations..")
            self._remove(vm)

        return await self.task(vm.node, "qmdestroy", vmid, user, body, vm=vm)

    def _remove(self, vm: FakeVm) -> None:
        if vm in self.vms:
            self.vms.remove(vm)
        self._pool_leave(vm.vmid)
        self._fw()["guests"].pop(vm.vmid, None)
        if self.guests is not None:
            self.guests.forget(vm.vmid)

    # ------------------------------------------------------------------------- resize

    def _routes_zz_machines(self) -> list[tuple[str, str, Any]]:
        one = "/nodes/{node}/qemu/{vmid}"
        return [("PUT", one + "/resize", self._resize), ("GET", one + "/feature", self._feature)]

    async def _feature(self, v: Values, user: str) -> Values:
        """115, 256 to 258."""
        vm = self._vm_on(v["node"], v["vmid"])
        if vm is None:
            raise die(not_found(v["node"], v["vmid"]))
        has = self._qm_can_snapshot(vm.config)
        if v["feature"] == "clone":
            drives = drives_of(vm.config, skip_cdrom=True)
            has = all(re.search(r"[:/]base-[^/]+$", volume) for _, volume, _ in drives)
        return {"hasFeature": int(has), "nodes": [vm.node]}

    async def _resize(self, v: Values, user: str) -> str:
        """Always a UPID; what is wrong is said by the task (106, 286 to 296, 644)."""
        self._root_only(user, v)
        vm, disk, wanted = self._vm_on(v["node"], v["vmid"]), v["disk"], str(v["size"])
        if vm is None:
            words = no_config(v["node"], v["vmid"])
            return await self.task(v["node"], "resize", v["vmid"], user, failing(words))

        async def body() -> None:
            self._still_there(vm)
            self._task_lock(vm, v)
            if disk not in vm.config:
                raise TaskError(f"disk '{disk}' does not exist")
            volume, props = split_drive(str(vm.config[disk]))
            if is_cdrom(volume, props):
                raise TaskError("you can't resize a cdrom")
            known = self._qm_volume(volume)
            if known is None:
                raise TaskError(f"volume '{volume}' does not exist")
            now = int(known["size"])
            size = image_size(wanted.removeprefix("+")) + (now if wanted[0] == "+" else 0)
            if size < now:
                raise TaskError("shrinking disks is not supported")
            await self.takes("resize")
            await self.blocking(self.on_resize, vm, disk, size)
            known["size"] = size
            vm.config[disk] = join_drive(volume, {**props, "size": format_size(size)})
            self.say("Image resized.")

        return await self.task(vm.node, "resize", vm.vmid, user, body, vm=vm)

    # ------------------------------------------------------------------------- snapshots

    async def _no_machine(self, v: Values, kind: str, user: str) -> str:
        """For a missing machine these are tasks that fail (096, 099, 102)."""
        words = no_config(v["node"], v["vmid"])
        return await self.task(v["node"], kind, v["vmid"], user, failing(words))

    async def _qm_snapshot(self, v: Values, user: str) -> str:
        vm, name = self._vm_on(v["node"], v["vmid"]), v["snapname"]
        if name in ("current", "pending"):
            raise die(f"unable to use snapshot name '{name}' (reserved name)")
        if vm is None:
            return await self._no_machine(v, "qmsnapshot", user)
        memory = yes(v.get("vmstate", 0)) and vm.status == "running"

        async def body() -> None:
            self._still_there(vm)
            if vm.template:
                raise TaskError("you can't take a snapshot if it's a template")
            self._task_lock(vm, v)
            if name in vm.snapshots:
                raise TaskError(f"snapshot name '{name}' already used")
            if not self._qm_can_snapshot(vm.config):
                raise TaskError("snapshot feature is not available")
            snapshot: Config = {
                key: value
                for key, value in vm.config.items()
                if key not in _NOT_IN_SNAPSHOT and not key.startswith("unused")
            }
            snapshot["snaptime"] = int(time.time())
            if v.get("description"):
                snapshot["description"] = v["description"]
            if memory:
                snapshot["vmstate"] = f"local:{vm.vmid}/vm-{vm.vmid}-state-{name}.raw"
            vm.snapshots[name] = {**snapshot, "snapstate": "prepare"}
            self._qm_lock(vm, "snapshot")
            try:
                for key, volume, _ in drives_of(vm.config, skip_cdrom=True):
                    self.say(f"snapshotting 'drive-{key}' ({volume})")
                await self.takes("qmsnapshot")
                await self.blocking(self.on_snapshot, vm, name, memory)
            except asyncio.CancelledError:
                if "ended_by" not in (RECORD.get() or {}):
                    raise  # killed hard: snapstate and lock stay
                del vm.snapshots[name]
                self._qm_lock(vm, None)
                raise
            except BaseException:
                del vm.snapshots[name]
                self._qm_lock(vm, None)
                raise
            vm.snapshots[name] = snapshot
            vm.config["parent"] = name
            self._qm_lock(vm, None)

        return await self.task(vm.node, "qmsnapshot", vm.vmid, user, body, vm=vm)

    async def _qm_snapshot_delete(self, v: Values, user: str) -> str:
        vm, name = self._vm_on(v["node"], v["vmid"]), v["snapname"]
        if vm is None:
            return await self._no_machine(v, "qmdelsnapshot", user)

        async def body() -> None:
            self._still_there(vm)
            if vm.template:
                raise TaskError("you can't delete a snapshot if vm is a template")
            if name not in vm.snapshots:
                raise TaskError(f"snapshot '{name}' does not exist")
            self._task_lock(vm, v)
            self._qm_lock(vm, "snapshot-delete")
            vm.snapshots[name]["snapstate"] = "delete"
            await self.takes("qmdelsnapshot")
            await self.blocking(self.on_delete_snapshot, vm, name)
            parent = vm.snapshots.pop(name).get("parent")
            for other in (vm.config, *vm.snapshots.values()):
                if other.get("parent") == name:
                    other.pop("parent")
                    if parent:
                        other["parent"] = parent
            self._qm_lock(vm, None)

        return await self.task(vm.node, "qmdelsnapshot", vm.vmid, user, body, vm=vm)

    async def _qm_rollback(self, v: Values, user: str) -> str:
        """Volumes that the snapshot does not know become unusedN, of whomever they are;
        without `start` the machine is stopped after a disk-only snapshot (391)."""
        vm, name = self._vm_on(v["node"], v["vmid"]), v["snapname"]
        if vm is None:
            return await self._no_machine(v, "qmrollback", user)

        async def body() -> None:
            self._still_there(vm)
            if vm.template:
                raise TaskError("you can't rollback if vm is a template")
            snapshot = vm.snapshots.get(name)
            if snapshot is None:
                raise TaskError(f"snapshot '{name}' does not exist")
            if snapshot.get("snapstate"):
                raise TaskError(
                    "unable to rollback to incomplete snapshot "
                    f"(snapstate = {snapshot['snapstate']})"
                )
            for volume in self._not_newest(vm, name):
                raise TaskError(
                    f"can't rollback, '{name}' is not most recent snapshot on '{volume}'"
                )
            self._task_lock(vm, v)
            self._qm_lock(vm, "rollback")
            memory = bool(snapshot.get("vmstate"))
            await self.takes("qmrollback")
            if vm.status == "running":
                await self.blocking(self.on_stop, vm)
                self.powered_off(vm)
            await self.blocking(self.on_rollback, vm, name, memory)
            config: Config = {k: v for k, v in snapshot.items() if k not in _NOT_IN_SNAPSHOT}
            for key, value in vm.config.items():
                if key == "description" or re.fullmatch(r"unused\d+", key):
                    config[key] = value
            kept = {volume for _, volume, _ in drives_of(config)}
            for _key, volume, props in drives_of(config, skip_cdrom=True):
                known = self._qm_volume(volume)  # an image has its old size again
                if known is not None and props.get("size"):
                    known["size"] = image_size(props["size"])
            for _key, volume, _ in drives_of(vm.config, skip_cdrom=True):
                if volume not in kept:
                    self._set_aside(config, volume)
            config["parent"] = name
            vm.config, vm.pending = config, {}
            vm.name = config.get("name") or f"VM {vm.vmid}"
            self._qm_lock(vm, None)
            if memory or yes(v.get("start", 0)):
                await self.takes("qmstart")
                await self.blocking(self.on_start, vm)
                self.powered_on(vm)

        return await self.task(vm.node, "qmrollback", vm.vmid, user, body, vm=vm)

    def _not_newest(self, vm: FakeVm, name: str) -> list[str]:
        """Volumes of a snapshot on storages that go back to the newest one only, when it is not.

        PVE::Storage::ZFSPoolPlugin volume_rollback_is_possible, asked by PVE::AbstractConfig
        snapshot_rollback before it locks or stops anything.  The storage's own list counts:
        `foreign` are snapshots that Proxmox knows nothing of.
        """
        found = []
        for _key, volume, _ in drives_of(vm.snapshots[name], skip_cdrom=True):
            store = self.storages.get(volume_ref(volume)[0], {})
            if store.get("type") != "zfspool" and not yes(store.get("snapshot-as-volume-chain")):
                continue
            on = [
                each
                for each, config in vm.snapshots.items()
                if volume in [other for _, other, _ in drives_of(config)]
            ]
            on += store.get("foreign", {}).get(volume, [])
            if on[-1] != name:
                found.append(volume)
        return found

    # ------------------------------------------------------------------------- clones

    async def _qm_clone(self, v: Values, user: str) -> str:
        """The task is filed under the source (227).  The target has a config from the first
        moment, with " qmclone temporary file" until the first of its disks is there (834, 867),
        then with all that it was given, and `lock: clone` until the end.  Whoever
        changes or starts it waits for its lock (841, 842)."""
        node, source_id, vmid = v["node"], int(v["vmid"]), int(v["newid"])
        pool, storage, fmt, target = (v.get(k) for k in ("pool", "storage", "format", "target"))
        self._qm_check_pool(pool)
        self._qm_perm(user, vmid, pool, "VM.Allocate")
        if target and target not in (node, "localhost") and target not in self.nodes:
            raise die(f"no such cluster node '{target}'")
        source = self._vm_on(node, source_id)
        if source is None:
            raise die(not_found(node, source_id))
        if storage:
            self._store(storage)
        self.need_quorum()
        full = yes(v["full"]) if v.get("full") is not None else not source.template
        for key, value in (("storage", storage), ("format", fmt)):
            if value and not full:
                raise die(f"parameter '{key}' not allowed for linked clones")
        self._check_lock(source)
        if self._qm_taken(vmid):
            raise die(f"unable to create VM {vmid}: config file already exists")
        snapshot = v.get("snapname")
        if snapshot and snapshot not in source.snapshots:
            raise die(f"snapshot '{snapshot}' does not exist")
        origin: Config = dict(source.snapshots[snapshot] if snapshot else source.config)
        for key, volume, _ in drives_of(origin, skip_cdrom=True):
            if not full and not re.search(r"[:/]base-[^/]+$", volume):
                raise die(f"Linked clone feature is not supported for drive '{key}'")
            if self._qm_volume(volume) is None:
                raise die(f"volume '{volume}' does not exist")
            where = storage or volume_ref(volume)[0]
            self.require(user, f"/storage/{where}", "Datastore.AllocateSpace")
        vm = FakeVm(vmid, f"VM {vmid}", node=target or node)
        vm.born_at = time.monotonic()
        vm.config = {"description": TEMPORARY}
        self._qm_lock(vm, "clone")
        self.vms.append(vm)
        given = {
            "name": v.get("name") or f"Copy-of-VM-{source.config.get('name') or source_id}",
            **({"description": v["description"]} if v.get("description") else {}),
        }

        async def body() -> None:
            await self._clone(source, vm, origin, given, full, storage, fmt)
            if pool:
                self._pool_join(pool, vmid)

        return await self.task(node, "qmclone", source_id, user, body, vm=vm)

    async def _clone(
        self,
        source: FakeVm,
        vm: FakeVm,
        origin: Config,
        given: Config,
        full: bool,
        storage: str | None,
        fmt: str | None,
    ) -> None:
        made: list[str] = []
        try:
            async with self.clone_lock(source):
                drives = drives_of(origin)
                config = self._clone_config(origin, given)
                total = self.clone_seconds(full)
                for key, volume, props in drives:
                    cloudinit = "cloudinit" in volume
                    if is_cdrom(volume, props) and not cloudinit:
                        config[key] = str(origin[key])
                        continue
                    line = self._clone_drive(vm, key, volume, props, full, storage, fmt)
                    made.append(split_drive(line)[0])
                    await self.pause(total * (0.2 if cloudinit else 0.8))
                    config[key] = line
                    vm.config = {**config, "lock": "clone"}
                    vm.name = config["name"]
                vm.config = {**config, "lock": "clone"}
                vm.name = config["name"]
                await self.blocking(self.on_clone, source, vm, full)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and "ended_by" not in (RECORD.get() or {}):
                raise  # killed hard: all stays as it is (866 to 878)
            for volume in made:
                await self._free(volume)
            self._remove(vm)
            if isinstance(error, asyncio.CancelledError):
                raise
            words = getattr(error, "message", None) or str(error)
            if words == lock_timeout(source.vmid):
                raise TaskError(words) from None  # 487
            raise TaskError(f"clone failed: {words}") from None
        self._qm_lock(vm, None)

    @staticmethod
    def _clone_config(origin: Config, given: Config) -> Config:
        """Everything but disks, with MACs and ids of its own; tags come along (207, 255)."""
        config: Config = {}
        for key, value in origin.items():
            if key in _NOT_IN_CLONE or re.fullmatch(r"unused\d+", key) or DRIVE_KEY.match(key):
                continue
            config[key] = with_mac(value, fresh=True) if re.fullmatch(r"net\d+", key) else value
        if config.get("vmgenid"):
            config["vmgenid"] = str(uuid.uuid4())
        config["smbios1"] = f"uuid={uuid.uuid4()}"
        return {**config, **given}

    def _clone_drive(
        self,
        vm: FakeVm,
        key: str,
        volume: str,
        props: Config,
        full: bool,
        storage: str | None,
        fmt: str | None,
    ) -> str:
        """230: the cloud-init drive is always copied; 235: a full clone; 854: linked to raw."""
        sid, name = volume_ref(volume)
        known = self._qm_volume(volume) or {"size": 4 * 1024**2, "format": "qcow2"}
        size = int(known["size"])
        if "cloudinit" in volume:
            self.say(f"create full clone of drive {key} ({volume})")
            volid = self._allot(
                storage or sid, vm.vmid, fmt or known["format"], size, f"vm-{vm.vmid}-cloudinit"
            )
        elif full:
            self.say(f"create full clone of drive {key} ({volume})")
            volid = self._allot(storage or sid, vm.vmid, fmt or known["format"], size)
            mib = f"{size / 1024**2:.1f} MiB"
            self.say(f"transferred 0.0 B of {mib} (0.00%)")
            self.say(f"transferred {mib} of {mib} (100.00%)")
        else:
            self.say(f"create linked clone of drive {key} ({volume})")
            image = "qcow2" if "." in name else known["format"]
            volid = self._allot(sid, vm.vmid, image, size, linked=name)
        return join_drive(volid, {**props, "size": format_size(size)})


def failing(words: str) -> Callable[[], Any]:
    async def body() -> None:
        raise TaskError(words)

    return body


def shown(config: Config) -> Config:
    view: Config = {}
    for key, value in config.items():
        view[key] = str(value) if key in _TEXTS else value
        if key == "cipassword":
            view[key] = HIDDEN
    return view


def words_of(values: Values) -> list[str]:
    """517: `-cores 2`, in order; a password is hidden (208 of the command line)."""
    return [
        f"-{key} {'<hidden>' if key == 'cipassword' else value}"
        for key, value in sorted(values.items())
    ]


def formatting(fmt: str, size: int, linked: str | None) -> str:
    if fmt == "raw":
        return f"fmt=raw size={size} preallocation=off"
    backing = f" backing_file=../{linked} backing_fmt={linked.rsplit('.', 1)[-1]}" if linked else ""
    ahead = "" if linked else " preallocation=metadata"
    return (
        f"fmt={fmt} cluster_size=65536 extended_l2=off{ahead} compression_type=zlib size={size}"
        f"{backing} lazy_refcounts=off refcount_bits=16"
    )

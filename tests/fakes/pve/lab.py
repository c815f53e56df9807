"""A lab node: Proxmox's API and its rules by fakepve, carried out on real QEMU machines.

Disks are qcow2 files in the form of a storage of type `dir`, guests boot from them by SeaBIOS
with a cloud-init disc as Proxmox writes it, taps are named `tap<vmid>i0` and put on the bridge of
net0, and the guest agent is the guest's own.  Needs root, QEMU, and a network namespace of its
own with the bridge in it.

    python -m tests.fakes.pve.lab DIRECTORY

serves one until it is told to end, and says on its first line of output, as JSON, where: url, ca,
token, and `programs`, a directory with stand-ins for pvesh and qm.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from fakepve.model import FakeVm, PveError, TaskError
from fakepve.qemu import drives_of

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError
from agentlab.hypervisor.local.agent import AgentRefused
from agentlab.hypervisor.local.power import end_guest
from tests.fakes.pve.commands import make_commands
from tests.fakes.pve.files import FileNode
from tests.fakes.pve.guests import SILENT, MissingProgram
from tests.fakes.pve.machine import Disk, Machine, Plan, Settings, disc
from tests.fakes.pve.serving import serve

_WATCH = 0.5
_ANSWER = 10.0


class LabNode(FileNode):
    """Times are real.  `directory` holds the storage and the machines' run directories."""

    def __init__(self, directory: Path, **more: Any) -> None:
        super().__init__(directory, time_scale=1.0, **more)
        (directory / "run").mkdir(exist_ok=True)
        self._watcher: asyncio.Task[None] | None = None

    def _routes_lab(self) -> list[Any]:
        return [("GET", "/nodes/{node}/network", self._networks)]

    async def _networks(self, values: dict[str, Any], user: str) -> list[dict[str, Any]]:
        """The bridges that there are."""
        names = await asyncio.get_running_loop().run_in_executor(self.executor, _bridges)
        return [{"iface": name, "type": "bridge", "active": 1} for name in names]

    def machine(self, vm: FakeVm) -> Machine:
        directory = self.directory / "run" / str(vm.vmid)
        directory.mkdir(exist_ok=True)
        return Machine(directory, _uuid(vm))

    # --- power ---

    def on_start(self, vm: FakeVm) -> None:
        machine, config = self.machine(vm), vm.config
        net = dict(part.partition("=")[::2] for part in str(config.get("net0", "")).split(","))
        mac = net.get("virtio", "").lower()
        disks = [
            Disk(int(key.removeprefix("scsi")), self.path(volid), serial=props.get("serial", ""))
            for key, volid, props in drives_of(config, skip_cdrom=True)
        ]
        plan = Plan(
            vm.vmid, vm.name, machine.uuid, int(config.get("cores", 1)),
            int(config.get("memory", 512)), (*disks, disc(machine.directory)),
            tap=f"tap{vm.vmid}i0" if mac else "", mac=mac,
        )  # fmt: skip
        words = {
            key: str(config.get(key, ""))
            for key in ("ipconfig0", "nameserver", "searchdomain", "ciuser")
        }
        try:
            machine.start(plan, Settings(vm.name, mac, **words), bridge=net.get("bridge", ""))
        except (AgentLabError, subprocess.CalledProcessError) as failed:
            machine.stop(plan.tap)
            raise TaskError(f"start failed: {failed}") from failed

    def on_stop(self, vm: FakeVm) -> None:
        self.machine(vm).stop(f"tap{vm.vmid}i0")

    def on_shutdown(self, vm: FakeVm, timeout: float) -> bool:
        machine = self.machine(vm)
        gone = end_guest(machine.directory, machine.uuid, Deadline.after(timeout))
        if gone:
            machine.stop(f"tap{vm.vmid}i0")
        return gone

    def on_pause(self, vm: FakeVm) -> None:
        self.machine(vm).pause()

    def on_resume(self, vm: FakeVm) -> None:
        self.machine(vm).resume()

    def on_destroy(self, vm: FakeVm) -> None:
        machine = self.machine(vm)
        machine.stop(f"tap{vm.vmid}i0")
        shutil.rmtree(machine.directory, ignore_errors=True)

    def on_attach(self, vm: FakeVm, key: str, volid: str, serial: str) -> None:
        slot = int(key.removeprefix("scsi"))
        try:
            self.machine(vm).plug(Disk(slot, self.path(volid), serial=serial))
        except AgentLabError as failed:
            raise TaskError(f"hotplug problem - {failed}") from failed

    def on_detach(self, vm: FakeVm, key: str, volid: str) -> None:
        if not self.machine(vm).unplug(int(key.removeprefix("scsi"))):
            raise TaskError(f"hotplug problem - error on hot-unplugging device '{key}'")

    async def start(self, certfile: str, keyfile: str) -> None:
        await super().start(certfile, keyfile)
        self._watcher = asyncio.ensure_future(self._watch())

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        for vm in self.vms:
            if vm.status == "running":
                self.on_stop(vm)
        await super().stop()

    async def _watch(self) -> None:
        """A guest that powers itself off, or a QEMU that dies, is a machine without power."""
        while True:
            await asyncio.sleep(_WATCH)
            for vm in list(self.vms):
                if vm.status == "running" and vm.lock_holder is None:
                    loop = asyncio.get_running_loop()
                    runs = await loop.run_in_executor(self.executor, self._runs, vm)
                    if not runs and vm.status == "running" and vm.lock_holder is None:
                        self.powered_off(vm)

    def _runs(self, vm: FakeVm) -> bool:
        machine = self.machine(vm)
        if machine.running:
            return True
        machine.stop(f"tap{vm.vmid}i0")
        return False

    # --- guest agent ---

    def agent_is_up(self, vm: FakeVm) -> bool:
        return bool(vm.qmpstatus == "running" and self.machine(vm).agent.ping(timeout=_ANSWER))

    def agent_call(self, vm: FakeVm, command: str, values: dict[str, Any]) -> Any:
        try:
            with self.machine(vm).agent.converse(_ANSWER) as agent:
                match command:
                    case "ping":
                        return {"result": {}}
                    case "exec":
                        return _exec(agent, values)
                    case "exec-status":
                        pid = int(values["pid"])
                        return _told(agent.call("guest-exec-status", _ANSWER, pid=pid))
                    case "file-read":
                        return _file_read(agent, str(values["file"]))
                    case "network-get-interfaces":
                        return {"result": agent.call("guest-network-get-interfaces", _ANSWER)}
        except AgentRefused as refused:
            said = refused.message.partition(f"guest-{command}: ")[2] or refused.message
            raise PveError(500, f"Agent error: {said}") from refused
        except AgentLabError as silent:
            raise PveError(500, SILENT) from silent
        raise PveError(501, f"the lab node does not pass {command} on")


def _bridges() -> list[str]:
    argv = ["ip", "-json", "link", "show", "type", "bridge"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return [link["ifname"] for link in json.loads(done.stdout) if "ifname" in link]


def _exec(agent: Any, values: dict[str, Any]) -> Any:
    command = values["command"]
    words = [command] if isinstance(command, str) else [str(word) for word in command]
    request: dict[str, Any] = {"path": words[0], "arg": words[1:], "capture_output": True}
    if values.get("input-data"):
        request["input_data"] = base64.b64encode(str(values["input-data"]).encode()).decode()
    try:
        return agent.call("guest-exec", _ANSWER, **request)
    except AgentRefused as refused:
        if "Failed to execute" in refused.message:
            raise MissingProgram(words[0]) from refused
        raise


def _told(answer: Any) -> dict[str, Any]:
    """As Proxmox passes it on: numbers for booleans, each byte of the output as a character."""
    told: dict[str, Any] = {}
    for key, value in answer.items():
        if key in ("out-data", "err-data"):
            told[key] = base64.b64decode(value).decode("latin-1")
        else:
            told[key] = int(value) if isinstance(value, bool) else value
    return told


def _file_read(agent: Any, path: str) -> dict[str, Any]:
    try:
        handle = agent.call("guest-file-open", _ANSWER, path=path, mode="r")
    except AgentRefused as refused:
        said = f"failed to open file '{path}' (mode: 'r'): No such file or directory"
        raise PveError(500, f"Agent error: {said}") from refused
    try:
        answer = agent.call("guest-file-read", _ANSWER, handle=handle, count=1 << 16)
    finally:
        agent.call("guest-file-close", _ANSWER, handle=handle)
    content = base64.b64decode(answer["buf-b64"])
    return {"bytes-read": len(content), "content": content.decode("latin-1")}


def _uuid(vm: FakeVm) -> str:
    found = re.search(r"uuid=([0-9a-fA-F-]{36})", str(vm.config.get("smbios1", "")))
    if found is None:
        raise TaskError(f"VM {vm.vmid} has no uuid")
    return found[1]


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: end.set())
    node = LabNode(directory, version="9.0.10")  # whose privileges fakepve knows
    with serve(node, directory) as served:
        programs = make_commands(served, directory / "bin")
        told = {
            "url": served.url,
            "ca": str(served.ca),
            "token": served.token,
            "node": node.node,
            "programs": str(programs),
        }
        print(json.dumps(told), flush=True)
        end.wait()


if __name__ == "__main__":
    main()

"""What the contract suite holds in its hand: a driver and the machines that it made with it."""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import cast

from agentlab.hypervisor.base import Hypervisor, MachineSpec, Nic, Volumes
from agentlab.hypervisor.local import process
from agentlab.hypervisor.local.driver import LocalHypervisor
from agentlab.hypervisor.local.volume_dir import parse_volid
from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.hypervisor.proxmox.transport import Transport
from tests.fakes.pve.files import FileNode
from tests.fakes.pve.lab import LabNode
from tests.fakes.pve.serving import Served

OWNER = "agentlab-test"
STRANGER = "somebody-else"


@dataclass
class Bench(ABC):
    """A driver, the machines that a test makes with it, and a way to make the driver anew."""

    hypervisor: Hypervisor
    template: str = "debian-12"
    taps: list[str] = field(default_factory=list)
    memory: int = 512
    patience: float = 60.0  # seconds for a boot, before the driver's own slowness

    @abstractmethod
    def again(self) -> Hypervisor:
        """Another driver over the same machines, as after a restart of the daemon."""

    @abstractmethod
    def unreadable(self) -> AbstractContextManager[None]:
        """A context in which the inventory cannot be read."""

    @abstractmethod
    def leftovers(self) -> list[str]:
        """What lies about and belongs to no machine."""

    @abstractmethod
    def image(self, volid: str) -> Path:
        """The file that a volume's content is in."""

    @property
    def volumes(self) -> Volumes:
        assert self.hypervisor.capabilities.volumes
        return cast("Volumes", self.hypervisor)

    def allot(self, number: int = 990000, size: int = 64, owner: str = OWNER) -> str:
        return self.volumes.allot(number, size, storage="local", owner=owner)

    @abstractmethod
    def kill(self, vmid: int) -> None:
        """Kills a machine's QEMU behind the driver's back."""

    def clone(self, vmid: int, *, owner: str = OWNER, full: bool = False) -> None:
        name = f"box{vmid}"
        self.hypervisor.clone(self.template, vmid, name=name, owner=owner, full=full)

    def tap(self, vmid: int) -> str:
        """The name of the tap; the driver or this method makes it."""
        name = f"tc{vmid}"
        if name not in self.taps:
            subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
            self.taps.append(name)
        return name

    def spec(self, vmid: int, *, tap: bool = True, disk: int = 1024) -> MachineSpec:
        nic = Nic(
            tap=self.tap(vmid) if tap else f"tc{vmid}",
            mac=f"52:54:00:77:{vmid >> 8:02x}:{vmid & 255:02x}",
            address=IPv4Interface((IPv4Address("10.77.0.0") + vmid, 16)),
            gateway=IPv4Address("10.77.0.1"),
            dns=(IPv4Address("10.77.0.1"),),
        )
        return MachineSpec(f"box{vmid}", cores=1, memory=self.memory, disk=disk, nic=nic)

    def start(self, vmid: int, **changes: int) -> MachineSpec:
        spec = self.spec(vmid, **changes)
        self.clone(vmid)
        self.hypervisor.configure(vmid, spec, owner=OWNER)
        self.hypervisor.start(vmid, owner=OWNER)
        return spec

    def wait(self, vmid: int, spec: MachineSpec) -> float:
        """Waits until the guest is ready; how many seconds it took."""
        begun = time.monotonic()
        limit = self.patience * max(1.0, self.hypervisor.capabilities.slowness)
        while not self.hypervisor.ready(vmid, spec):
            assert time.monotonic() - begun < limit, self.hypervisor.status(vmid)
            time.sleep(0.1)
        return time.monotonic() - begun

    def say(self, vmid: int, script: str, timeout: float = 60.0) -> str:
        """What a shell in the guest prints."""
        result = self.hypervisor.exec(vmid, ["/bin/sh", "-c", script], timeout=timeout, owner=OWNER)
        assert result.status == 0, result
        return result.stdout.decode().strip()

    def clear(self) -> None:
        for machine in self.hypervisor.inventory():
            if machine.owner:
                self.hypervisor.destroy(machine.vmid, owner=machine.owner)
        for volume in self.volumes.volumes(owner=OWNER):
            self.volumes.free(volume.volid, owner=OWNER)
        for tap in self.taps:
            subprocess.run(["ip", "link", "delete", tap], check=True)


@dataclass
class LocalBench(Bench):
    """QEMU processes on this machine; `root` has their directories."""

    root: Path = Path()

    def again(self, **changes: object) -> Hypervisor:
        old = self.hypervisor
        assert isinstance(old, LocalHypervisor)
        values: dict[str, object] = {
            "root": old.root,
            "template_dir": old.template_dir,
            "template_key": old.template_key,
            "start_mode": old.start_mode,
            "accelerator": old.accelerator,
        }
        return LocalHypervisor(**{**values, **changes})  # type: ignore[arg-type]

    @contextmanager
    def unreadable(self) -> Iterator[None]:
        away = self.root.rename(self.root.with_name("away"))
        try:
            yield
        finally:
            away.rename(self.root)

    def kill(self, vmid: int) -> None:
        subprocess.run(
            ["kill", "-9", (self.root / str(vmid) / "pid").read_text().strip()], check=True
        )

    def image(self, volid: str) -> Path:
        assert isinstance(self.hypervisor, LocalHypervisor)
        return self.hypervisor.volume(parse_volid(volid)[0]).image

    def leftovers(self) -> list[str]:
        known = {str(machine.vmid) for machine in self.hypervisor.inventory()}
        return [path.name for path in self.root.iterdir() if path.name not in known]


def settings(served: Served, **changes: object) -> Settings:
    """A driver's settings for a node that is served; it owns VMIDs 1000 to 1999."""
    values: dict[str, object] = {
        "node": served.node.node,
        "bridge": "vmbr0",
        "vmids": range(1000, 2000),
        "patience": 5.0,
    }
    return Settings(**{**values, **changes})  # type: ignore[arg-type]


@dataclass
class ProxmoxBench(Bench):
    """A node of Proxmox that is not there, by one of the transports that `connect` makes."""

    served: Served = field(kw_only=True)
    connect: Callable[[], Transport] = field(kw_only=True)
    tools: NodeTools = field(kw_only=True)

    def again(self, **changes: object) -> ProxmoxHypervisor:
        return ProxmoxHypervisor(self.connect(), settings(self.served, **changes), self.tools)

    def tap(self, vmid: int) -> str:
        return f"tap{vmid}i0"  # Proxmox makes it

    @contextmanager
    def unreadable(self) -> Iterator[None]:
        """The cluster's file system is being restarted."""
        with self.served.paused() as node:
            for path in ("/cluster/resources", "/cluster/nextid"):
                node.fail("GET", path, 500, "ipcc_send_rec[1] failed: Connection refused")
        yield
        with self.served.paused() as node:
            node.failures.clear()

    def image(self, volid: str) -> Path:
        assert isinstance(self.served.node, FileNode)
        return self.served.node.path(volid)

    def kill(self, vmid: int) -> None:
        node = self.served.node
        assert isinstance(node, LabNode)
        process.kill(node.machine(node.vm(vmid)).directory, node.machine(node.vm(vmid)).uuid)

    def leftovers(self) -> list[str]:
        with self.served.paused() as node:
            known = {vm.vmid for vm in node.vms}
            return [
                f"{name}:{volume}"
                for name, storage in node.storages.items()
                for volume, facts in storage["volumes"].items()
                if facts["content"] == "images" and facts["vmid"] not in known
            ]

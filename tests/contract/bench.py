"""What the contract suite holds in its hand: a driver and the machines that it made with it."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from agentlab.hypervisor.base import Hypervisor, MachineSpec, Nic
from agentlab.hypervisor.local.driver import LocalHypervisor

OWNER = "agentlab-test"
STRANGER = "somebody-else"


@dataclass
class Bench:
    """A driver, the machines that a test makes with it, and a way to make the driver anew."""

    hypervisor: Hypervisor
    root: Path
    template: str = "debian-12"
    taps: list[str] = field(default_factory=list)

    def again(self, **changes: object) -> Hypervisor:
        """Another driver over the same machines, as after a restart of the daemon."""
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

    def clone(self, vmid: int, *, owner: str = OWNER, full: bool = False) -> None:
        name = f"box{vmid}"
        self.hypervisor.clone(self.template, vmid, name=name, owner=owner, full=full)

    def spec(self, vmid: int, *, tap: bool = True, disk: int = 1024) -> MachineSpec:
        nic = Nic(
            tap=f"tc{vmid}",
            mac=f"52:54:00:77:{vmid >> 8:02x}:{vmid & 255:02x}",
            address=IPv4Interface((IPv4Address("10.77.0.0") + vmid, 16)),
            gateway=IPv4Address("10.77.0.1"),
            dns=(IPv4Address("10.77.0.1"),),
        )
        if tap and nic.tap not in self.taps:
            subprocess.run(["ip", "tuntap", "add", nic.tap, "mode", "tap"], check=True)
            self.taps.append(nic.tap)
        return MachineSpec(f"box{vmid}", cores=1, memory=512, disk=disk, nic=nic)

    def start(self, vmid: int, **changes: int) -> MachineSpec:
        spec = self.spec(vmid, **changes)
        self.clone(vmid)
        self.hypervisor.configure(vmid, spec, owner=OWNER)
        self.hypervisor.start(vmid, owner=OWNER)
        return spec

    def wait(self, vmid: int, spec: MachineSpec) -> float:
        """Waits until the guest is ready; how many seconds it took."""
        begun = time.monotonic()
        limit = 30 * max(1.0, self.hypervisor.capabilities.slowness)
        while not self.hypervisor.ready(vmid, spec):
            assert time.monotonic() - begun < limit, self.hypervisor.status(vmid)
            time.sleep(0.1)
        return time.monotonic() - begun

    def say(self, vmid: int, script: str, timeout: float = 60.0) -> str:
        """What a shell in the guest prints."""
        result = self.hypervisor.exec(vmid, ["/bin/sh", "-c", script], timeout=timeout)
        assert result.status == 0, result
        return result.stdout.decode().strip()

    def clear(self) -> None:
        for machine in self.hypervisor.inventory():
            if machine.owner:
                self.hypervisor.destroy(machine.vmid, owner=machine.owner)
        for tap in self.taps:
            subprocess.run(["ip", "link", "delete", tap], check=True)

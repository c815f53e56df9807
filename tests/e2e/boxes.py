"""Machines of a disk that boots by itself, as a node of Proxmox would run them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from agentlab.errors import DeadlineExceeded, Unavailable
from tests.fakes.netns import private_network
from tests.fakes.pve.machine import Disk, Machine, Plan, Settings, disc

BOOT = 600.0  # seconds, on a machine that is busy with others


@dataclass
class Box:
    """A machine of the test, with what it was made from."""

    machine: Machine
    plan: Plan
    settings: Settings

    def say(self, script: str) -> str:
        result = self.machine.agent.run(["/bin/sh", "-c", script], b"", 60.0)
        assert result.status == 0, result
        return result.stdout.decode().strip()

    def wait_ready(self, within: float = BOOT) -> float:
        begun = time.monotonic()
        while not self._ready():
            assert time.monotonic() - begun < within, self.machine.console()[-3000:]
            time.sleep(0.5)
        return time.monotonic() - begun

    def _ready(self) -> bool:
        try:
            return self.machine.agent.read("/run/agentlab/ready", 2.0) is not None
        except (DeadlineExceeded, Unavailable):
            return False

    def boot_id(self) -> str:
        try:
            return (self.machine.agent.read("/proc/sys/kernel/random/boot_id", 2.0) or b"").decode()
        except (DeadlineExceeded, Unavailable):
            return ""


def make_box(folder: Path, base: Path, vmid: int, *, gib: int, q35: bool) -> Box:
    folder.mkdir()
    overlay = ("-b", base, "-F", "qcow2", folder / "disk.qcow2", f"{gib}G")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *overlay], check=True)
    name, mac = f"box{vmid}", f"BC:24:11:00:00:{vmid % 100:02X}"
    disks = (Disk(0, folder / "disk.qcow2"), disc(folder))
    plan = Plan(vmid, name, str(uuid4()), 1, 512, disks, f"tap{vmid}i0", mac, q35=q35)
    address = f"ip=10.77.0.{vmid % 100}/16,gw=10.77.0.1"
    settings = Settings(name, mac, address, "10.77.0.1 9.9.9.9", "example.test")
    return Box(Machine(folder, plan.uuid), plan, settings)


@contextmanager
def on_a_bridge(boxes: list[Box]) -> Iterator[None]:
    """Starts them in a network of their own, whose host is 10.77.0.1, and ends them."""
    with private_network():
        for words in ("link add vmbr1 type bridge", "address add 10.77.0.1/16 dev vmbr1"):
            subprocess.run(["ip", *words.split()], check=True)
        subprocess.run(["ip", "link", "set", "vmbr1", "up"], check=True)
        try:
            for each in boxes:
                each.machine.start(each.plan, each.settings, bridge="vmbr1")
            yield
        finally:
            for each in boxes:
                each.machine.stop(each.plan.tap)

"""The recipe's disk in virtual machines as Proxmox VE renders them: BIOS, virtio-scsi, cloud-init disc."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from agentlab.clock import Deadline
from agentlab.errors import DeadlineExceeded, Unavailable
from agentlab.hypervisor.image.disk import build_disk
from agentlab.runner_file import runner_bytes
from tests.e2e.lab import template_dir
from tests.fakes.netns import private_network
from tests.fakes.pve.machine import Disk, Machine, Plan, Settings, disc

pytestmark = [pytest.mark.vm, pytest.mark.slow]

_BOOT = 240.0
_FACTS = (
    "hostname; getent hosts $(hostname); cat /etc/machine-id; "
    "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub; ls /etc/ssh/*_key; cat /etc/resolv.conf"
)


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

    def wait_ready(self, within: float = _BOOT) -> float:
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


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[list[Box]]:
    image = build_disk(template_dir(), runner_bytes(), on_step=print)
    made = [
        make_box(tmp_path / "a", image.path, 1005, gib=8, q35=False),
        make_box(tmp_path / "b", image.path, 1006, gib=11, q35=True),
    ]
    with private_network():
        for words in ("link add vmbr1 type bridge", "address add 10.77.0.1/16 dev vmbr1"):
            subprocess.run(["ip", *words.split()], check=True)
        subprocess.run(["ip", "link", "set", "vmbr1", "up"], check=True)
        yield made
        for box in made:
            box.machine.stop(box.plan.tap)


@pytest.mark.timeout(900)
def test_two_clones_of_the_disk_are_machines_of_their_own(boxes: list[Box]) -> None:
    begun = time.monotonic()
    for box in boxes:
        box.machine.start(box.plan, box.settings, bridge="vmbr1")
    for box in boxes:
        box.wait_ready()
        print(f"{box.plan.name} waits for its job after {time.monotonic() - begun:.0f} s")
    facts = [box.say(_FACTS).splitlines() for box in boxes]
    for box, said in zip(boxes, facts, strict=True):
        name, lookup, machine_id, key, files, *resolvers = said
        assert name == box.plan.name
        assert lookup.split() == ["127.0.1.1", f"{name}.example.test", name]
        assert len(machine_id) == 32
        assert "(ED25519)" in key
        assert files == "/etc/ssh/ssh_host_ed25519_key"
        assert resolvers == ["nameserver 10.77.0.1", "nameserver 9.9.9.9", "search example.test"]
        assert box.say("systemctl --failed --no-legend --plain") == ""
        assert box.say("ls /run/agentlab") == "ready"
        assert box.say("systemctl is-active agentlab-runner") == "active"
        assert box.say("ip -4 route show default").startswith("default via 10.77.0.1 dev eth0")
        (eth0,) = [each for each in box.machine.agent.interfaces(10.0) if each.name == "eth0"]
        assert eth0.mac == box.plan.mac.lower()
        assert [str(address) for address in eth0.addresses] == [f"10.77.0.{box.plan.vmid % 100}"]
        with socket.create_connection((str(eth0.addresses[0]), 22), 60.0) as ssh:
            assert ssh.recv(100).startswith(b"SSH-2.0-")
    for one, other in zip(facts[0][:4], facts[1][:4], strict=True):
        assert one != other
    sizes = [int(box.say("df --output=size -BM / | tail -1").rstrip("M")) for box in boxes]
    assert 7500 < sizes[0] < 8192
    assert 10500 < sizes[1] < 11264

    first, second = boxes
    before = first.boot_id()
    first.say("systemctl --no-block reboot")
    # as `qm shutdown` asks for it
    with second.machine.agent.converse(10.0) as agent:
        agent.channel.send(b'{"execute": "guest-shutdown"}\n', Deadline.after(5.0))
    begun = time.monotonic()
    while second.machine.running:
        assert time.monotonic() - begun < _BOOT, second.machine.console()[-3000:]
        time.sleep(0.5)
    print(f"shut down after {time.monotonic() - begun:.0f} s")
    while first.boot_id() in ("", before):
        assert time.monotonic() - begun < _BOOT, first.machine.console()[-3000:]
        time.sleep(0.5)
    first.wait_ready()
    assert first.say(_FACTS).splitlines() == facts[0]
    first.machine.pause()
    assert first.machine.paused
    assert first.machine.running
    first.machine.resume()
    assert first.machine.agent.ping(10.0)

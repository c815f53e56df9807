"""The recipe's disk in virtual machines as Proxmox VE renders them: BIOS, virtio-scsi, cloud-init disc."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.clock import Deadline
from agentlab.hypervisor.image.disk import build_disk
from agentlab.runner_file import runner_bytes
from tests.e2e.boxes import BOOT, Box, make_box, on_a_bridge
from tests.e2e.lab import template_dir

pytestmark = [pytest.mark.vm, pytest.mark.slow]

_FACTS = (
    "hostname; getent hosts $(hostname); cat /etc/machine-id; "
    "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub; ls /etc/ssh/*_key; cat /etc/resolv.conf"
)


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[list[Box]]:
    image = build_disk(template_dir(), runner_bytes(), on_step=print)
    made = [
        make_box(tmp_path / "a", image.path, 1005, gib=8, q35=False),
        make_box(tmp_path / "b", image.path, 1006, gib=11, q35=True),
    ]
    with on_a_bridge(made):
        yield made


@pytest.mark.soak  # three cold boots; each case of test_proxmox.py is one of this disk, too
@pytest.mark.timeout(1200)
def test_two_clones_of_the_disk_are_machines_of_their_own(boxes: list[Box]) -> None:
    begun = time.monotonic()
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
        assert time.monotonic() - begun < BOOT, second.machine.console()[-3000:]
        time.sleep(0.5)
    print(f"shut down after {time.monotonic() - begun:.0f} s")
    while first.boot_id() in ("", before):
        assert time.monotonic() - begun < BOOT, first.machine.console()[-3000:]
        time.sleep(0.5)
    first.wait_ready()
    assert first.say(_FACTS).splitlines() == facts[0]
    first.machine.pause()
    assert first.machine.paused
    assert first.machine.running
    first.machine.resume()
    assert first.machine.agent.ping(10.0)

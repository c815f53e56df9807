"""`sandbox revert` and `snapshot restore` in real VMs: `/` goes back, the work disk does not.

Workspaces have no commands yet, so the test itself makes a volume and attaches it, by a driver of
its own beside the daemon's.  On Proxmox, with a real VM, the driver's part of it is in
tests/contract/test_volumes.py, and the operation's in tests/contract/proxmox/test_revert.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agentlab.hypervisor.base import Volumes
from agentlab.hypervisor.local.driver import LocalHypervisor
from agentlab.hypervisor.local.template import template_key
from agentlab.runner_file import runner_bytes
from tests.e2e.lab import Lab, laboratory, template_dir

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]

DEVICE = "dev=/dev/$(lsblk -dno NAME,SERIAL | awk '$2 ~ /work/ {print $1}'); test -b $dev"


@dataclass
class Place:
    lab: Lab
    volumes: Volumes

    @property
    def owner(self) -> str:
        (row,) = self.lab.rows("SELECT value FROM setting WHERE key = 'installation'")
        return str(row[0])

    def say(self, script: str) -> str:
        done = self.lab.cli("sandbox", "exec", "--user", "root", "box", "--", "sh", "-ec", script)
        assert done.returncode == 0, done
        return done.stdout.strip()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with laboratory() as lab:
        data = lab.scratch / "data"
        driver = LocalHypervisor(
            data / "machines", template_dir(), template_key(runner_bytes()),
            volume_dir=data / "volumes",
        )  # fmt: skip
        yield from _started(Place(lab, driver))


def _started(place: Place) -> Iterator[Place]:
    lab = place.lab
    lab.profile("box", "true", memory=512)
    lab.start()
    built = lab.cli("template", "build", "debian-12", timeout=1800)
    assert built.returncode == 0, built.stderr
    yield place
    assert lab.leftovers() == []
    assert lab.stop() == 0
    assert lab.warnings() == []


def test_the_root_disk_goes_back_and_the_work_disk_stays(place: Place) -> None:
    lab = place.lab
    box = lab.ask("sandbox", "new", "--profile", "box", "--name", "box")
    vmid = int(str(box["vmid"]))
    volid = place.volumes.allot(990000, 64, storage="local", owner=place.owner)
    assert lab.cli("sandbox", "stop", "box").returncode == 0  # the lab node plugs nothing in
    place.volumes.attach(vmid, volid, owner=place.owner)
    assert lab.cli("sandbox", "start", "box").returncode == 0
    before = place.say(
        f"echo changed >/root/mark; for i in $(seq 100); do {DEVICE} && break; sleep 0.1; done; "
        "mkfs.ext4 -q $dev; mount $dev /mnt; head -c 8M /dev/urandom >/mnt/x; umount /mnt; sync; "
        "sha256sum <$dev"
    )
    assert lab.cli("sandbox", "revert", "--yes", "box").returncode == 0
    again = f"test ! -e /root/mark; {DEVICE}; sha256sum <$dev"
    assert place.say(again) == before
    assert list(place.volumes.attached(vmid, owner=place.owner)) == [volid]
    assert lab.cli("sandbox", "stop", "box").returncode == 0
    place.volumes.detach(vmid, volid, owner=place.owner)
    assert lab.cli("sandbox", "destroy", "--yes", "box").returncode == 0
    assert [each.attached for each in place.volumes.volumes(owner=place.owner)] == [()]
    place.volumes.free(volid, owner=place.owner)

"""The double of a node renders discs and command lines as Proxmox VE does."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.fakes.pve.machine import Disk, Plan, Settings, disc, render_argv, render_disc

_MAC = "BC:24:11:45:0E:4B"


def test_the_disc_says_what_was_recorded_for_dhcp() -> None:
    """`qm cloudinit dump`, as recorded with Proxmox's own programs."""
    settings = Settings("agent-tmpl", _MAC, "ip=dhcp", "192.0.2.53", "example.test", "debian")
    files = render_disc(settings)
    assert files["user-data"] == (
        "#cloud-config\nhostname: agent-tmpl\nmanage_etc_hosts: true\n"
        "fqdn: agent-tmpl.example.test\nuser: debian\nchpasswd:\n  expire: False\n"
        "users:\n  - default\npackage_upgrade: true\n"
    )
    assert files["network-config"] == (
        "version: 1\nconfig:\n    - type: physical\n      name: eth0\n"
        "      mac_address: 'bc:24:11:45:0e:4b'\n      subnets:\n      - type: dhcp4\n"
        "    - type: nameserver\n      address:\n      - '192.0.2.53'\n"
        "      search:\n      - 'example.test'\n"
    )


def test_a_static_address_comes_with_netmask_and_gateway() -> None:
    files = render_disc(Settings("box5", _MAC, "ip=10.77.0.5/16,gw=10.77.0.1", "9.9.9.9 1.1.1.1"))
    nic, servers = yaml.safe_load(files["network-config"])["config"]
    assert nic["subnets"] == [
        {
            "type": "static",
            "address": "10.77.0.5",
            "netmask": "255.255.0.0",
            "gateway": "10.77.0.1",
        }
    ]
    assert servers["address"] == ["9.9.9.9", "1.1.1.1"]


def test_another_setting_is_another_instance() -> None:
    one, other = (
        render_disc(Settings("box5", _MAC, f"ip=10.77.0.{last}/16"))["meta-data"] for last in "56"
    )
    assert one != other


def test_every_disk_has_a_controller_of_its_own_and_the_first_boots() -> None:
    disks = (Disk(0, Path("/d/disk.qcow2")), disc(Path("/d")))
    plan = Plan(1005, "box5", "u-u", 1, 512, disks, "tap1005i0", _MAC)
    argv = render_argv(plan)
    controllers = [word for word in argv if word.startswith("virtio-scsi-pci")]
    assert [word.split(",")[1] for word in controllers] == ["id=virtioscsi0", "id=virtioscsi2"]
    (boot,) = [word for word in argv if "bootindex" in word]
    assert boot.startswith("scsi-hd,bus=virtioscsi0.0,")
    assert [word for word in argv if word.startswith("scsi-cd")]
    assert "-kernel" not in argv

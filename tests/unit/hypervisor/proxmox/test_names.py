"""What we write into Proxmox, and what we read there."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.errors import Invalid
from agentlab.hypervisor.base import MachineSpec, Nic
from agentlab.hypervisor.proxmox import names

OWNERS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True)
VMIDS = st.integers(100, 999_999_999)
NIC = Nic(
    "tap1012i0", "02:aa:00:00:03:f4", IPv4Interface("10.77.0.9/16"), IPv4Address("10.77.0.1"),
    (IPv4Address("1.1.1.1"), IPv4Address("9.9.9.9")),
)  # fmt: skip
SPEC = MachineSpec("box", cores=2, memory=2048, disk=8192, nic=NIC)


@given(OWNERS, VMIDS)
def test_the_mark_comes_back(owner: str, vmid: int) -> None:
    assert names.parse_owner(names.render_description(owner, vmid), vmid) == owner


@given(OWNERS, VMIDS, st.sets(st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,20}", fullmatch=True)))
def test_the_storages_come_back(owner: str, vmid: int, storages: set[str]) -> None:
    text = names.render_description(owner, vmid, storages)
    assert names.parse_storages(text) == sorted(storages)
    assert names.parse_owner(text, vmid) == owner


@given(OWNERS, VMIDS, VMIDS)
def test_the_mark_of_another_vmid_is_none(owner: str, vmid: int, other: int) -> None:
    found = names.parse_owner(names.render_description(owner, vmid), other)
    assert found == (owner if vmid == other else "")


@given(OWNERS, VMIDS)
def test_the_tag_comes_back_in_lower_case(owner: str, vmid: int) -> None:
    assert names.tagged_owner(names.render_tags(owner, vmid), vmid) == owner.lower()


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "",
        " qmclone temporary file",
        "agentlab-owner:",
        "agentlab-owner: me",
        "agentlab-owner: me vmid=",
        "see agentlab-owner: me vmid=1012",
        "agentlab-owner: me vmid=101",
        "agentlab-owner: me vmid=1012 or so",
    ],
)
def test_what_is_no_mark(text: object) -> None:
    assert names.parse_owner(text, 1012) == ""


@pytest.mark.parametrize(
    ("tags", "owner"),
    [
        ("", ""),
        ("agentlab", ""),
        ("golden;v1", ""),
        ("agentlab;agentlab-abc-1012", "abc"),
        ("agentlab-abc-1012,golden", "abc"),
        ("agentlab-abc-101", ""),
        (None, ""),
    ],
)
def test_tags(tags: object, owner: str) -> None:
    assert names.tagged_owner(tags, 1012) == owner


def test_the_configuration() -> None:
    assert names.render_config(SPEC, bridge="vmbr1", owner="abc", vmid=1012) == {
        "name": "box",
        "cores": 2,
        "sockets": 1,
        "memory": 2048,
        "balloon": 0,
        "onboot": 0,
        "protection": 0,
        "ciupgrade": 0,
        "agent": 1,
        "net0": "virtio=02:AA:00:00:03:F4,bridge=vmbr1",
        "ipconfig0": "ip=10.77.0.9/16,gw=10.77.0.1",
        "tags": "agentlab;agentlab-abc-1012",
        "nameserver": "1.1.1.1 9.9.9.9",
        "searchdomain": "agentlab.internal",
    }
    alone = replace(SPEC, nic=replace(NIC, dns=()))
    # without a resolver of its own a guest would be told the host's
    assert names.render_config(alone, bridge="b", owner="o", vmid=1)["nameserver"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("key", "have", "wanted", "same"),
    [
        ("memory", "2048", 2048, True),
        ("memory", "512", 2048, False),
        ("cores", 2, 2, True),
        ("net0", "virtio=02:AA:00:00:03:F4,bridge=vmbr1", names.render_net(NIC, "vmbr1"), True),
        ("net0", "bridge=vmbr1,virtio=02:aa:00:00:03:f4", names.render_net(NIC, "vmbr1"), True),
        ("net0", "virtio=02:AA:00:00:03:F4,bridge=vmbr1,firewall=1", names.render_net(NIC, "vmbr1"), False),
        ("tags", "agentlab-abc-1012;agentlab", "agentlab;agentlab-abc-1012", True),
        ("agent", "1", 1, True),
        ("agent", "enabled=1,fstrim_cloned_disks=1", 1, True),
        ("agent", "0", 1, False),
        ("sockets", None, 1, True),
        ("onboot", None, 0, True),
        ("cores", None, 1, False),
    ],
)  # fmt: skip
def test_what_is_already_so(key: str, have: object, wanted: str | int, same: bool) -> None:
    config = {} if have is None else {key: have}
    assert names.same(config, key, wanted) is same


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8192), ("64M", 64), ("4M", 4), ("1T", 1 << 20), ("528K", 1), ("1.5G", 1536), ("", 0), ("x", 0)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert names.parse_size(text) == size


def test_what_would_reach_past_the_fence() -> None:
    config = {"hostpci0": "01:00", "usb1": "host=1", "virtiofs0": "x", "args": "-x", "net0": "virtio",
              "hookscript": "local:snippets/x", "scsi0": "local:x", "usbless": "1",
              "parallel0": "/dev/parport0", "serial0": "socket", "serial1": "/dev/ttyS0",
              "ivshmem": "size=32,name=shared"}  # fmt: skip
    assert names.past_the_fence(config) == [
        "args", "hookscript", "hostpci0", "ivshmem", "parallel0", "serial1", "usb1", "virtiofs0",
    ]  # fmt: skip


def test_drives_that_are_the_hosts_own_would_reach_past_the_fence() -> None:
    config = {"ide0": "cdrom,media=cdrom", "ide2": "none,media=cdrom", "sata0": "/dev/sr0,media=cdrom",
              "ide1": "local:iso/debian.iso,media=cdrom", "scsi0": "local:9000/base-9000-disk-0.qcow2",
              "scsi1": "file=/dev/disk/by-id/x,size=8G", "scsi2": "local:cloudinit"}  # fmt: skip
    assert names.past_the_fence(config) == ["ide0", "sata0", "scsi1"]


def test_the_root_disk() -> None:
    config = {
        "scsi2": "local:1012/vm-1012-cloudinit.qcow2,media=cdrom,size=4M",
        "ide2": "none,media=cdrom",
        "scsi10": "local:1012/vm-1012-disk-1.qcow2,size=1G",
        "scsi0": "local:9000/base-9000-disk-0.qcow2/1012/vm-1012-disk-0.qcow2,size=8G,discard=on",
        "scsihw": "virtio-scsi-single",
        "net0": "virtio=AA:BB:CC:00:00:01,bridge=vmbr0",
    }
    root = names.root_drive(config)
    assert root is not None
    assert (root.key, root.size, root.storage) == ("scsi0", 8192, "local")
    assert [drive.key for drive in names.parse_drives(config)] == [
        "ide2",
        "scsi0",
        "scsi2",
        "scsi10",
    ]
    assert [drive.cloudinit for drive in names.parse_drives(config)] == [False, False, True, False]
    other = names.root_drive({**config, "boot": "order=scsi2;scsi10;net0"})
    assert other is not None
    assert other.key == "scsi10"
    assert names.root_drive({"net0": "virtio"}) is None


@given(OWNERS, st.integers(990000, 990999), st.sampled_from(["", ".qcow2", ".raw"]))
def test_a_volumes_name_carries_number_and_owner(owner: str, number: int, suffix: str) -> None:
    if owner.endswith((".qcow2", ".raw")):
        return  # no installation is called so
    name = names.volume_name(number, owner, suffix)
    assert names.volume_owner(f"local:{number}/{name}") == (number, owner)
    assert names.volume_owner(f"tank:{name}") == (number, owner)


@pytest.mark.parametrize(
    "volid",
    [
        "local:1012/vm-1012-disk-0.qcow2",
        "local:iso/agentlab.iso",
        "x",
        "local:9000/base-9000-disk-0.qcow2",
    ],
)
def test_other_volumes_are_strangers(volid: str) -> None:
    assert names.volume_owner(volid) == (0, "")


@pytest.mark.parametrize("owner", ["", "a b", "a\nb", "-a", "ä", "a=b", "x" * 64])
def test_an_owner_cannot_forge_a_line(owner: str) -> None:
    with pytest.raises(Invalid):
        names.render_description(owner, 1012)


@pytest.mark.parametrize(
    "name", ["", "a", "1st", "a b", "a/b", "ä", "current", "Pending", "x" * 41]
)
def test_snapshot_names_that_proxmox_forbids(name: str) -> None:
    with pytest.raises(Invalid):
        names.check_snapshot(name)


def test_of_what_a_storage_holds_only_disk_images_of_the_vmid_count() -> None:
    held = [
        {"volid": "local:1012/vm-1012-disk-0.qcow2", "content": "images", "vmid": "1012"},
        {"volid": "local:1013/vm-1013-disk-0.qcow2", "content": "images", "vmid": 1013},
        {"volid": "local:snippets/x.yaml", "content": "snippets"},
        {"volid": "local:import/debian.qcow2", "content": "import"},
        {"volid": "local:backup/vzdump-qemu-1012-1.vma", "content": "backup", "vmid": 1012},
    ]
    assert names.parse_disks(held, 1012) == ["local:1012/vm-1012-disk-0.qcow2"]
    assert names.parse_disks(None, 1012) == []

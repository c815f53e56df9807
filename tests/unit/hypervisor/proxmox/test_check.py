"""What a template lacks, read from its configuration; and the marks and storages of templates."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.errors import NotFound
from agentlab.hypervisor.proxmox.check import check_template
from agentlab.hypervisor.proxmox.names import parse_storages
from agentlab.hypervisor.proxmox.template import (
    Mark,
    Order,
    parse_mark,
    pick_storage,
    render_description,
    render_vm,
)

GOOD = {
    "name": "debian-12",
    "template": 1,
    "ostype": "l26",
    "agent": "1",
    "serial0": "socket",
    "vga": "serial0",
    "scsihw": "virtio-scsi-single",
    "scsi0": "local:9000/base-9000-disk-0.qcow2,discard=on,size=8G",
    "scsi2": "local:9000/vm-9000-cloudinit.qcow2,media=cdrom",
    "boot": "order=scsi0",
    "net0": "virtio=BC:24:11:45:0E:4B,bridge=vmbr1",
}


def findings(**changes: object) -> list[tuple[str, str, bool]]:
    config = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    found = check_template(9000, config, bridge="vmbr1")
    return [(each.name, each.remedy, each.needed) for each in found]


def test_a_good_template_lacks_nothing() -> None:
    assert findings() == []


@pytest.mark.parametrize(
    ("changes", "name", "remedy"),
    [
        ({"template": None}, "template", "qm template 9000"),
        ({"agent": None}, "agent", "qm set 9000 --agent 1"),
        ({"agent": "0"}, "agent", "qm set 9000 --agent 1"),
        ({"agent": "1,type=isa"}, "agent", "qm set 9000 --agent 1"),
        ({"serial0": None}, "serial", "qm set 9000 --serial0 socket --vga serial0"),
        ({"scsihw": None}, "scsihw", "qm set 9000 --scsihw virtio-scsi-single"),
        ({"scsihw": "lsi"}, "scsihw", "qm set 9000 --scsihw virtio-scsi-single"),
        (
            {"scsi0": None},
            "disk",
            "qm set 9000 --scsi0 <STORAGE>:0,import-from=<IMAGE> --boot order=scsi0",
        ),
        ({"boot": "order=net0"}, "boot", "qm set 9000 --boot order=scsi0"),
        ({"hostpci0": "0000:01:00.0"}, "fence", "qm set 9000 --delete hostpci0"),
        ({"serial1": "/dev/ttyS0"}, "fence", "qm set 9000 --delete serial1"),
        ({"scsi2": None}, "cloudinit", "qm set 9000 --scsi2 local:cloudinit"),
        ({"net0": None}, "net0", "qm set 9000 --net0 virtio,bridge=vmbr1"),
        ({"net1": "virtio=BC:24:11:45:0E:4C,bridge=vmbr0"}, "net1", "qm set 9000 --delete net1"),
        ({"protection": 1}, "protection", "qm set 9000 --protection 0"),
        ({"lock": "backup"}, "lock", "qm unlock 9000"),
        (
            {"scsi0": "local:9000/vm-9000-disk-0.qcow2,size=8G"},
            "base",
            "qm template 9000 --disk scsi0",
        ),
        (
            {"bios": "ovmf"},
            "efidisk",
            "qm set 9000 --efidisk0 <STORAGE>:1,efitype=4m",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    changes: dict[str, object], name: str, remedy: str
) -> None:
    assert findings(**changes) == [(name, remedy, True)]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (
            {"scsi2": None, "ide2": "local:9000/vm-9000-cloudinit.qcow2,media=cdrom"},
            "cloudinit",
        ),
        ({"net0": "e1000=BC:24:11:45:0E:4B,bridge=vmbr1"}, "net0"),
        ({"kvm": 0}, "kvm"),
        ({"ostype": "other"}, "ostype"),
        ({"hotplug": "network,usb"}, "hotplug"),
    ],
)
def test_what_depends_on_the_guest_is_said_and_not_needed(
    changes: dict[str, object], name: str
) -> None:
    assert [(each[0], each[2]) for each in findings(**changes)] == [(name, False)]


@pytest.mark.parametrize(
    ("hotplug", "remedy"),
    [
        ("network,usb", "qm set 9000 --hotplug network,usb,disk"),
        ("0", "qm set 9000 --hotplug disk"),
        ("1", ""),
        ("disk,network", ""),
    ],
)
def test_workspaces_come_and_go_while_a_sandbox_runs(hotplug: str, remedy: str) -> None:
    assert [each[1] for each in findings(hotplug=hotplug)] == ([remedy] if remedy else [])


def test_the_work_disk_has_its_place_free() -> None:
    found = findings(scsi1="local:9000/base-9000-disk-1.qcow2,size=1G")
    assert [each[0] for each in found] == ["work disk"]


def test_an_empty_vm_lacks_everything_and_becomes_a_template_last() -> None:
    found = [each.name for each in check_template(9000, {}, bridge="vmbr1")]
    assert found == ["agent", "serial", "scsihw", "disk", "cloudinit", "net0", "template"]


def test_a_mark_is_read_as_it_was_written_and_is_no_copys() -> None:
    mark = Mark("installation-1", "debian-12", "ab12")
    text = render_description(mark, 9000, "thin")
    assert parse_storages(text) == ["thin"]
    assert parse_mark(text, 9000) == mark
    assert parse_mark(text, 9001) is None
    assert parse_mark("agentlab-owner: x vmid=9000", 9000) is None
    assert parse_mark(None, 9000) is None


def test_what_is_made_passes_the_check_once_it_has_its_disk() -> None:
    order = Order("debian-12", "installation-1", "ab", Path, first=9000, work=Path())
    made = dict(render_vm(order, 9000, bridge="vmbr1", storage="local"))
    made["scsi2"] = "local:9000/vm-9000-cloudinit.qcow2,media=cdrom"
    made["scsi0"] = "local:9000/base-9000-disk-0.qcow2,size=8G"
    assert check_template(9000, {**made, "template": 1}, bridge="vmbr1") == []


def test_the_storage_with_most_room_is_taken_unless_one_is_named() -> None:
    answer = [
        {"storage": "local", "type": "dir", "avail": 10, "active": 1, "enabled": 1},
        {"storage": "thin", "type": "lvmthin", "avail": 20, "active": 1, "enabled": 1},
        {"storage": "far", "type": "nfs", "avail": 90, "active": 0, "enabled": 1},
    ]
    assert pick_storage(answer, "") == ("thin", "lvmthin")
    assert pick_storage(answer, "local") == ("local", "dir")
    for wanted in ("far", "nosuch"):
        with pytest.raises(NotFound, match=wanted):
            pick_storage(answer, wanted)
    with pytest.raises(NotFound, match="no storage for disk images"):
        pick_storage([], "")

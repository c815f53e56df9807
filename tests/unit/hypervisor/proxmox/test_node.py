"""What is done by a node's own programs.

qemu-img is the real one, on real files.  LVM and ZFS cannot run here (/dev/mapper/control says
"no such device", /dev/zfs is missing), so for them the arguments and the reading of their output
are tested against the forms in lvs(8) and zfs-list(8), and the order of the steps on a stand-in
that keeps names as the tools do; not the tools themselves.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentlab import run
from agentlab.errors import (
    Busy,
    Conflict,
    DeadlineExceeded,
    Invalid,
    NotFound,
    Unavailable,
    Unsupported,
)
from agentlab.hypervisor import fsck
from agentlab.hypervisor.base import FileSystem, VolumeCheck
from agentlab.hypervisor.proxmox import node, tool
from agentlab.hypervisor.proxmox.lvm import (
    parse_lv_list,
    plan_lv_repair,
    render_lv_clone,
    render_lv_list,
    render_lv_rollback,
    render_lv_snapshot,
)
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.storage_plan import (
    Plan,
    Storage,
    Verb,
    parse_storage,
    plan_volume_tool,
)
from agentlab.hypervisor.proxmox.transport import (
    Exists,
    NoSuchSnapshot,
    NoSuchVM,
    NoSuchVolume,
    StorageFull,
    classify,
)
from agentlab.hypervisor.proxmox.zfs import parse_zfs_list, render_zfs_copy, render_zfs_list
from agentlab.hypervisor.qemu_img import parse_progress
from agentlab.model.sandbox import parse_snapshot_name
from tests.fakes.slow_qemu_img import SECONDS, slow_qemu_img
from tests.waiting import until

DIR = Storage("local", "dir", path="/var/lib/vz")
THIN = Storage("fast", "lvmthin", vgname="pve", thinpool="data")
ZFS = Storage("tank", "zfspool", pool="rpool/data")
DISK = "vm-990001-agentlab-a.b"
FILE = f"990001/{DISK}.qcow2"
VERBS: tuple[Verb, ...] = (
    "snapshot", "rollback", "delete_snapshot", "snapshots", "clone", "grow", "copy", "check",
)  # fmt: skip


# --- pure: which tool, and what is refused ---


def test_a_storage_as_proxmox_shows_it() -> None:
    answer = {
        "content": "rootdir,images", "digest": "687d", "path": "/var/lib/vz", "shared": 1,
        "prune-backups": "keep-all=1", "storage": "local", "type": "dir",
        "content-dirs": "iso=a,images=disks/vm",
    }  # fmt: skip
    assert parse_storage(answer) == Storage(
        "local", "dir", path="/var/lib/vz", content=frozenset({"rootdir", "images"}), shared=True,
        images="disks/vm",
    )  # fmt: skip
    assert parse_storage(
        {"storage": "fast", "type": "lvmthin", "vgname": "pve", "thinpool": "data"}
    ) == Storage("fast", "lvmthin", vgname="pve", thinpool="data")
    for nonsense in (None, [], {}, {"storage": "x"}):
        with pytest.raises(Unavailable):
            parse_storage(nonsense)


@pytest.mark.parametrize(
    ("storage", "volume", "plan"),
    [
        (DIR, FILE, Plan("qcow2", f"/var/lib/vz/images/{FILE}", f"local:{FILE}")),
        (Storage("n", "nfs", path="/mnt/pve/n"), FILE,
         Plan("qcow2", f"/mnt/pve/n/images/{FILE}", f"n:{FILE}")),
        (THIN, DISK, Plan("lvmthin", f"pve/{DISK}", f"fast:{DISK}")),
        (ZFS, DISK, Plan("zfspool", f"rpool/data/{DISK}", f"tank:{DISK}")),
    ],
)  # fmt: skip
def test_each_storage_has_its_tool(storage: Storage, volume: str, plan: Plan) -> None:
    for verb in VERBS:
        assert plan_volume_tool(storage, volume, verb) == plan


@pytest.mark.parametrize(
    ("storage", "volume"),
    [
        (DIR, f"990001/{DISK}.raw"),
        (Storage("n", "nfs", path="/mnt/pve/n"), f"990001/{DISK}.raw"),
        (Storage("thick", "lvm", vgname="pve"), DISK),
        (Storage("san", "iscsi"), "0.0.1.lun"),
        (Storage("ceph", "rbd", pool="rbd"), DISK),
    ],
)
def test_what_a_storage_cannot_is_refused_by_name_type_and_remedy(
    storage: Storage, volume: str
) -> None:
    with pytest.raises(Unsupported) as caught:
        plan_volume_tool(storage, volume, "snapshot")
    assert storage.id in caught.value.message
    assert f"type {storage.type}" in caught.value.message
    assert caught.value.hint


def test_a_raw_file_can_be_copied_and_grown_and_checked() -> None:
    for verb in ("copy", "grow", "check"):
        assert plan_volume_tool(DIR, f"990001/{DISK}.raw", verb).tool == "raw"


@pytest.mark.parametrize("kind", ["lvm", "rbd", "iscsi"])
def test_a_volume_that_cannot_be_checked_is_refused_in_the_guides_words(kind: str) -> None:
    with pytest.raises(Unsupported, match="unsupported volume path") as told:
        plan_volume_tool(Storage("san", kind), DISK, "check")
    assert f"type {kind}" in told.value.message
    assert "maintenance sandbox" in told.value.hint


@pytest.mark.parametrize(
    ("storage", "volume"),
    [
        (DIR, ""),
        (DIR, "990001/../../etc/shadow.qcow2"),
        (DIR, "990001/vm-990002-disk-0.qcow2"),
        (DIR, "9000/base-9000-disk-0.qcow2/990001/vm-990001-disk-0.qcow2"),
        (DIR, "990001/vm-990001-a b.qcow2"),
        (DIR, "990001/vm-990001-disk-0.vmdk"),
        (Storage("d", "dir"), FILE),
        (Storage("d", "dir", path="/a", images="../b"), FILE),
        (THIN, "-f"),
        (THIN, "data"),
        (THIN, "vm-1-a/b"),
        (THIN, "vm-1-a@b"),
        (Storage("x", "lvmthin", vgname="-f"), DISK),
        (Storage("x", "lvmthin"), DISK),
        (ZFS, "vm-1-a@b"),
        (Storage("x", "zfspool", pool="-r"), DISK),
        (Storage("x", "zfspool", pool="rpool/-r"), DISK),
        (Storage("x", "zfspool", pool="rpool/.."), DISK),
    ],
)
def test_a_name_can_be_no_option_and_leave_no_storage(storage: Storage, volume: str) -> None:
    with pytest.raises(Invalid):
        plan_volume_tool(storage, volume, "snapshot")


@pytest.mark.parametrize("name", ["-d", "1", "a", "a b", "a@b", "a,b", "x" * 41, "ä1", "a/b"])
def test_a_snapshot_name_is_one_of_proxmox(name: str) -> None:
    with pytest.raises(Invalid):
        NodeTools("pve").snapshot(DIR, FILE, name)


def test_the_words_for_lvm() -> None:
    lv = f"pve/{DISK}"
    snap = f"snap_{DISK}_s1"
    assert render_lv_list(lv) == [
        "lvs", "--noheadings", "--separator", ":", "--units", "b", "--nosuffix",
        "-o", "lv_name,lv_size", "-O", "lv_time", "pve",
    ]  # fmt: skip
    assert render_lv_snapshot(lv, "s1") == ["lvcreate", "-pr", "-n", snap, "-s", lv]
    assert render_lv_clone(lv, "pve/vm-2-x", "") == [
        "lvcreate", "-kn", "-ay", "-prw", "-n", "vm-2-x", "-s", lv,
    ]  # fmt: skip
    assert render_lv_clone(lv, "pve/vm-2-x", "s1")[-1] == f"pve/{snap}"
    assert render_lv_rollback(lv, "s1") == [
        ["lvcreate", "-kn", "-ay", "-prw", "-n", f"agentlab-back-{DISK}", "-s", f"pve/{snap}"],
        ["lvrename", lv, f"pve/agentlab-old-{DISK}"],
        ["lvrename", f"pve/agentlab-back-{DISK}", lv],
        ["lvremove", "-f", "-y", f"pve/agentlab-old-{DISK}"],
    ]


def test_what_lvs_says() -> None:
    said = (
        "  data:858993459200\n"
        f"  {DISK}:4294967296\n"
        f"  snap_{DISK}_s1:4294967296\n"
        "  [lvol0_pmspare]:\n"
    )
    assert parse_lv_list(said) == {
        "data": 858993459200, DISK: 4294967296, f"snap_{DISK}_s1": 4294967296,
    }  # fmt: skip
    assert parse_lv_list("") == {}


def test_the_words_for_zfs_and_what_it_says() -> None:
    dataset = f"rpool/data/{DISK}"
    assert render_zfs_list(dataset) == [
        "zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-s", "createtxg", "-d", "1", dataset,
    ]  # fmt: skip
    assert parse_zfs_list(f"{dataset}@s1\n{dataset}@s2\n") == ["s1", "s2"]
    assert parse_zfs_list("") == []
    assert render_zfs_copy(f"{dataset}@s1", "rpool/data/new")[-2:] == [
        f"{dataset}@s1", "rpool/data/new",
    ]  # fmt: skip


def test_the_progress_that_qemu_img_prints() -> None:
    assert parse_progress("    (0.00/100%)\r    (12.50/100%)\r") == 0.125
    assert parse_progress("    (100.00/100%)\r") == 1.0
    assert parse_progress("") is None


# --- LVM and ZFS on a stand-in ---


class Lvm:
    """Names and contents as lvcreate, lvrename, lvremove and lvs treat them; `cut` ends a step."""

    def __init__(self) -> None:
        self.lvs: dict[str, tuple[str, int]] = {}
        self.cut = -1
        self.calls: list[list[str]] = []

    def __call__(self, words: list[str], what: str, *, timeout: float = 0) -> str:
        if words[0] == "lvs":
            return "".join(f"  {name}:{size}\n" for name, (_, size) in self.lvs.items())
        if self.cut == 0:
            raise KeyboardInterrupt
        self.cut -= 1
        self.calls.append(words)
        names = [word.removeprefix("pve/") for word in words if word.startswith("pve/")]
        if words[0] == "lvcreate":
            new = words[words.index("-n") + 1]
            assert new not in self.lvs
            self.lvs[new] = self.lvs[names[0]]
        elif words[0] == "lvrename":
            assert names[1] not in self.lvs
            self.lvs[names[1]] = self.lvs.pop(names[0])
        elif words[0] == "lvremove":
            del self.lvs[names[0]]
        elif words[0] == "lvchange":
            assert words[1:3] == ["-ay", "-K"]
            assert names[0] in self.lvs
        elif words[0] == "lvextend":
            assert words[1] == "-L"
            self.lvs[names[0]] = (self.lvs[names[0]][0], int(words[2].rstrip("m")) << 20)
        else:
            raise AssertionError(words)
        return ""


@pytest.fixture
def lvm(monkeypatch: pytest.MonkeyPatch) -> Lvm:
    lvm = Lvm()
    lvm.lvs = {"data": ("", 1 << 30), DISK: ("old", 4 << 20)}
    monkeypatch.setattr(tool, "do", lvm)
    return lvm


def test_lvm_snapshot_rollback_and_delete(lvm: Lvm) -> None:
    tools = NodeTools("pve")
    tools.snapshot(THIN, DISK, "s1")
    lvm.lvs[DISK] = ("new", 4 << 20)
    tools.snapshot(THIN, DISK, "s2")
    assert tools.snapshots(THIN, DISK) == ["s1", "s2"]
    with pytest.raises(Exists):
        tools.snapshot(THIN, DISK, "s1")
    tools.rollback(THIN, DISK, "s1")
    assert lvm.lvs[DISK][0] == "old"
    tools.rollback(THIN, DISK, "s2")
    assert lvm.lvs[DISK][0] == "new"
    with pytest.raises(NoSuchSnapshot):
        tools.rollback(THIN, DISK, "s3")
    tools.delete_snapshot(THIN, DISK, "s1")
    tools.delete_snapshot(THIN, DISK, "s1")
    assert sorted(lvm.lvs) == sorted(["data", DISK, f"snap_{DISK}_s2"])


@pytest.mark.parametrize("cut", range(5))
def test_an_lvm_rollback_that_is_cut_off_loses_nothing_and_is_done_again(
    lvm: Lvm, cut: int
) -> None:
    tools = NodeTools("pve")
    tools.snapshot(THIN, DISK, "s1")
    lvm.lvs[DISK] = ("new", 4 << 20)
    lvm.cut = cut
    try:
        tools.rollback(THIN, DISK, "s1")
    except KeyboardInterrupt:
        pass
    whole = {name: lv for name, lv in lvm.lvs.items() if DISK in name and "snap_" not in name}
    assert whole, "there is always one of them"
    lvm.cut = -1
    before = dict(lvm.lvs)
    assert tools.snapshots(THIN, DISK) == ["s1"]
    assert lvm.lvs == before, "who reads changes nothing: the rollback may be under way"
    tools.rollback(THIN, DISK, "s1")
    assert lvm.lvs[DISK][0] == "old"
    assert sorted(lvm.lvs) == sorted(["data", DISK, f"snap_{DISK}_s1"])


def test_lvm_repairs_nothing_where_nothing_was_cut_off() -> None:
    assert plan_lv_repair(f"pve/{DISK}", {"data", DISK, "vm-1-x"}) == []
    assert plan_lv_repair(f"pve/{DISK}", {"data"}) == []


@pytest.mark.parametrize("cut", range(5))
def test_a_volume_with_half_a_rollback_has_its_name_again_before_it_is_freed(
    lvm: Lvm, cut: int
) -> None:
    """Proxmox then finds it by that name, and takes its snapshots along."""
    tools = NodeTools("pve")
    tools.snapshot(THIN, DISK, "s1")
    lvm.cut = cut
    try:
        tools.rollback(THIN, DISK, "s1")
    except KeyboardInterrupt:
        pass
    lvm.cut = -1
    tools.settle(THIN, DISK)
    assert sorted(lvm.lvs) == sorted(["data", DISK, f"snap_{DISK}_s1"])
    calls = len(lvm.calls)
    tools.settle(THIN, DISK)
    tools.settle(THIN, "vm-7-gone")
    tools.settle(DIR, FILE)
    assert len(lvm.calls) == calls


Checked = list[tuple[Path, str, bool]]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Checked:
    """Which devices are checked: the check itself is tried on a loop device, in test_fsck.py."""
    checked: Checked = []

    def check(path: Path, volume: str, *, repair: bool) -> VolumeCheck:
        checked.append((path, volume, repair))
        return VolumeCheck(FileSystem.CLEAN, "")

    monkeypatch.setattr(fsck, "check_device", check)
    return checked


def test_an_lv_is_made_active_before_it_is_checked(lvm: Lvm, checked: Checked) -> None:
    NodeTools("pve").check_volume(THIN, DISK, repair=True)
    assert lvm.calls == [["lvchange", "-ay", "-K", f"pve/{DISK}"]]
    assert checked == [(Path("/dev/pve", DISK), f"fast:{DISK}", True)]
    with pytest.raises(NoSuchVolume):
        NodeTools("pve").check_volume(THIN, "vm-7-gone", repair=False)
    assert len(checked) == 1


def test_lvm_clone_and_grow(lvm: Lvm) -> None:
    tools = NodeTools("pve")
    tools.clone(THIN, DISK, "vm-990002-x")
    tools.clone(THIN, DISK, "vm-990002-x")
    assert lvm.lvs["vm-990002-x"] == lvm.lvs[DISK]
    tools.grow(THIN, DISK, 8)
    tools.grow(THIN, DISK, 4)
    assert lvm.lvs[DISK][1] == 8 << 20
    assert [words[0] for words in lvm.calls] == ["lvcreate", "lvextend"]
    with pytest.raises(NoSuchVolume):
        tools.snapshots(THIN, "vm-7-gone")


class Zfs:
    """Datasets and snapshots as zfs treats them, in order of age; `cut` ends a step."""

    def __init__(self) -> None:
        self.sets: dict[str, list[str]] = {f"rpool/data/{DISK}": []}
        self.busy: set[str] = set()
        self.cut = -1
        self.calls: list[list[str]] = []

    def __call__(self, words: list[str], what: str, *, timeout: float = 0) -> str:
        dataset, _, snapshot = words[-1].partition("@")
        if words[1] == "list" and "snapshot" in words:
            return "".join(f"{dataset}@{each}\n" for each in self.sets[dataset])
        if words[1] == "list":
            return "".join(f"{each}\n" for each in self.sets)
        if self.cut == 0:
            raise KeyboardInterrupt
        self.cut -= 1
        self.calls.append(words)
        if "/bin/sh" in words:
            assert words[-1] not in self.sets
            source, _, taken = words[-2].partition("@")
            assert taken in self.sets[source]
            self.sets[words[-1]] = [taken]
        elif words[1] == "snapshot":
            assert snapshot not in self.sets[dataset]
            self.sets[dataset].append(snapshot)
        elif words[1] == "destroy" and snapshot:
            self.sets[dataset].remove(snapshot)
        elif words[1] == "destroy":
            assert words[2] == "-r"
            if dataset in self.busy:
                raise classify(what, 0, f"cannot destroy '{dataset}': dataset is busy")
            del self.sets[dataset]
        elif words[1] == "rename":
            assert words[3] not in self.sets
            self.sets[words[3]] = self.sets.pop(words[2])
        else:
            assert words[1] == "rollback"
            assert self.sets[dataset][-1] == snapshot
        return ""


@pytest.fixture
def zfs(monkeypatch: pytest.MonkeyPatch) -> Zfs:
    zfs = Zfs()
    monkeypatch.setattr(tool, "do", zfs)
    return zfs


def test_zfs_goes_back_to_the_newest_snapshot_only(zfs: Zfs) -> None:
    tools = NodeTools("pve")
    for name in ("s1", "s2", "s3"):
        tools.snapshot(ZFS, DISK, name)
    tools.rollback(ZFS, DISK, "s3")
    with pytest.raises(Conflict, match="s2, s3 is newer") as told:
        tools.rollback(ZFS, DISK, "s1")
    assert told.value.details["later"] == ["s3", "s2"]
    with pytest.raises(NotFound):
        tools.rollback(ZFS, DISK, "s4")
    tools.delete_snapshot(ZFS, DISK, "s3")
    tools.delete_snapshot(ZFS, DISK, "s3")
    assert tools.snapshots(ZFS, DISK) == ["s1", "s2"]


def test_a_zvol_is_checked_by_its_device(zfs: Zfs, checked: Checked) -> None:
    NodeTools("pve").check_volume(ZFS, DISK, repair=False)
    assert checked == [(Path("/dev/zvol/rpool/data", DISK), f"tank:{DISK}", False)]
    assert zfs.calls == []
    with pytest.raises(NoSuchVolume):
        NodeTools("pve").check_volume(ZFS, "vm-7-gone", repair=False)


@pytest.mark.parametrize("snapshot", ["", "s1"])
@pytest.mark.parametrize("cut", range(6))
def test_a_zfs_clone_is_a_whole_copy_also_when_it_was_cut_off(
    zfs: Zfs, cut: int, snapshot: str
) -> None:
    tools = NodeTools("pve")
    tools.snapshot(ZFS, DISK, "s1")
    zfs.cut = cut
    try:
        tools.clone(ZFS, DISK, "vm-990002-x", snapshot=snapshot)
    except KeyboardInterrupt:
        pass
    zfs.cut = -1
    tools.clone(ZFS, DISK, "vm-990002-x", snapshot=snapshot)
    assert zfs.sets == {f"rpool/data/{DISK}": ["s1"], "rpool/data/vm-990002-x": []}


def test_what_a_copy_left_does_not_stand_in_the_way_of_a_rollback(zfs: Zfs) -> None:
    tools = NodeTools("pve")
    tools.snapshot(ZFS, DISK, "s1")
    zfs.sets[f"rpool/data/{DISK}"].append("agentlab:copy")
    assert tools.snapshots(ZFS, DISK) == ["s1"]
    assert zfs.sets[f"rpool/data/{DISK}"] == ["s1", "agentlab:copy"], "who reads changes nothing"
    tools.rollback(ZFS, DISK, "s1")
    assert zfs.sets[f"rpool/data/{DISK}"] == ["s1"]


def test_no_snapshot_of_a_user_is_taken_for_what_a_copy_left(zfs: Zfs) -> None:
    with pytest.raises(Invalid):
        NodeTools("pve").snapshot(ZFS, DISK, "agentlab:copy")
    with pytest.raises(Invalid):
        parse_snapshot_name("agentlab:copy")
    NodeTools("pve").snapshot(ZFS, DISK, parse_snapshot_name("agentlab-copy"))
    NodeTools("pve").clone(ZFS, DISK, "vm-990002-x")
    assert NodeTools("pve").snapshots(ZFS, DISK) == ["agentlab-copy"]


def test_half_a_zfs_copy_is_swept_by_the_next_one_and_when_a_volume_is_freed(zfs: Zfs) -> None:
    tools = NodeTools("pve")
    left, stranger = "rpool/data/agentlab-new-vm-990009-agentlab-a.b", "rpool/data/vm-1-disk-0"
    another = "rpool/data/agentlab-new-vm-990009-agentlab-other"
    zfs.sets.update({left: [], stranger: [], another: []})
    zfs.busy.add(left)  # what writes to it has not ended yet
    tools.settle(ZFS, DISK)
    with pytest.raises(Busy):
        tools.clone(ZFS, DISK, "vm-990009-agentlab-a.b")
    zfs.busy.clear()
    tools.clone(ZFS, DISK, "vm-990002-agentlab-a.b")
    assert left not in zfs.sets
    zfs.sets[left] = []
    tools.settle(ZFS, DISK)
    assert sorted(zfs.sets) == sorted(
        [f"rpool/data/{DISK}", "rpool/data/vm-990002-agentlab-a.b", stranger, another]
    )


def test_a_zfs_copy_that_is_under_way_is_not_swept(
    zfs: Zfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, plain = NodeTools("pve"), zfs.__call__
    swept: list[str] = []

    def meanwhile(words: list[str], what: str, *, timeout: float = 0) -> str:
        said = plain(words, what, timeout=timeout)
        if "/bin/sh" in words:
            tools.settle(ZFS, "vm-990003-agentlab-a.b")
            swept.append(words[-1])
            assert words[-1] in zfs.sets
        return said

    monkeypatch.setattr(tool, "do", meanwhile)
    tools.clone(ZFS, DISK, "vm-990002-agentlab-a.b")
    assert swept
    assert "rpool/data/vm-990002-agentlab-a.b" in zfs.sets


def test_a_zfs_copy_ends_with_us_however_we_end(tmp_path: Path) -> None:
    """A successor would find the dataset busy, and the copy would be left when it ends."""
    program = tmp_path / "zfs"
    program.write_text(f"#!/bin/sh\necho $$ >>{tmp_path}/pids\nexec sleep 300\n")
    program.chmod(0o755)
    code = (
        "from agentlab.hypervisor.proxmox import tool, zfs\n"
        "tool.do(zfs.render_zfs_copy('p/a@s', 'p/b'), 'copy')\n"
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    daemon = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PATH": path})
    pids = tmp_path / "pids"
    until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    daemon.kill()
    daemon.wait()
    until(lambda: not any(_runs(int(pid)) for pid in pids.read_text().split()))


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# --- who has a volume, by the cluster's own files ---


def test_a_volume_is_found_in_whatever_machine_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vm-990001-agentlab-lab"
    machines = {
        "pve1/qemu-server/150": f"name: rescue\nscsi5: local:990001/{name}.qcow2,size=1G\n",
        "pve2/qemu-server/151": f"cores: 1\n[PENDING]\nvirtio3: local:990001/{name}.qcow2\n",
        "pve2/qemu-server/152": f"sata0: /var/lib/vz/images/990001/{name}.qcow2,size=1G\n",
        "pve1/lxc/153": f"mp0: local:990001/{name}.qcow2,mp=/mnt\n",
        # not attached
        "pve1/qemu-server/160": f"unused0: local:990001/{name}.qcow2\n",
        "pve1/qemu-server/161": f"scsi0: x:1\n[before]\nscsi1: local:990001/{name}.qcow2\n",
        "pve1/qemu-server/162": f"#scsi1: local:990001/{name}.qcow2\nname: {name}.qcow2\n",
        "pve1/qemu-server/163": f"scsi1: local:990001/{name}-b.qcow2\n",
    }
    for path, text in machines.items():
        file = tmp_path / f"{path}.conf"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(node, "NODES", tmp_path)
    assert NodeTools("pve1").holders(f"local:990001/{name}.qcow2") == [150, 151, 152, 153]
    assert NodeTools("pve1").holders("local:vm-7-x") == []
    monkeypatch.setattr(node, "NODES", tmp_path / "absent")
    assert NodeTools("pve1").holders(f"local:990001/{name}.qcow2") == []


# --- qcow2 files, for real ---


class Files:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.storage = Storage("local", "dir", path=str(path))
        self.tools = NodeTools("pve")

    def file(self, volume: str = FILE) -> Path:
        return self.path / "images" / volume

    def make(self, size: str = "8M", volume: str = FILE) -> None:
        self.file(volume).parent.mkdir(parents=True, exist_ok=True)
        form = self.file(volume).suffix[1:]
        qemu("qemu-img", "create", "-q", "-f", form, str(self.file(volume)), size)

    def write(self, byte: int, volume: str = FILE, where: str = "1M 1M") -> None:
        form = self.file(volume).suffix[1:]
        command = f"write -q -P {byte} {where}"
        qemu("qemu-io", "-f", form, "-c", command, str(self.file(volume)))

    def holds(self, byte: int, volume: str = FILE, where: str = "1M 1M") -> bool:
        form = self.file(volume).suffix[1:]
        said = qemu("qemu-io", "-f", form, "-c", f"read -P {byte} {where}", str(self.file(volume)))
        return "failed" not in said

    def whole(self, volume: str = FILE) -> bool:
        check = ["qemu-img", "check", "-q", "-f", "qcow2", str(self.file(volume))]
        return subprocess.run(check, check=False).returncode in (0, 3)  # 3: lost room, no data


def qemu(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or words[0] == "qemu-io", done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.make()
    files.write(0xAA)
    return files


def test_an_image_that_an_earlier_program_has_open_is_waited_for(files: Files) -> None:
    """A daemon that was killed leaves its qemu-img, which ends soon: no reason to fail."""
    files.tools.snapshot(files.storage, FILE, "first")
    words = ["qemu-io", "-f", "qcow2", str(files.file())]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdin
        assert holder.stdout
        holder.stdin.write(b"read 0 512\n")
        holder.stdin.flush()
        holder.stdout.readline()
        for attempt in (files.tools.rollback, files.tools.delete_snapshot):
            with pytest.raises(Busy, match="lock"):
                attempt(files.storage, FILE, "first")
    finally:
        holder.communicate(b"quit\n")
    files.tools.rollback(files.storage, FILE, "first")


def test_a_rollback_brings_back_what_was_there(files: Files) -> None:
    tools, storage = files.tools, files.storage
    tools.snapshot(storage, FILE, "first")
    files.write(0xBB)
    tools.snapshot(storage, FILE, "second")
    files.write(0xCC)
    assert tools.snapshots(storage, FILE) == ["first", "second"]
    with pytest.raises(Exists):
        tools.snapshot(storage, FILE, "first")
    for name, byte in (("first", 0xAA), ("second", 0xBB), ("first", 0xAA)):
        tools.rollback(storage, FILE, name)
        assert files.holds(byte)
    with pytest.raises(NoSuchSnapshot):
        tools.rollback(storage, FILE, "third")
    tools.delete_snapshot(storage, FILE, "first")
    tools.delete_snapshot(storage, FILE, "first")
    assert tools.snapshots(storage, FILE) == ["second"]
    assert files.whole()


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01])
def test_a_rollback_that_is_killed_is_done_again(files: Files, delay: float) -> None:
    files.tools.snapshot(files.storage, FILE, "first")
    files.write(0xBB)
    words = ["qemu-img", "snapshot", "-q", "-a", "first", str(files.file())]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    time.sleep(delay)
    process.kill()
    process.wait()
    files.tools.rollback(files.storage, FILE, "first")
    assert files.holds(0xAA)
    assert files.whole()


def test_a_snapshot_takes_as_long_as_its_metadata_needs(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed and begun again it would never end, and leave room that nobody has each time."""
    told = slow_qemu_img(tmp_path, monkeypatch)
    assert tool.do.__kwdefaults__ == {"timeout": tool.QUICK}
    monkeypatch.setitem(tool.do.__kwdefaults__, "timeout", SECONDS - 0.5)
    files.tools.snapshot(files.storage, FILE, "first")
    files.write(0xBB)
    files.tools.rollback(files.storage, FILE, "first")
    assert files.holds(0xAA)
    files.tools.delete_snapshot(files.storage, FILE, "first")
    assert files.tools.snapshots(files.storage, FILE) == []
    assert told.read_text().split() == ["-c", "-a", "-d"]


def test_a_clone_needs_nothing_of_its_source(files: Files) -> None:
    told: list[float] = []
    files.tools.snapshot(files.storage, FILE, "first")
    files.write(0xBB)
    now, then = "990002/vm-990002-x.qcow2", "990003/vm-990003-x.qcow2"
    files.tools.clone(files.storage, FILE, now, progress=told.append)
    files.tools.clone(files.storage, FILE, then, snapshot="first")
    files.file().unlink()
    assert files.holds(0xBB, now)
    assert files.holds(0xAA, then)
    assert told[-1] == 1.0
    info = json.loads(qemu("qemu-img", "info", "--output=json", str(files.file(now))))
    assert "backing-filename" not in info
    assert "snapshots" not in info
    assert sorted(path.name for path in files.path.rglob("*.*")) == [
        "vm-990002-x.qcow2", "vm-990003-x.qcow2",
    ]  # fmt: skip


def test_a_clone_that_is_there_is_left_as_it_is(files: Files) -> None:
    target = "990002/vm-990002-x.qcow2"
    files.tools.clone(files.storage, FILE, target)
    files.write(0xCC, target)
    files.tools.clone(files.storage, FILE, target)
    assert files.holds(0xCC, target)


def test_a_clone_that_fails_leaves_nothing(files: Files) -> None:
    with pytest.raises(NoSuchSnapshot):
        files.tools.clone(files.storage, FILE, "990002/vm-990002-x.qcow2", snapshot="none")
    with pytest.raises(NoSuchVolume):
        files.tools.clone(files.storage, "7/vm-7-x.qcow2", "990002/vm-990002-x.qcow2")
    assert [path.name for path in (files.path / "images").iterdir()] == ["990001"]


def test_a_clone_whose_daemon_is_killed_is_made_anew_and_nothing_is_left(files: Files) -> None:
    files.make("64M")
    files.write(0xAA, where="0 32M")
    target = "990002/vm-990002-x.qcow2"
    program = (
        "import sys; from agentlab import run; real = run.run;"
        "run.run = lambda words, **more: real(['sh', '-c', '\"$@\"; sleep 30', 'x', *words], **more)"
        " if words[1] == 'convert' else real(words, **more);"
        "from agentlab.hypervisor.proxmox.node import NodeTools;"
        "from agentlab.hypervisor.proxmox.storage_plan import Storage;"
        "NodeTools('pve').clone(Storage('local', 'dir', path=sys.argv[1]), *sys.argv[2:])"
    )
    words = [sys.executable, "-c", program, str(files.path), FILE, target]
    daemon = subprocess.Popen(words)
    until = time.monotonic() + 20
    while not list(files.path.rglob("*.agentlab-new")):
        assert time.monotonic() < until
        time.sleep(0.01)
    (left,) = files.path.rglob("*.agentlab-new")
    files.tools.clone(files.storage, FILE, "990003/vm-990003-x.qcow2")
    assert left.exists(), "what is being made is nobody's to remove"
    daemon.kill()
    daemon.wait()
    assert not files.file(target).exists()
    files.tools.clone(files.storage, FILE, target)
    assert files.holds(0xAA, target, "0 32M")
    assert not list(files.path.rglob("*.agentlab-new"))
    for name in os.listdir("/proc"):  # the stand-in's `sleep`
        if name.isdecimal() and str(left).encode() in _cmdline(name):
            os.killpg(int(name), signal.SIGKILL)


def _cmdline(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return b""


def test_an_image_grows_and_never_shrinks(files: Files) -> None:
    files.tools.snapshot(files.storage, FILE, "first")
    files.tools.grow(files.storage, FILE, 16)
    files.tools.grow(files.storage, FILE, 4)
    info = json.loads(qemu("qemu-img", "info", "--output=json", str(files.file())))
    assert info["virtual-size"] == 16 << 20
    assert files.holds(0xAA)


def test_a_copy_fills_a_volume_of_any_format(files: Files) -> None:
    other = Files(files.path / "other")
    told: list[float] = []
    for volume in ("990005/vm-990005-x.raw", "990006/vm-990006-x.qcow2"):
        other.make(volume=volume)
        other.write(0xEE, volume, "0 8M")  # of a copy that was cut off
        files.tools.copy(files.storage, FILE, other.storage, volume, progress=told.append)
        assert other.holds(0xAA, volume)
        assert other.holds(0, volume, "0 1M")
        assert other.holds(0, volume, "2M 6M")


def test_a_copy_leaves_no_snapshots_behind(files: Files) -> None:
    target = "990002/vm-990002-x.qcow2"
    files.make(volume=target)
    files.tools.snapshot(files.storage, FILE, "first")
    with pytest.raises(Conflict, match="first"):
        files.tools.copy(files.storage, FILE, files.storage, target)


def test_a_raw_file_is_checked(files: Files) -> None:
    volume = "990005/vm-990005-x.raw"
    files.make(volume=volume)
    found = files.tools.check_volume(files.storage, volume, repair=True)
    assert found.state is FileSystem.BLANK
    qemu("mke2fs", "-q", "-t", "ext4", str(files.file(volume)))
    found = files.tools.check_volume(files.storage, volume, repair=True)
    assert found.state is FileSystem.CLEAN
    with pytest.raises(NoSuchVolume):
        files.tools.check_volume(files.storage, "7/vm-7-x.raw", repair=True)


def test_an_image_on_top_of_another_is_not_touched(files: Files) -> None:
    over = files.file("990002/vm-990002-x.qcow2")
    over.parent.mkdir()
    backing = ("-b", str(files.file()), "-F", "qcow2")
    qemu("qemu-img", "create", "-q", "-f", "qcow2", *backing, str(over))
    with pytest.raises(Conflict, match="lies on another image"):
        files.tools.snapshot(files.storage, "990002/vm-990002-x.qcow2", "first")
    with pytest.raises(Conflict, match="lies on another image"):
        files.tools.check_volume(files.storage, "990002/vm-990002-x.qcow2", repair=True)


def test_a_full_storage_is_told_as_such(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    (files.path / "bin").mkdir()
    stand_in = files.path / "bin" / "qemu-img"
    stand_in.write_text(
        '#!/bin/sh\n[ $1 = convert ] || exec /usr/bin/qemu-img "$@"\n'
        "printf '    (3.00/100%%)\\r'; echo 'qemu-img: error while writing at byte 0:"
        " No space left on device' >&2; exit 1\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    with pytest.raises(StorageFull) as caught:
        files.tools.clone(files.storage, FILE, "990002/vm-990002-x.qcow2")
    assert "100%" not in caught.value.message
    assert not files.file("990002/vm-990002-x.qcow2").parent.exists()


# --- the node itself ---


def test_tools_are_there_for_root_on_its_own_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_LOCAL", tmp_path / "local")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not NodeTools("pve").available_on("pve")
    for name in ("qm", "pvesm", "pvesh"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert NodeTools("pve").available_on("pve")
    assert not NodeTools("pve").available_on("other")
    assert not NodeTools("").available_on("")
    (tmp_path / "local").symlink_to("nodes/other")
    assert not NodeTools("pve").available_on("pve"), "the settings name a node that this is not"
    assert NodeTools("other").available_on("other")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not NodeTools("other").available_on("other")


def test_unlock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qm"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/args\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    NodeTools("pve").unlock(1020)
    assert (tmp_path / "args").read_text() == "unlock 1020\n"
    program.write_text(
        "#!/bin/sh\necho \"Configuration file 'nodes/pve/qemu-server/1020.conf' does not exist\""
        " >&2; exit 2\n"
    )
    with pytest.raises(NoSuchVM):
        NodeTools("pve").unlock(1020)


def test_a_program_that_is_watched(tmp_path: Path) -> None:
    seen: list[float] = []
    done = run.run(
        ["sh", "-c", "cat; sleep 1.2"], stdin=b"x", timeout=10, watch=lambda: seen.append(1)
    )
    assert done.stdout == b"x"
    assert seen == [1]
    with pytest.raises(DeadlineExceeded):
        run.run(["sleep", "30"], timeout=0.2, watch=lambda: None)

"""What Proxmox's API has no call for, done to real images on the node, as root there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from agentlab.errors import Conflict, Invalid, NotFound, NotOurs, Unsupported
from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
from agentlab.hypervisor.proxmox.inventory import Found
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.pvesh import PveshTransport
from agentlab.hypervisor.proxmox.storage_plan import Storage
from agentlab.hypervisor.proxmox.transport import Transport
from tests.contract.bench import OWNER, STRANGER, settings
from tests.contract.conftest import connect_api
from tests.fakes.pve.commands import make_commands
from tests.fakes.pve.files import FileNode
from tests.fakes.pve.serving import Served, serve


def image(*words: str) -> str:
    done = subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True)
    return done.stdout


class Shelf:
    """A driver and the files of its volumes."""

    def __init__(self, served: Served, transport: Transport, tools: NodeTools) -> None:
        self.served = served
        self.driver = ProxmoxHypervisor(transport, settings(served, storage="local"), tools)

    def file(self, volid: str) -> Path:
        node = self.served.node
        assert isinstance(node, FileNode)
        return node.path(volid)

    def write(self, volid: str, byte: int) -> None:
        words = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P {byte} 1M 1M", self.file(volid)]
        subprocess.run(words, check=True)

    def holds(self, volid: str, byte: int) -> bool:
        words = ["qemu-io", "-f", "qcow2", "-c", f"read -P {byte} 1M 1M", self.file(volid)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return "failed" not in done.stdout + done.stderr

    def known(self) -> list[str]:
        """The volumes of this number that Proxmox knows."""
        with self.served.paused() as node:
            return node.volumes_of(990000)


@contextmanager
def _shelf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, *, root: bool = True
) -> Iterator[Shelf]:
    node = FileNode(tmp_path)
    node.add_shelf("fast")
    node.make_template(name="debian-12", size=1 << 30)
    node.on_allot("local:9000/base-9000-disk-0.qcow2", 1 << 30)
    with serve(node, tmp_path) as served:
        programs = make_commands(served, tmp_path / "bin")
        node.pvesh_secs = 0.0
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        tools = NodeTools(node.node if root else "")
        if backend == "shell":
            yield Shelf(served, PveshTransport(node.node, tmp_path / "spool", scope=False), tools)
        else:
            with closing(connect_api(served)) as transport:
                yield Shelf(served, transport, tools)


@pytest.fixture(params=["api", "shell"])
def shelf(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shelf]:
    """By both ways to Proxmox, with the daemon as root on the node."""
    with _shelf(tmp_path, monkeypatch, request.param) as made:
        yield made


@pytest.fixture
def afar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """With a token alone: the daemon runs on no node."""
    with _shelf(tmp_path, monkeypatch, "api", root=False) as made:
        yield made


def test_a_volume_goes_back_to_its_snapshot(shelf: Shelf) -> None:
    driver = shelf.driver
    assert driver.capabilities.volume_tools
    volid = driver.allot(990000, 8, owner=OWNER)
    shelf.write(volid, 0x11)
    driver.snapshot_volume(volid, "first", owner=OWNER)
    with pytest.raises(Conflict):
        driver.snapshot_volume(volid, "first", owner=OWNER)
    shelf.write(volid, 0x22)
    driver.snapshot_volume(volid, "second", owner=OWNER)
    assert driver.volume_snapshots(volid, owner=OWNER) == ["first", "second"]
    driver.rollback_volume(volid, "first", owner=OWNER)
    assert shelf.holds(volid, 0x11)
    with pytest.raises(NotFound):
        driver.rollback_volume(volid, "third", owner=OWNER)
    driver.delete_volume_snapshot(volid, "second", owner=OWNER)
    driver.delete_volume_snapshot(volid, "second", owner=OWNER)
    assert driver.volume_snapshots(volid, owner=OWNER) == ["first"]


def test_a_volume_that_a_strangers_machine_has_is_left_alone(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has attached it to a VM of theirs, to look at what is in it."""
    driver = shelf.driver
    volid = driver.allot(990000, 8, owner=OWNER)
    driver.clone("debian-12", 1012, name="box1012", owner=OWNER)
    theirs = tmp_path / "nodes" / "other" / "qemu-server" / "150.conf"
    theirs.parent.mkdir(parents=True)
    theirs.write_text(f"name: rescue\nscsi1: {volid},size=8M\n")
    monkeypatch.setattr("agentlab.hypervisor.proxmox.node.NODES", tmp_path / "nodes")
    for attempt in (
        lambda: driver.free(volid, owner=OWNER),
        lambda: driver.attach(1012, volid, owner=OWNER),
        lambda: driver.check_volume(volid, repair=True, owner=OWNER),
        lambda: driver.snapshot_volume(volid, "first", owner=OWNER),
    ):
        with pytest.raises(Conflict, match="VM 150"):
            attempt()
    assert shelf.known() == [volid]
    theirs.unlink()
    driver.attach(1012, volid, owner=OWNER)
    driver.destroy(1012, owner=OWNER)
    driver.free(volid, owner=OWNER)
    assert shelf.known() == []


def test_a_clone_has_what_its_snapshot_had_and_stands_alone(shelf: Shelf) -> None:
    driver = shelf.driver
    volid = driver.allot(990000, 8, owner=OWNER)
    shelf.write(volid, 0x11)
    driver.snapshot_volume(volid, "first", owner=OWNER)
    shelf.write(volid, 0x22)
    copies = [
        driver.clone_volume(volid, 990001, snapshot="first", owner=OWNER),
        driver.clone_volume(volid, 990002, owner=OWNER),
    ]
    assert driver.clone_volume(volid, 990002, owner=OWNER) == copies[1]
    shelf.file(volid).unlink()
    assert shelf.holds(copies[0], 0x11)
    assert shelf.holds(copies[1], 0x22)
    with pytest.raises(Invalid):
        driver.clone_volume(copies[0], 1012, owner=OWNER)  # a machine's number


def test_a_volume_grows_and_never_shrinks(shelf: Shelf) -> None:
    driver = shelf.driver
    volid = driver.allot(990000, 8, owner=OWNER)
    driver.grow(volid, 16, owner=OWNER)
    assert '"virtual-size": 16777216' in image("info", "--output=json", str(shelf.file(volid)))
    with pytest.raises(Invalid):
        driver.grow(volid, 4, owner=OWNER)


def test_a_volume_moves_with_what_is_in_it(shelf: Shelf) -> None:
    driver = shelf.driver
    volid = driver.allot(990000, 8, owner=OWNER)
    shelf.write(volid, 0x11)
    moved = driver.move(volid, "fast", owner=OWNER)
    assert moved.startswith("fast:990000/")
    assert shelf.holds(moved, 0x11)
    assert shelf.known() == [moved]
    assert not shelf.file(volid).exists()
    assert driver.move(volid, "fast", owner=OWNER) == moved  # done already
    assert driver.move(moved, "fast", owner=OWNER) == moved  # there already


def test_a_storage_that_cannot_is_refused_before_a_volume_is_made_there(shelf: Shelf) -> None:
    volid = shelf.driver.allot(990000, 8, owner=OWNER)
    with shelf.served.paused() as node:
        node.add_dir_storage("ceph", type="rbd", path="", content="images")
    with pytest.raises(Unsupported, match="ceph is of type rbd"):
        shelf.driver.move(volid, "ceph", owner=OWNER)
    assert shelf.known() == [volid]


def test_whether_a_storage_takes_volumes_is_known_before_one_is_made(shelf: Shelf) -> None:
    driver = shelf.driver
    with shelf.served.paused() as node:
        node.add_dir_storage("ceph", type="rbd", path="", content="images")
        node.add_dir_storage("thin", type="lvmthin", path="", content="images", vgname="pve")
        node.add_dir_storage("papers", content="iso")
    driver.check_storage()
    driver.check_storage("fast", tools=True)
    driver.check_storage("thin", tools=True)
    driver.check_storage("ceph")
    with pytest.raises(Unsupported, match="ceph is of type rbd"):
        driver.check_storage("ceph", tools=True)
    with pytest.raises(Unsupported, match="papers: it takes no disk images"):
        driver.check_storage("papers")
    with pytest.raises(NotFound, match="no storage tape"):
        driver.check_storage("tape")
    assert driver.clones_thin("thin:vm-990000-agentlab-x")
    assert not driver.clones_thin("fast:990000/vm-990000-agentlab-x.qcow2")
    with pytest.raises(NotFound, match="no storage tape"):
        driver.clones_thin("tape:vm-990000-agentlab-x")
    assert shelf.known() == []


def test_a_volume_takes_its_snapshots_along(shelf: Shelf) -> None:
    driver = shelf.driver
    volid = driver.allot(990000, 8, owner=OWNER)
    shelf.write(volid, 0x11)
    driver.snapshot_volume(volid, "first", owner=OWNER)
    copy = driver.clone_volume(volid, 990001, snapshot="first", owner=OWNER)
    driver.free(volid, owner=OWNER)
    driver.free(volid, owner=OWNER)
    assert not shelf.file(volid).exists()
    assert shelf.known() == []
    assert shelf.holds(copy, 0x11)


def test_what_half_a_rollback_has_left_is_ended_before_a_volume_is_freed(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On LVM the volume may lie under another name, under which Proxmox would not find it."""
    order: list[str] = []
    volid = shelf.driver.allot(990000, 8, owner=OWNER)
    settle = NodeTools.settle

    def seen(tools: NodeTools, storage: Storage, volume: str) -> None:
        assert shelf.file(volid).exists(), "not freed yet"
        order.append(f"{storage.id}:{volume}")
        settle(tools, storage, volume)

    monkeypatch.setattr(NodeTools, "settle", seen)
    shelf.driver.free(volid, owner=OWNER)
    assert order == [volid]
    assert shelf.known() == []


def test_a_storage_that_is_not_there(shelf: Shelf) -> None:
    with pytest.raises(NotFound, match="no storage tape"):
        shelf.driver.allot(990000, 8, storage="tape", owner=OWNER)


def test_a_move_that_fails_leaves_the_old_volume_and_no_other(shelf: Shelf) -> None:
    driver = shelf.driver
    volid = driver.allot(990000, 8, owner=OWNER)
    shelf.write(volid, 0x11)
    driver.snapshot_volume(volid, "first", owner=OWNER)
    with pytest.raises(Conflict, match="its snapshots would stay behind"):
        driver.move(volid, "fast", owner=OWNER)
    assert shelf.known() == [volid]
    assert shelf.holds(volid, 0x11)
    assert driver.volume_snapshots(volid, owner=OWNER) == ["first"]


def test_nothing_is_done_to_a_strangers_volume_or_to_one_that_is_attached(shelf: Shelf) -> None:
    driver = shelf.driver
    theirs = driver.allot(990001, 8, owner=STRANGER)
    ours = driver.allot(990000, 8, owner=OWNER)
    driver.clone("debian-12", 1012, name="box1012", owner=OWNER)
    driver.attach(1012, ours, owner=OWNER)
    for volid, error in ((theirs, NotOurs), (ours, Conflict)):
        for attempt in (
            lambda volid=volid: driver.snapshot_volume(volid, "first", owner=OWNER),
            lambda volid=volid: driver.rollback_volume(volid, "first", owner=OWNER),
            lambda volid=volid: driver.delete_volume_snapshot(volid, "first", owner=OWNER),
            lambda volid=volid: driver.clone_volume(volid, 990002, owner=OWNER),
            lambda volid=volid: driver.move(volid, "fast", owner=OWNER),
        ):
            with pytest.raises(error):
                attempt()
    with pytest.raises(Conflict):
        driver.grow(ours, 16, owner=OWNER)
    assert "snapshots" not in image("info", "--output=json", str(shelf.file(theirs)))


def test_a_machine_whose_mark_was_edited_away_still_has_its_volume(shelf: Shelf) -> None:
    """It is not ours any more, and the disk in it would be written to by two guests."""
    driver = shelf.driver
    for vmid in (1012, 1013):
        driver.clone("debian-12", vmid, name="box", owner=OWNER)
    volid = driver.allot(990000, 64, owner=OWNER)
    driver.attach(1012, volid, owner=OWNER)
    with shelf.served.paused() as node:
        node.vm(1012).config["description"] = "kept for the audit"
    with pytest.raises(Conflict, match="VM 1012 has it"):
        driver.attach(1013, volid, owner=OWNER)
    with pytest.raises(Conflict, match="attached to VM 1012"):
        driver.free(volid, owner=OWNER)
    assert [each.attached for each in driver.volumes(owner=OWNER)] == [(1012,)]


def test_a_machine_that_goes_while_volumes_are_looked_for_is_in_nobodys_way(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = shelf.driver
    for vmid in (1012, 1013):
        driver.clone("debian-12", vmid, name="box", owner=OWNER)
    volid = driver.allot(990000, 64, owner=OWNER)
    plain = driver._held

    def held(found: Found) -> set[str]:
        if found.vmid == 1012:  # between the list and the look
            driver.destroy(1012, owner=OWNER)
        return plain(found)

    monkeypatch.setattr(driver, "_held", held)
    assert [each.volid for each in driver.volumes(owner=OWNER)] == [volid]
    driver.snapshot_volume(volid, "first", owner=OWNER)


def test_with_a_token_alone_it_is_refused_before_anything_is_done(afar: Shelf) -> None:
    driver = afar.driver
    assert (driver.capabilities.volumes, driver.capabilities.volume_tools) == (True, False)
    volid = driver.allot(990000, 8, owner=OWNER)
    for attempt in (
        lambda: driver.snapshot_volume(volid, "first", owner=OWNER),
        lambda: driver.rollback_volume(volid, "first", owner=OWNER),
        lambda: driver.clone_volume(volid, 990001, owner=OWNER),
        lambda: driver.grow(volid, 16, owner=OWNER),
        lambda: driver.move(volid, "fast", owner=OWNER),
        lambda: driver.check_volume(volid, repair=True, owner=OWNER),
        lambda: driver.check_storage(tools=True),
    ):
        with pytest.raises(Unsupported, match="does not run as root"):
            attempt()
    with pytest.raises(Unsupported, match="unsupported volume path") as told:
        driver.check_volume(volid, repair=False, owner=OWNER)
    assert "maintenance sandbox" in told.value.hint
    driver.check_storage()
    assert afar.known() == [volid]
    assert "snapshots" not in image("info", "--output=json", str(afar.file(volid)))

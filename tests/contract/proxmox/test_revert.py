"""Work disks on Proxmox through whole operations: `sandbox revert`, snapshots, start and detach."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentlab import clock
from agentlab.hypervisor.base import Power
from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
from agentlab.model.sandbox import Sandbox, SandboxSpec, SandboxState
from agentlab.model.workspace import Workspace, WorkspaceEvent, WorkspaceState
from agentlab.operations import (
    sandbox_requests,
    work_mount,
    workspace_attach,
    workspace_requests,
)
from agentlab.operations.sandbox_power import START, STOP
from agentlab.store import events, operations, sandboxes, workspaces
from agentlab.store.operations import OperationRow
from tests.contract.bench import ProxmoxBench
from tests.contract.proxmox.installation import OWNER, Installation, installation
from tests.fakes.pve.files import FileNode


def _ended(ours: Installation, operation: str) -> OperationRow:
    until = time.monotonic() + 60
    while True:
        with ours.world.store.read() as tx:
            found = operations.get(tx, operation)
        if found.final:
            return found
        assert time.monotonic() < until, found
        time.sleep(0.02)


def _new(ours: Installation, name: str = "box") -> Sandbox:
    made = _ended(
        ours, sandbox_requests.create(ours.world, ours.runner, SandboxSpec("demo", name=name), "")
    )
    assert made.state == "done", made
    return _box(ours, name)


def _box(ours: Installation, name: str = "box") -> Sandbox:
    with ours.world.store.read() as tx:
        return sandboxes.get_live(tx, name)


def _revert(ours: Installation, **given: object) -> OperationRow:
    asked = sandbox_requests.revert(ours.world, ours.runner, "box", "", **given)  # type: ignore[arg-type]
    return _ended(ours, asked)


def _save(ours: Installation, name: str) -> OperationRow:
    return _ended(ours, sandbox_requests.save_snapshot(ours.world, ours.runner, "box", "", name))


def _on_tank(ours: Installation, bench: ProxmoxBench, directory: Path) -> None:
    """From now on sandboxes are made on a ZFS pool."""
    empty = directory / "on-tank.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(empty), "1G"], check=True)
    with bench.served.paused() as node:
        assert isinstance(node, FileNode)
        node.add_block_shelf("tank", "zfspool", pool="rpool/data")
        node.make_template(9001, "on-tank", storage="tank", size=1 << 30)
        node.import_disk(empty, "tank:base-9001-disk-0")
    profile = ours.world.config.profiles_dir / "demo.yaml"
    profile.write_text(profile.read_text() + "template: on-tank\n")


@pytest.fixture(params=["api", "shell"])
def storing(request: pytest.FixtureRequest) -> ProxmoxBench:
    """By both ways to Proxmox, with volumes that are files."""
    found = request.getfixturevalue(f"storing_{request.param}")
    assert isinstance(found, ProxmoxBench)
    return found


@dataclass
class Disks:
    """The files of a sandbox's root disk and of its workspace's volume."""

    root: Path
    work: Path

    @property
    def digest(self) -> str:
        """Of every byte of the volume's file, snapshots that it may have got too."""
        return hashlib.sha256(self.work.read_bytes()).hexdigest()

    def write(self, file: Path, byte: int) -> None:
        words = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P {byte} 1M 1M", file]
        subprocess.run(words, check=True)

    def root_holds(self, byte: int) -> bool:
        words = ["qemu-io", "-f", "qcow2", "-c", f"read -P {byte} 1M 1M", self.root]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return "failed" not in done.stdout + done.stderr


@contextmanager
def _installed(
    bench: ProxmoxBench, directory: Path, storage: str
) -> Iterator[tuple[Installation, ProxmoxHypervisor]]:
    """An installation whose disks are on that storage."""
    assert isinstance(bench.hypervisor, ProxmoxHypervisor)
    with installation(directory, bench.hypervisor) as ours:
        if storage == "tank":
            _on_tank(ours, bench, directory)
        yield ours, bench.hypervisor


def _disks(bench: ProxmoxBench, vmid: int, volid: str) -> Disks:
    with bench.served.paused() as node:
        root = str(node.vm(vmid).config["scsi0"]).partition(",")[0]
    return Disks(bench.image(root), bench.image(volid))


@pytest.mark.parametrize("storage", ["local", "tank"])
def test_the_work_disk_is_byte_for_byte_what_it_was(
    storing: ProxmoxBench, tmp_path: Path, storage: str
) -> None:
    """Through revert, and through a snapshot that is taken and restored while it is attached."""
    with _installed(storing, tmp_path, storage) as (ours, hypervisor):
        box = _new(ours)
        volid = hypervisor.allot(990000, 64, storage=storage, owner=OWNER)
        hypervisor.attach(box.vmid, volid, owner=OWNER)
        disks = _disks(storing, box.vmid, volid)

        def put_back(operation: OperationRow, state: SandboxState, root: int) -> None:
            assert operation.state == "done", operation
            assert _box(ours).state is state
            assert [each.attached for each in hypervisor.volumes(owner=OWNER)] == [(box.vmid,)]
            with storing.served.paused() as node:
                config = node.vm(box.vmid).config
                assert not [key for key in config if key.startswith("unused")]
            assert disks.root_holds(root)

        disks.write(disks.work, 0x11)
        disks.write(disks.root, 0x22)
        before = disks.digest
        put_back(_revert(ours), SandboxState.READY, root=0)
        assert disks.digest == before

        _ended(ours, sandbox_requests.act(ours.world, ours.runner, STOP, "box", ""))
        disks.write(disks.root, 0x33)
        assert _save(ours, "before").state == "done"
        disks.write(disks.root, 0x44)
        disks.write(disks.work, 0x55)
        later = disks.digest
        assert later != before
        put_back(_revert(ours, name="before"), SandboxState.STOPPED, root=0x33)
        assert disks.digest == later
        put_back(_revert(ours, force=True), SandboxState.STOPPED, root=0)  # past `before`
        assert disks.digest == later

        _ended(ours, sandbox_requests.destroy(ours.world, ours.runner, "box", "", force=False))
        assert [each.attached for each in hypervisor.volumes(owner=OWNER)] == [()]
        assert disks.digest == later
        hypervisor.free(volid, owner=OWNER)
        assert ours.left_over() == []
    assert not storing.leftovers()


def test_later_snapshots_on_a_pool_are_named_and_only_force_deletes_them(
    storing: ProxmoxBench, tmp_path: Path
) -> None:
    with installation(tmp_path, storing.hypervisor) as ours:
        _on_tank(ours, storing, tmp_path)
        box = _new(ours)
        _ended(ours, sandbox_requests.act(ours.world, ours.runner, STOP, "box", ""))
        for name in ("before", "after"):
            assert _save(ours, name).state == "done"
        refused = _revert(ours)
        assert refused.state == "failed"
        assert "after, before came later" in refused.error
        assert "--force" in refused.hint
        assert list(storing.hypervisor.snapshots(box.vmid)) == ["clean", "before", "after"]
        assert _box(ours).state is SandboxState.STOPPED
        assert _revert(ours, force=True).state == "done"
        assert list(storing.hypervisor.snapshots(box.vmid)) == ["clean"]
        _ended(ours, sandbox_requests.destroy(ours.world, ours.runner, "box", "", force=False))
    assert not storing.leftovers()


def _held(ours: Installation, bench: ProxmoxBench, box: Sandbox) -> str:
    """A workspace that the sandbox has: its volume."""
    volid = bench.hypervisor.allot(990000, 64, storage="local", owner=OWNER)
    new = Workspace(
        name="work", state=WorkspaceState.CREATING, number=990000, volid="", storage="local",
        size=64, formatted=True, created=clock.now(), changed=clock.now(),
    )  # fmt: skip
    with ours.world.store.write() as tx:
        identity = workspaces.create(tx, new, operation="")
        workspaces.set_volume(tx, identity, volid, "local")
        workspaces.transition(tx, identity, WorkspaceEvent.MADE)
        workspaces.hold(tx, identity, box)
    bench.hypervisor.attach(box.vmid, volid, owner=OWNER)
    return volid


def test_a_rollback_that_fails_on_the_storage_ends_and_its_sandbox_can_be_destroyed(
    proxmox_shell: ProxmoxBench, tmp_path: Path
) -> None:
    hypervisor = proxmox_shell.hypervisor
    with installation(tmp_path, hypervisor) as ours:
        box = _new(ours)
        _ended(ours, sandbox_requests.act(ours.world, ours.runner, STOP, "box", ""))
        volid = _held(ours, proxmox_shell, box)
        with proxmox_shell.served.paused() as node:
            node.fail_tasks("qmrollback", "qemu-img: could not apply snapshot", late=True)
        failed = _revert(ours)
        assert failed.state == "failed"
        assert "could not apply snapshot" in failed.error
        assert f"qm unlock {box.vmid}" in failed.hint
        with proxmox_shell.served.paused() as node:
            assert node.vm(box.vmid).lock == "rollback"
        with ours.world.store.read() as tx:
            assert workspaces.get(tx, "work").holder == box.id
            told = [each.text for each in events.after(tx, 0, limit=1000)]
        assert [text for text in told if "its work disk is not attached" in text]

        again = _revert(ours)
        assert again.state == "failed"
        assert "has left it locked (rollback)" in again.error
        gone = _ended(
            ours, sandbox_requests.destroy(ours.world, ours.runner, "box", "", force=True)
        )
        assert gone.state == "done", gone
        with ours.world.store.read() as tx:
            assert workspaces.get(tx, "work").state is WorkspaceState.DETACHED
        assert [each.volid for each in hypervisor.volumes(owner=OWNER)] == [volid]
        hypervisor.free(volid, owner=OWNER)
        assert ours.left_over() == []
    assert not proxmox_shell.leftovers()


@pytest.mark.parametrize("storage", ["local", "tank"])
def test_a_snapshot_of_somebody_else_that_has_the_work_disk_in_it_leaves_that_alone(
    storing: ProxmoxBench, tmp_path: Path, storage: str
) -> None:
    """Proxmox puts back, and deletes of, each volume that a snapshot names, whoever has it now."""
    with _installed(storing, tmp_path, storage) as (ours, hypervisor):
        box, other = _new(ours), _new(ours, "other")
        for name in ("box", "other"):
            _ended(ours, sandbox_requests.act(ours.world, ours.runner, STOP, name, ""))
        volid = _held(ours, storing, box)
        path = f"/nodes/{storing.served.node.node}/qemu/{box.vmid}/snapshot"
        storing.connect().call("POST", path, {"snapname": "daily"})
        with storing.served.paused() as node:
            assert volid in str(node.vm(box.vmid).snapshots["daily"]["scsi1"])
        asked = workspace_requests.detach(ours.world, ours.runner, "work", "", force=False)
        assert _ended(ours, asked).state == "done"
        asked = workspace_requests.attach(ours.world, ours.runner, "work", "other", "")
        assert _ended(ours, asked).state == "done"
        disks = _disks(storing, box.vmid, volid)
        disks.write(disks.work, 0x11)
        before = disks.digest

        refused = [_revert(ours, name="daily")]
        assert disks.digest == before
        deleting = sandbox_requests.delete_snapshot(ours.world, ours.runner, "box", "", "daily")
        refused.append(_ended(ours, deleting))
        if storage == "tank":  # it is in the way of an older one
            refused += [_revert(ours), _revert(ours, force=True)]
        for each in refused:
            assert each.state == "failed"
            assert f"snapshot daily of VM {box.vmid} has volume {volid} in it" in each.error
            assert f"qm delsnapshot {box.vmid} daily" in each.hint
        if storage == "local":
            assert _revert(ours).state == "done"
        assert disks.digest == before
        assert list(hypervisor.snapshots(box.vmid)) == ["clean", "daily"]
        assert [each.attached for each in hypervisor.volumes(owner=OWNER)] == [(other.vmid,)]


def test_a_sandbox_that_has_a_workspace_of_another_does_not_start(
    proxmox: ProxmoxBench, tmp_path: Path
) -> None:
    """Whatever has put it there: two guests would write to one file system."""
    hypervisor = proxmox.hypervisor
    with installation(tmp_path, hypervisor) as ours:
        box = _new(ours)
        _ended(ours, sandbox_requests.act(ours.world, ours.runner, STOP, "box", ""))
        volid = _held(ours, proxmox, box)
        with ours.world.store.write() as tx:
            found = workspaces.get(tx, "work")
            workspaces.release(tx, found.id, found.nonce)
        refused = _ended(ours, sandbox_requests.act(ours.world, ours.runner, START, "box", ""))
        assert refused.state == "failed"
        assert f"it has volume {volid} of workspace work" in refused.error
        assert "agentlab workspace check work" in refused.hint
        assert _box(ours).state is SandboxState.STOPPED
        machine = hypervisor.status(box.vmid)
        assert machine is not None
        assert machine.power is Power.STOPPED


@pytest.mark.parametrize("end", ["stop", "destroy"])
def test_a_detach_that_waits_for_the_guest_is_taken_back_and_holds_nobody_up(
    proxmox: ProxmoxBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Proxmox keeps the change for the next stop: it has the disk no more, and its guest has."""

    def ask(_: object, __: int, words: list[str], ___: float) -> dict[str, bool]:
        return {"mounted": words[0] == "mount"}

    monkeypatch.setattr(work_mount, "_ask", ask)
    monkeypatch.setattr(workspace_attach, "_PLUG", 2.0)
    with installation(tmp_path, proxmox.hypervisor) as ours:
        box = _new(ours)
        volid = _held(ours, proxmox, box)
        with proxmox.served.paused() as node:
            node.vm(box.vmid).config["hotplug"] = "network,usb"
        asked = workspace_requests.detach(ours.world, ours.runner, "work", "", force=False)
        failed = _ended(ours, asked)
        assert failed.state == "failed"
        assert "its guest holds it until it is stopped" in failed.error
        with proxmox.served.paused() as node:
            assert node.vm(box.vmid).pending == {}
            assert volid in str(node.vm(box.vmid).config["scsi1"])
        with ours.world.store.read() as tx:
            assert workspaces.get(tx, "work").holder == box.id

        if end == "stop":
            asked = sandbox_requests.act(ours.world, ours.runner, STOP, "box", "")
            assert _ended(ours, asked).state == "done"
            asked = workspace_requests.detach(ours.world, ours.runner, "work", "", force=False)
        else:
            asked = sandbox_requests.destroy(ours.world, ours.runner, "box", "", force=True)
        assert _ended(ours, asked).state == "done"
        with ours.world.store.read() as tx:
            assert workspaces.get(tx, "work").state is WorkspaceState.DETACHED
        assert [each.attached for each in proxmox.hypervisor.volumes(owner=OWNER)] == [()]

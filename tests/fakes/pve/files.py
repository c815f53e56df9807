"""A node whose disks are there: qcow2 files in the form of a storage of type `dir`."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from fakepve.model import FakeVm, TaskError
from fakepve.qemu import drives_of, is_cdrom

from agentlab.hypervisor.local.images import header_size
from tests.fakes.pve.node import ProxmoxNode


class FileNode(ProxmoxNode):
    """`directory` holds its storages.  Root's own tools may work on them, too."""

    def __init__(self, directory: Path, **more: Any) -> None:
        super().__init__(**more)
        self.directory = directory
        self._shelves: dict[str, Path] = {}
        self._put(self.storage, "storage")

    def add_shelf(self, name: str) -> None:
        """One more storage of type `dir`, with files of its own."""
        self.add_dir_storage(name)
        self._put(name, name)

    def add_block_shelf(self, name: str, kind: str, **more: Any) -> None:
        """A storage that says that its volumes are no files, and rolls back as its kind does."""
        self.add_block_storage(name, kind, **more)
        self._put(name, name)

    def _put(self, storage: str, folder: str) -> None:
        if self.storages[storage]["type"] == "dir":
            self.storages[storage]["path"] = str(self.directory / folder)
        self._shelves[storage] = self.directory / folder / "images"
        self._shelves[storage].mkdir(parents=True, exist_ok=True)

    def path(self, volid: str) -> Path:
        """The file of a volume; a linked clone's name has that of its base before it."""
        storage, _, volume = volid.partition(":")
        names = volume.split("/")[-2 if self.storages[storage]["type"] == "dir" else -1 :]
        return self._shelves[storage].joinpath(*names)

    def _scan(self) -> None:
        """What root's own tools have made or changed on the storage is seen there at once."""
        for storage, images in self._shelves.items():
            known = self.storages[storage]["volumes"]
            for path in images.glob("*/vm-*-agentlab-*.qcow2"):
                name, size = f"{path.parent.name}/{path.name}", header_size(path) << 20
                facts = {"content": "images", "format": "qcow2", "vmid": int(path.parent.name)}
                known.setdefault(name, {**facts, "ctime": 0})["size"] = size

    def _volumes(self, name: str) -> Any:
        self._scan()
        return super()._volumes(name)

    def _qm_volume(self, volid: str) -> Any:
        self._scan()
        return super()._qm_volume(volid)

    def on_clone(self, source: FakeVm, vm: FakeVm, full: bool) -> None:
        for key, volid, props in drives_of(vm.config):
            if ":" not in volid:
                continue
            path, base = self.path(volid), str(source.config[key]).split(",")[0]
            path.parent.mkdir(exist_ok=True)
            if is_cdrom(volid, props):
                path.touch()
            elif full:
                _qemu_img("convert", "-O", "qcow2", self.path(base), path)
            else:
                _qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", self.path(base), path)

    def on_allot(self, volid: str, size: int) -> None:
        path = self.path(volid)
        path.parent.mkdir(exist_ok=True)
        _qemu_img("create", "-f", "qcow2", path, str(size))

    def on_free(self, volid: str) -> None:
        path = self.path(volid)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def on_resize(self, vm: FakeVm, disk: str, size: int) -> None:
        _qemu_img("resize", self._file(vm, disk), str(size))

    def on_snapshot(self, vm: FakeVm, name: str, memory: bool) -> None:
        for path in self._disks(vm.config):
            _qemu_img("snapshot", "-c", name, path)

    def on_rollback(self, vm: FakeVm, name: str, memory: bool) -> None:
        """Each volume that the snapshot names, whoever has it by now."""
        for path in self._disks(vm.snapshots[name]):
            _qemu_img("snapshot", "-a", name, path)

    def on_delete_snapshot(self, vm: FakeVm, name: str) -> None:
        for path in self._disks(vm.snapshots[name]):
            _qemu_img("snapshot", "-d", name, path)

    def _qm_rename_volume(self, volid: str) -> str:
        new: str = super()._qm_rename_volume(volid)
        if new != volid and self.path(volid).exists():
            self.path(volid).rename(self.path(new))
        return new

    def import_disk(self, source: Path, volid: str) -> int:
        """Copies an image file into a volume; its size in bytes as the guest sees it."""
        path = self.path(volid)
        path.parent.mkdir(exist_ok=True)
        _qemu_img("convert", "-O", "qcow2", source, path)
        return int(json.loads(_qemu_img("info", "--output=json", path))["virtual-size"])

    def _file(self, vm: FakeVm, key: str) -> Path:
        return self.path(str(vm.config[key]).split(",")[0])

    def _disks(self, config: dict[str, Any]) -> list[Path]:
        found = drives_of(config, skip_cdrom=True)
        return [self.path(volid) for _, volid, _ in found if ":" in volid]


def _qemu_img(*words: object) -> str:
    argv = ["qemu-img", *(str(word) for word in words)]
    if words[0] != "info":
        argv.insert(2, "-q")
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise TaskError(f"{argv[0]} {argv[1]}: {done.stderr.strip()}")
    return done.stdout

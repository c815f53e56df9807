"""What guests do with the disk of a workspace: the runner's verbs, over what is on the volume.

The first block of a volume stands for its file system: a JSON object with `fs` ("clean", "dirty"
while it is mounted or when its guest lost its power, "damaged") and `text`, what was written to it.
Zeros are a volume without a file system.  What a guest writes is in its memory until it syncs,
unmounts or shuts down; what it has not written out goes with its power.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

from fakepve.model import FakeVm

from tests.fakes.pve.work_files import ImageLock, WorkFiles, read_block, write_block

WORK = "scsi1"


@dataclass
class Content:
    """What is on a volume; `fs` "" for nothing."""

    fs: str = ""
    text: str = ""


def read(path: Path) -> Content:
    block = read_block(path).rstrip(b"\0")
    return Content(**json.loads(block)) if block else Content()


def write(path: Path, content: Content) -> None:
    write_block(path, json.dumps(vars(content)).encode())


@dataclass
class _Mount:
    path: Path
    text: str


@dataclass
class WorkDisks:
    """`torn` says which disks were taken from a guest that had them mounted: none, ever.

    `busy` are what uses /work in a guest, by VMID.
    """

    node: WorkFiles
    torn: list[str] = field(default_factory=list)
    busy: dict[int, list[dict[str, object]]] = field(default_factory=dict)
    _mounts: dict[int, _Mount] = field(default_factory=dict)
    _locks: dict[int, ImageLock] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # --- the machine ---

    def plug(self, vmid: int, volid: str) -> None:
        """A machine with power gets the disk; TaskError when the power of another is on it."""
        with self._lock:
            lock = ImageLock(self.node.file_of(volid))
            self._release(vmid)
            self._locks[vmid] = lock

    def unplug(self, vmid: int, volid: str) -> None:
        with self._lock:
            if vmid in self._mounts:
                self.torn.append(f"{volid} was torn out of VM {vmid}, which had it mounted")
            self.cut(vmid)

    def power(self, vm: FakeVm) -> None:
        """It gets power; the unit in its guest mounts what has a file system."""
        volid = volid_of(vm)
        if volid:
            self.plug(vm.vmid, volid)
            self.mount(vm, make=False)

    def cut(self, vmid: int) -> None:
        """Its power is gone: what was not written out is lost, and the journal is to be replayed."""
        with self._lock:
            self._mounts.pop(vmid, None)
            self.busy.pop(vmid, None)
            self._release(vmid)

    def close(self) -> None:
        """Lets go of all images."""
        with self._lock:
            for vmid in list(self._locks):
                self._release(vmid)

    def _release(self, vmid: int) -> None:
        lock = self._locks.pop(vmid, None)
        if lock is not None:
            lock.release()

    def shut_down(self, vmid: int) -> None:
        """The guest powers off by itself."""
        self.unmount(vmid, force=True)

    # --- the guest ---

    def answer(self, vm: FakeVm, words: list[str]) -> tuple[int, str, str]:
        """`agentlab guest work WORDS`: exit status, stdout, stderr."""
        match words:
            case ["mount", "--wait", _, *more] if set(more) <= {"--make"}:
                said = self.mount(vm, make="--make" in more)
            case ["unmount", *more, "--within", _] if set(more) <= {"--force"}:
                said = self.unmount(vm.vmid, force="--force" in more)
            case ["status"]:
                said = {"mounted": self.is_mounted(vm.vmid), "present": vm.vmid in self._locks}
            case _:
                return 2, "", f"usage: {words}"
        return (1 if "error" in said else 0), json.dumps(said), ""

    def mount(self, vm: FakeVm, *, make: bool) -> dict[str, object]:
        volid = volid_of(vm)
        with self._lock:
            if not volid or vm.vmid not in self._locks:
                return {"error": "absent", "detail": "no disk has the serial number work"}
            path, made = self.node.file_of(volid), False
            if vm.vmid not in self._mounts:
                found = read(path)
                if found.fs == "damaged":
                    return {"error": "damaged", "detail": "e2fsck: status 4"}
                if not found.fs:
                    if not make:
                        return {"error": "blank", "detail": "there is nothing on it"}
                    made = True
                write(path, Content("dirty", found.text))
                self._mounts[vm.vmid] = _Mount(path, found.text)
        return {"mounted": True, "made": made, "grown": False, "size": 1, "free": 1}

    def unmount(self, vmid: int, *, force: bool) -> dict[str, object]:
        with self._lock:
            if self.busy.get(vmid) and not force:
                return {"error": "busy", "detail": "in use", "processes": self.busy[vmid]}
            self.busy.pop(vmid, None)
            mount = self._mounts.pop(vmid, None)
            if mount is not None:
                write(mount.path, Content("clean", mount.text))
        return {"mounted": False}

    def is_mounted(self, vmid: int) -> bool:
        return vmid in self._mounts

    def has(self, vmid: int, volid: str) -> bool:
        """Whether it is this volume that a guest has mounted."""
        mount = self._mounts.get(vmid)
        return mount is not None and mount.path == self.node.file_of(volid)

    def put(self, vmid: int, text: str, *, sync: bool = False) -> None:
        """A process in the guest writes to /work."""
        with self._lock:
            mount = self._mounts[vmid]
            mount.text = text
            if sync:
                write(mount.path, Content("dirty", text))

    def add(self, vmid: int, more: str) -> None:
        """As `put`, to what is there already; without /work mounted: nothing."""
        with self._lock:
            if vmid in self._mounts:
                self.put(vmid, self._mounts[vmid].text + more)


def volid_of(vm: FakeVm) -> str:
    """The volume that a machine has as its work disk, "" for none."""
    return str(vm.config.get(WORK, "")).split(",")[0]

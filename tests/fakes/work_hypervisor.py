"""The hypervisor in memory, with volumes, and with guests that mount them as the runner does.

A volume's content is a text; its file system is "" until a guest has made one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agentlab.errors import Busy, Conflict, DeadlineExceeded, Invalid, NotFound, NotOurs
from agentlab.hypervisor.base import (
    Capabilities,
    ExecResult,
    FileSystem,
    Power,
    Volume,
    VolumeCheck,
)
from tests.fakes.hypervisor import FakeHypervisor

RUNNER = "/usr/local/bin/agentlab"


@dataclass
class FakeVolume:
    """`fs` is "", "clean", "dirty" (its journal is to be replayed) or "damaged"."""

    number: int
    size: int
    owner: str
    content: str = ""
    fs: str = ""
    snapshots: dict[str, tuple[str, str, int]] = field(default_factory=dict)


@dataclass
class WorkHypervisor(FakeHypervisor):
    """`attached` says which volume a machine has, `mounted` in which guests it is mounted.

    `busy` has what uses /work in a guest; a guest in `mute` answers nothing.  `asked` has the words
    of all that runners were asked, with the time that was given; one in `old` knows no option of
    `unmount` but --force.  `writing` says how often a guest will not have written all out in time,
    and `checking` how often it will not have checked the file system.
    """

    stored: dict[str, FakeVolume] = field(default_factory=dict)
    plugged: dict[int, str] = field(default_factory=dict)
    mounted: set[int] = field(default_factory=set)
    busy: dict[int, list[dict[str, object]]] = field(default_factory=dict)
    mute: set[int] = field(default_factory=set)
    old: set[int] = field(default_factory=set)
    asked: list[tuple[list[str], float]] = field(default_factory=list)
    writing: dict[int, int] = field(default_factory=dict)
    checking: int = 0
    thin: bool = False
    capabilities: Capabilities = field(
        default=Capabilities("", 1.0, memory_start=False, volumes=True, volume_tools=True)
    )

    # --- what a guest does with it ---

    def exec(
        self, vmid: int, argv: Sequence[str], *, owner: str, stdin: bytes = b"", timeout: float
    ) -> ExecResult:
        sync = list(argv) == ["sync", "-f", "--", "/work"]
        if list(argv[:3]) != [RUNNER, "guest", "work"] and not sync:
            return super().exec(vmid, argv, owner=owner, stdin=stdin, timeout=timeout)
        self._called("exec")
        self._ours(vmid, owner)
        if self.machines[vmid].power is not Power.RUNNING or vmid in self.mute:
            raise Busy(f"the guest of machine {vmid} does not answer")
        words = ["sync"] if sync else list(argv[3:])
        self.asked.append((words, timeout))
        if words[0] in ("sync", "unmount") and self._is_late(vmid):
            raise DeadlineExceeded(f"{argv[0]} in the guest took longer than {timeout:.0f} s")
        if sync:
            return ExecResult(0, b"", b"")
        if words[0] == "mount" and self.checking:
            self.checking -= 1
            raise DeadlineExceeded(f"{argv[0]} in the guest took longer than {timeout:.0f} s")
        if vmid in self.old and "--within" in argv:
            return ExecResult(2, b"", b"usage: agentlab guest work ...")
        answer = self._answer(vmid, words)
        return ExecResult(1 if "error" in answer else 0, json.dumps(answer).encode(), b"")

    def _is_late(self, vmid: int) -> bool:
        self.writing[vmid] = left = self.writing.get(vmid, 0) - 1
        return left >= 0

    def _answer(self, vmid: int, words: Sequence[str]) -> dict[str, object]:
        if words[0] == "mount":
            return self._mount(vmid, "--make" in words)
        if words[0] == "status":
            return {"mounted": vmid in self.mounted, "present": vmid in self.plugged}
        return self._unmount(vmid, "--force" in words)

    def _mount(self, vmid: int, make: bool) -> dict[str, object]:
        volid = self.plugged.get(vmid)
        if volid is None:
            return {"error": "absent", "detail": "no disk"}
        volume, made = self.stored[volid], False
        if volume.fs == "damaged":
            return {"error": "damaged", "detail": "e2fsck: status 4"}
        if not volume.fs:
            if not make:
                return {"error": "blank", "detail": "nothing on it"}
            volume.fs, made = "clean", True
        if volume.fs == "dirty":
            volume.fs = "clean"
        self.mounted.add(vmid)
        return {"mounted": True, "made": made, "grown": False, "size": volume.size << 20, "free": 1}

    def _unmount(self, vmid: int, force: bool) -> dict[str, object]:
        if self.busy.get(vmid) and not force:
            return {"error": "busy", "detail": "in use", "processes": self.busy[vmid]}
        self.busy.pop(vmid, None)
        self.mounted.discard(vmid)
        return {"mounted": False}

    def _cut(self, vmid: int) -> None:
        """A guest that loses its power with /work mounted leaves a journal to be replayed."""
        if vmid in self.mounted:
            self.mounted.discard(vmid)
            volid = self.plugged.get(vmid)
            if volid in self.stored:
                self.stored[volid].fs = "dirty"

    def stop(self, vmid: int, *, owner: str) -> None:
        super().stop(vmid, owner=owner)
        self._cut(vmid)

    def shutdown(self, vmid: int, *, owner: str, timeout: float) -> bool:
        done = super().shutdown(vmid, owner=owner, timeout=timeout)
        if done:
            self.mounted.discard(vmid)
        return done

    def destroy(self, vmid: int, *, owner: str) -> None:
        super().destroy(vmid, owner=owner)
        self._cut(vmid)
        self.plugged.pop(vmid, None)

    # --- volumes ---

    def _volume(self, volid: str, owner: str) -> FakeVolume:
        volume = self.stored.get(volid)
        if volume is None:
            raise NotFound(f"no volume {volid}")
        if volume.owner != owner:
            raise NotOurs(f"volume {volid} is not ours")
        return volume

    def _free_volume(self, volid: str, owner: str) -> FakeVolume:
        volume = self._volume(volid, owner)
        holders = [vmid for vmid, held in self.plugged.items() if held == volid]
        if holders:
            raise Conflict(f"volume {volid} is attached to machine {holders[0]}")
        return volume

    def volumes(self, *, owner: str, storage: str | None = None) -> Sequence[Volume]:
        self._called("volumes")
        self.check_storage(storage or "")
        return [
            Volume(
                volid, each.size,
                tuple(vmid for vmid, held in self.plugged.items() if held == volid),
            )
            for volid, each in self.stored.items()
            if each.owner == owner
        ]  # fmt: skip

    def attached(self, vmid: int, *, owner: str) -> Sequence[str]:
        self._ours(vmid, owner)
        return [self.plugged[vmid]] if vmid in self.plugged else []

    def storage_of(self, volid: str) -> str:
        return volid.partition(":")[0] or "local"

    def check_storage(self, storage: str = "", *, tools: bool = False) -> None:
        if storage not in ("", "local"):
            raise NotFound(f"there is no storage {storage}", hint="there is local")

    def allot(self, number: int, size: int, *, storage: str = "", owner: str) -> str:
        self._called("allot")
        name = storage or "local"
        if name != "local":
            raise NotFound(f"there is no storage {name}")
        volid = f"{name}:vm-{number}-agentlab-{owner}"
        self.stored.setdefault(volid, FakeVolume(number, size, owner))
        return volid

    def attach(self, vmid: int, volid: str, *, owner: str) -> None:
        self._called("attach")
        self._ours(vmid, owner)
        self._volume(volid, owner)
        if self.plugged.get(vmid, volid) != volid:
            raise Conflict(f"machine {vmid} has {self.plugged[vmid]} already")
        if any(held == volid and other != vmid for other, held in self.plugged.items()):
            raise Conflict(f"another machine has {volid}")
        self.plugged[vmid] = volid

    def detach(self, vmid: int, volid: str, *, owner: str) -> None:
        self._called("detach")
        if vmid not in self.machines or self.plugged.get(vmid) != volid:
            return
        self._ours(vmid, owner)
        self._cut(vmid)  # as if the disk were torn out
        del self.plugged[vmid]

    def free(self, volid: str, *, owner: str) -> None:
        self._called("free")
        if volid in self.stored:
            self._free_volume(volid, owner)
            del self.stored[volid]

    def move(self, volid: str, storage: str, *, owner: str) -> str:
        raise NotImplementedError

    def grow(self, volid: str, size: int, *, owner: str) -> None:
        self._called("grow")
        volume = self._free_volume(volid, owner)
        if size < volume.size:
            raise Invalid(f"cannot make {volid} smaller")
        volume.size = size

    def snapshot_volume(self, volid: str, name: str, *, owner: str) -> None:
        self._called("snapshot_volume")
        volume = self._free_volume(volid, owner)
        if name in volume.snapshots:
            raise Conflict(f"{volid} has a snapshot {name}")
        volume.snapshots[name] = (volume.content, volume.fs, volume.size)

    def rollback_volume(self, volid: str, name: str, *, owner: str) -> None:
        self._called("rollback_volume")
        volume = self._free_volume(volid, owner)
        if name not in volume.snapshots:
            raise NotFound(f"{volid} has no snapshot {name}")
        volume.content, volume.fs, volume.size = volume.snapshots[name]

    def delete_volume_snapshot(self, volid: str, name: str, *, owner: str) -> None:
        self._called("delete_volume_snapshot")
        self._free_volume(volid, owner).snapshots.pop(name, None)

    def volume_snapshots(self, volid: str, *, owner: str) -> Sequence[str]:
        return [*self._volume(volid, owner).snapshots]

    def clone_volume(
        self, volid: str, number: int, *, snapshot: str = "", owner: str,
        progress: Callable[[float], None] | None = None,
    ) -> str:  # fmt: skip
        self._called("clone_volume")
        source = self._free_volume(volid, owner)
        if snapshot and snapshot not in source.snapshots:
            raise NotFound(f"{volid} has no snapshot {snapshot}")
        now = (source.content, source.fs, source.size)
        content, fs, size = source.snapshots[snapshot] if snapshot else now
        made = f"local:vm-{number}-agentlab-{owner}"
        self.stored.setdefault(made, FakeVolume(number, size, owner, content, fs))
        if progress:
            progress(1.0)
        return made

    def clones_thin(self, volid: str) -> bool:
        return self.thin

    def check_volume(self, volid: str, *, repair: bool, owner: str) -> VolumeCheck:
        self._called("check_volume")
        volume = self._free_volume(volid, owner)
        if not volume.fs:
            return VolumeCheck(FileSystem.BLANK, "")
        if volume.fs == "clean":
            return VolumeCheck(FileSystem.CLEAN, "clean")
        if repair:
            volume.fs = "clean"
            return VolumeCheck(FileSystem.REPAIRED, "mended")
        return VolumeCheck(FileSystem.NEEDS_REPAIR, "damaged")

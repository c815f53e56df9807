"""The mount of a workspace's disk at /work: made, and ended when nobody is in the way, or by force."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from agentlab.clock import Deadline
from agentlab.guest.mounts import Mount, Search, mounts
from agentlab.guest.paths import Paths
from agentlab.guest.workdisk import Disk, Refused, Tools
from agentlab.log import one_line

RELEASE = 3.0  # seconds that the kernel has to let go of the disk
_OPTIONS = "nodev,nosuid,errors=remount-ro"
_LISTED = 20


def find_top(paths: Paths) -> Mount | None:
    """What is seen at /work."""
    at = [mount for mount in mounts(paths.proc) if mount.point == paths.workspace]
    return at[-1] if at else None


@dataclass(frozen=True, slots=True)
class WorkMount:
    """What is at /work, and the disk that belongs there (None: it is not plugged in)."""

    paths: Paths
    disk: Disk | None
    tools: Tools

    def devices(self) -> frozenset[str]:
        """The disk's number, and that of a disk at /work which was taken out while mounted."""
        gone = {
            mount.device
            for mount in mounts(self.paths.proc)
            if mount.point == self.paths.workspace and mount.kind == "ext4"
            and not (self.paths.sys_dev / mount.device).exists()
        }  # fmt: skip
        return frozenset(gone | ({self.disk.number} if self.disk else set()))

    def mount(self) -> None:
        """Mounts the disk, whose file system is in order.  Raises Refused."""
        point, disk = self.paths.workspace, self.disk
        if disk is None:
            raise Refused("absent", "no disk has the serial number work")
        with suppress(FileExistsError):
            point.mkdir(mode=0o755)
        if not stat.S_ISDIR(point.lstat().st_mode):
            raise Refused("failed", f"{point} is not a directory")
        words = ("-t", "ext4", "-o", _OPTIONS, "--", disk.node, point)
        status, said = self.tools.run("mount", *words)
        top = find_top(self.paths)
        if status != 0 or top is None or top.device != disk.number:
            raise Refused("failed", f"cannot mount {disk.node}: {said or 'it is not there'}")

    def _ending(self) -> list[Mount]:
        """The mounts to end, in an order in which it can be done."""
        found, devices = mounts(self.paths.proc), self.devices()
        if not any(mount.device in devices for mount in found):
            return []
        point = self.paths.workspace
        at = [each for each in found if each.point == point]
        first = next((i for i, each in enumerate(at) if each.device in devices), len(at))
        over = {each.id for each in at[first:]}
        return [
            mount for mount in reversed(found)
            if mount.device in devices or mount.id in over or (at and mount.is_below(point))
        ]  # fmt: skip

    def end(self, until: Deadline | None = None) -> None:
        """Unmounts what nobody uses; Refused, with all as it was, when somebody does, or `until` is over."""
        ending, point = self._ending(), self.paths.workspace
        if len(ending) > 1:
            others = ", ".join(_shown(os.fsencode(each.point)) for each in ending[:5])
            raise self.busy(f"there is more than one mount: {others}")
        for mount in ending:
            if self.disk is not None and mount.device == self.disk.number:
                self.tools.run("sync", "-f", "--", mount.point)
            _in_time(until)
            status, said = self.tools.run("umount", "--", mount.point)
            if status != 0:
                raise self.busy(said)
        if self.disk is None or self.disk.wait_released(RELEASE):
            return
        if ending and ending[0].point == point and ending[0].root == "/":
            self.mount()
        raise self.busy("another mount namespace, swap or a loop device keeps the disk",
                         namespaces=True)  # fmt: skip

    def busy(self, detail: str, *, namespaces: bool = False) -> Refused:
        found = self._search(namespaces=namespaces).holders()
        listed = [each.document() for each in islice(found, _LISTED)]
        kernel = list(islice(self._in_kernel(), 5))
        return Refused("busy", "; ".join([detail, *kernel]), listed)

    def _in_kernel(self) -> Iterator[str]:
        """Files of the workspace that no process has open, and the kernel has."""
        below = os.fsencode(self.paths.workspace) + b"/"
        with suppress(OSError):
            for line in (self.paths.proc / "swaps").read_bytes().splitlines():
                if line.startswith(below):
                    yield f"{_shown(line.split()[0])} is swapped to"
        for path in self.paths.sys_block.glob("loop*/loop/backing_file"):
            with suppress(OSError):
                file = path.read_bytes().strip()
                if file.startswith(below):
                    yield f"{_shown(file)} is behind /dev/{path.parts[-3]}"

    def _search(self, *, namespaces: bool) -> Search:
        return Search(self.paths.proc, self.devices(), self.paths.workspace, namespaces)

    def end_by_force(self, grace: float, patience: float, end: Deadline | None = None) -> None:
        """As `end`, and ends who is in the way, first with SIGTERM; never a lazy unmount."""
        if self.disk is not None and self._ending():
            self.tools.run("sync", "-f", "--", self.paths.workspace)
        gentle, until = Deadline.after(grace), Deadline.after(patience)
        asked: set[int] = set()
        while True:
            for mount in self._ending():
                _in_time(end)
                self.tools.run("umount", "--", mount.point)
            left = self._ending()
            if not left and (self.disk is None or self.disk.wait_released(0.3)):
                return
            if until.passed:
                raise self.busy("it is still in use by what cannot be ended",
                                 namespaces=not left)  # fmt: skip
            search = self._search(namespaces=not left)
            for holder in list(search.holders()):
                if gentle.passed:
                    _signal(search, holder.pid, signal.SIGKILL)
                elif holder.pid not in asked:
                    asked.add(holder.pid)
                    _signal(search, holder.pid, signal.SIGTERM)
            time.sleep(0.1)


def _in_time(until: Deadline | None) -> None:
    """Refused when whoever asked has given up: a mount that is ended now might be the next one's."""
    if until is not None and until.passed:
        raise Refused("late", "it was not written out in time")


def _signal(search: Search, pid: int, number: int) -> None:
    """Looks again when it has hold of the process: its number may be another's by now."""
    if pid in (1, os.getppid()):
        return
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if search.holds(pid):
            with suppress(OSError):
                signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def _shown(path: bytes) -> str:
    return one_line(path.decode(errors="backslashreplace"))[:200]

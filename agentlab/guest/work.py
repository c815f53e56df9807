"""`agentlab guest work VERB`: mounts the workspace's disk at /work, and unmounts it.

Run as root by the daemon through the guest agent, and by agentlab-work.service at boot.  Each
verb may be done twice and prints one JSON object.  What cannot be done is `{"error", "detail"}`
with one of the codes absent, blank, foreign, damaged, busy (with `processes`), failed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError
from agentlab.guest import workdisk
from agentlab.guest.account import Account
from agentlab.guest.mounts import Mount, Search, mounts
from agentlab.guest.paths import Paths
from agentlab.guest.workdisk import Disk, Refused, Tools
from agentlab.log import one_line

USAGE = (
    "usage: agentlab guest work mount [--make] [--boot] [--wait SECONDS]"
    " | work unmount [--force] | work status"
)
_OPTIONS = "nodev,nosuid,errors=remount-ro"
_WAIT = 20.0
_LOCK_WAIT = 300.0
_RELEASE = 3.0  # seconds that the kernel has to let go of the disk
_LISTED = 20
Answer = dict[str, object]


@dataclass(frozen=True, slots=True)
class Work:
    """The verbs, over one machine's directories; `grace` is in seconds from SIGTERM to SIGKILL."""

    paths: Paths
    account: Callable[[], Account]
    grace: float = 5.0
    patience: float = 15.0  # for --force in all

    def mount(self, *, make: bool = False, boot: bool = False, wait: float = _WAIT) -> Answer:
        """Mounts the disk, at `make` with a new file system when it is blank.

        `boot`: no disk, or a blank one, is no error.  Answers mounted, made, grown, size and free
        in bytes, device; `warning` when it is mounted and could not be grown.
        """
        until = Deadline.after(wait)
        while self._disk() is None and not until.passed:
            time.sleep(min(0.2, until.left))
        with self._locked() as tools:
            disk = self._disk()
            try:
                if disk is None:
                    raise Refused("absent", "no disk has the serial number work")
                made = self._ensure_mounted(disk, tools, make=make)
            except Refused as refused:
                if boot and refused.code in ("absent", "blank"):
                    return {"mounted": False}
                raise
            grown, warning = workdisk.grow(disk, tools)
            more = {"warning": warning} if warning else {}
            return {"mounted": True, "made": made, "grown": grown, **self._room(),
                    "device": str(disk.node), **more}  # fmt: skip

    def unmount(self, *, force: bool = False) -> Answer:
        """Ends every mount of the disk; when somebody keeps it, nothing is changed.

        `force` ends first the processes that keep it, and other mounts of it and below it.
        """
        with self._locked() as tools:
            disk = self._disk()
            if force:
                self._force(disk, tools)
            else:
                self._ask(disk, tools)
            return {"mounted": False}

    def status(self) -> Answer:
        """`present`: the disk is there.  `size` and `free` in bytes, None when not mounted."""
        disk = self._disk()
        top = self._top()
        mounted = disk is not None and top is not None and top.device == disk.number
        room = self._room() if mounted else {"size": None, "free": None}
        return {"mounted": mounted, "present": disk is not None, **room}

    # What is there

    def _disk(self) -> Disk | None:
        return workdisk.find(self.paths.sys_block, self.paths.dev)

    def _mounts(self) -> list[Mount]:
        return mounts(self.paths.proc)

    def _top(self) -> Mount | None:
        """What is seen at /work."""
        at = [mount for mount in self._mounts() if mount.point == self.paths.workspace]
        return at[-1] if at else None

    def _devices(self, disk: Disk | None) -> frozenset[str]:
        """The disk's number, and that of a disk at /work which was taken out while mounted."""
        gone = {
            mount.device
            for mount in self._mounts()
            if mount.point == self.paths.workspace and mount.kind == "ext4"
            and not (self.paths.sys_dev / mount.device).exists()
        }  # fmt: skip
        return frozenset(gone | ({disk.number} if disk else set()))

    def _room(self) -> Answer:
        room = os.statvfs(self.paths.workspace)
        return {"size": room.f_blocks * room.f_frsize, "free": room.f_bavail * room.f_frsize}

    @contextmanager
    def _locked(self) -> Iterator[Tools]:
        self.paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            self.paths.run / "work.lock",
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
        until = Deadline.after(_LOCK_WAIT)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if until.passed:
                        said = "another command for the workspace has not ended"
                        raise Refused("failed", said) from None
                    time.sleep(0.1)
            yield Tools(lock)
        finally:
            os.close(lock)

    # Mounting

    def _ensure_mounted(self, disk: Disk, tools: Tools, *, make: bool) -> bool:
        """Mounted at /work, with its top directory the agent's; whether it was made new."""
        made, top = False, self._top()
        if top is not None and top.device != disk.number and top.device in self._devices(disk):
            self._ask(disk, tools)  # the mount of a disk that was taken out
            top = self._top()
        if top is not None and top.device != disk.number:
            raise Refused("failed", f"something else is mounted at {self.paths.workspace}")
        if top is not None and top.root != "/":
            raise Refused("failed", f"{self.paths.workspace} shows a part of the disk only")
        if top is None:
            if not disk.wait_released(_RELEASE):
                raise self._busy(disk, f"{disk.node} is in use already", namespaces=True)
            made = self._prepare(disk, tools, make=make)
            self._mount(disk, tools)
        self._own()
        return made

    def _prepare(self, disk: Disk, tools: Tools, *, make: bool) -> bool:
        found = workdisk.look(disk, tools)
        if found != workdisk.OURS:
            if not make:
                begun = " (a file system was begun and not ended)" * (found == workdisk.BEGUN)
                raise Refused("blank", f"{disk.node} has no file system yet{begun}")
            workdisk.make(disk, self.account(), tools, self.paths.run / "work.new")
            return True
        workdisk.mend(disk, tools)
        return False

    def _mount(self, disk: Disk, tools: Tools) -> None:
        point = self.paths.workspace
        with suppress(FileExistsError):
            point.mkdir(mode=0o755)
        if not stat.S_ISDIR(point.lstat().st_mode):
            raise Refused("failed", f"{point} is not a directory")
        status, said = tools.run("mount", "-t", "ext4", "-o", _OPTIONS, "--", disk.node, point)
        top = self._top()
        if status != 0 or top is None or top.device != disk.number:
            raise Refused("failed", f"cannot mount {disk.node}: {said or 'it is not there'}")

    def _own(self) -> None:
        account = self.account()
        fd = os.open(self.paths.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if (status.st_uid, status.st_gid) != (account.uid, account.gid):
                os.fchown(fd, account.uid, account.gid)
        finally:
            os.close(fd)

    # Unmounting

    def _ending(self, devices: frozenset[str]) -> list[Mount]:
        """The mounts to end, in an order in which it can be done."""
        found = self._mounts()
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

    def _ask(self, disk: Disk | None, tools: Tools) -> None:
        """Unmounts what nobody uses; Refused, with all as it was, when somebody does."""
        ending, point = self._ending(self._devices(disk)), self.paths.workspace
        if len(ending) > 1:
            others = ", ".join(_shown(os.fsencode(each.point)) for each in ending[:5])
            raise self._busy(disk, f"there is more than one mount: {others}")
        for mount in ending:
            if disk is not None and mount.device == disk.number:
                tools.run("sync", "-f", "--", mount.point)
            status, said = tools.run("umount", "--", mount.point)
            if status != 0:
                raise self._busy(disk, said)
        if disk is None or disk.wait_released(_RELEASE):
            return
        if ending and ending[0].point == point and ending[0].root == "/":
            self._mount(disk, tools)
        raise self._busy(disk, "another mount namespace, swap or a loop device keeps the disk",
                         namespaces=True)  # fmt: skip

    def _busy(self, disk: Disk | None, detail: str, *, namespaces: bool = False) -> Refused:
        found = self._search(disk, namespaces=namespaces).holders()
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

    def _search(self, disk: Disk | None, *, namespaces: bool) -> Search:
        return Search(self.paths.proc, self._devices(disk), self.paths.workspace, namespaces)

    def _force(self, disk: Disk | None, tools: Tools) -> None:
        """As `_ask`, and ends who is in the way, first with SIGTERM; never a lazy unmount."""
        if disk is not None and self._ending(self._devices(disk)):
            tools.run("sync", "-f", "--", self.paths.workspace)
        gentle, until = Deadline.after(self.grace), Deadline.after(self.patience)
        asked: set[int] = set()
        while True:
            for mount in self._ending(self._devices(disk)):
                tools.run("umount", "--", mount.point)
            left = self._ending(self._devices(disk))
            if not left and (disk is None or disk.wait_released(0.3)):
                return
            if until.passed:
                raise self._busy(disk, "it is still in use by what cannot be ended",
                                 namespaces=not left)  # fmt: skip
            search = self._search(disk, namespaces=not left)
            for holder in list(search.holders()):
                if gentle.passed:
                    _signal(search, holder.pid, signal.SIGKILL)
                elif holder.pid not in asked:
                    asked.add(holder.pid)
                    _signal(search, holder.pid, signal.SIGTERM)
            time.sleep(0.1)


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


def main(argv: Sequence[str], work: Work | None = None) -> int:
    """Runs one verb and prints its answer; the exit status: 0 done, 1 refused, 2 usage."""
    verb = _parse(list(argv))
    if verb is None:
        logging.error(USAGE)
        return 2
    os.chdir("/")  # so that it is never ourselves who keep /work
    try:
        answer = verb(work or Work(Paths(), lambda: Account.named("agent")))
    except AgentLabError as problem:
        code = problem.code if isinstance(problem, Refused) else "failed"
        answer = {"error": code, "detail": problem.message[:2000]}
        if code == "busy":
            answer["processes"] = getattr(problem, "processes", [])
    except OSError as problem:
        answer = {"error": "failed", "detail": str(problem)[:2000]}
    sys.stdout.write(json.dumps(answer) + "\n")
    if "error" in answer:
        logging.error("work %s: %s: %s", argv[0], answer["error"], answer["detail"])
        return 1
    return 0


def _parse(argv: list[str]) -> Callable[[Work], Answer] | None:
    """The verb with its options; None for what is no command.  (argparse costs a second here.)"""
    name, words = (argv or [""])[0], argv[1:]
    if name == "status" and not words:
        return Work.status
    if name == "unmount" and words in ([], ["--force"]):
        return lambda work: work.unmount(force=bool(words))
    if name != "mount":
        return None
    wait = _WAIT
    if "--wait" in words:
        at = words.index("--wait")
        try:
            wait = float(words[at + 1])
        except (IndexError, ValueError):
            return None
        del words[at : at + 2]
    if not 0 <= wait <= 3600 or not set(words) <= {"--make", "--boot"}:
        return None
    make, boot = "--make" in words, "--boot" in words
    return lambda work: work.mount(make=make, boot=boot, wait=wait)

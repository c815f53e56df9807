"""`agentlab guest work VERB`: mounts the workspace's disk at /work, and unmounts it.

Run as root by the daemon through the guest agent, and by agentlab-work.service at boot.  Each
verb may be done twice and prints one JSON object.  What cannot be done is `{"error", "detail"}`
with one of the codes absent, blank, foreign, damaged, busy (with `processes`), late, failed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError
from agentlab.guest import workdisk
from agentlab.guest.account import Account
from agentlab.guest.paths import Paths
from agentlab.guest.workdisk import Disk, Refused, Tools
from agentlab.guest.workmount import RELEASE, WorkMount, find_top

USAGE = (
    "usage: agentlab guest work mount [--make] [--boot] [--wait SECONDS]"
    " | work unmount [--force] [--within SECONDS] | work status"
)
_WAIT = 20.0
_LOCK_WAIT = 300.0
_LONG = 3600.0
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

    def unmount(self, *, force: bool = False, within: float = _LONG) -> Answer:
        """Ends every mount of the disk; when somebody keeps it, nothing is changed.

        `force` ends first the processes that keep it, and other mounts of it and below it.  After
        `within` seconds no mount is ended any more: whoever asked for it may have given up.
        """
        until = Deadline.after(within)
        with self._locked(until) as tools:
            mount = WorkMount(self.paths, self._disk(), tools)
            if force:
                mount.end_by_force(self.grace, self.patience, until)
            else:
                mount.end(until)
            return {"mounted": False}

    def status(self) -> Answer:
        """`present`: the disk is there.  `size` and `free` in bytes, None when not mounted."""
        disk = self._disk()
        top = find_top(self.paths)
        mounted = disk is not None and top is not None and top.device == disk.number
        room = self._room() if mounted else {"size": None, "free": None}
        return {"mounted": mounted, "present": disk is not None, **room}

    # What is there

    def _disk(self) -> Disk | None:
        return workdisk.find(self.paths.sys_block, self.paths.dev)

    def _room(self) -> Answer:
        room = os.statvfs(self.paths.workspace)
        return {"size": room.f_blocks * room.f_frsize, "free": room.f_bavail * room.f_frsize}

    @contextmanager
    def _locked(self, end: Deadline | None = None) -> Iterator[Tools]:
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
                    if end is not None and end.passed:
                        raise Refused("late", "another command for the workspace runs") from None
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
        mount, made, top = WorkMount(self.paths, disk, tools), False, find_top(self.paths)
        if top is not None and top.device != disk.number and top.device in mount.devices():
            mount.end()  # of a disk that was taken out
            top = find_top(self.paths)
        if top is not None and top.device != disk.number:
            raise Refused("failed", f"something else is mounted at {self.paths.workspace}")
        if top is not None and top.root != "/":
            raise Refused("failed", f"{self.paths.workspace} shows a part of the disk only")
        if top is None:
            if not disk.wait_released(RELEASE):
                raise mount.busy(f"{disk.node} is in use already", namespaces=True)
            made = self._prepare(disk, tools, make=make)
            mount.mount()
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

    def _own(self) -> None:
        account = self.account()
        fd = os.open(self.paths.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if (status.st_uid, status.st_gid) != (account.uid, account.gid):
                os.fchown(fd, account.uid, account.gid)
        finally:
            os.close(fd)


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
    if name == "unmount":
        within = _seconds(words, "--within", _LONG)
        if within is None or words not in ([], ["--force"]):
            return None
        return lambda work: work.unmount(force=bool(words), within=within)
    wait = _seconds(words, "--wait", _WAIT)
    if name != "mount" or wait is None or not set(words) <= {"--make", "--boot"}:
        return None
    make, boot = "--make" in words, "--boot" in words
    return lambda work: work.mount(make=make, boot=boot, wait=wait)


def _seconds(words: list[str], option: str, default: float) -> float | None:
    """The option's value, taken out of the words; None when it has none that can be."""
    if option not in words:
        return default
    at = words.index(option)
    try:
        value = float(words[at + 1])
    except (IndexError, ValueError):
        return None
    del words[at : at + 2]
    return value if 0 <= value <= _LONG else None

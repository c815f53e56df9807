"""What is mounted where, and the processes that keep a file system from being unmounted.

Everything that is read here was named by somebody hostile.  No path of theirs is walked: a file
system of their own (FUSE) could let us wait for ever.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from agentlab.log import one_line

_OCTAL = re.compile(rb"\\([0-7]{3})")
_NAME_MOST = 64
_MAPS_MOST = 8 << 20


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo: `device` is `MAJOR:MINOR`, `root` the part of it that is seen."""

    id: int
    device: str
    root: str
    point: Path
    kind: str

    def is_below(self, path: Path) -> bool:
        return path in self.point.parents


def parse_mounts(text: bytes) -> list[Mount]:
    """The mounts of a namespace in the order in which they were made; see proc(5)."""
    found = []
    for line in text.splitlines():
        before, dash, after = line.partition(b" - ")
        words = before.split(b" ")
        if dash and len(words) >= 6:
            root, point = (_OCTAL.sub(_character, word) for word in words[3:5])
            found.append(
                Mount(
                    int(words[0]), words[2].decode(), os.fsdecode(root), Path(os.fsdecode(point)),
                    after.split(b" ")[0].decode(errors="replace"),
                )
            )  # fmt: skip
    return found


def _character(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8) & 255])


def mounts(proc: Path, pid: str = "self") -> list[Mount]:
    return parse_mounts((proc / pid / "mountinfo").read_bytes())


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has something open; its name is printable."""

    pid: int
    name: str
    user: str

    def document(self) -> dict[str, object]:
        return {"pid": self.pid, "name": self.name, "user": self.user}


@dataclass
class Search:
    """Looks for those who keep file systems: the ones on `devices`, and what is below `point`.

    With `namespaces`, a process counts also when a mount namespace of its own has one mounted.
    """

    proc: Path
    devices: frozenset[str]
    point: Path
    namespaces: bool = False
    _wanted: set[int] = field(default_factory=set)
    _known: set[int] = field(default_factory=set)
    _spaces: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._own = self._link("self/ns/mnt")
        self._learn(self._own, "self")

    def holders(self) -> Iterator[Holder]:
        """In order of their numbers; never the process that asks."""
        for pid in sorted(int(name) for name in os.listdir(self.proc) if name.isdigit()):
            if pid != os.getpid() and self.holds(pid):
                yield self._describe(pid)

    def holds(self, pid: int) -> bool:
        """Whether this process keeps one of them; False when it has ended."""
        space = self._link(f"{pid}/ns/mnt")
        if not space:
            return False  # it has ended
        if space not in self._spaces:
            self._learn(space, str(pid))
        if self.namespaces and space != self._own and self._spaces[space]:
            return True
        here = self.proc / str(pid)
        return (
            any(self._is_wanted(here / name) for name in ("cwd", "root", "exe"))
            or any(self._is_wanted(path) for path in _entries(here / "fd"))
            or self._maps(here / "maps")
        )

    def _learn(self, space: str, pid: str) -> None:
        """The mounts of a namespace: which of them are wanted, and whether any is."""
        self._spaces[space] = False
        with suppress(OSError):
            for mount in mounts(self.proc, pid):
                self._known.add(mount.id)
                ours = mount.device in self.devices
                self._spaces[space] |= ours
                if ours or (pid == "self" and mount.is_below(self.point)):
                    self._wanted.add(mount.id)

    def _link(self, name: str) -> str:
        try:
            return str((self.proc / name).readlink())
        except OSError:
            return ""

    def _is_wanted(self, path: Path) -> bool:
        """By the mount that the file was opened through: O_PATH asks no file system for anything."""
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            mount = _mount_id(self.proc / "self/fdinfo" / str(fd))
            if mount in self._known:
                return mount in self._wanted
            # Of a mount that no namespace lists any more: it was unmounted lazily.
            device = os.fstat(fd).st_dev
            return f"{os.major(device)}:{os.minor(device)}" in self.devices
        except OSError:
            return False
        finally:
            os.close(fd)

    def _maps(self, path: Path) -> bool:
        try:
            with path.open("rb") as file:
                text = file.read(_MAPS_MOST)
        except OSError:
            return False
        seen = {words[3] for line in text.splitlines() if len(words := line.split(None, 5)) > 4}
        return not self.devices.isdisjoint(map(_decimal, seen))

    def _describe(self, pid: int) -> Holder:
        name, user = "?", "?"
        with suppress(OSError):
            raw = (self.proc / str(pid) / "comm").read_bytes()[:_NAME_MOST]
            name = one_line(raw.rstrip(b"\n").decode(errors="backslashreplace"))[:_NAME_MOST]
        with suppress(OSError):
            status = (self.proc / str(pid) / "status").read_bytes()
            uid = int(status.partition(b"\nUid:")[2].split()[0])
            user = _user(uid)
        return Holder(pid, name, user)


def _entries(path: Path) -> Iterable[Path]:
    try:
        return [path / name for name in os.listdir(path)]
    except OSError:
        return []


def _mount_id(path: Path) -> int:
    for line in path.read_bytes().splitlines():
        if line.startswith(b"mnt_id:"):
            return int(line.split()[1])
    return -1


def _decimal(device: bytes) -> str:
    """`fe:10` of /proc/PID/maps as `254:16`."""
    major, _, minor = device.partition(b":")
    try:
        return f"{int(major, 16)}:{int(minor, 16)}"
    except ValueError:
        return ""


def _user(uid: int) -> str:
    try:
        return one_line(pwd.getpwuid(uid).pw_name)[:_NAME_MOST]
    except KeyError:
        return str(uid)

"""The disk of a workspace: which one it is, what is on it, and the file system that we make there.

Nothing here writes to a disk that holds anything, unless a mark of our own says that what it
holds is a file system whose making was cut off, and that file system was never mounted.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agentlab import run
from agentlab.clock import Deadline
from agentlab.errors import AgentLabError
from agentlab.guest.account import SEARCH_PATH, Account
from agentlab.log import one_line

SERIAL = b"work"
LABEL = "agentlab-work"
_MIB = 1 << 20
_SAID_MOST = 2000
# In the first sector of the disk, which ext4 leaves to boot loaders.
_MARK = b"agentlab-work: a file system is being made here\n".ljust(512, b"\0")
_BACKUP = 32768 * 4096  # the first copy of the superblock, with the block size that we choose
_MAGIC = 0xEF53


class Refused(AgentLabError):
    """A verb cannot be done; `code` is one of those that `work.py` lists."""

    def __init__(self, code: str, detail: str, processes: Sequence[dict[str, object]] = ()) -> None:
        super().__init__(detail)
        self.code = code
        self.processes = list(processes)


@dataclass(frozen=True, slots=True)
class Tools:
    """Runs the programs for file systems; they hold the lock too, so that they outlive us safely."""

    lock: int

    def run(self, *argv: str | Path) -> tuple[int, str]:
        """The status and the end of what it said.  No time limit: half a repair is worse."""
        said = os.memfd_create("said")
        try:
            process = run.spawn(
                argv, stdout=said, stderr=said, cwd=Path("/"), pass_fds=(self.lock,),
                env={"PATH": SEARCH_PATH, "LC_ALL": "C"},
            )  # fmt: skip
            status = process.wait()
            size = os.fstat(said).st_size
            text = os.pread(said, _SAID_MOST, max(0, size - _SAID_MOST)).decode(errors="replace")
        finally:
            os.close(said)
        return status, one_line(" / ".join(line for line in text.splitlines() if line.strip()))


@dataclass(frozen=True, slots=True)
class Superblock:
    """What ext2, ext3 and ext4 say of themselves."""

    label: str
    size: int
    mounted_before: bool

    @classmethod
    def parse(cls, data: bytes) -> Superblock | None:
        """From the 1024 bytes of it; None when they are none.  See ext4(5), struct ext4_super_block."""
        if len(data) < 1024 or _number(data, 0x38, 2) != _MAGIC:
            return None
        blocks = _number(data, 0x04, 4) | _number(data, 0x150, 4) << 32
        label = data[0x78:0x88].split(b"\0")[0].decode(errors="replace")
        used = bool(_number(data, 0x2C, 4) or _number(data, 0x34, 2))
        return cls(label, blocks << (10 + min(_number(data, 0x18, 4), 6)), used)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device: its node, and its number as `MAJOR:MINOR`."""

    node: Path
    number: str

    @contextmanager
    def opened(self, flags: int) -> Iterator[int]:
        fd = os.open(self.node, flags | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def size(self) -> int:
        with self.opened(os.O_RDONLY) as fd:
            return os.lseek(fd, 0, os.SEEK_END)

    def superblock(self, at: int = 1024) -> Superblock | None:
        with self.opened(os.O_RDONLY) as fd:
            return Superblock.parse(os.pread(fd, 1024, at))

    def is_held(self) -> bool:
        """Whether it is in use: mounted in any namespace, swapped to, or worked on by a program."""
        try:
            with self.opened(os.O_RDONLY | os.O_EXCL):
                return False
        except OSError as problem:
            if problem.errno == errno.EBUSY:
                return True
            raise

    def wait_released(self, seconds: float) -> bool:
        """The kernel lets go of a file system a moment after its last mount is gone."""
        until = Deadline.after(seconds)
        while self.is_held():
            if until.passed:
                return False
            time.sleep(0.1)
        return True


def find(sys_block: Path, dev: Path) -> Disk | None:
    """The one disk whose serial number is `work`; None when it is not there (yet).

    Raises Refused when there are two, or when it is the disk that the system runs from.
    """
    found = [entry for entry in sorted(sys_block.iterdir()) if SERIAL in _serials(entry)]
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(one_line(entry.name) for entry in found)
        raise Refused("failed", f"more than one disk has the serial number work: {names}")
    try:
        number = (found[0] / "dev").read_text().strip()
        status = (dev / found[0].name).stat()
    except OSError:
        return None  # just coming, or just going
    if not stat.S_ISBLK(status.st_mode) or _text(status.st_rdev) != number:
        raise Refused("failed", f"{dev / found[0].name} is not the disk {number}")
    if _text(Path("/").stat().st_dev) in _numbers(found[0]):
        raise Refused("failed", f"{dev / found[0].name} is the disk that the system runs from")
    return Disk(dev / found[0].name, number)


def _serials(entry: Path) -> Iterable[bytes]:
    """virtio-blk tells it in a file, SCSI in page 0x80 of its vital product data."""
    with suppress(OSError):
        yield (entry / "serial").read_bytes().strip(b"\0 \n")
    with suppress(OSError):
        page = (entry / "device/vpd_pg80").read_bytes()
        yield page[4 : 4 + int.from_bytes(page[2:4], "big")].strip(b"\0 ")


def _numbers(entry: Path) -> Iterable[str]:
    """Of the disk and of its partitions."""
    for path in (entry / "dev", *entry.glob(f"{entry.name}*/dev")):
        with suppress(OSError):
            yield path.read_text().strip()


def _text(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


OURS, BEGUN, BLANK = "ours", "begun", "blank"


def look(disk: Disk, tools: Tools) -> str:
    """OURS, BEGUN (its making was cut off) or BLANK.  Raises Refused: foreign, damaged."""
    with disk.opened(os.O_RDONLY) as fd:
        front = os.pread(fd, _MIB, 0)
        size = os.lseek(fd, 0, os.SEEK_END)
        back = os.pread(fd, _MIB, max(0, size - _MIB))
    found = Superblock.parse(front[1024:2048])
    begun = front[:512] == _MARK
    if found is not None and found.label == LABEL:
        return BEGUN if begun and not found.mounted_before else OURS
    status, said = tools.run("blkid", "-p", "-o", "export", disk.node)
    if status == 2 and begun:
        return BEGUN
    if status == 2 and not any(front) and not any(back):
        return BLANK
    copy = disk.superblock(_BACKUP)
    if status == 2 and copy is not None and copy.label == LABEL:
        raise Refused("damaged", f"the first superblock on {disk.node} is not readable")
    raise Refused("foreign", _describe(disk, status, said))


def _describe(disk: Disk, status: int, said: str) -> str:
    if status == 2:
        return f"{disk.node} is not blank, and blkid does not know what it holds"
    words = re.findall(r"\b((?:TYPE|PTTYPE|LABEL|AMBIVALENT)=.*?)(?: / |$)", said)
    return f"{disk.node} holds something else: {', '.join(words)[:300] or said[:300]}"


def make(disk: Disk, account: Account, tools: Tools, scratch: Path) -> None:
    """Makes the file system on a disk that `look` found blank or begun; killed, it is begun.

    mkfs.ext4 makes it in the sparse file `scratch` (in memory: a few MB), since on the disk it
    would begin with what tells a half-made file system from somebody's data.  The mark is there
    from before the first byte until after the last.
    """
    size = disk.size()
    scratch.unlink(missing_ok=True)
    fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(fd, size)
        extended = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        # The block size by name: a small disk would get a smaller one, and may be grown later.
        status, said = tools.run(
            "mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256", "-L", LABEL, "-m", "0",
            "-E", f"{extended},root_owner={account.uid}:{account.gid}", scratch,
        )  # fmt: skip
        if status != 0:
            raise Refused("failed", f"mkfs.ext4 ended with status {status}: {said}")
        with disk.opened(os.O_RDWR | os.O_EXCL) as target:
            _write(target, _MARK, 0)
            for start, end in _extents(fd, size):
                _copy(fd, target, max(start, 4096), end)
            os.fsync(target)
            _write(target, os.pread(fd, 4096 - len(_MARK), len(_MARK)), len(_MARK))
            _write(target, os.pread(fd, len(_MARK), 0), 0)
    finally:
        os.close(fd)
        scratch.unlink(missing_ok=True)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the sparse file holds something."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as none:
            if none.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def _copy(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        piece = os.pread(source, min(_MIB, end - start), start)
        start += os.pwrite(target, piece, start)


def _write(fd: int, data: bytes, at: int) -> None:
    """On the disk when it returns."""
    os.pwrite(fd, data, at)
    os.fsync(fd)


def mend(disk: Disk, tools: Tools) -> None:
    """Replays the journal and does the repairs that are safe.  Raises Refused: damaged."""
    status, said = tools.run("e2fsck", "-p", disk.node)
    if status >= 4 or status < 0:
        code = "damaged" if status > 0 else "failed"
        raise Refused(code, f"e2fsck -p ended with status {status}: {said}")


def grow(disk: Disk, tools: Tools) -> tuple[bool, str]:
    """Fits the mounted file system to its disk: whether it grew, and what went wrong or ""."""
    before = disk.superblock()
    if before is None or disk.size() - before.size < 4096:
        return False, ""
    status, said = tools.run("resize2fs", disk.node)
    after = disk.superblock()
    grown = after is not None and after.size > before.size
    return grown, "" if status == 0 else f"resize2fs ended with status {status}: {said}"

"""Files in a job's directory, never outside: each step of a path is opened without following links."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from agentlab.daemon.exchange import StorageFull
from agentlab.errors import AgentLabError, Conflict, Invalid, Unavailable

LOG = "agent.log"
REPORT = "report.json"
INCOMING = ".incoming"
RESERVED = frozenset({LOG, REPORT})  # ours: the guest sends them by requests of their own
_MAX_NAME = 1024  # bytes of a whole name
_MAX_SEGMENT = 255  # bytes: NAME_MAX
_MAX_DEPTH = 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_THE_WAY = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY)
FLOOR = 512 << 20  # bytes that stay free, so that the database can always commit
_SYNC = 64 << 20  # bytes after which they go to disk, so that the last fsync is short
_numbers = itertools.count(1)


def check_name(name: str) -> str:
    """The name of an artifact: plain segments with `/` between them; Invalid otherwise."""
    segments = name.split("/")
    for segment in segments:
        if segment in ("", ".", ".."):
            raise Invalid("cannot take the file: a part of its name is empty, '.' or '..'")
        if len(segment.encode()) > _MAX_SEGMENT or not segment.isprintable():
            raise Invalid("cannot take the file: its name is too long or has control characters")
    if len(segments) > _MAX_DEPTH or len(name.encode()) > _MAX_NAME:
        raise Invalid("cannot take the file: its name is too long or too deep")
    # a dot further down is a file that a task wanted to hand back
    if segments[0] in RESERVED or name.startswith("."):
        raise Invalid(f"cannot take the file: {name} is a name of ours")
    return name


@contextlib.contextmanager
def open_dir(path: Path) -> Iterator[int]:
    """A directory of ours, made when it is not there, as a number for `dir_fd`."""
    path.mkdir(mode=0o750, parents=True, exist_ok=True)
    fd = os.open(path, _FOLDER)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def open_job_dir(artifact_dir: Path, job: str, *, create: bool = True) -> Iterator[int]:
    """The directory of a job."""
    with contextlib.ExitStack() as stack:
        if create:
            artifact_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        top = os.open(artifact_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, top)
        folder = _step(top, job, create=create)
        stack.callback(os.close, folder)
        yield folder


def _step(fd: int, name: str, *, create: bool) -> int:
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o750, dir_fd=fd)
    return os.open(name, _FOLDER, dir_fd=fd)


@contextlib.contextmanager
def open_parent(fd: int, name: str, *, create: bool) -> Iterator[tuple[int, str]]:
    """The directory that `name` lies in, and the last part of the name."""
    *folders, last = name.split("/")
    current = os.dup(fd)
    try:
        for each in folders:
            below = _step(current, each, create=create)
            os.close(current)
            current = below
        yield current, last
    finally:
        os.close(current)


def open_file(fd: int, name: str) -> BinaryIO:
    """A file below a directory, for reading."""
    with open_parent(fd, name, create=False) as (folder, last):
        return open(
            last,
            "rb",
            opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, dir_fd=folder),
        )


def append(fd: int, name: str, offset: int, content: bytes) -> int:
    """Appends where a file's size is `offset`; gives the size before, and writes nothing if not."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(name, flags, 0o640, dir_fd=fd)
    try:
        size = os.fstat(file).st_size
        if size == offset:
            _write_whole(file, content, size)
        return size
    finally:
        os.close(file)


def _write_whole(file: int, content: bytes, size: int) -> None:
    view = memoryview(content)
    try:
        while view:
            view = view[os.write(file, view) :]
    except OSError:
        os.ftruncate(file, size)  # all of it or nothing: the sender sends it again
        raise


def check_room(path: Path, size: int, what: str) -> None:
    """StorageFull when `size` bytes more would leave less than FLOOR of the file system."""
    try:
        found = os.statvfs(path)
    except FileNotFoundError:  # it is made with the first file
        found = os.statvfs(path.parent)
    free = found.f_bavail * found.f_frsize
    if free - size < FLOOR:
        raise StorageFull(
            f"cannot keep {what}: the disk is nearly full: {free >> 20} MiB are free, "
            f"and {FLOOR >> 20} stay so",
            hint=f"free some space on the file system of {path}",
        )


class Part:
    """A file that is being received: gone when the block ends, unless it was kept."""

    def __init__(self, fd: int, boot: str) -> None:
        self._folder = fd
        self._name = f".incoming-{boot}-{next(_numbers)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self._name, flags, 0o640, dir_fd=fd)
        self._digest = hashlib.sha256()
        self._unsynced = 0

    def write(self, block: bytes) -> None:
        self._digest.update(block)
        view = memoryview(block)
        while view:
            view = view[os.write(self._file, view) :]
        self._unsynced += len(block)
        if self._unsynced >= _SYNC:
            os.fdatasync(self._file)
            self._unsynced = 0

    def check(self, sha256: str, what: str) -> None:
        """Brings it to disk; Invalid when it is not what the sender said."""
        if self._digest.hexdigest() != sha256:
            raise Invalid(
                f"cannot take {what}: its sha256 is not the one that was named",
                details={"sha256": self._digest.hexdigest()},
            )
        self.sync()

    def sync(self) -> None:
        """Brings it to disk."""
        os.fsync(self._file)

    def keep(self, fd: int, name: str) -> None:
        """Puts it in its place below a directory, over what is there."""
        with open_parent(fd, name, create=True) as (folder, last):
            os.rename(self._name, last, src_dir_fd=self._folder, dst_dir_fd=folder)
            self._name = ""
            os.fsync(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)
        if self._name:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._folder)


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns what a disk says into our errors; what comes from a peer passes unchanged."""
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        raise _disk_error(what, error) from error


def _disk_error(what: str, error: OSError) -> AgentLabError:
    if error.errno in _FULL:
        return StorageFull(f"cannot keep {what}: the disk is full", hint="free some space")
    if error.errno in _IN_THE_WAY:
        return Conflict(f"cannot keep {what}: something else has its name")
    if error.errno == errno.ENOENT:
        return Conflict(f"cannot keep {what}: its directory has been closed")
    return Unavailable(f"cannot keep {what}: {error.strerror}")


def sweep_parts(folder: Path, boot: str) -> int:
    """Removes what an earlier process was receiving into a directory; gives how many."""
    swept = 0
    for path in folder.glob(".incoming-*"):
        if not path.name.startswith(f".incoming-{boot}-"):
            path.unlink(missing_ok=True)
            swept += 1
    return swept

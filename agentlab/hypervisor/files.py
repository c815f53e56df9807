"""Files that survive a crash: atomic writes, locks that end with their holder, swept leftovers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agentlab.clock import Deadline
from agentlab.errors import Busy, NotFound, Unavailable

_POLL = 0.02
_WRITING = 600.0  # seconds after which nobody writes a small file any more
_YOUNG = 10.0  # seconds that a new directory may take to get its lock


def write_durable(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replaces a file whole: after a crash it is the old one or the new one, on disk.

    What a writer that was killed has left beside it goes with a later writing.
    """
    for left in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _WRITING:
                left.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes renames in a directory last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Takes flock(2) on an open file without waiting."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_lock(descriptor: int, deadline: Deadline, what: str, *, shared: bool = False) -> None:
    """Takes flock(2), or raises Busy at the deadline; `what` names the thing in the message."""
    while not try_lock(descriptor, shared=shared):
        if deadline.passed:
            raise Busy(f"cannot lock {what}: another operation holds it")
        time.sleep(_POLL)


@contextlib.contextmanager
def locked(path: Path, *, timeout: float, what: str) -> Iterator[None]:
    """Holds a lock file, which is made when it is not there and never removed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        wait_lock(descriptor, Deadline.after(timeout), what)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_directory(parent: Path, name: str) -> Iterator[Path]:
    """A hidden directory in which something is made whole before it is renamed into its place.

    The block renames it; whatever it leaves is removed.  It is locked for as long as its
    maker lives, so that `sweep` finds those whose maker was killed.
    """
    path = parent / f".{name}.{secrets.token_hex(4)}.new"
    path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try_lock(descriptor)
        yield path
    finally:
        os.close(descriptor)
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)


def put_in_place(work: Path, path: Path) -> bool:
    """Gives what was made its name; False when there is something of that name already."""
    try:
        work.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    sync_directory(path.parent)
    return True


@contextlib.contextmanager
def locked_directory(path: Path, *, timeout: float, verb: str, what: str) -> Iterator[None]:
    """Holds a directory for one operation; NotFound when it is not there, or no longer."""
    absent = NotFound(f"cannot {verb} {what}: it is not there")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise absent from None
    except OSError as error:
        raise Unavailable(f"cannot {verb} {what}: {error.strerror}") from error
    try:
        wait_lock(descriptor, Deadline.after(timeout), what)
        # It may have been removed, and made anew, while we waited.
        if not _is(path, descriptor):
            raise absent
        yield
    finally:
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    try:
        here = path.stat()
    except FileNotFoundError:
        return False
    return here.st_ino == os.fstat(descriptor).st_ino


def sweep(parent: Path, before: Callable[[Path], None] = lambda _: None, *, ours: str = "") -> None:
    """Removes hidden directories of `new_directory` and `remove_tree` that nobody works on.

    `before` is told of each while it is still there.  A very young one may not be locked by its
    maker yet, and stays, unless it is of the name `ours`, which the caller alone may make.
    """
    for path in parent.glob(".*"):
        if path.suffix not in (".new", ".gone") or path.is_symlink():
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            young = time.time() - os.fstat(descriptor).st_mtime < _YOUNG
            young = young and not (ours and path.name.startswith(f".{ours}."))
            if not young and try_lock(descriptor):
                before(path)
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Has all of a directory on disk before it is given its name."""
    for each in (*path.rglob("*"), path):
        if each.is_symlink() or not (each.is_file() or each.is_dir()):
            continue
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Removes a directory that is never seen half-removed under its own name."""
    gone = path.with_name(f".{path.name}.{secrets.token_hex(4)}.gone")
    try:
        path.rename(gone)
    except FileNotFoundError:
        return
    sync_directory(path.parent)
    shutil.rmtree(gone, ignore_errors=True)

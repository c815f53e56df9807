"""Finds and opens what the agent left in its artifacts directory, believing nothing.

The runner is root and the tree is hostile: each part of a path is opened by itself without
following symlinks, only regular files count, and a file that the agent could not have read
(a hard link to somebody else's) is not handed back.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentlab.errors import Invalid, NotFound
from agentlab.guest.account import Account

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A fifo or a device must not be waited for, not even when it came in place of a file.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DEPTH = 32
_LOOKS = 200_000  # entries that are looked at; a tree may have no end


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file, open; whoever takes it closes `fd`."""

    name: str
    fd: int
    size: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that is not handed back, and why; the name is printable."""

    name: str
    reason: str


def printable(name: str) -> str:
    """The name with every byte that is not UTF-8, and every control character, escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _may_read(status: os.stat_result, account: Account, wanted: int) -> bool:
    """Could the agent itself have read it?  `wanted`: permission bits of one class (4 or 5)."""
    if account.user is None or status.st_uid == account.uid:
        return True  # what is its own it could have made readable
    shift = 3 if status.st_gid == account.gid else 0
    return (status.st_mode >> shift) & wanted == wanted


def open_directory(path: Path) -> int:
    """A directory by its absolute path, with not one symlink on the way.  Raises OSError."""
    fd = os.open("/", _DIRECTORY)
    try:
        for part in path.parts[1:]:
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        return fd
    except OSError:
        os.close(fd)
        raise


def open_file(directory: int, name: str, account: Account) -> tuple[int, int]:
    """A regular file that the agent could read, and its size.  Raises Invalid with the reason."""
    try:
        before = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(before.st_mode):
            raise Invalid(f"not a regular file but a {_kind(before.st_mode)}")
        fd = os.open(name, _FILE, dir_fd=directory)
    except OSError as problem:
        raise Invalid(problem.strerror or str(problem)) from problem
    status = os.fstat(fd)
    reason = ""
    if (status.st_dev, status.st_ino) != (before.st_dev, before.st_ino):
        reason = "it was replaced while it was opened"
    elif not _may_read(status, account, 4):
        reason = "the agent itself cannot read it"
    if reason:
        os.close(fd)
        raise Invalid(reason)
    return fd, status.st_size


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def read_small(path: Path, account: Account, most: int = 4096) -> bytes:
    """A small file of the agent's by its absolute path.  Raises Invalid, NotFound."""
    try:
        directory = open_directory(path.parent)
    except OSError as problem:
        raise NotFound(f"cannot open {path.parent}: {problem.strerror}") from problem
    try:
        fd, _ = open_file(directory, path.name, account)
    finally:
        os.close(directory)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def walk(root: Path, account: Account) -> Iterator[Found | Skipped]:
    """Every file below `root` in order of names, and every other thing with the reason."""
    try:
        top = open_directory(root)
    except OSError as problem:
        if not isinstance(problem, FileNotFoundError):
            yield Skipped("", f"the artifacts directory cannot be opened: {problem.strerror}")
        return
    looks = 0
    stack: list[tuple[int, str, list[str]]] = [(top, "", _names(top))]
    try:
        while stack:
            directory, prefix, names = stack[-1]
            if not names:
                os.close(stack.pop()[0])
                continue
            name = names.pop()
            looks += 1
            if looks > _LOOKS:
                yield Skipped(printable(prefix), "too many files to look at")
                return
            below = _enter(directory, name, account)
            if below is None:
                yield _look(directory, prefix, name, account)
            elif isinstance(below, str) or len(stack) >= _DEPTH:
                if isinstance(below, int):
                    os.close(below)
                yield Skipped(printable(prefix + name), str(below) if isinstance(below, str)
                              else "too deep")  # fmt: skip
            else:
                stack.append((below, f"{prefix}{name}/", _names(below)))
    finally:
        for directory, _, _ in stack:
            os.close(directory)


def _names(directory: int) -> list[str]:
    """The names, last first, so that they can be popped in order."""
    with suppress(OSError), os.scandir(directory) as entries:
        names = []
        for entry in entries:
            names.append(entry.name)
            if len(names) > _LOOKS:
                break
        return sorted(names, reverse=True)
    return []


def _enter(directory: int, name: str, account: Account) -> int | str | None:
    """A directory, open; or the reason why it is not entered; None when it is none."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return None
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as problem:
        return problem.strerror or str(problem)
    if _may_read(os.fstat(fd), account, 5):
        return fd
    os.close(fd)
    return "the agent itself cannot read it"


def _look(directory: int, prefix: str, name: str, account: Account) -> Found | Skipped:
    whole = prefix + name
    try:
        os.fsencode(whole).decode()
    except UnicodeDecodeError:
        return Skipped(printable(whole), "its name is not UTF-8")
    if not whole.isprintable():
        return Skipped(printable(whole), "its name has control characters")
    try:
        fd, size = open_file(directory, name, account)
    except Invalid as refused:
        return Skipped(whole, refused.message)
    return Found(whole, fd, size)

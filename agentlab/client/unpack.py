"""Unpacking what a sandbox sends.  Its guest may be hostile, and so may every byte of the archive.

Python's own `filter="data"` is not in every Python that we run on (Debian 12 has 3.11.2), and has
let links lead out more than once.  So tarfile only reads here, within a budget, and we make the
files: each by the descriptor of its directory, never through a link; links last of all, and only
such as cannot lead out.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Protocol, TypeVar

from agentlab.errors import Invalid, Unavailable

T = TypeVar("T")

_SLACK = 1 << 20  # bytes of headers that one entry may have
_GROWTH = 16 << 20  # bytes that a tree may have grown by while it was read
_MOST = 1 << 20  # entries
_BLOCK = 256 << 10
_MAX_NAME = 255
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Reader(Protocol):
    """Where the bytes come from."""

    def read(self, size: int = -1, /) -> bytes: ...


class _Budget:
    """Bytes for tarfile, but no more than it is granted: a header can ask for as many as it likes."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self.left = _SLACK

    def read(self, size: int = -1) -> bytes:
        found = self._source.read(size)
        self.left -= len(found)
        if self.left < 0:
            raise hostile("an entry has more bytes than it says")
        return found


@dataclass(slots=True)
class Unpacked:
    """What came.  `left_out`: special files, and links that would lead out."""

    files: int = 0
    size: int = 0
    left_out: list[str] = field(default_factory=list)


def hostile(why: str) -> Unavailable:
    return Unavailable(f"cannot copy: the sandbox sent what is no honest archive: {why}")


def split_name(name: str) -> list[str]:
    """The parts of an entry's name; none for the top.  Unavailable for one that leads out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise hostile(f"the name {name[:200]!r}")
    if any(len(os.fsencode(part)) > _MAX_NAME for part in parts):
        raise hostile("a name that is too long")
    return parts


def stays_inside(target: str, depth: int) -> bool:
    """Whether a link `depth` directories below the top cannot lead out of it.

    `..` only at the start, and not past the top: behind a name it could follow another link first.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return bool(target) and not target.startswith("/") and up <= depth and ".." not in parts[up:]


def unpack_tree(
    source: Reader, folder: Path, announced: int, moved: Callable[[int], None] | None = None
) -> Unpacked:
    """Unpacks a compressed tar into an empty directory of ours.

    Unavailable for an archive that is broken, hostile, or larger than was announced.
    """
    top = os.open(folder, _DIR)
    try:
        return _Tree(top, announced, moved or (lambda _: None)).fill(source)
    finally:
        os.close(top)


def unpack_file(
    source: Reader, folder: Path, announced: int, moved: Callable[[int], None] | None = None
) -> Unpacked:
    """The same for an archive of one file, which gets the name `x` here."""
    found = unpack_tree(source, folder, announced, moved)
    there = os.listdir(folder)
    if len(there) != 1 or found.files != 1 or not (folder / there[0]).is_file():
        raise hostile("something else than one file")
    (folder / there[0]).rename(folder / "x")
    return found


class _Tree:
    def __init__(self, top: int, announced: int, moved: Callable[[int], None]) -> None:
        self._top = top
        self._most = announced + max(_GROWTH, announced // 10)
        self._moved = moved
        self._found = Unpacked()
        self._modes: list[tuple[list[str], int]] = []
        self._links: list[tuple[list[str], str]] = []
        self._files: set[tuple[str, ...]] = set()

    def fill(self, source: Reader) -> Unpacked:
        try:
            for entry, content in _entries(source):
                self._take(entry, content)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Unavailable(f"cannot copy: what came is not whole: {error}") from error
        for parts, target in self._links:
            with self._parent(parts) as parent:
                _made(partial(os.symlink, target, parts[-1], dir_fd=parent))
        for parts, mode in reversed(self._modes):
            with self._parent([*parts, ""]) as directory:
                os.fchmod(directory, mode & 0o755 | 0o700)
        return self._found

    def _take(self, entry: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        parts = split_name(entry.name)
        if entry.isdir():
            self._modes.append((parts, entry.mode))
            if parts:
                with self._parent(parts) as parent:
                    _made(lambda: os.mkdir(parts[-1], 0o700, dir_fd=parent))
            return
        if not parts:
            raise hostile("a file without a name")
        if entry.isreg() and content is not None:
            self._file(entry, parts, content)
        elif entry.issym() and stays_inside(entry.linkname, len(parts) - 1):
            self._links.append((parts, entry.linkname))
        elif entry.islnk() and tuple(split_name(entry.linkname)) in self._files:
            self._hard_link(split_name(entry.linkname), parts)
        else:
            self._found.left_out.append("/".join(parts))

    def _file(self, entry: tarfile.TarInfo, parts: list[str], content: IO[bytes]) -> None:
        if not 0 <= entry.size <= self._most - self._found.size:
            raise hostile("more bytes than it announced")
        with self._parent(parts) as parent:
            number = _made(lambda: os.open(parts[-1], _NEW, 0o600, dir_fd=parent))
        with os.fdopen(number, "wb") as file:
            left = entry.size
            while left:
                block = content.read(min(left, _BLOCK))
                if not block:
                    raise EOFError("the archive ends in the middle of a file")
                file.write(block)
                left -= len(block)
                self._moved(len(block))
            file.flush()
            os.fchmod(file.fileno(), entry.mode & 0o755 | 0o600)
            with contextlib.suppress(OSError, OverflowError, ValueError):
                os.utime(file.fileno(), (entry.mtime, entry.mtime))
        self._found.files += 1
        self._found.size += entry.size
        self._files.add(tuple(parts))

    def _hard_link(self, target: list[str], parts: list[str]) -> None:
        with self._parent(target) as source, self._parent(parts) as parent:
            _made(
                lambda: os.link(
                    target[-1], parts[-1],
                    src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False,
                )
            )  # fmt: skip
        self._found.files += 1

    @contextlib.contextmanager
    def _parent(self, parts: list[str]) -> Iterator[int]:
        """The directory that the last of these parts is in; none of them is a link."""
        number = os.dup(self._top)
        try:
            for part in parts[:-1]:
                try:
                    deeper = os.open(part, _DIR, dir_fd=number)
                except OSError as error:
                    raise hostile(f"no directory {part[:200]!r}: {error.strerror}") from error
                os.close(number)
                number = deeper
            yield number
        finally:
            os.close(number)


def _made(act: Callable[[], T]) -> T:
    try:
        return act()
    except FileExistsError as error:
        raise hostile("two entries of one name") from error


def _entries(source: Reader) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    budget = _Budget(gzip.GzipFile(fileobj=source, mode="rb"))  # type: ignore[call-overload]  # it only reads
    with tarfile.open(fileobj=budget, mode="r|", errorlevel=2) as archive:  # type: ignore[call-overload]
        for _ in range(_MOST):
            entry = archive.next()
            if entry is None:
                while budget.read(_BLOCK):  # to the end, where gzip's checksum is
                    budget.left = _SLACK
                return
            budget.left = entry.size + _SLACK
            yield entry, archive.extractfile(entry) if entry.isreg() else None
            archive.members = []  # or it would keep every entry
        raise hostile(f"more than {_MOST} entries")


def put_in_place(new: Path, final: Path) -> None:
    """Moves a file or a tree to its name.  A file is replaced, a directory gets what came.

    Invalid when one is a directory and the other is not, or a directory there is a link.
    """
    if not os.path.lexists(final):
        new.rename(final)
    elif final.is_dir() and new.is_dir() and not new.is_symlink():
        _merge(new, final)
    elif final.is_dir() or (new.is_dir() and not new.is_symlink()):
        what = "a directory" if final.is_dir() else "no directory"
        raise Invalid(f"cannot copy to {final}: it is {what}", hint="give it another name")
    else:
        new.replace(final)


def _merge(new: Path, final: Path) -> None:
    for each in sorted(new.iterdir()):
        there = final / each.name
        if there.is_symlink() and each.is_dir() and not each.is_symlink():
            raise Invalid(f"cannot copy into {there}: it is a link", hint="remove it first")
        put_in_place(each, there)

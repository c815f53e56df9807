"""A nameless file for what is on its way to the daemon; it moves when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Self

_PIECE = 256 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


class Spool:
    """Bytes are appended by one thread and may be read by others at any offset.

    `places` are directories, tried in turn: when one is full, all bytes go to the next one.
    Raises OSError when none has room; what was written before can still be read.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        self._places = list(places)
        self._size = 0
        self._fd = self._open_next()

    @property
    def size(self) -> int:
        return self._size

    def _open_next(self) -> int:
        failure: OSError = OSError(errno.ENOSPC, "no place to write to")
        while self._places:
            place = self._places.pop(0)
            path = place / f".spool-{secrets.token_hex(8)}"
            try:
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            except OSError as problem:
                failure = problem
                continue
            path.unlink()
            return fd
        raise failure

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            try:
                written = os.pwrite(self._fd, rest, self._size)
            except OSError as problem:
                if problem.errno not in _FULL:
                    raise
                self._move(problem)
                continue
            self._size += written
            rest = rest[written:]

    def _move(self, problem: OSError) -> None:
        """Goes on in the next place, with all that there is so far."""
        if not self._places:
            raise problem
        fresh = self._open_next()
        try:
            offset = 0
            while offset < self._size:
                piece = os.pread(self._fd, min(_PIECE, self._size - offset), offset)
                offset += os.pwrite(fresh, piece, offset)
        except OSError:
            os.close(fresh)
            raise problem from None
        # The number stays, so that a reader in another thread never sees a closed file.
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)

    def read(self, offset: int, most: int) -> bytes:
        return os.pread(self._fd, min(most, max(0, self._size - offset)), offset)

    def rewound(self) -> int:
        """The file itself at its beginning, to be a program's standard input."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""One daemon for one data directory: a lock that the kernel frees when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from agentlab.errors import Conflict


@contextlib.contextmanager
def sole_instance(data_dir: Path) -> Iterator[None]:
    """Holds the lock, with our process id in it; Conflict names the one that has it."""
    fd = os.open(data_dir / "agentlabd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"cannot start: another agentlabd (pid {holder}) works on {data_dir}",
                hint="stop it first, or set another data_dir",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)

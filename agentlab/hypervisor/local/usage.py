"""How busy the QEMU processes are: their processor time between two looks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_APART = 1.0  # seconds between two looks that tell anything: a tick is 10 ms


@dataclass(frozen=True, slots=True)
class Look:
    """What /proc/PID/stat says (proc(5)): since when that process lives, and what it used.

    `begun` is in ticks since the host's boot, `used` in seconds of processor time.
    """

    pid: int
    begun: int
    used: float


def parse_stat(pid: int, text: str) -> Look:
    """Raises ValueError for what is no such line; the name in it may hold anything."""
    words = text.rpartition(")")[2].split()
    if len(words) < 20:
        raise ValueError(f"not a line of /proc/{pid}/stat")
    return Look(pid, int(words[19]), (int(words[11]) + int(words[12])) / _TICKS)


def read_look(pid: int) -> Look | None:
    """None when there is no such process any more."""
    try:
        return parse_stat(pid, (_PROC / str(pid) / "stat").read_text(errors="replace"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class _Kept:
    look: Look
    at: float
    share: float | None = None


class Usage:
    """Remembers the last look at each machine.  All methods may be called from any thread."""

    def __init__(
        self,
        read: Callable[[int], Look | None] = read_look,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._kept: dict[int, _Kept] = {}
        self._lock = threading.Lock()

    def share(self, vmid: int, pid: int | None, cores: int) -> float | None:
        """The share of `cores` in use since the look before; None at the first of a process.

        Who looks again at once is told the same as before.
        """
        look = self._read(pid) if pid is not None else None
        at = self._clock()
        with self._lock:
            before = self._kept.get(vmid)
            if look is None:
                self._kept.pop(vmid, None)
                return None
            if before is None or (before.look.pid, before.look.begun) != (look.pid, look.begun):
                self._kept[vmid] = _Kept(look, at)
                return None
            if at - before.at < _APART:
                return before.share
            used = (look.used - before.look.used) / (at - before.at) / max(1, cores)
            share = min(1.0, max(0.0, used))
            self._kept[vmid] = _Kept(look, at, share)
            return share

    def keep(self, vmids: Collection[int]) -> None:
        """Forgets all machines but these."""
        with self._lock:
            for vmid in self._kept.keys() - set(vmids):
                del self._kept[vmid]

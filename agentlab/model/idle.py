"""When a sandbox is idle: decided from what was seen of it at two moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BUSY_CPU = 0.05  # share of its virtual CPUs; a guest that waits takes 1 to 3 %
BUSY_EMULATED = 0.2  # the same where they are emulated, and a heartbeat alone costs some per cent
# Bytes a second on its tap, both ways.  The runner's heartbeat, a small request each 2 s, is about
# 600, ARP and NTP much less; an agent that gets its answer by stream is above.
BUSY_TRAFFIC = 2048.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look found of a sandbox.  `key` changes with its record; `after` is in seconds.

    `log` is the size of its agent's log, `cpu` the share in use, of which `busy` is activity,
    `traffic` the bytes through its tap so far; None is not known.  `held`: something is under way with it.  `used`: somebody ran
    something in it since the look before.
    """

    key: tuple[int, float]
    after: float
    log: int = 0
    cpu: float | None = None
    traffic: int | None = None
    ssh: bool = False
    used: bool = False
    held: bool = False
    busy: float = BUSY_CPU


@dataclass(frozen=True, slots=True)
class Watched:
    """The last look at a sandbox, when that was, and since when nothing happened in it."""

    last: Sample
    at: float
    since: float


Watch = Mapping[tuple[int, float], Watched]


def plan_idle(
    watch: Watch, samples: Sequence[Sample], now: float
) -> tuple[Watch, list[tuple[int, float]]]:
    """What to remember until the next look, and the keys of those that are idle for long enough.

    `now` is of a clock that never goes back.  What is seen for the first time begins its time.
    """
    after: dict[tuple[int, float], Watched] = {}
    idle = []
    for sample in samples:
        before = watch.get(sample.key)
        since = now if before is None or is_active(before, sample, now) else before.since
        after[sample.key] = Watched(sample, now, since)
        if now - since >= sample.after:
            idle.append(sample.key)
    return after, idle


def is_active(before: Watched, now: Sample, at: float) -> bool:
    """Whether anything happened between two looks; what is not known counts as if it had."""
    last = before.last
    if now.held or now.used or now.ssh or now.log != last.log:
        return True
    if now.cpu is None or now.cpu >= now.busy:
        return True
    if now.traffic is None or last.traffic is None or now.traffic < last.traffic:
        return True
    return now.traffic - last.traffic > BUSY_TRAFFIC * (at - before.at)

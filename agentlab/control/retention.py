"""Nothing grows without bound: what is old and finished is forgotten.

A clock that is wrong must not make everything old.  So a day counts only when a sweep has seen it:
one that is set forth by a year adds one day, like one that is set forth by a day.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

from agentlab.operations.context import World
from agentlab.store import events, jobs, operations, sandboxes, settings, workspaces
from agentlab.store.db import Tx

_DAY = 86400
_SEEN = "retention.seen"  # the days on which there was a sweep, in the order in which they came
_SPARE = 1  # days that a wrong clock may add, and nothing goes too early
_BUNDLE_REST = 3600.0  # seconds that a bundle may wait for its job
EVERY = 3600.0


@dataclass(frozen=True, slots=True)
class Swept:
    """How much of each was forgotten."""

    jobs: int
    sandboxes: int
    workspaces: int
    operations: int
    events: int
    bundles: int


def sweep(world: World, now: float) -> Swept:
    """Files go before the records that name them are gone, so that a sweep cut off is done again."""
    with world.store.write() as tx:
        cutoff = _cutoff(tx, world.config.retention_days, now)
    with world.store.read() as tx:
        old = jobs.finished_before(tx, cutoff)
        idle = jobs.idle_bundles(tx, now - _BUNDLE_REST)
    for job in old:
        shutil.rmtree(world.job_dir(job), ignore_errors=True)
        with world.store.write() as tx:
            jobs.forget(tx, job)
    bundles = sum(_forget_bundle(world, each, now - _BUNDLE_REST) for each in idle)
    with world.store.write() as tx:
        return Swept(
            jobs=len(old),
            sandboxes=sandboxes.forget_before(tx, cutoff),
            workspaces=workspaces.forget_before(tx, cutoff),
            operations=operations.forget_before(tx, cutoff),
            events=events.delete_before(tx, cutoff),
            bundles=bundles,
        )


def _cutoff(tx: Tx, days: int, now: float) -> float:
    """What ended before it is as old as asked for by the clock, and by the days that were seen."""
    seen: list[int] = json.loads(settings.get(tx, _SEEN) or "[]")
    today, wanted = int(now // _DAY), days + _SPARE + 1
    if today not in seen:
        seen = [*seen, today][-wanted:]
        settings.put(tx, _SEEN, json.dumps(seen))
    return min(now - days * _DAY, seen[-wanted] * _DAY) if len(seen) >= wanted else 0.0


def _forget_bundle(world: World, bundle: str, before: float) -> bool:
    """False for one that was sent again, or taken by a new job, since it was seen idle."""
    with world.store.write() as tx:
        idle = jobs.forget_idle_bundle(tx, bundle, before)
        if idle:
            (world.config.bundle_dir / f"{bundle}.bundle").unlink(missing_ok=True)
        return idle

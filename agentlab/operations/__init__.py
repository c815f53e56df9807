"""One file, one operation, its steps.  Only here do drivers and the store meet."""

from __future__ import annotations

from collections.abc import Sequence

from agentlab.engine.step import Operation
from agentlab.operations import (
    job_run,
    leftover_destroy,
    sandbox_create,
    sandbox_destroy,
    sandbox_power,
    sandbox_snapshots,
    template_build,
)
from agentlab.operations.context import World


def kinds(world: World) -> Sequence[Operation]:
    """All kinds of operation that the engine can run."""
    return [
        job_run.operation(world),
        sandbox_create.operation(world),
        sandbox_power.start(world),
        sandbox_power.stop(world),
        sandbox_power.pause(world),
        sandbox_power.resume(world),
        sandbox_snapshots.revert(world),
        sandbox_snapshots.save(world),
        sandbox_snapshots.delete(world),
        sandbox_destroy.destroy(world),
        sandbox_destroy.expire(world),
        leftover_destroy.operation(world),
        template_build.operation(world),
    ]

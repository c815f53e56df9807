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
    session_stop,
    template_build,
    workspace_attach,
    workspace_create,
    workspace_rebind,
    workspace_volume,
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
        workspace_create.create(world),
        workspace_create.fork(world),
        workspace_attach.attach(world),
        workspace_attach.detach(world),
        workspace_rebind.operation(world),
        workspace_volume.fsck(world),
        workspace_volume.resize(world),
        workspace_volume.delete(world),
        workspace_volume.save(world),
        workspace_volume.restore(world),
        workspace_volume.delete_snapshot(world),
        session_stop.stop(world),
        session_stop.delete(world),
    ]

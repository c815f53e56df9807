"""One file, one operation, its steps.  Only here do drivers and the store meet."""

from __future__ import annotations

from collections.abc import Sequence

from agentlab.engine.step import Operation
from agentlab.operations import job_run, sandbox_destroy, template_build
from agentlab.operations.context import World


def kinds(world: World) -> Sequence[Operation]:
    """All kinds of operation that the engine can run."""
    return [
        job_run.operation(world),
        sandbox_destroy.operation(world),
        template_build.operation(world),
    ]

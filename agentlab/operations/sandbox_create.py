"""`sandbox.create`: a sandbox made by hand, from the reservation to READY."""

from __future__ import annotations

from agentlab.engine.step import Operation
from agentlab.operations.boot import handed_over
from agentlab.operations.context import World
from agentlab.operations.provision import Provision

KIND = "sandbox.create"


def operation(world: World) -> Operation:
    """The steps that a job's sandbox has too; its lease begins when it is READY."""
    return Operation(KIND, Provision(world, handed_over).steps())

"""Operations."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request
from agentlab.daemon.views import operation_view
from agentlab.store import operations


def show(daemon: Daemon, request: Request[m.Nothing]) -> m.OperationView:
    with daemon.world.store.read() as tx:
        return operation_view(tx, operations.get(tx, request.values["id"]))


def shown(daemon: Daemon, identity: str) -> m.OperationView:
    """The operation that a request has begun, or has found."""
    with daemon.world.store.read() as tx:
        return operation_view(tx, operations.get(tx, identity))

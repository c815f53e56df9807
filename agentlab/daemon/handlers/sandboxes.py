"""Sandboxes: shown and destroyed."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request
from agentlab.daemon.views import operation_view, power_of_all, sandbox_view
from agentlab.operations import requests
from agentlab.store import operations, sandboxes


def all_known(daemon: Daemon, request: Request[m.Nothing]) -> m.SandboxList:
    """Those that live, or with `all` destroyed ones too; one inventory, however many."""
    with daemon.world.store.read() as tx:
        found = sandboxes.newest(tx) if request.flag("all") else sandboxes.live(tx)
    power = power_of_all(daemon) if found else {}
    return m.SandboxList([sandbox_view(each, power) for each in found])


def show(daemon: Daemon, request: Request[m.Nothing]) -> m.SandboxView:
    with daemon.world.store.read() as tx:
        found = sandboxes.get(tx, request.values["vmid"])
    return sandbox_view(found, power_of_all(daemon))


def destroy(daemon: Daemon, request: Request[m.DestroyRequest]) -> m.OperationView:
    identity = requests.destroy_sandbox(
        daemon.world, daemon.runner, request.values["vmid"], force=request.document.force
    )
    with daemon.world.store.read() as tx:
        return operation_view(tx, operations.get(tx, identity))

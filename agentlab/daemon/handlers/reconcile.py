"""What the hypervisor has beside what the records say."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request
from agentlab.errors import Unsupported


def prune(__: Daemon, _: Request[m.Nothing]) -> m.PruneView:
    raise Unsupported("not built yet")


def inventory(__: Daemon, _: Request[m.Nothing]) -> m.Inventory:
    raise Unsupported("not built yet")


def look(__: Daemon, _: Request[m.Nothing]) -> m.DriftList:
    raise Unsupported("not built yet")


def apply(__: Daemon, _: Request[m.Nothing]) -> m.DriftList:
    raise Unsupported("not built yet")

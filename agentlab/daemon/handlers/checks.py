"""Checks of this host."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.control import checks
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request


def all_checks(daemon: Daemon, _: Request[m.Nothing]) -> m.CheckList:
    return m.CheckList(
        [
            m.CheckView(each.name, each.result.status.value, each.result.detail, each.result.remedy)
            for each in checks.look(daemon.world)
        ]
    )

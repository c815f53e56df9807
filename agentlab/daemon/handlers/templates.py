"""Templates: listed and built."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request
from agentlab.daemon.views import operation_view
from agentlab.model.ids import parse_name
from agentlab.operations import requests
from agentlab.store import operations


def all_known(daemon: Daemon, _: Request[m.Nothing]) -> m.TemplateList:
    found = daemon.world.hypervisor.templates()
    return m.TemplateList([m.TemplateView(each.name, each.ready, each.detail) for each in found])


def build(daemon: Daemon, request: Request[m.TemplateBuildRequest]) -> m.OperationView:
    name = parse_name(request.document.name, what="template")
    identity = requests.build_template(daemon.world, daemon.runner, name)
    with daemon.world.store.read() as tx:
        return operation_view(tx, operations.get(tx, identity))

"""Templates: listed, checked and built."""

from __future__ import annotations

import os

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.exchange import Peer
from agentlab.daemon.router import Request
from agentlab.daemon.views import operation_view
from agentlab.errors import Denied, Invalid
from agentlab.model.ids import parse_name
from agentlab.operations import requests
from agentlab.store import operations


def all_known(daemon: Daemon, _: Request[m.Nothing]) -> m.TemplateList:
    found = daemon.world.hypervisor.templates()
    return m.TemplateList([m.TemplateView(each.name, each.ready, each.detail) for each in found])


def check(daemon: Daemon, request: Request[m.Nothing]) -> m.TemplateCheckView:
    name = parse_name(request.values["name"], what="template")
    report = daemon.world.check_template(name)
    findings = [
        m.FindingView(each.name, each.problem, each.remedy, each.needed) for each in report.findings
    ]
    whole = not any(each.needed for each in findings)
    return m.TemplateCheckView(report.name, report.detail, whole, findings)


def _check_image(path: str, peer: Peer) -> None:
    """The daemon reads the file as root, so only root may name one."""
    if peer.uid not in (0, os.geteuid()):
        raise Denied("cannot build a template from a file: only root may name one")
    if not path.startswith("/"):
        raise Invalid(f"cannot build a template from {path}: not an absolute path")


def build(daemon: Daemon, request: Request[m.TemplateBuildRequest]) -> m.OperationView:
    document = request.document
    name = parse_name(document.name, what="template")
    if document.image:
        _check_image(document.image, request.peer)
    identity = requests.build_template(
        daemon.world, daemon.runner, name, image=document.image, storage=document.storage
    )
    with daemon.world.store.read() as tx:
        return operation_view(tx, operations.get(tx, identity))

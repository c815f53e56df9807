"""Templates: list, build."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.command import Answer, Context
from agentlab.cli.text import safe, table


def list_(ctx: Context) -> Answer:
    found = ctx.client().call(api.TEMPLATE_LIST)
    rows = [
        (each.name, "ready" if each.ready else "not ready", each.detail) for each in found.templates
    ]
    return Answer(found, table(("NAME", "STATE", "DETAIL"), rows) if rows else ["no templates"])


def build(ctx: Context) -> Answer:
    wait = not ctx.args.flag("--no-wait")
    client = ctx.client(waits=wait)
    name = ctx.args.text("NAME")
    request = m.TemplateBuildRequest(name=name) if name else m.TemplateBuildRequest()
    operation = client.call(api.TEMPLATE_BUILD, request)
    if not wait:
        return Answer(operation, [f"operation {safe(operation.id)}"])
    what = f"build template {request.name}"
    operation = watch.operation_end(ctx, client, operation, what=what)
    watch.must_succeed(operation, what)
    return Answer(operation, [f"template {safe(request.name)} is ready"])

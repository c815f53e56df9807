"""Templates: list, build, check."""

from __future__ import annotations

from pathlib import Path

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.command import Answer, Context
from agentlab.cli.text import safe, table

_DEFAULT = "debian-12"


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
    image = ctx.args.text("--image")
    request = m.TemplateBuildRequest(
        name=name or _DEFAULT,
        image=str(Path(image).resolve()) if image else "",
        storage=ctx.args.text("--storage"),
    )
    operation = client.call(api.TEMPLATE_BUILD, request)
    if not wait:
        return Answer(operation, [f"operation {safe(operation.id)}"])
    what = f"build template {request.name}"
    operation = watch.operation_end(ctx, client, operation, what=what)
    watch.must_succeed(operation, what)
    return Answer(operation, [f"template {safe(request.name)} is ready"])


def check(ctx: Context) -> Answer:
    name = ctx.args.text("NAME") or _DEFAULT
    found = ctx.client().call(api.TEMPLATE_CHECK, path={"name": name})
    where = f" ({safe(found.detail)})" if found.detail else ""
    if not found.findings:
        return Answer(found, [f"template {safe(found.name)}{where} lacks nothing"])
    lines = [f"template {safe(found.name)}{where}:"]
    for each in found.findings:
        word = "missing" if each.needed else "advice"
        lines += [f"  {word}: {safe(each.problem)}", f"    {safe(each.remedy)}"]
    return Answer(found, lines, status=0 if found.ready else 1)

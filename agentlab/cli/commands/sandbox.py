"""Sandboxes: list, show, destroy."""

from __future__ import annotations

import time

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.command import Answer, Context, Declined
from agentlab.cli.text import ago, fields, moment, safe, span, table
from agentlab.errors import AgentLabError


def list_(ctx: Context) -> Answer:
    query = {"all": "1"} if ctx.args.flag("--all") else {}
    found = ctx.client().call(api.SANDBOX_LIST, query=query)
    rows = [
        (str(each.vmid), each.name, each.state, each.power, each.profile, each.address, each.job,
         _left(each.lease_until), ago(each.created))
        for each in found.sandboxes
    ]  # fmt: skip
    lines = table(
        ("VMID", "NAME", "STATE", "POWER", "PROFILE", "ADDRESS", "JOB", "LEASE", "AGE"), rows
    )
    return Answer(found, lines if rows else ["no sandboxes"])


def show(ctx: Context) -> Answer:
    each = ctx.client().call(api.SANDBOX_SHOW, path={"vmid": ctx.args.text("SANDBOX")})
    return Answer(each, _described(each))


def destroy(ctx: Context) -> Answer:
    args = ctx.args
    wait = not args.flag("--no-wait")
    client = ctx.client(waits=wait)
    sandbox = client.call(api.SANDBOX_SHOW, path={"vmid": args.text("SANDBOX")})
    if not (args.flag("--yes") or args.flag("--force")):
        _confirm(ctx, sandbox)
    what = f"destroy sandbox {sandbox.vmid}"
    try:
        operation = client.call(
            api.SANDBOX_DESTROY,
            m.DestroyRequest(force=args.flag("--force")),
            path={"vmid": str(sandbox.vmid)},
        )
    except AgentLabError as error:
        raise watch.renamed(error, what) from error
    if not wait:
        return Answer(operation, [f"operation {safe(operation.id)}"])
    operation = watch.operation_end(ctx, client, operation, what=f"destroying {sandbox.vmid}")
    watch.must_succeed(operation, what)
    return Answer(operation, [f"sandbox {sandbox.vmid} destroyed"])


def _confirm(ctx: Context, sandbox: m.SandboxView) -> None:
    what = f"sandbox {sandbox.vmid} ({sandbox.name}, {sandbox.state})"
    if not ctx.out.can_ask():
        raise Declined(f"cannot destroy {what}: nobody is here to be asked", hint="say it: --yes")
    if not ctx.out.ask(f"Destroy {what} and its disks?"):
        raise Declined(f"cannot destroy {what}: declined")


def _left(until: float) -> str:
    if not until:
        return ""
    left = until - time.time()
    return span(int(left)).replace(".0s", "s") if left > 0 else "over"


def _described(each: m.SandboxView) -> list[str]:
    return fields(
        [
            ("sandbox", each.vmid),
            ("name", each.name),
            ("state", each.state),
            ("reason", each.reason),
            ("power", each.power),
            ("profile", each.profile),
            ("address", each.address),
            ("mac", each.mac),
            ("network", each.network),
            ("job", each.job),
            ("created", moment(each.created)),
            ("changed", moment(each.changed)),
            ("lease until", moment(each.lease_until)),
            ("possible", ", ".join(each.allowed)),
        ]
    )

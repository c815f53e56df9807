"""`sandbox new` and `sandbox validate`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.command import Answer, Context, Usage
from agentlab.cli.commands.labels import pairs
from agentlab.cli.commands.plan import plan_lines
from agentlab.cli.commands.sandbox import described
from agentlab.cli.text import safe
from agentlab.client.client import Client

_PATIENCE = 10.0  # seconds that the VMID is waited for; it is the first thing that is allotted


def new(ctx: Context) -> Answer:
    wait = not ctx.args.flag("--no-wait")
    key = key_for_ssh(ctx)
    client = ctx.client(waits=wait)
    operation = client.act(api.SANDBOX_CREATE, _request(ctx))
    operation = dataclasses.replace(operation, vmid=_vmid(client, operation))
    if not wait:
        lines = [f"sandbox {operation.vmid}"] if operation.vmid else []
        return Answer(operation, [*lines, f"operation {safe(operation.id)}"])
    name = f"sandbox {operation.vmid}" if operation.vmid else "a sandbox"
    ctx.out.note(name, "bold")
    last = watch.done(ctx, client, operation, f"make {name}", f"making {name}")
    each = client.call(api.SANDBOX_SHOW, path={"vmid": str(last.vmid)})
    if key is not None:
        from agentlab.cli.commands.sandbox_ssh import ssh

        ssh(ctx, client, each, key)
    return Answer(each, described(each))


def key_for_ssh(ctx: Context) -> Path | None:
    """The public key for --and-ssh, looked for before anything is made."""
    if not ctx.args.flag("--and-ssh"):
        if "--identity" in ctx.args:
            raise Usage("cannot read the command line: --identity is for --and-ssh")
        return None
    if ctx.args.flag("--no-wait") or ctx.out.json:
        raise Usage(
            "cannot read the command line: --and-ssh goes with neither --no-wait nor --json"
        )
    from agentlab.cli.commands.sandbox_ssh import public_key

    return public_key(ctx)


def validate(ctx: Context) -> Answer:
    plan = ctx.client().call(api.SANDBOX_VALIDATE, _request(ctx))
    return Answer(plan, plan_lines(plan))


def _request(ctx: Context) -> m.SandboxRequest:
    args = ctx.args
    return m.SandboxRequest(
        profile=args.text("--profile"),
        name=args.text("--name"),
        ttl=args.text("--ttl"),
        keepalive=args.flag("--keepalive"),
        vmid=args.count("--vmid", 0),
        labels=pairs("--label", args.many("--label")),
        queue=not args.flag("--no-queue"),
        workspace=args.text("--workspace"),
    )


def _vmid(client: Client, operation: m.OperationView) -> int:
    """The sandbox's VMID as soon as it has one; 0 when that takes too long, or never comes."""
    until = time.monotonic() + _PATIENCE
    while not (operation.vmid or operation.final) and time.monotonic() < until:
        time.sleep(0.05)
        operation = client.call(api.OPERATION_SHOW, path={"id": operation.id})
    return operation.vmid

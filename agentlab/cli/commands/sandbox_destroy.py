"""The end of sandboxes: destroy, prune."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.ask import confirm, said_yes
from agentlab.cli.command import Answer, Context
from agentlab.cli.text import safe
from agentlab.errors import AgentLabError


def destroy(ctx: Context) -> Answer:
    args = ctx.args
    wait = not args.flag("--no-wait")
    client = ctx.client(waits=wait)
    sandbox = client.call(api.SANDBOX_SHOW, path={"vmid": args.text("SANDBOX")})
    if not said_yes(ctx):
        name = f"sandbox {sandbox.vmid} ({sandbox.name}, {sandbox.state})"
        confirm(ctx, f"destroy {name}", f"Destroy {name} and its disks?")
    what = f"destroy sandbox {sandbox.vmid}"
    try:
        operation = client.act(
            api.SANDBOX_DESTROY,
            m.DestroyRequest(force=args.flag("--force")),
            path={"vmid": str(sandbox.vmid)},
        )
    except AgentLabError as error:
        raise watch.renamed(error, what) from error
    if not wait:
        return Answer(operation, [f"operation {safe(operation.id)}"])
    last = watch.done(ctx, client, operation, what, f"destroying sandbox {sandbox.vmid}")
    return Answer(last, [f"sandbox {sandbox.vmid} destroyed"])


def prune(ctx: Context) -> Answer:
    """Asked once: a second answer would not tell what the first time has removed."""
    found = ctx.client().call(api.SANDBOX_PRUNE)
    lines = [f"sandbox {each.vmid} ({safe(each.name)}) removed" for each in found.removed]
    lines += [f"sandbox {vmid} kept: its VM is, or may be, still there" for vmid in found.kept]
    return Answer(found, lines or ["nothing to prune"])

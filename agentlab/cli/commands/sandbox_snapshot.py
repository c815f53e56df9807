"""Snapshots of a sandbox's root disk: save, list, restore, delete; and revert to `clean`."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.ask import confirm, said_yes
from agentlab.cli.command import Answer, Context, Usage
from agentlab.cli.commands.sandbox_power import became
from agentlab.cli.text import safe
from agentlab.client.client import Client

_CLEAN = "clean"


def save(ctx: Context) -> Answer:
    name = ctx.args.text("NAME")
    wait = not ctx.args.flag("--no-wait")
    client = ctx.client(waits=wait)
    operation = client.act(
        api.SNAPSHOT_SAVE, m.SnapshotRequest(name), path={"vmid": ctx.args.text("SANDBOX")}
    )
    return _ended(ctx, client, operation, f"take snapshot {name} of", f"taking snapshot {name} of")


def delete(ctx: Context) -> Answer:
    name = ctx.args.text("NAME")
    wait = not ctx.args.flag("--no-wait")
    client = ctx.client(waits=wait)
    path = {"vmid": ctx.args.text("SANDBOX")}
    if not said_yes(ctx) and name != _CLEAN:  # that one the daemon refuses
        each = client.call(api.SANDBOX_SHOW, path=path)
        path = {"vmid": str(each.vmid)}
        what = f"snapshot {name} of sandbox {each.vmid}"
        confirm(ctx, f"delete {what}", f"Delete {what} ({each.name})?")
    operation = client.act(api.SNAPSHOT_DELETE, path={**path, "name": name})
    return _ended(
        ctx, client, operation, f"delete snapshot {name} of", f"deleting snapshot {name} of"
    )


def _ended(
    ctx: Context, client: Client, operation: m.OperationView, what: str, doing: str
) -> Answer:
    if ctx.args.flag("--no-wait"):
        return Answer(operation, [f"operation {safe(operation.id)}"])
    name = f"sandbox {operation.vmid}"
    last = watch.done(ctx, client, operation, f"{what} {name}", f"{doing} {name}")
    verb = "taken" if what.startswith("take") else "deleted"
    return Answer(last, [f"snapshot {safe(ctx.args.text('NAME'))} of {name} {verb}"])


def list_(ctx: Context) -> Answer:
    found = ctx.client().call(api.SNAPSHOT_LIST, path={"vmid": ctx.args.text("SANDBOX")})
    return Answer(found, [safe(each) for each in found.snapshots] or ["no snapshots"])


def revert(ctx: Context) -> Answer:
    return _back(ctx, _CLEAN)


def restore(ctx: Context) -> Answer:
    return _back(ctx, ctx.args.text("NAME"))


def _back(ctx: Context, name: str) -> Answer:
    args = ctx.args
    request = m.RevertRequest(args.flag("--force"), _restart(ctx))
    wait = not args.flag("--no-wait")
    client = ctx.client(waits=wait)
    path = {"vmid": args.text("SANDBOX")}
    if not said_yes(ctx):
        each = client.call(api.SANDBOX_SHOW, path=path)
        path = {"vmid": str(each.vmid)}
        confirm(
            ctx,
            f"revert sandbox {each.vmid} to {name}",
            f"Put sandbox {each.vmid} ({each.name}, {each.state}) back to snapshot {name}?"
            " Files under / that came later are lost.",
        )
    if name == _CLEAN:
        operation = client.act(api.SANDBOX_REVERT, request, path=path)
    else:
        operation = client.act(api.SNAPSHOT_RESTORE, request, path={**path, "name": name})
    if not wait:
        return Answer(operation, [f"operation {safe(operation.id)}"])
    what = f"sandbox {operation.vmid}"
    last = watch.done(ctx, client, operation, f"revert {what}", f"reverting {what}")
    return Answer(last, [f"{became(client, last)}, back at snapshot {safe(name)}"])


def _restart(ctx: Context) -> bool | None:
    """None: when it had power."""
    yes, no = ctx.args.flag("--restart"), ctx.args.flag("--no-restart")
    if yes and no:
        raise Usage("cannot read the command line: --restart and --no-restart exclude each other")
    return True if yes else False if no else None

"""Snapshots of a workspace's volume: create, list, restore, delete."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli.ask import said_yes
from agentlab.cli.command import Answer, Context
from agentlab.cli.commands.workspace import acted, agreed
from agentlab.cli.text import safe


def create(ctx: Context) -> Answer:
    request = m.SnapshotRequest(ctx.args.text("NAME"))
    what, said = _words(ctx)
    return acted(
        ctx, f"take {what}", f"taking {what}",
        lambda client, path: client.act(api.WORKSPACE_SNAPSHOT_CREATE, request, path=path),
        lambda _, last: Answer(last, [f"{said} taken"]),
    )  # fmt: skip


def list_(ctx: Context) -> Answer:
    path = {"name": ctx.args.text("WORKSPACE")}
    found = ctx.client().call(api.WORKSPACE_SNAPSHOT_LIST, path=path)
    return Answer(found, [safe(each) for each in found.snapshots] or ["no snapshots"])


def restore(ctx: Context) -> Answer:
    snapshot = {"snapshot": ctx.args.text("NAME")}
    what, _ = _words(ctx)
    if not said_yes(ctx):
        agreed(
            ctx, "restore a snapshot of",
            f"Put it back to snapshot {snapshot['snapshot']}? Files that came later are lost.",
        )  # fmt: skip
    name = safe(ctx.args.text("WORKSPACE"))
    back = f"workspace {name} is back at snapshot {safe(snapshot['snapshot'])}"
    return acted(
        ctx, f"restore {what}", f"restoring {what}",
        lambda client, path: client.act(
            api.WORKSPACE_SNAPSHOT_RESTORE, path={**path, **snapshot}
        ),
        lambda _, last: Answer(last, [back]),
    )  # fmt: skip


def delete(ctx: Context) -> Answer:
    snapshot = {"snapshot": ctx.args.text("NAME")}
    what, said = _words(ctx)
    if not said_yes(ctx):
        agreed(ctx, "delete a snapshot of", f"Delete its snapshot {snapshot['snapshot']}?")
    return acted(
        ctx, f"delete {what}", f"deleting {what}",
        lambda client, path: client.act(api.WORKSPACE_SNAPSHOT_DELETE, path={**path, **snapshot}),
        lambda _, last: Answer(last, [f"{said} deleted"]),
    )  # fmt: skip


def _words(ctx: Context) -> tuple[str, str]:
    """What it is about, for errors and for an answer, which is printed as it is."""
    what = f"snapshot {ctx.args.text('NAME')} of workspace {ctx.args.text('WORKSPACE')}"
    return what, safe(what)

"""Workspaces looked at: list, show; and what is changed without an operation: lease clear."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli.command import Answer, Context
from agentlab.cli.text import ago, fields, moment, safe, size, table


def list_(ctx: Context) -> Answer:
    found = ctx.client().call(api.WORKSPACE_LIST)
    rows = [
        (each.name, each.state, size(each.size << 20), each.storage, each.sandbox, each.session,
         each.origin, ago(each.created))
        for each in found.workspaces
    ]  # fmt: skip
    lines = table(("NAME", "STATE", "SIZE", "STORAGE", "SANDBOX", "SESSION", "ORIGIN", "AGE"), rows)
    return Answer(found, lines if rows else ["no workspaces"])


def show(ctx: Context) -> Answer:
    each = ctx.client().call(api.WORKSPACE_SHOW, path={"name": ctx.args.text("WORKSPACE")})
    return Answer(each, described(each))


def clear_lease(ctx: Context) -> Answer:
    each = ctx.client().act(
        api.WORKSPACE_LEASE_CLEAR,
        m.LeaseClearRequest(ctx.args.flag("--force")),
        path={"name": ctx.args.text("WORKSPACE")},
    )
    return Answer(each, [f"workspace {safe(each.name)} is {safe(each.state)}, without a lease"])


def described(each: m.WorkspaceView) -> list[str]:
    """A workspace, all of it."""
    return fields(
        [
            ("workspace", each.name),
            ("state", each.state),
            ("under way", each.operation),
            ("waits for", each.waits_for),
            ("size", size(each.size << 20)),
            ("sandbox", f"{each.sandbox} ({each.vmid})" if each.vmid else ""),
            ("lease", _lease(each)),
            ("session", each.session),
            ("origin", each.origin),
            ("storage", each.storage),
            ("volume", each.volid),
            ("file system", "made" if each.formatted else "made when it is attached first"),
            ("created", moment(each.created)),
            ("changed", moment(each.changed)),
        ]
    )


def _lease(each: m.WorkspaceView) -> str:
    if not each.lease_until:
        return ""
    until = moment(each.lease_until)
    if each.stale:
        return f"ended {until}, not renewed; see: agentlab workspace check {each.name}"
    return f"until {until}, renewed while its sandbox lives"

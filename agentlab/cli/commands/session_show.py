"""Sessions looked at: list, show."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli.command import Answer, Context
from agentlab.cli.text import ago, fields, moment, table


def list_(ctx: Context) -> Answer:
    found = ctx.client().call(api.SESSION_LIST)
    rows = [
        (each.name, each.state, each.profile, each.workspace, each.sandbox, each.job, each.branch,
         ago(each.changed))
        for each in found.sessions
    ]  # fmt: skip
    lines = table(
        ("NAME", "STATE", "PROFILE", "WORKSPACE", "SANDBOX", "JOB", "BRANCH", "USED"), rows
    )
    return Answer(found, lines if rows else ["no sessions"])


def show(ctx: Context) -> Answer:
    each = ctx.client().call(api.SESSION_SHOW, path={"name": ctx.args.text("SESSION")})
    return Answer(each, described(each))


def described(each: m.SessionView) -> list[str]:
    """A session, all of it."""
    return fields(
        [
            ("session", each.name),
            ("state", each.state),
            ("under way", each.operation),
            ("waits for", each.waits_for),
            ("profile", each.profile),
            ("workspace", each.workspace),
            ("sandbox", f"{each.sandbox} ({each.vmid})" if each.vmid else ""),
            ("job", each.job),
            ("origin", each.origin),
            ("repo", each.repo),
            ("branch", each.branch),
            ("created", moment(each.created)),
            ("changed", moment(each.changed)),
        ]
    )

"""Checks of the daemon's host, and what to do about what they find."""

from __future__ import annotations

from agentlab.api import table as api
from agentlab.cli.command import Answer, Context
from agentlab.cli.text import safe, table


def init(ctx: Context) -> Answer:
    found = ctx.client().call(api.CHECKS)
    rows = [(each.name, each.status, each.detail) for each in found.checks]
    lines = table(("CHECK", "STATUS", "DETAIL"), rows)
    for each in found.checks:
        if each.remedy and each.status in ("missing", "error"):
            remedy = [f"  {safe(line)}" for line in each.remedy.splitlines()]
            lines += ["", f"{safe(each.name)}: what to do", *remedy]
    bad = any(each.status in ("missing", "error") for each in found.checks)
    return Answer(found, lines, status=1 if bad else 0)

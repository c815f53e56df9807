"""A plan, as lines for people."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.cli.text import fields, size, span


def plan_lines(plan: m.PlanView) -> list[str]:
    """What a job or a sandbox would get; `command` and what is about it are of jobs alone."""
    return fields(
        [
            ("profile", plan.profile),
            ("template", plan.template),
            ("cores", plan.cores),
            ("memory", size(plan.memory << 20)),
            ("disk", size(plan.disk << 20)),
            ("network", plan.network),
            ("ttl", span(plan.ttl)),
            ("time limit", span(plan.time_limit) if plan.command else ""),
            ("afterwards", plan.after),
            ("command", plan.command),
            ("workspace", plan.workspace),
            ("session", plan.session),
        ]
    )

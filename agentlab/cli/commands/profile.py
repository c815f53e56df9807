"""Profiles."""

from __future__ import annotations

from agentlab.api import table as api
from agentlab.cli.command import Answer, Context
from agentlab.cli.text import size, span, table


def list_(ctx: Context) -> Answer:
    found = ctx.client().call(api.PROFILE_LIST)
    rows = [
        (each.name, "", "", "", "", "", "", f"cannot be used: {each.problem}")
        if each.problem
        else (each.name, each.template, str(each.cores), size(each.memory << 20),
              size(each.disk << 20), each.network, span(each.ttl), each.command)
        for each in found.profiles
    ]  # fmt: skip
    headers = ("NAME", "TEMPLATE", "CORES", "MEMORY", "DISK", "NETWORK", "TTL", "COMMAND")
    return Answer(found, table(headers, rows) if rows else ["no profiles"])

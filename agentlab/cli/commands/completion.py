"""`completion`: scripts for shells, made from the command table."""

from __future__ import annotations

from agentlab.cli.command import Answer, Context
from agentlab.cli.completion import SHELLS, render
from agentlab.cli.parse import unknown


def completion(ctx: Context) -> Answer:
    shell = ctx.args.text("SHELL")
    if shell not in SHELLS:
        raise unknown("shell", shell, SHELLS)
    script = render(shell)
    return Answer({"shell": shell, "script": script}, script.splitlines())

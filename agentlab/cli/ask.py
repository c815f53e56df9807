"""Questions before what cannot be taken back."""

from __future__ import annotations

from agentlab.cli.command import Context, Declined


def confirm(ctx: Context, what: str, question: str) -> None:
    """Asks on a terminal; Declined for a no, and where nobody is there to be asked."""
    if not ctx.out.can_ask():
        raise Declined(f"cannot {what}: nobody is here to be asked", hint="say it: --yes")
    if not ctx.out.ask(question):
        raise Declined(f"cannot {what}: declined")


def said_yes(ctx: Context) -> bool:
    """Whether the command line answers the question already."""
    return ctx.args.flag("--yes") or ctx.args.flag("--force")

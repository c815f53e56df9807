"""`job logs`: what the agent wrote."""

from __future__ import annotations

from collections import deque

from agentlab.api import table as api
from agentlab.cli.command import Answer, Context, Interrupted
from agentlab.client.client import Client
from agentlab.client.follow import LogPart, log


def logs(ctx: Context) -> Answer:
    client = ctx.client()
    job = ctx.args.text("ID")
    follow = ctx.args.flag("--follow")
    client.call(api.JOB_SHOW, path={"id": job})  # a wrong id fails here, at once
    try:
        start, text = _begin(client, job, ctx)
        if ctx.out.json and not follow:
            return Answer({"log": text.decode(errors="replace"), "offset": start})
        _show(ctx, LogPart(start, text))
        if follow:
            for part in log(client, job, offset=start + len(text)):
                _show(ctx, part)
        if not ctx.out.json:
            ctx.out.log(b"", final=True)
    except KeyboardInterrupt as stopped:
        raise Interrupted(
            f"interrupted: job {job} is not affected", hint=f"stop it: agentlab job cancel {job}"
        ) from stopped
    return Answer(None)


def _begin(client: Client, job: str, ctx: Context) -> tuple[int, bytes]:
    """What is there now, or the last lines of it, and the offset where that begins."""
    parts = list(log(client, job, follow=False))
    whole = b"".join(part.data for part in parts)
    if "--tail" not in ctx.args:
        return 0, whole
    lines = deque(whole.splitlines(keepends=True), ctx.args.count("--tail", 0))
    tail = b"".join(lines)
    return len(whole) - len(tail), tail


def _show(ctx: Context, part: LogPart) -> None:
    if not part.data:
        return
    if ctx.out.json:
        ctx.out.record({"log": part.data.decode(errors="replace"), "offset": part.offset})
    else:
        ctx.out.log(part.data)

"""`logs`: what happened to a sandbox, from the event stream."""

from __future__ import annotations

from collections import deque

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli.command import Answer, Context, Interrupted
from agentlab.cli.progress import line_of
from agentlab.client.client import Client
from agentlab.client.follow import events


def logs(ctx: Context) -> Answer:
    client = ctx.client()
    sandbox = client.call(api.SANDBOX_SHOW, path={"vmid": ctx.args.text("SANDBOX")})
    query: dict[str, str | int] = {"vmid": sandbox.vmid}
    most = ctx.args.count("--tail", 0) if "--tail" in ctx.args else None
    past = deque(events(client, query=query), most)
    follow = ctx.args.flag("--follow")
    if ctx.out.json and not follow:
        return Answer({"events": list(past), "last": past[-1].seq if past else 0})
    for event in past:
        _show(ctx, event)
    if follow:
        try:
            _follow(ctx, client, query, past[-1].seq if past else 0)
        except KeyboardInterrupt as stopped:
            raise Interrupted(f"interrupted: sandbox {sandbox.vmid} is not affected") from stopped
    return Answer(None)


def _follow(ctx: Context, client: Client, query: dict[str, str | int], after: int) -> None:
    def ended() -> bool:
        sandbox = client.call(api.SANDBOX_SHOW, path={"vmid": str(query["vmid"])})
        return sandbox.state == "DESTROYED"

    for event in events(client, query=query, after=after, ended=ended):
        _show(ctx, event)


def _show(ctx: Context, event: m.EventView) -> None:
    if ctx.out.json:
        ctx.out.record(event)
    else:
        ctx.out.lines([line_of(event)])

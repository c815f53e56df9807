"""What is done with sessions: create, resume, stop, fork, branch, delete."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.ask import confirm, said_yes
from agentlab.cli.command import Answer, Context, Usage
from agentlab.cli.commands.sandbox_new import key_for_ssh
from agentlab.cli.commands.session_show import described
from agentlab.cli.text import safe
from agentlab.client.client import Client


def create(ctx: Context) -> Answer:
    args = ctx.args
    if "--workspace" in args and ("--size" in args or "--storage" in args):
        raise Usage(
            "cannot make a session: --workspace is one that is there, --size and --storage are "
            "for a new one"
        )
    request = m.SessionRequest(
        name=args.text("--name"),
        profile=args.text("--profile"),
        workspace=args.text("--workspace"),
        size=args.volume("--size"),
        storage=args.text("--storage"),
    )
    client = _client(ctx)
    made = client.act(api.SESSION_CREATE, request)
    return _made(ctx, client, made, f"make session {request.name}", f"making {request.name}")


def fork(ctx: Context) -> Answer:
    name, client = ctx.args.text("SESSION"), _client(ctx)
    request = m.ForkRequest(ctx.args.text("--name"), ctx.args.text("--from-snapshot"))
    made = client.act(api.SESSION_FORK, request, path={"name": name})
    return _made(ctx, client, made, f"fork session {name}", f"forking session {name}")


def branch(ctx: Context) -> Answer:
    """The name alone, for scripts; again: the same one."""
    name, client = ctx.args.text("SESSION"), _client(ctx)
    request = m.BranchRequest(ctx.args.text("BRANCH"), ctx.args.text("--from-snapshot"))
    made = client.act(api.SESSION_BRANCH, request, path={"name": name})
    answer = _made(ctx, client, made, f"branch session {name}", f"branching session {name}")
    return Answer(answer.document, [safe(made.name)])


def _made(ctx: Context, client: Client, made: m.SessionMade, what: str, doing: str) -> Answer:
    """The session when its workspace is there, or at once with --no-wait."""
    name = made.name
    if ctx.args.flag("--no-wait"):
        begun = [f"operation {safe(made.operation.id)}"] if made.operation else []
        return Answer(made, [f"session {safe(name)}", *begun])
    _wait(ctx, client, made.operation, what, doing, name)
    each = client.call(api.SESSION_SHOW, path={"name": name})
    return Answer(each, described(each))


def _client(ctx: Context) -> Client:
    return ctx.client(waits=not ctx.args.flag("--no-wait"))


def _wait(
    ctx: Context, client: Client, operation: m.OperationView | None, what: str, doing: str,
    name: str,
) -> m.OperationView | None:  # fmt: skip
    """The operation when it is done; None when there was none."""
    if operation is None:
        return None
    hint = f"see what it does: agentlab session show {name}"
    return watch.done(ctx, client, operation, what, doing, hint=hint)


def resume(ctx: Context) -> Answer:
    args = ctx.args
    name, key, client = args.text("SESSION"), key_for_ssh(ctx), _client(ctx)
    request = m.ResumeRequest(
        args.text("--ttl"), args.flag("--keepalive"), not args.flag("--no-queue")
    )
    operation = client.act(api.SESSION_RESUME, request, path={"name": name})
    if args.flag("--no-wait"):
        return Answer(operation, [f"operation {safe(operation.id)}"])
    hint = f"see what it does: agentlab session show {name}"
    last = watch.done(
        ctx, client, operation, f"resume session {name}", f"resuming session {name}", hint=hint
    )
    each = client.call(api.SANDBOX_SHOW, path={"vmid": str(last.vmid)})
    if key is not None:
        from agentlab.cli.commands.sandbox_ssh import ssh

        ssh(ctx, client, each, key)
    where = f"sandbox {each.vmid} ({safe(each.name)}), {safe(each.address)}"
    return Answer(each, [f"session {safe(name)} runs in {where}"])


def stop(ctx: Context) -> Answer:
    name, client = ctx.args.text("SESSION"), _client(ctx)
    request = m.SessionStopRequest(ctx.args.flag("--force"))
    ended = client.act(api.SESSION_STOP, request, path={"name": name})
    if ended.operation is None:
        return Answer(ended, [f"session {safe(name)} is STOPPED already"])
    if ctx.args.flag("--no-wait"):
        return Answer(ended, [f"operation {safe(ended.operation.id)}"])
    _wait(ctx, client, ended.operation, f"stop session {name}", f"stopping session {name}", name)
    each = client.call(api.SESSION_SHOW, path={"name": name})
    work = f"its work is in workspace {safe(each.workspace)}"
    return Answer(each, [f"session {safe(name)} is {safe(each.state)}; {work}"])


def delete(ctx: Context) -> Answer:
    name, client = ctx.args.text("SESSION"), _client(ctx)
    with_workspace = ctx.args.flag("--with-workspace")
    each = client.call(api.SESSION_SHOW, path={"name": name})
    work = f"workspace {each.workspace}"
    if not said_yes(ctx):
        goes = f" with {work} and all that is in it" if with_workspace else f"; {work} stays"
        confirm(ctx, f"delete session {name}", f"Delete session {name} ({each.state}){goes}?")
    ended = client.act(
        api.SESSION_DELETE, m.SessionDeleteRequest(with_workspace), path={"name": name}
    )
    if ctx.args.flag("--no-wait") and ended.operation is not None:
        return Answer(ended, [f"operation {safe(ended.operation.id)}"])
    what, doing = f"delete session {name}", f"deleting session {name}"
    last = _wait(ctx, client, ended.operation, what, doing, name)
    stays = each.state != "GONE" and not with_workspace
    rest = f"{work} stays" if stays else f"{work} is gone"
    return Answer(m.SessionEnded(name, last), [f"session {safe(name)} deleted; {safe(rest)}"])

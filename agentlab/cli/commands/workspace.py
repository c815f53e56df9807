"""What is done with workspaces: create, attach, detach, rebind, fork, resize, delete."""

from __future__ import annotations

from collections.abc import Callable

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.ask import confirm, said_yes
from agentlab.cli.command import Answer, Context, Usage
from agentlab.cli.commands.workspace_show import described
from agentlab.cli.text import safe, size
from agentlab.client.client import Client
from agentlab.errors import Conflict

Ask = Callable[[Client, dict[str, str]], m.OperationView]
Tell = Callable[[Client, m.OperationView], Answer]


def create(ctx: Context) -> Answer:
    name = _new_name(ctx)
    request = m.WorkspaceRequest(name, ctx.args.volume("--size"), ctx.args.text("--storage"))
    return acted(
        ctx, f"make workspace {name}", f"making workspace {name}",
        lambda client, _: client.act(api.WORKSPACE_CREATE, request),
        lambda client, _: shown(client, name), name=name,
    )  # fmt: skip


def _new_name(ctx: Context) -> str:
    named = {ctx.args.text(which) for which in ("NAME", "--name")} - {""}
    if len(named) != 1:
        why = "two names are given" if named else "its name is missing"
        raise Usage(f"cannot make a workspace: {why}", hint="say it: --name NAME")
    return named.pop()


def attach(ctx: Context) -> Answer:
    request = m.AttachRequest(ctx.args.text("SANDBOX"))
    name = ctx.args.text("WORKSPACE")
    return acted(
        ctx, f"attach workspace {name}", f"attaching workspace {name}",
        lambda client, path: client.act(api.WORKSPACE_ATTACH, request, path=path),
        lambda _, last: Answer(
            last, [f"workspace {safe(name)} is attached to sandbox {last.vmid}"]
        ),
    )  # fmt: skip


def detach(ctx: Context) -> Answer:
    request = m.DetachRequest(ctx.args.flag("--force"))
    name = ctx.args.text("WORKSPACE")
    return acted(
        ctx, f"detach workspace {name}", f"detaching workspace {name}",
        lambda client, path: client.act(api.WORKSPACE_DETACH, request, path=path),
        lambda _, last: Answer(last, [f"workspace {safe(name)} is detached"]),
    )  # fmt: skip


def rebind(ctx: Context) -> Answer:
    args = ctx.args
    name, keep_old = args.text("WORKSPACE"), args.flag("--keep-old")
    request = m.RebindRequest(
        args.text("--profile"),
        args.text("--name"),
        args.text("--ttl"),
        keep_old,
        args.flag("--force"),
    )

    if not (keep_old or said_yes(ctx)):
        _give_up_old(ctx, name)

    def tell(client: Client, last: m.OperationView) -> Answer:
        each = client.call(api.WORKSPACE_SHOW, path={"name": name})
        where = f"sandbox {each.vmid} ({safe(each.sandbox)})"
        return Answer(last, [f"workspace {safe(name)} is attached to {where}"])

    return acted(
        ctx, f"rebind workspace {name}", f"rebinding workspace {name}",
        lambda client, path: client.act(api.WORKSPACE_REBIND, request, path=path), tell,
    )  # fmt: skip


def _give_up_old(ctx: Context, name: str) -> None:
    """Asks about the old sandbox; where there is none, the daemon has a better answer."""
    each = ctx.client().call(api.WORKSPACE_SHOW, path={"name": name})
    if each.vmid:
        old = f"sandbox {each.vmid} ({each.sandbox})"
        confirm(
            ctx, f"rebind workspace {name}",
            f"Destroy {old} and its root disk, when workspace {name} is in a new one?",
        )  # fmt: skip


def fork(ctx: Context) -> Answer:
    new, name = ctx.args.text("--name"), ctx.args.text("WORKSPACE")
    request = m.ForkRequest(new, ctx.args.text("--from-snapshot"))
    return acted(
        ctx, f"fork workspace {name}", f"forking workspace {name}",
        lambda client, path: client.act(api.WORKSPACE_FORK, request, path=path),
        lambda client, _: shown(client, new),
    )  # fmt: skip


def resize(ctx: Context) -> Answer:
    request = m.ResizeRequest(ctx.args.volume("--size"))
    name = ctx.args.text("WORKSPACE")
    said = f"workspace {safe(name)} has {size(request.size << 20)}"
    return acted(
        ctx, f"resize workspace {name}", f"resizing workspace {name}",
        lambda client, path: client.act(api.WORKSPACE_RESIZE, request, path=path),
        lambda _, last: Answer(last, [f"{said}; its file system grows when it is mounted next"]),
    )  # fmt: skip


def delete(ctx: Context) -> Answer:
    name = ctx.args.text("WORKSPACE")
    if not said_yes(ctx):
        agreed(ctx, "delete", "Delete it, its snapshots and all that is in it?")
    return acted(
        ctx, f"delete workspace {name}", f"deleting workspace {name}",
        lambda client, path: client.act(api.WORKSPACE_DELETE, path=path),
        lambda _, last: Answer(last, [f"workspace {safe(name)} deleted"]),
    )  # fmt: skip


def agreed(ctx: Context, verb: str, question: str) -> None:
    """Asks about a workspace that is there; Conflict without a question for one that is attached."""
    each = ctx.client().call(api.WORKSPACE_SHOW, path={"name": ctx.args.text("WORKSPACE")})
    if each.state == "ATTACHED":
        detach = f"agentlab workspace detach {each.name}"
        stop = f"agentlab session stop {each.session}, or " if each.session else ""
        raise Conflict(
            f"cannot {verb} workspace {each.name}: it is attached to sandbox {each.vmid}",
            hint=stop + detach,
            details={"vmid": each.vmid},
        )
    about = f"Workspace {each.name}, {size(each.size << 20)}, {each.state}."
    confirm(ctx, f"{verb} workspace {each.name}", f"{about} {question}")


def acted(ctx: Context, what: str, doing: str, ask: Ask, tell: Tell, *, name: str = "") -> Answer:
    """Asks for an operation, waits for its end unless told not to, and tells what it led to.

    `name` is the workspace's where the command line has it elsewhere.
    """
    name = name or ctx.args.text("WORKSPACE")
    wait = not ctx.args.flag("--no-wait")
    client = ctx.client(waits=wait)
    operation = ask(client, {"name": name})
    if not wait:
        return Answer(operation, [f"operation {safe(operation.id)}"])
    hint = f"see what it does: agentlab workspace show {name}"
    return tell(client, watch.done(ctx, client, operation, what, doing, hint=hint))


def shown(client: Client, name: str) -> Answer:
    """A workspace that is there now."""
    each = client.call(api.WORKSPACE_SHOW, path={"name": name})
    return Answer(each, described(each))

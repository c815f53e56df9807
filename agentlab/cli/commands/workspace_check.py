"""Is a workspace sound?  `check` looks at records and volumes, `fsck` at the file system."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli.command import Answer, Context
from agentlab.cli.commands.workspace import acted
from agentlab.cli.text import safe
from agentlab.client.client import Client

NEEDS_REPAIR = "NEEDS REPAIR"
_SOUND = ("clean", "blank", "repaired")


def check(ctx: Context) -> Answer:
    found = ctx.client().call(api.WORKSPACE_CHECK, path={"name": ctx.args.text("WORKSPACE")})
    if not found.findings:
        return Answer(found, [f"workspace {safe(found.name)}: nothing is wrong"])
    lines = [f"workspace {safe(found.name)}:"]
    for each in found.findings:
        lines += [f"  {safe(each.name)}: {safe(each.problem)}", f"    {safe(each.remedy)}"]
    return Answer(found, lines, status=1)


def fsck(ctx: Context) -> Answer:
    name = ctx.args.text("WORKSPACE")
    request = m.FsckRequest(ctx.args.flag("--repair"))
    what = "repair" if request.repair else "check"
    doing = "repairing" if request.repair else "checking"

    def tell(_: Client, last: m.OperationView) -> Answer:
        state, text = (str(last.result.get(key, "")) for key in ("state", "text"))
        lines = [f"workspace {safe(name)}: {safe(state) or 'unknown'}"]
        lines += [f"  {safe(line)}".rstrip() for line in text.splitlines()]
        if state == NEEDS_REPAIR:
            lines.append(f"mend it: agentlab workspace fsck {safe(name)} --repair")
        return Answer(last, lines, status=0 if state in _SOUND else 1)

    return acted(
        ctx, f"{what} the file system of workspace {name}",
        f"{doing} the file system of workspace {name}",
        lambda client, path: client.act(api.WORKSPACE_FSCK, request, path=path), tell,
    )  # fmt: skip

"""What the hypervisor has, and where that differs from the records: inventory, reconcile."""

from __future__ import annotations

import dataclasses

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.ask import confirm
from agentlab.cli.command import Answer, Context, GaveUp, Interrupted
from agentlab.cli.text import safe, table
from agentlab.client.client import Client
from agentlab.errors import AgentLabError


def inventory(ctx: Context) -> Answer:
    found = ctx.client().call(api.INVENTORY)
    rows = [
        (str(each.vmid), each.name, each.power, each.node, each.whose, each.sandbox, each.lock)
        for each in found.machines
    ]
    lines = table(("VMID", "NAME", "POWER", "NODE", "WHOSE", "SANDBOX", "LOCK"), rows)
    return Answer(found, lines if rows else ["no machines"])


def reconcile(ctx: Context) -> Answer:
    """Exit status 1 while something is left that differs, or when not all could be looked at."""
    mends = ctx.args.flag("--apply")
    client = ctx.client(waits=mends)
    if not mends:
        return _told(ctx, client.call(api.RECONCILE_LOOK))
    if not ctx.args.flag("--yes"):
        _ask(ctx, client.call(api.RECONCILE_LOOK))
    found = client.call(api.RECONCILE_APPLY)  # once: its answer tells what it has mended
    ended = [_end(ctx, client, each) for each in found.drifts]
    return _told(ctx, dataclasses.replace(found, drifts=ended))


def _ask(ctx: Context, found: m.DriftList) -> None:
    """Before anything is destroyed, by name, and where the daemon itself would look twice."""
    doomed = [
        f"VM {each.vmid} ({each.name})" if each.name else f"VM {each.vmid}"
        for each in found.drifts
        if "destroy" in each.mend
    ]
    if found.problem:
        ctx.out.warn(found.problem)
    if doomed:
        confirm(ctx, f"destroy {', '.join(doomed)}", f"Destroy {', '.join(doomed)}?")
    elif found.complete and found.problem and any(each.mend for each in found.drifts):
        confirm(ctx, f"mend all this: {found.problem}", "Mend it all the same?")


def _end(ctx: Context, client: Client, drift: m.DriftView) -> m.DriftView:
    """The same when the operation that mends it has ended, well or not."""
    if not drift.operation:
        return drift
    operation = client.call(api.OPERATION_SHOW, path={"id": drift.operation})
    try:
        watch.done(
            ctx, client, operation, f"mend sandbox {drift.vmid}", f"mending sandbox {drift.vmid}"
        )
    except (GaveUp, Interrupted):
        raise
    except AgentLabError as error:
        return dataclasses.replace(drift, mended=False, detail=f"{drift.detail}; {error.message}")
    return dataclasses.replace(drift, mended=True)


def _told(ctx: Context, found: m.DriftList) -> Answer:
    if not found.complete:
        ctx.out.warn(f"the inventory could not be read whole: {found.problem}")
    elif found.problem and not ctx.args.flag("--apply"):
        ctx.out.warn(found.problem)
    rows = [
        (each.kind, str(each.vmid), each.name, "mended" if each.mended else each.mend, each.detail)
        for each in found.drifts
    ]
    lines = table(("DRIFT", "VMID", "NAME", "MEND", "DETAIL"), rows) if rows else []
    for each in found.drifts:
        if each.remedy and not each.mended:
            remedy = [f"  {safe(line)}" for line in each.remedy.splitlines()]
            lines += ["", f"{safe(each.kind)} {each.vmid}: what to do", *remedy]
    if not ctx.args.flag("--apply") and any(each.mend for each in found.drifts):
        lines += ["", "mend what can be mended: agentlab sandbox reconcile --apply"]
    bad = not found.complete or any(not each.mended for each in found.drifts)
    if found.complete and not rows:
        lines = ["records and hypervisor agree"]
    return Answer(found, lines, status=1 if bad else 0)

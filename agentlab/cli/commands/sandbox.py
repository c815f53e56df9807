"""Sandboxes looked at and changed without an operation: list, show, update, lease renew."""

from __future__ import annotations

import time

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli.command import Answer, Context, Usage
from agentlab.cli.commands.labels import pairs
from agentlab.cli.text import ago, fields, moment, size, span, table
from agentlab.units import parse_size, render_duration

# Events of the state table that somebody can ask for, and by which verb.
_VERBS = {
    "start": "start", "stop": "stop", "pause": "pause", "resume": "resume", "destroy": "destroy",
    "force destroy": "destroy --force",
}  # fmt: skip
_NO_LEASE = ("STOPPED", "DESTROYED")  # states whose lease does not run


def list_(ctx: Context) -> Answer:
    given = {name: ctx.args.text(f"--{name}") for name in ("state", "profile", "label")}
    query: dict[str, str | int] = {name: text for name, text in given.items() if text}
    if ctx.args.flag("--all"):
        query["all"] = "1"
    found = ctx.client().call(api.SANDBOX_LIST, query=query)
    rows = [
        (str(each.vmid), each.name, each.state, each.power, each.profile, each.address, each.job,
         _left(each), ago(each.created))
        for each in found.sandboxes
    ]  # fmt: skip
    lines = table(
        ("VMID", "NAME", "STATE", "POWER", "PROFILE", "ADDRESS", "JOB", "LEASE", "AGE"), rows
    )
    return Answer(found, lines if rows else ["no sandboxes"])


def show(ctx: Context) -> Answer:
    each = ctx.client().call(api.SANDBOX_SHOW, path={"vmid": ctx.args.text("SANDBOX")})
    return Answer(each, described(each))


def update(ctx: Context) -> Answer:
    args = ctx.args
    memory = parse_size(args.text("--memory"), bare="M") if "--memory" in args else 0
    request = m.UpdateRequest(args.count("--cores", 0), memory, _labels(ctx))
    if request == m.UpdateRequest():
        raise Usage(
            "cannot change a sandbox: nothing is to change",
            hint="see: agentlab sandbox update --help",
        )
    each = ctx.client().act(api.SANDBOX_UPDATE, request, path={"vmid": ctx.args.text("SANDBOX")})
    lines = [f"sandbox {each.vmid} changed"]
    if (request.cores or request.memory) and each.power not in ("stopped", "absent"):
        lines.append(
            f"{each.cores} cores and {size(each.memory << 20)} count from its next start:"
            f" agentlab sandbox stop {each.vmid} && agentlab sandbox start {each.vmid}"
        )
    return Answer(each, lines)


def _labels(ctx: Context) -> dict[str, str | None]:
    """What to set, and None for what goes."""
    labels: dict[str, str | None] = {
        key: value or None for key, value in pairs("--label", ctx.args.many("--label")).items()
    }
    for key in ctx.args.many("--remove-label"):
        if not key or "=" in key or labels.get(key) is not None:
            raise Usage(f"cannot read --remove-label {key!r}: must be the KEY of a label alone")
        labels[key] = None
    return labels


def renew(ctx: Context) -> Answer:
    each = ctx.client().act(
        api.SANDBOX_RENEW,
        m.RenewRequest(ctx.args.text("--ttl")),
        path={"vmid": ctx.args.text("SANDBOX")},
    )
    until = moment(each.lease_until)
    return Answer(each, [f"the lease of sandbox {each.vmid} ends at {until} ({_left(each)} left)"])


def described(each: m.SandboxView) -> list[str]:
    """A sandbox, all of it."""
    return fields(
        [
            ("sandbox", each.vmid),
            ("name", each.name),
            ("state", each.state),
            ("reason", each.reason),
            ("under way", each.operation),
            ("waits for", each.waits_for),
            ("power", each.power),
            ("address", each.address),
            ("lease", _lease(each)),
            ("idle stop", f"after {render_duration(each.idle_stop)}" if each.idle_stop else ""),
            ("profile", each.profile),
            ("template", each.template),
            ("cores", each.cores or ""),
            ("memory", size(each.memory << 20) if each.memory else ""),
            ("disk", size(each.disk << 20) if each.disk else ""),
            ("network", each.network),
            ("mac", each.mac),
            ("job", each.job),
            ("workspace", each.workspace),
            ("labels", " ".join(f"{key}={value}" for key, value in each.labels.items())),
            ("created", moment(each.created)),
            ("changed", moment(each.changed)),
            ("possible", _possible(each)),
        ]
    )


def _possible(each: m.SandboxView) -> str:
    """What somebody may ask for now."""
    verbs = [_VERBS[event] for event in each.allowed if event in _VERBS]
    if {"destroy", "destroy --force"} <= set(verbs):
        verbs.remove("destroy" if each.power == "absent" else "destroy --force")
    if each.state == "RUNNING":
        verbs.append("lease renew")
    return ", ".join(verbs)


def _lease(each: m.SandboxView) -> str:
    """When it ends, or why it does not run."""
    if each.state == "DESTROYED":
        return ""
    length = f"{render_duration(each.ttl)} " if each.ttl else ""
    if each.state in _NO_LEASE:
        return f"{length}from its next start on"
    if not each.lease_until:
        return f"{length}from READY on"
    alive = ", renews itself" if each.keepalive else ""
    left = _left(each)
    return f"{moment(each.lease_until)} ({left if left == 'over' else left + ' left'}{alive})"


def _left(each: m.SandboxView) -> str:
    if not each.lease_until or each.state in _NO_LEASE:
        return ""
    left = each.lease_until - time.time()
    return span(int(left)).replace(".0s", "s") if left > 0 else "over"

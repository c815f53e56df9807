"""Jobs: list, show, wait, cancel; and what is told of one that has ended."""

from __future__ import annotations

import os
from collections.abc import Sequence

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.command import Answer, Context
from agentlab.cli.text import ago, fields, moment, safe, short, size, span, table
from agentlab.client.client import Client

_MOST = 50
JOB_FAILED = 5


def list_(ctx: Context) -> Answer:
    query: dict[str, str | int] = {"limit": ctx.args.count("--limit", _MOST)}
    if ctx.args.text("--state"):
        query["state"] = ctx.args.text("--state")
    found = ctx.client().call(api.JOB_LIST, query=query)
    rows = [
        (job.id, job.state, job.profile, str(job.vmid or ""), ago(job.created),
         short(job.task, 60))
        for job in found.jobs
    ]  # fmt: skip
    lines = table(("ID", "STATE", "PROFILE", "VMID", "AGE", "TASK"), rows)
    return Answer(found, lines if rows else ["no jobs"])


def show(ctx: Context) -> Answer:
    client = ctx.client()
    job = client.call(api.JOB_SHOW, path={"id": ctx.args.text("ID")})
    return Answer(job, _described(job))


def wait(ctx: Context) -> Answer:
    client = ctx.client(waits=True)
    job = client.call(api.JOB_SHOW, path={"id": ctx.args.text("ID")})
    return ended(client, watch.job_end(ctx, client, job))


def cancel(ctx: Context) -> Answer:
    client = ctx.client(waits=not ctx.args.flag("--no-wait"))
    job = client.call(api.JOB_CANCEL, path={"id": ctx.args.text("ID")})
    if not ctx.args.flag("--no-wait"):
        job = watch.job_end(ctx, client, job)
    return Answer(job, [f"job {safe(job.id)} {safe(job.state)}"])


def ended(client: Client, job: m.JobView) -> Answer:
    """The end of a job that was waited for; exit status 5 when it is not COMPLETED."""
    artifacts = client.call(api.JOB_ARTIFACTS, path={"id": job.id}).artifacts
    status = 0 if job.state == "COMPLETED" else JOB_FAILED
    return Answer(job, summary(job, artifacts), status)


def summary(job: m.JobView, artifacts: Sequence[m.ArtifactView]) -> list[str]:
    """What a job came to, where its work lies, and how to take it over."""
    report = job.report or {}
    lines = [f"job {safe(job.id)} {safe(job.state)} after {span(job.changed - job.created)}"]
    lines += [f"  {line}" for line in fields([("reason", job.reason), *_of_report(report)])]
    if artifacts:
        lines.append(f"artifacts in {safe(job.artifact_dir)}")
        width = max(len(safe(each.name)) for each in artifacts)
        lines += [f"  {safe(each.name).ljust(width)}  {size(each.size)}" for each in artifacts]
    else:
        lines.append("no artifacts")
    if any(each.name == "changes.patch" and each.size for each in artifacts):
        patch = f"{job.artifact_dir}/changes.patch"
        if os.access(patch, os.R_OK):
            lines.append(f"take it over: git apply {safe(patch)}")
        else:
            lines.append(
                f"take it over: agentlab job artifacts download {safe(job.id)} changes.patch"
                " && git apply changes.patch"
            )
    return lines


def _of_report(report: dict[str, object]) -> list[tuple[str, object]]:
    """What the guest said of it, which may be anything."""
    code, signal = report.get("exit_code"), report.get("signal")
    before, after = (_commit(report.get(f"commit_{which}")) for which in ("before", "after"))
    return [
        ("stage", report.get("stage") if report.get("stage") != "done" else ""),
        ("exit code", code if isinstance(code, int) else None),
        ("signal", signal if isinstance(signal, int) else None),
        ("commits", f"{before} → {after}" if before != after else before),
    ]


def _commit(value: object) -> str:
    return value[:12] if isinstance(value, str) else ""


def _described(job: m.JobView) -> list[str]:
    labels = " ".join(f"{key}={value}" for key, value in job.labels.items())
    return fields(
        [
            ("job", job.id),
            ("state", job.state),
            ("waits for", job.waits_for),
            ("reason", job.reason),
            ("profile", job.profile),
            ("repo", job.repo),
            ("ref", job.ref),
            ("task", short(job.task, 200)),
            ("labels", labels),
            ("workspace", job.workspace),
            ("session", job.session),
            ("sandbox", job.vmid or ""),
            ("address", job.address),
            ("created", moment(job.created)),
            ("changed", moment(job.changed)),
            ("deadline", moment(job.deadline)),
            *_of_report(job.report or {}),
            ("artifacts", job.artifact_dir),
            ("operation", job.operation),
        ]
    )

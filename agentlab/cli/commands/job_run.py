"""`job run` and `job validate`: a request from flags, the repository packed if it is a path."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli import watch
from agentlab.cli.command import Answer, Context, Interrupted, Usage
from agentlab.cli.commands.job import ended
from agentlab.cli.commands.labels import pair, pairs
from agentlab.cli.commands.plan import plan_lines
from agentlab.cli.text import safe, size
from agentlab.client.bundle import local_path, packed
from agentlab.client.client import Client

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def run(ctx: Context) -> Answer:
    no_wait, follow = ctx.args.flag("--no-wait"), ctx.args.flag("--follow")
    if no_wait and follow:
        raise Usage("cannot run a job: --follow and --no-wait exclude each other")
    client = ctx.client(waits=not no_wait)
    try:
        with _requested(ctx, client) as request:
            job = client.create_job(request)
    except KeyboardInterrupt as stopped:
        raise Interrupted(
            "interrupted: the job may have been created", hint="see: agentlab job list"
        ) from stopped
    if no_wait:
        return Answer(job, [safe(job.id)])
    ctx.out.note(f"job {job.id}", "bold")
    answer = ended(client, watch.job_end(ctx, client, job, follow=follow))
    if not follow:
        return answer
    if ctx.out.json:  # the last line of the stream
        return Answer({"job": answer.document}, (), answer.status)
    for line in answer.lines:  # stdout has the log and nothing else
        ctx.out.note(line)
    return Answer(None, (), answer.status)


def validate(ctx: Context) -> Answer:
    client = ctx.client()
    with _requested(ctx, client) as request:
        plan = client.call(api.JOB_VALIDATE, request)
    return Answer(plan, plan_lines(plan))


@contextlib.contextmanager
def _requested(ctx: Context, client: Client) -> Iterator[m.JobRequest]:
    """The request; a local repository has been sent to the daemon by then."""
    args = ctx.args
    _check_work(ctx)
    task = _task(ctx)
    env = parse_env(args.many("--env"))
    labels = pairs("--label", args.many("--label"))
    yield m.JobRequest(
        repo=_repo(ctx, client),
        task=task,
        profile=args.text("--profile"),
        mode=args.text("--mode"),
        ttl=args.text("--ttl"),
        env=env,
        labels=labels,
        workspace=args.text("--workspace"),
        session=args.text("--session"),
        stateful=args.flag("--stateful"),
        branch=args.text("--branch"),
        workspace_wait=args.text("--workspace-wait"),
        queue=not args.flag("--no-queue"),
    )


def _check_work(ctx: Context) -> None:
    """What is certainly wrong about where it works, before a repository is packed and sent."""
    args = ctx.args
    why = ""
    work = [each for each in ("--workspace", "--session", "--stateful") if each in args]
    if len(work) > 1:
        why = f"{' and '.join(work)} exclude each other"
    elif not (args.text("--profile") or args.text("--session")):
        why = "--profile is missing, and only a session has one"
    elif "--branch" in args and work not in (["--session"], ["--stateful"]):
        why = "--branch is for --session or --stateful"
    elif "--workspace-wait" in args and not work:
        why = "--workspace-wait is for a job with --workspace, --session or --stateful"
    if why:
        raise Usage(f"cannot read the command line: {why}", hint="see: agentlab job run --help")


def _repo(ctx: Context, client: Client) -> m.RepoRequest:
    repo, ref = ctx.args.text("--repo"), ctx.args.text("--ref")
    path = local_path(repo)
    if path is None:
        return m.RepoRequest(url=repo, ref=ref, depth=ctx.args.count("--depth", 1))
    if "--depth" in ctx.args:
        raise Usage("cannot read the command line: --depth is for git URLs; a path goes whole")
    ctx.out.moving(f"packing {path}")
    with packed(path, ref or ctx.args.text("--branch")) as bundle:
        if bundle.dirty:
            files = "file" if bundle.dirty == 1 else "files"
            ctx.out.warn(f"{bundle.dirty} changed {files} in {path}: not included; commit first")
        ctx.out.moving(f"sending {path}: {size(bundle.size)}")
        with bundle.path.open("rb") as file:
            client.put_bundle(file, bundle.sha256, bundle.size)
        ctx.out.note(f"sent {path} at {bundle.commit[:12]} ({size(bundle.size)})")
    return m.RepoRequest(bundle=bundle.sha256, ref=bundle.ref)


def _task(ctx: Context) -> str:
    text, file = ctx.args.text("--task"), ctx.args.text("--task-file")
    if ("--task" in ctx.args) == ("--task-file" in ctx.args):
        raise Usage(
            "cannot read the command line: give the task by --task or by --task-file",
            hint='for example: --task "fix the failing test"',
        )
    if not file:
        return text
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Usage(f"cannot read the task from {file}: not UTF-8") from error


def parse_env(texts: Sequence[str]) -> dict[str, str]:
    """Every --env of a command line."""
    return dict(_variable(each) for each in texts)


def _variable(text: str) -> tuple[str, str]:
    """KEY=VALUE, or KEY alone for our own variable: so a secret stays out of `ps`."""
    if "=" not in text and text in os.environ:
        return text, os.environ[text]
    if "=" not in text:
        raise Usage(
            f"cannot read --env {text!r}: there is no such variable here", hint="write KEY=VALUE"
        )
    key, value = pair("--env", text)
    if not _VARIABLE.fullmatch(key):
        raise Usage(f"cannot read --env {text!r}: {key!r} is no name of a variable")
    return key, value

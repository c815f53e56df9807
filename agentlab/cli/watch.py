"""Waiting for the end of a job or an operation, showing how it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.cli.command import Context, GaveUp, Interrupted
from agentlab.cli.output import Output
from agentlab.cli.progress import Progress
from agentlab.client.client import Client
from agentlab.client.follow import Feed, LogPart, Tick, Trouble
from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Unreachable

_LONG = 366 * 86400.0
_LOOK = 1.0  # seconds between two looks at how far an operation is
_SETTLING = 60.0  # seconds that a final job's sandbox is waited for


def job_end(ctx: Context, client: Client, job: m.JobView, *, follow: bool = False) -> m.JobView:
    """The job when it is final and its sandbox is gone, or does not go within a minute.

    With `follow` its log goes to stdout meanwhile.
    GaveUp after --timeout, Interrupted on ^C: the job goes on then.
    """
    goes_on = f"job {job.id} goes on"
    hint = f"wait for it: agentlab job wait {job.id}; stop it: agentlab job cancel {job.id}"
    last, patience = job, Deadline.after(_LONG)

    def ended() -> bool:
        nonlocal last, patience
        last = client.call(table.JOB_SHOW, path={"id": job.id})
        if last.final and patience.left > _SETTLING:
            patience = Deadline.after(_SETTLING)
        return last.settled or patience.passed

    if job.settled and not follow:
        return job
    feed = Feed(client)
    feed.follow_events({"job": job.id}, ended)
    if follow:
        feed.follow_log(job.id)
    _drive(ctx, feed, goes_on, hint, records=follow)
    return last


def operation_end(
    ctx: Context, client: Client, operation: m.OperationView, *, what: str, hint: str = ""
) -> m.OperationView:
    """The operation when it is final; `what` names it, for those who stop waiting."""
    last = operation

    def ended() -> bool:
        nonlocal last
        last = client.call(table.OPERATION_SHOW, path={"id": operation.id})
        return last.final

    if operation.final:
        return operation
    feed = Feed(client)
    feed.follow_events({"operation": operation.id}, ended)
    hint = hint or "see what it does: journalctl -u agentlabd -f"
    _drive(ctx, feed, f"{what} goes on", hint, look=lambda: _waits_for(client, operation.id))
    return last


def _waits_for(client: Client, operation: str) -> str:
    """For what it waits now, or how far it is; "" when nobody can tell."""
    with contextlib.suppress(AgentLabError):
        return client.call(table.OPERATION_SHOW, path={"id": operation}).waits_for
    return ""


def done(
    ctx: Context, client: Client, operation: m.OperationView, what: str, doing: str,
    *, hint: str = "",
) -> m.OperationView:  # fmt: skip
    """The operation when it is done; raises what it failed of: `failed to WHAT: why`.

    `hint` is for those who stop waiting; without it, it is about the operation's sandbox.
    """
    hint = hint or f"see what it does: agentlab sandbox show {operation.vmid}"
    last = operation_end(ctx, client, operation, what=doing, hint=hint)
    must_succeed(last, what)
    return last


def must_succeed(operation: m.OperationView, what: str) -> None:
    """Raises what an operation failed of: `failed to WHAT: why`."""
    if operation.state != "done":
        why = operation.error or f"the operation was {operation.state}"
        for said in (f"cannot {what}: ", f"failed to {what}: "):
            why = why.removeprefix(said)
        raise AgentLabError(
            f"failed to {what}: {why}",
            hint=operation.hint,
            details={"operation": operation.id, "state": operation.state},
        )


def renamed(error: AgentLabError, what: str) -> AgentLabError:
    """The same error, its text beginning with `failed to WHAT`, which the guide tells to look for."""
    if not isinstance(error, Unreachable) and not error.message.startswith(f"failed to {what}"):
        error.message = f"failed to {what}: {error.message}"
    return error


def _drive(
    ctx: Context, feed: Feed, goes_on: str, hint: str,
    *, records: bool = False, look: Callable[[], str] | None = None,
) -> None:  # fmt: skip
    """Shows what comes until it is over; `look` is asked now and then for what no event tells."""
    seconds = ctx.args.seconds("--timeout")
    deadline = Deadline.after(_LONG if seconds is None else seconds)
    progress, looked = Progress(ctx.out), Deadline.after(_LOOK)
    show = _records(ctx.out, progress) if records and ctx.out.json else _shown(ctx.out, progress)
    items = feed.items()
    try:
        for item in items:
            show(item)
            if look is not None and looked.passed:
                looked = Deadline.after(_LOOK)
                progress.waits(look())
            if deadline.passed:
                raise GaveUp(f"gave up waiting after {ctx.args.text('--timeout')}: {goes_on}",
                             hint=hint)  # fmt: skip
    except KeyboardInterrupt as stopped:
        raise Interrupted(f"interrupted: {goes_on}", hint=hint) from stopped
    finally:
        items.close()
        ctx.out.still()
    if records and not ctx.out.json:
        ctx.out.log(b"", final=True)


_Show = Callable[[m.EventView | LogPart | Tick | Trouble], None]


def _shown(out: Output, progress: Progress) -> _Show:
    def show(item: m.EventView | LogPart | Tick | Trouble) -> None:
        if isinstance(item, m.EventView):
            progress.event(item)
        elif isinstance(item, LogPart):
            out.log(item.data)
        elif isinstance(item, Trouble):
            progress.trouble(item)
        else:
            progress.tick()

    return show


def _records(out: Output, progress: Progress) -> _Show:
    """The same as JSON lines: {"event": …} and {"log": …, "offset": …}."""

    def show(item: m.EventView | LogPart | Tick | Trouble) -> None:
        if isinstance(item, m.EventView):
            out.record({"event": item})
        elif isinstance(item, LogPart):
            out.record({"log": item.data.decode(errors="replace"), "offset": item.offset})
        elif isinstance(item, Trouble):
            progress.trouble(item)

    return show

"""`sandbox exec`: a program in a sandbox, as if it ran here."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

from agentlab.api import messages as m
from agentlab.cli.command import Answer, Context, GaveUp, Interrupted
from agentlab.cli.commands.job_run import parse_env
from agentlab.client.follow import Trouble
from agentlab.client.program import INPUT, Ended, Item, Piece, Program, Source
from agentlab.clock import Deadline
from agentlab.errors import AgentLabError

_LONG = 366 * 86400.0
_GATHER = 0.02  # seconds in which more may come, before what is there is sent


def exec_(ctx: Context) -> Answer:
    args = ctx.args
    source = _stdin(wanted=args.flag("--stdin"))
    order = order_of(ctx, args.many("COMMAND"), input=source is not None)
    program = Program(ctx.client(waits=True), args.text("SANDBOX"), order, source)
    status = 0
    with contextlib.closing(followed(ctx, program)) as items:
        for item in items:
            if isinstance(item, Piece):
                _tell(ctx, item)
            elif isinstance(item, Ended):
                status = item.status
                if item.cut:
                    ctx.out.note("what it has left running still holds its output", "yellow")
            elif ctx.out.unread():
                raise BrokenPipeError
    if ctx.out.json:
        ctx.out.record({"exit": status})
    return Answer(None, status=status)


def order_of(ctx: Context, argv: list[str], *, input: bool) -> m.ExecRequest:  # noqa: A002  the API's word
    return m.ExecRequest(
        id=secrets.token_hex(12),
        argv=argv,
        user=ctx.args.text("--user") or "agent",
        workdir=ctx.args.text("--workdir"),
        env=parse_env(ctx.args.many("--env")),
        input=input,
    )


def followed(ctx: Context, program: Program) -> Generator[Item, None, None]:
    """What happens, to the end.  Whatever ends us before that ends the program, too: close it.

    GaveUp and Interrupted say whether it was ended.
    """
    seconds = ctx.args.seconds("--timeout")
    deadline = Deadline.after(_LONG if seconds is None else seconds)
    items = program.items()
    over = False
    left: AgentLabError | None = None
    try:
        with _signals():
            for item in items:
                over = isinstance(item, Ended)
                if isinstance(item, Trouble):
                    ctx.out.note(f"{item.error.message}; trying again", "yellow")
                yield item
                if deadline.passed and not over:
                    left = GaveUp(f"gave up waiting after {ctx.args.text('--timeout')}")
                    raise left
    except KeyboardInterrupt as stopped:
        left = Interrupted("interrupted")
        raise left from stopped
    finally:
        items.close()
        ctx.out.still()
        trouble = _ended(program, over=over)
        if left is not None:
            _say_whether_ended(left, program, trouble)


def _ended(program: Program, *, over: bool) -> AgentLabError | None:
    """Ends it; gives why nobody can say that it was ended."""
    try:
        if program.begun:
            program.end(ended=over)
    except AgentLabError as error:
        return error
    return None


def _say_whether_ended(
    left: AgentLabError, program: Program, trouble: AgentLabError | None
) -> None:
    if trouble is None:
        left.message += ": the program in the sandbox was ended"
        return
    left.message += f": the program in the sandbox may still run: {trouble.message}"
    left.hint = (
        f"see what runs there: agentlab sandbox exec --user root {program.sandbox} -- ps -ef"
    )


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end us in order, so that the program does not go on alone."""

    def leave(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    before = [(each, signal.signal(each, leave)) for each in (signal.SIGTERM, signal.SIGHUP)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _tell(ctx: Context, piece: Piece) -> None:
    for name, content in (("stdout", piece.out), ("stderr", piece.err)):
        if content and ctx.out.json:
            import base64

            ctx.out.record({name: base64.b64encode(content).decode()})
        elif content:
            ctx.out.pipe(content, err=name == "stderr")


def _stdin(*, wanted: bool) -> Source | None:
    """Our stdin, unless it is a terminal that nobody asked for, or holds nothing anyway."""
    try:
        number = sys.stdin.fileno()
        here, null = os.fstat(number), Path(os.devnull).stat()
    except (AttributeError, OSError, ValueError):
        return None
    if (os.isatty(number) and not wanted) or here.st_rdev == null.st_rdev != 0:
        return None
    return lambda: read_some(number)


def read_some(number: int) -> bytes:
    """What there is, at most INPUT bytes: small pieces that come fast go out together."""
    import select

    found = os.read(number, INPUT)
    while found and len(found) < INPUT and select.select([number], [], [], _GATHER)[0]:
        more = os.read(number, INPUT - len(found))
        if not more:
            break
        found += more
    return found

"""From a command line to an exit status."""

from __future__ import annotations

import importlib
import os
import sys

from agentlab.cli.command import SOCKET, Answer, Command, Context, Interrupted, Usage
from agentlab.cli.output import Output
from agentlab.cli.parse import Line, parse
from agentlab.errors import AgentLabError, Internal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def main(argv: list[str]) -> int:
    """Runs one command; `argv` is without the program's name.  Returns the exit status."""
    out = _output(argv)
    line: Line | None = None
    try:
        line = parse(argv)
        return _run(line, out)
    except BrokenPipeError:  # `… | head`: whoever read has what he wanted
        _close_stdout()
        return 1
    except KeyboardInterrupt:
        return _fail(out, line, Interrupted("interrupted"))
    except AgentLabError as error:
        return _fail(out, line, error)
    except OSError as error:  # a file of the user's: --task-file, --out
        return _fail(out, line, AgentLabError(_os_text(error)))
    except RecursionError:
        return _fail(out, line, Internal("nested too deeply"))


def _output(argv: list[str]) -> Output:
    """The form of all output must be known before the line is: errors of reading it have one."""
    flags = argv[: argv.index("--")] if "--" in argv else argv
    return Output(
        json="--json" in flags,
        quiet="--quiet" in flags or "-q" in flags,
        no_color="--no-color" in flags,
    )


def _run(line: Line, out: Output) -> int:
    args, command = line.args, line.command
    if args.flag("--help") or command is None:
        return _help(line, out)
    if not command.run:
        raise Usage(
            f"{command.noun} must be the first word, and has flags of its own",
            hint=f"put it first: agentlab {command.noun}",
        )
    socket_path = args.text("--socket") or os.environ.get("AGENTLAB_SOCKET") or SOCKET
    answer = _function(command)(Context(args, out, socket_path))
    out.answer(answer)
    return answer.status


def _function(command: Command) -> Callable[[Context], Answer]:
    module, _, name = command.run.partition(":")
    function: Callable[[Context], Answer] = getattr(importlib.import_module(module), name)
    return function


def _help(line: Line, out: Output) -> int:
    from agentlab.cli import manual

    if out.json and not line.args.flag("--help"):
        raise Usage("cannot read the command line: no command", hint="see: agentlab --help")
    if line.command is not None:
        out.lines(manual.command_help(line.command))
    elif line.words:
        out.lines(manual.noun_help(line.words[0]))
    else:
        out.lines(manual.overview())
    return 0 if line.args.flag("--help") else 2


def _fail(out: Output, line: Line | None, error: AgentLabError) -> int:
    try:
        out.error(error, _sentence(line, error.message))
    except BrokenPipeError:
        _close_stdout()
    return error.exit_status


def _sentence(line: Line | None, message: str) -> str:
    """`cannot …: why`: what was wanted, unless the message says it."""
    whole = ("cannot ", "failed to ", "gave up ", "interrupted", "timeout waiting",
             "sandbox lease not renewable")  # fmt: skip
    if message.startswith(whole) or line is None or line.command is None:
        return message
    return f"cannot {line.command.summary.partition(';')[0]}: {message}"


def _os_text(error: OSError) -> str:
    name = f"{error.filename}: " if error.filename is not None else ""
    return f"{name}{error.strerror or error}"


def _close_stdout() -> None:
    """Points stdout elsewhere, so that Python's own flush at the end stays quiet."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass

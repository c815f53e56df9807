"""What a command is: the table's row, its arguments, and what it is run with.

Plain classes without imports: `--help` and completion read the whole table, and dataclasses
alone would cost more than all the rest of it.
"""

from __future__ import annotations

from agentlab.errors import AgentLabError, Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentlab.cli.output import Output
    from agentlab.client.client import Client

SOCKET = "/run/agentlab/agentlabd.sock"


class Usage(Invalid):
    """The command line itself is wrong."""

    code = "usage"


class Declined(AgentLabError):
    """Asked whether to do it, somebody said no, or nobody was there to say yes."""

    code = "declined"
    exit_status = 3


class GaveUp(AgentLabError):
    """We stopped waiting; what was waited for goes on."""

    code = "gave_up"
    exit_status = 3


class Interrupted(AgentLabError):
    """^C; what the daemon does goes on."""

    code = "interrupted"
    exit_status = 130


class Arg:
    """An argument.  A name with dashes is an option, which takes a value when `value` names one.

    `kind` says how the text is read: text, count (from 0), number (from 1), memory, volume, duration, job
    state or sandbox state; `many` may be repeated.  `verbatim`: all that follows `--`, taken as it
    is.
    """

    __slots__ = ("default", "help", "kind", "many", "name", "required", "value", "verbatim")

    def __init__(
        self,
        name: str,
        help: str,  # noqa: A002  the field's word for it
        *,
        value: str = "",
        kind: str = "text",
        default: str = "",
        many: bool = False,
        required: bool = False,
        verbatim: bool = False,
    ) -> None:
        self.name = name
        self.help = help
        self.value = value
        self.kind = kind
        self.default = default
        self.many = many
        self.required = required
        self.verbatim = verbatim

    @property
    def option(self) -> bool:
        return self.name.startswith("-")


class Command:
    """A row of the table.  `verb` may be empty or two words; `run` is `module:function`.

    `summary` is an order ("list jobs"), and completes "cannot …" in errors.  `run` is text, so
    that a command's code is loaded when it is asked for; empty: another program takes it over.
    """

    __slots__ = ("args", "example", "noun", "run", "summary", "verb")

    def __init__(
        self,
        noun: str,
        verb: str,
        summary: str,
        args: Sequence[Arg] = (),
        run: str = "",
        example: str = "",
    ) -> None:
        self.noun = noun
        self.verb = verb
        self.summary = summary
        self.args = tuple(args)
        self.run = run
        self.example = example

    @property
    def name(self) -> str:
        return f"{self.noun} {self.verb}".strip()

    @property
    def options(self) -> tuple[Arg, ...]:
        return tuple(each for each in self.args if each.option)

    @property
    def positionals(self) -> tuple[Arg, ...]:
        return tuple(each for each in self.args if not each.option)


class Args:
    """The arguments as read, by the names of the table."""

    def __init__(self, found: dict[str, list[str]]) -> None:
        self._found = found

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def flag(self, name: str) -> bool:
        return name in self._found

    def text(self, name: str) -> str:
        values = self._found.get(name)
        return values[-1] if values else ""

    def many(self, name: str) -> list[str]:
        return self._found.get(name, [])

    def count(self, name: str, default: int) -> int:
        return int(self.text(name)) if name in self._found else default

    def volume(self, name: str) -> int:
        """The size of a volume in MiB; 0 when it was not given."""
        if name not in self._found:
            return 0
        from agentlab.units import parse_size

        return parse_size(self.text(name), bare="G")

    def seconds(self, name: str) -> float | None:
        """A duration; None when it was not given."""
        if name not in self._found:
            return None
        from agentlab.units import parse_duration

        return float(parse_duration(self.text(name)))


class Context:
    """What a command runs with; the client is made when it is first needed."""

    def __init__(self, args: Args, out: Output, socket_path: str) -> None:
        self.args = args
        self.out = out
        self.socket_path = socket_path

    @property
    def timeout(self) -> float:
        """Seconds that the daemon may take to answer."""
        seconds = self.args.seconds("--timeout")
        return 30.0 if seconds is None else seconds

    def client(self, *, waits: bool = False) -> Client:
        """The daemon; for a command that waits, --timeout is about the wait, not one answer."""
        from agentlab.client.client import Client

        return Client(self.socket_path, timeout=30.0 if waits else self.timeout)


class Answer:
    """What a command gives back: a document for --json, lines for people, an exit status.

    With `document` None nothing is left to say: the command has streamed it all.
    """

    __slots__ = ("document", "lines", "status")

    def __init__(self, document: object, lines: Sequence[str] = (), status: int = 0) -> None:
        self.document = document
        self.lines = lines
        self.status = status

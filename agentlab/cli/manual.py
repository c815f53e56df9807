"""Help and docs/cli.md, from the command table.  Pure: lines of text come out."""

from __future__ import annotations

from agentlab.cli.command import Arg, Command
from agentlab.cli.table import ALIASES, COMMANDS, GLOBALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_CODES = (
    (0, "done"),
    (1, "failed"),
    (2, "wrong usage"),
    (3, "declined, or gave up waiting"),
    (4, "denied"),
    (5, "the watched job failed"),
    (6, "the daemon cannot be reached"),
    (130, "interrupted"),
)
_TITLE = "agentlab: coding agents in throwaway, network-isolated virtual machines"


def overview() -> list[str]:
    """`agentlab --help`."""
    return [
        _TITLE,
        "",
        "usage: agentlab COMMAND [ARGUMENTS] [FLAGS], the flags anywhere on the line",
        "",
        "commands:",
        *_columns([(each.name, each.summary) for each in COMMANDS]),
        "",
        "short for sandbox commands:",
        *_columns([(short, each.name) for short, each in ALIASES.items()]),
        "",
        "flags of every command:",
        *_columns([(_usage(each), each.help) for each in GLOBALS]),
        "",
        "exit status: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES),
        "more: agentlab COMMAND --help",
    ]


def noun_help(noun: str) -> list[str]:
    """`agentlab job --help`."""
    found = [each for each in COMMANDS if each.noun == noun]
    return [
        f"usage: agentlab {noun} COMMAND [ARGUMENTS] [FLAGS]",
        "",
        "commands:",
        *_columns([(each.name, each.summary) for each in found]),
        "",
        f"more: agentlab {noun} COMMAND --help",
    ]


def command_help(command: Command) -> list[str]:
    """`agentlab job run --help`."""
    lines = [f"usage: agentlab {synopsis(command)}", "", _sentence(command.summary)]
    if command.args:
        lines += ["", "arguments and flags:"]
        lines += _columns([(_usage(each), _described(each)) for each in command.args])
    if command.run:
        lines += ["", "flags of every command:"]
        lines += _columns([(_usage(each), each.help) for each in GLOBALS])
    if command.example:
        lines += ["", "example:", f"  {command.example}"]
    return lines


def synopsis(command: Command) -> str:
    """`job wait ID [FLAGS]`: what must be given, then that there is more."""
    words, last = [command.name], []
    for arg in command.positionals:
        if arg.verbatim:
            last = ["--", arg.name + "…"]
            continue
        word = arg.name + ("…" if arg.many else "")
        words.append(word if arg.required else f"[{word}]")
    words += [f"{arg.name} {arg.value}" for arg in command.options if arg.required]
    return " ".join([*words, "[FLAGS]", *last])


def render_markdown() -> str:
    """docs/cli.md."""
    lines = [
        "<!-- Made by `agentlab docs` from agentlab/cli/table.py; do not edit. -->",
        "",
        "# Commands",
        "",
        "Flags may stand anywhere on the line. Durations are `90s`, `30m`, `4h` or `2d`; a bare",
        "number is minutes. Only `daemon` and `guest` are programs of their own: they must be the",
        "first word, and take no flags but theirs.",
        "",
        "| command | does |",
        "| --- | --- |",
        *(f"| [`{each.name}`](#{_anchor(each)}) | {each.summary} |" for each in COMMANDS),
        "",
        "Short for sandbox commands: "
        + ", ".join(f"`{short}` (`{each.name}`)" for short, each in ALIASES.items())
        + ".",
        "",
        "## Flags of every command but `daemon` and `guest`",
        "",
        *_markdown_table(GLOBALS),
        "",
        "## Exit status",
        "",
        "| status | meaning |",
        "| --- | --- |",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES),
    ]
    for command in COMMANDS:
        lines += _markdown_command(command)
    return "\n".join(lines) + "\n"


def _markdown_command(command: Command) -> list[str]:
    lines = ["", f"## {command.name}", "", _sentence(command.summary), ""]
    lines += ["```", f"agentlab {synopsis(command)}", "```"]
    if command.args:
        lines += ["", *_markdown_table(command.args)]
    if command.example:
        lines += ["", "Example:", "", "```bash", command.example, "```"]
    return lines


def _markdown_table(args: Sequence[Arg]) -> list[str]:
    rows = [f"| `{_usage(arg)}` | {_described(arg)} |" for arg in args]
    return ["| argument | meaning |", "| --- | --- |", *rows]


def _anchor(command: Command) -> str:
    return command.name.replace(" ", "-")


def _sentence(summary: str) -> str:
    return f"{summary[:1].upper()}{summary[1:]}."


def _usage(arg: Arg) -> str:
    return f"{arg.name} {arg.value}".strip() + ("…" if arg.many and not arg.option else "")


def _described(arg: Arg) -> str:
    return f"{arg.help} (required)" if arg.required and arg.option else arg.help


def _columns(pairs: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(left) for left, _ in pairs), default=0)
    return [f"  {left.ljust(width)}  {right}".rstrip() for left, right in pairs]

"""From words to a command and its arguments; flags may stand anywhere on the line.

Not argparse: a parser per noun cannot take `--limit 3 job list`, gives values that begin with a
dash to nobody, guesses abbreviations, and words its errors its own way.  Reading the line against
the union of all options needs no more code than bending argparse to it, and starts 6 ms sooner.
"""

from __future__ import annotations

from agentlab.cli.command import Arg, Args, Command, Usage
from agentlab.cli.table import ALIASES, COMMANDS, GLOBALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SHORT = {"-h": "--help", "-q": "--quiet", "-i": "--stdin"}


def _options() -> dict[str, bool]:
    """Every option that any command knows, and whether it takes a value (a test: no clash)."""
    rows = [*GLOBALS, *(each for command in COMMANDS for each in command.options)]
    return {each.name: bool(each.value) for each in rows}


class Line:
    """A command line as read: `command` is None when the words name none or only a noun."""

    __slots__ = ("args", "command", "words")

    def __init__(self, command: Command | None, args: Args, words: Sequence[str]) -> None:
        self.command = command
        self.args = args
        self.words = words


def parse(argv: Sequence[str]) -> Line:
    """Reads a line; Usage with "did you mean" for what is not known.

    With --help among the options nothing else is checked.
    """
    words, options = _split(argv)
    if "--help" in options or words[:1] == ["help"]:
        topic = words[1:] if words[:1] == ["help"] else words
        return Line(find(topic)[0], Args({"--help": [""]}), topic)
    if "--version" in options:
        words = ["version"]
    command, rest = find(words)
    if command is None:
        known = {each.name for each in GLOBALS}
        for name in options:
            if not words and name not in known:
                raise Usage(f"cannot read the command line: {name} needs a command")
        return Line(None, Args(options), words)
    found = {**options, **_positionals(command, rest)}
    _check(command, found)
    return Line(command, Args(found), words)


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    known = _options()
    words: list[str] = []
    options: dict[str, list[str]] = {}
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--":
            words += argv[at:]
            break
        if word in _SHORT or (word.startswith("--") and len(word) > 2):
            name, equals, value = _SHORT.get(word, word).partition("=")
            if name not in known:
                raise unknown("flag", name, known)
            if known[name] and not equals:
                if at == len(argv):
                    raise Usage(f"cannot read the command line: {name} needs a value")
                value = argv[at]
                at += 1
            elif equals and not known[name]:
                raise Usage(f"cannot read the command line: {name} takes no value")
            options.setdefault(name, []).append(value)
        elif word.startswith("-") and len(word) > 1 and not word[1:].isdigit():
            raise unknown("flag", word, known)
        else:
            words.append(word)
    return words, options


def find(words: Sequence[str]) -> tuple[Command | None, Sequence[str]]:
    """The command that the words begin with (the longest wins), and the words after it.

    None for no words, or a noun alone.
    """
    if not words:
        return None, words
    for length in (3, 2, 1):
        for command in COMMANDS:
            if command.name == " ".join(words[:length]) and len(words) >= length:
                return command, words[length:]
    nouns = [each.noun for each in COMMANDS]
    if words[0] in nouns:
        if len(words) == 1:
            return None, words
        raise _unknown_verb(words)
    if words[0] in ALIASES:
        return ALIASES[words[0]], words[1:]
    raise unknown("command", words[0], [*nouns, *ALIASES])


def _unknown_verb(words: Sequence[str]) -> Usage:
    """For words that are no command of their noun: `sandbox shwo`, `sandbox snapshot svae`."""
    verbs = [each.verb for each in COMMANDS if each.noun == words[0]]
    first = f"{words[1]} "
    second = [each.removeprefix(first) for each in verbs if each.startswith(first)]
    if not second:
        return unknown(f"{words[0]} command", words[1], verbs)
    if len(words) > 2:
        return unknown(f"{words[0]} {words[1]} command", words[2], second)
    return Usage(
        f"cannot read the command line: {words[0]} {words[1]} does nothing alone",
        hint=f"say {', '.join(sorted(second))}",
    )


def _positionals(command: Command, words: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    left = list(words)
    for arg in command.positionals:
        if left:
            found[arg.name] = left if arg.many else [left[0]]
            left = [] if arg.many else left[1:]
        elif arg.required:
            raise Usage(f"cannot {_order(command)}: {arg.name} is missing", hint=_see(command))
    if left:
        raise Usage(
            f"cannot {_order(command)}: do not know what to do with {left[0]!r}",
            hint=_see(command),
        )
    return found


def _check(command: Command, found: dict[str, list[str]]) -> None:
    args = {each.name: each for each in (*GLOBALS, *command.args)}
    for name, values in found.items():
        if name not in args:
            raise unknown(f"flag of {command.name}", name, args)
        if len(values) > 1 and args[name].value and not args[name].many:
            raise Usage(f"cannot {_order(command)}: {name} is given twice", hint=_see(command))
        for value in values:
            _check_value(args[name], value)
    for arg in command.options:
        if arg.required and arg.name not in found:
            raise Usage(f"cannot {_order(command)}: {arg.name} is missing", hint=_see(command))


def _check_value(arg: Arg, value: str) -> None:
    if arg.kind in ("count", "number") and not (
        value.isascii() and value.isdigit() and len(value) < 10
    ):
        raise Usage(f"cannot read {arg.name} {value}: must be a whole number")
    if arg.kind == "number" and not int(value):
        raise Usage(f"cannot read {arg.name} {value}: must be 1 or more")
    if arg.kind == "duration":
        from agentlab.units import parse_duration

        parse_duration(value)
    if arg.kind in ("memory", "volume"):
        from agentlab.units import parse_size

        parse_size(value, bare="M" if arg.kind == "memory" else "G")
    if arg.kind.endswith(" state"):
        states = _states(arg.kind)
        if value not in states:
            raise unknown(arg.kind, value, states)


def _states(kind: str) -> list[str]:
    if kind == "job state":
        from agentlab.model.job import JobState

        return list(JobState)
    from agentlab.model.sandbox import SandboxState

    return list(SandboxState)


def _order(command: Command) -> str:
    return command.summary.partition(";")[0]


def _see(command: Command) -> str:
    return f"see: agentlab {command.name} --help"


def unknown(what: str, word: str, known: Iterable[str]) -> Usage:
    import difflib

    names = sorted({each for each in known if each})
    folded = {each.lower(): each for each in names}
    near = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.5)
    text = f"did you mean {folded[near[0]]}?" if near else f"known: {', '.join(names)}"
    if len(text) > 200:
        text = "see: agentlab --help"
    return Usage(
        f"cannot read the command line: unknown {what} {word!r}",
        hint=text,
        details={"did_you_mean": [folded[each] for each in near]},
    )

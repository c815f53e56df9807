"""Completions for bash, zsh and fish, rendered from the command table.  Pure."""

from __future__ import annotations

from agentlab.cli.command import Command
from agentlab.cli.table import ALIASES, COMMANDS, GLOBALS

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_agentlab() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words="" word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        [[ $word == -* ]] || words="$words $word"
    done
    case "$words " in
{cases}
    *) COMPREPLY=($(compgen -W "{nouns}" -- "$current")) ;;
    esac
}}
complete -o default -F _agentlab agentlab
"""


def render(shell: str) -> str:
    """The script for one of SHELLS."""
    if shell == "bash":
        return _bash()
    if shell == "zsh":  # zsh reads bash's completions
        return f"autoload -U +X bashcompinit && bashcompinit\n{_bash()}"
    return _fish()


def _flags(command: Command) -> list[str]:
    return [each.name for each in (*command.options, *(GLOBALS if command.run else ()))]


def _nouns() -> list[str]:
    return [*dict.fromkeys(each.noun for each in COMMANDS), *ALIASES]


def _bash() -> str:
    cases = []
    names = [(each.name, each) for each in COMMANDS] + list(ALIASES.items())
    for name, command in sorted(names, key=lambda row: -len(row[0].split())):
        words = _flags(command)
        words += [
            each.verb.removeprefix(command.verb).split()[0]
            for each in COMMANDS
            if each.noun == command.noun and each.verb.startswith(f"{command.verb} ")
            if name == command.name and command.verb
        ]
        cases.append(_case(f'" {name} "*', words))
    for noun in dict.fromkeys(each.noun for each in COMMANDS if each.verb):
        verbs = dict.fromkeys(each.verb.split()[0] for each in COMMANDS if each.noun == noun)
        if noun not in [each.name for each in COMMANDS]:
            cases.append(_case(f'" {noun} "', list(verbs)))
    nouns = " ".join([*_nouns(), *(each.name for each in GLOBALS)])
    return _BASH.format(cases="\n".join(cases), nouns=nouns)


def _case(pattern: str, words: list[str]) -> str:
    return f'    {pattern}) COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$current")) ;;'


def _fish() -> str:
    lines = ["complete -c agentlab -f"]
    lines += [f"complete -c agentlab -n __fish_use_subcommand -a {noun}" for noun in _nouns()]
    for command in COMMANDS:
        seen = f"__fish_seen_subcommand_from {command.noun}"
        if command.verb:
            verb = command.verb.split()[-1]
            text = _quoted(command.summary)
            lines.append(f"complete -c agentlab -n '{seen}' -a {verb} -d {text}")
            seen += f"; and __fish_seen_subcommand_from {verb}"
        for arg in command.options:
            value = " -r" if arg.value else ""
            lines.append(
                f"complete -c agentlab -n '{seen}' -l {arg.name[2:]}{value} -d {_quoted(arg.help)}"
            )
    for arg in GLOBALS:
        value = " -r" if arg.value else ""
        lines.append(f"complete -c agentlab -l {arg.name[2:]}{value} -d {_quoted(arg.help)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

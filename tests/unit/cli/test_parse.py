"""The command line: flags anywhere, and "did you mean" for what is not known."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agentlab.cli import manual
from agentlab.cli.command import Command, Usage
from agentlab.cli.commands.docs import pages
from agentlab.cli.completion import SHELLS, render
from agentlab.cli.parse import _SHORT, parse
from agentlab.cli.table import ALIASES, COMMANDS, GLOBALS
from agentlab.daemon.main import _parser

Run = Callable[..., tuple[int, str, str]]
ROWS = [(command, arg) for command in COMMANDS for arg in command.options]


def test_flags_may_stand_anywhere() -> None:
    parts = [["job"], ["list"], ["--limit", "3"], ["--json"], ["--state=RUNNING"]]
    orders = [p for p in itertools.permutations(parts) if p.index(["job"]) < p.index(["list"])]
    for order in orders:
        line = parse(list(itertools.chain(*order)))
        assert line.command is not None
        assert line.command.name == "job list"
        assert line.args.count("--limit", 0) == 3
        assert line.args.flag("--json")
        assert line.args.text("--state") == "RUNNING"


def test_flags_after_positionals_are_never_ignored() -> None:
    line = parse(["job", "artifacts", "download", "ID", "a", "--force", "b", "--out", "d"])
    assert line.args.many("NAME") == ["a", "b"]
    assert line.args.flag("--force")
    assert line.args.text("--out") == "d"


def test_the_guides_order_of_flags_and_words_is_one_of_many() -> None:
    for words in ("--ttl 2h 1003", "1003 --ttl 2h", "1003 --ttl=2h"):
        line = parse(["sandbox", "lease", "renew", *words.split()])
        assert line.command is not None
        assert line.command.name == "sandbox lease renew"
        assert (line.args.text("SANDBOX"), line.args.text("--ttl")) == ("1003", "2h")


def test_value_may_begin_with_a_dash_and_words_may_follow_two() -> None:
    line = parse(["job", "run", "--task", "--json", "--repo=x", "--profile", "p"])
    assert line.args.text("--task") == "--json"
    assert not line.args.flag("--json")
    assert parse(["job", "show", "--", "--odd"]).args.text("ID") == "--odd"


@pytest.mark.parametrize(
    ("line", "text", "hint"),
    [
        ("jb list", "unknown command 'jb'", "did you mean job?"),
        ("job lsit", "unknown job command 'lsit'", "did you mean list?"),
        ("job list --stat X", "unknown flag '--stat'", "did you mean --state?"),
        ("job list --force", "unknown flag of job list '--force'", ""),
        ("job list --state runing", "unknown job state 'runing'", "did you mean RUNNING?"),
        ("job list -x", "unknown flag '-x'", ""),
        ("job show", "ID is missing", "agentlab job show --help"),
        ("job show a b", "do not know what to do with 'b'", ""),
        ("job run --task x", "--repo is missing", "agentlab job run --help"),
        ("job list --limit", "--limit needs a value", ""),
        ("job list --limit x", "must be a whole number", ""),
        ("job list --limit 1 --limit 2", "--limit is given twice", ""),
        ("job list --json=1", "--json takes no value", ""),
        ("job list --timeout soon", "cannot read the duration", "90s"),
        ("--timeout 5m --force", "--force needs a command", ""),
        ("completion tcsh", "unknown shell 'tcsh'", ""),
        ("daemon", "cannot run the daemon", "agentlab daemon"),
        ("new", "cannot make a sandbox: --profile is missing", "sandbox new --help"),
        ("new --profile x --vmid 0", "cannot read --vmid 0: must be 1 or more", ""),
        ("new --profile x --ttl 0", "cannot read the duration '0'", "90s, 30m"),
        ("new --profile x --ttl=-5m", "cannot read the duration '-5m'", "90s, 30m"),
        ("new --profile x --ttl -5m", "cannot read the duration '-5m'", "90s, 30m"),
        ("new --profile x --ttl 999999d", "cannot read the duration", "at most a year"),
        ("new --profile x --ttl soon", "cannot read the duration 'soon'", "90s, 30m"),
        ("sandbox lease renew 1003 --ttl 0s", "cannot read the duration '0s'", "90s, 30m"),
        ("sandbox lease renw 1003", "unknown sandbox lease command 'renw'", "mean renew?"),
        ("sandbox snapshot", "sandbox snapshot does nothing alone", "delete, list, restore, save"),
        ("sandbox update 1003 --cores 0", "--cores 0: must be 1 or more", ""),
        ("sandbox update 1003 --memory lots", "cannot read the size 'lots'", "512M"),
        ("ls --state BOOTED", "unknown sandbox state 'BOOTED'", "did you mean BOOTING?"),
        ("sandbox snapshot save 1003", "NAME is missing", "snapshot save --help"),
    ],
)
def test_wrong_lines_are_usage_errors(cli: Run, line: str, text: str, hint: str) -> None:
    status, out, err = cli(*line.split())
    assert (status, out) == (2, "")
    assert text in err
    assert hint in err


@pytest.mark.parametrize("line", ["", "job", "sandbox --quiet"])
def test_no_command_shows_help_with_status_2(cli: Run, line: str) -> None:
    status, out, _ = cli(*line.split())
    assert status == 2
    assert out.startswith(("agentlab:", "usage:"))
    status, out, _ = cli("--json", *line.split())
    assert (status, '"code":"usage"' in out) == (2, True)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_help_everywhere(cli: Run, command: Command) -> None:
    name = command.name
    for line in (["--help", *name.split()], [*name.split(), "-h"], ["help", *name.split()]):
        status, out, _ = cli(*line)
        assert status == 0
        assert out.startswith(f"usage: agentlab {name}")
        assert ("--timeout DUR" in out) == bool(command.run)


def test_help_of_nouns_and_of_all(cli: Run) -> None:
    assert "job artifacts download" in cli("job", "--help")[1]
    out = cli("--help")[1]
    assert all(command.name in out for command in COMMANDS)
    assert cli("help", "jbo")[0] == 2


def test_every_command_has_an_example_that_parses() -> None:
    import shlex

    for command in COMMANDS:
        if command.run:
            words = shlex.split(command.example.partition(">")[0])
            assert words[0] == "agentlab"
            line = parse(words[1:])
            assert line.command is command, command.name


def test_every_command_can_be_loaded() -> None:
    for command in COMMANDS:
        if command.run:
            module, _, name = command.run.partition(":")
            assert callable(getattr(importlib.import_module(module), name))


def test_an_option_means_the_same_kind_everywhere() -> None:
    kinds: dict[str, bool] = {}
    for arg in [*GLOBALS, *(arg for _, arg in ROWS)]:
        assert kinds.setdefault(arg.name, bool(arg.value)) == bool(arg.value), arg.name


def test_aliases_are_sandbox_verbs() -> None:
    assert {short: each.name for short, each in ALIASES.items()} == {
        "new": "sandbox new",
        "ls": "sandbox list",
        "show": "sandbox show",
        "start": "sandbox start",
        "stop": "sandbox stop",
        "rm": "sandbox destroy",
    }
    line = parse(["--force", "rm", "1003"])
    assert line.command is ALIASES["rm"]
    assert line.args.text("SANDBOX") == "1003"


def test_reading_a_word_twice_changes_nothing() -> None:
    with pytest.raises(Usage, match="given twice"):
        parse(["job", "list", "--state", "RUNNING", "--state", "FAILED"])
    assert parse(["job", "list", "--json", "--json"]).args.flag("--json")


@pytest.mark.parametrize("shell", SHELLS)
def test_completions_know_every_command(shell: str) -> None:
    script = render(shell)
    for command in COMMANDS:
        assert command.noun in script
        assert all(arg.name[2:] in script for arg in command.options)


def test_reference_pages_are_fresh() -> None:
    folder = Path(__file__).resolve().parents[3] / "docs"
    for name, text in pages().items():
        assert (folder / name).read_text() == text, f"run: agentlab docs ({name})"


def test_docs_checks_and_writes(cli: Run, tmp_path: Path) -> None:
    status, out, _ = cli("docs", "--check", "--dir", str(tmp_path))
    assert (status, out.count("is stale")) == (1, len(pages()))
    assert list(tmp_path.iterdir()) == []
    assert cli("docs", "--dir", str(tmp_path))[0] == 0
    assert cli("docs", "--check", "--dir", str(tmp_path))[0] == 0
    assert cli("docs", "--dir", str(tmp_path / "none"))[0] == 2


def test_the_daemons_own_options_are_in_the_table() -> None:
    own = {
        name: action.metavar
        for action in _parser()._actions
        for name in action.option_strings
        if name not in ("-h", "--help", "--version")
    }
    row = next(each for each in COMMANDS if each.name == "daemon")
    assert {arg.name: arg.value for arg in row.options} == own


def test_short_flags_are_told_where_the_long_ones_are() -> None:
    rows = {arg.name: arg for arg in [*GLOBALS, *(arg for _, arg in ROWS)]}
    for short, name in _SHORT.items():
        assert f"({short})" in rows[name].help


@pytest.mark.parametrize("role", ["daemon", "guest"])
def test_a_role_that_does_not_come_first_is_told_so(cli: Run, role: str) -> None:
    status, out, err = cli("--no-color", role)
    assert (status, out) == (2, "")
    error, hint = err.splitlines()
    assert error.endswith(f": {role} must be the first word, and has flags of its own")
    assert "its own help" not in error
    assert "not for people" not in error
    assert hint == f"hint: put it first: agentlab {role}"
    status, out, _ = cli("--json", role)
    assert (status, json.loads(out)["code"]) == (2, "usage")


@pytest.mark.parametrize("role", ["daemon", "guest"])
def test_help_of_a_role_promises_no_flags_that_it_refuses(cli: Run, role: str) -> None:
    status, out, _ = cli("help", role)
    assert (status, "--json" in out, "--socket" in out) == (0, False, False)
    assert ("--log-level" in out) == (role == "daemon")
    page = manual.render_markdown()
    assert "`daemon` and `guest`" in page.partition("## Exit status")[0]


def test_manual_names_every_exit_status() -> None:
    assert [code for code, _ in manual.EXIT_CODES] == [0, 1, 2, 3, 4, 5, 6, 130]


def test_what_follows_the_dashes_is_taken_as_it_is() -> None:
    words = ["ls", "-la", "--json", "--", "-x", ""]
    line = parse(["sandbox", "exec", "--user", "root", "-i", "1003", "--", *words])
    assert line.args.many("COMMAND") == words
    assert (line.args.text("SANDBOX"), line.args.text("--user")) == ("1003", "root")
    assert line.args.flag("--stdin")
    assert not line.args.flag("--json")
    assert parse(["sandbox", "exec", "1003", "ls"]).args.many("COMMAND") == ["ls"]
    with pytest.raises(Usage, match="-la"):
        parse(["sandbox", "exec", "1003", "ls", "-la"])
    with pytest.raises(Usage, match="COMMAND is missing"):
        parse(["sandbox", "exec", "1003", "--"])
    assert line.command is not None
    assert manual.synopsis(line.command) == "sandbox exec SANDBOX [FLAGS] -- COMMAND…"

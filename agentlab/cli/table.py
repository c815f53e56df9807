"""The command table: the command line, its help, docs/cli.md and the completions come from it."""

from __future__ import annotations

from agentlab.cli.command import SOCKET, Arg, Command
from agentlab.cli.tables.common import FOLLOW, NO_WAIT, RUN, SANDBOX, TAIL
from agentlab.cli.tables.job import JOBS
from agentlab.cli.tables.sandbox import SANDBOXES
from agentlab.cli.tables.session import SESSIONS
from agentlab.cli.tables.workspace import WORKSPACES

GLOBALS = (
    Arg("--socket", f"the daemon's socket; default $AGENTLAB_SOCKET, else {SOCKET}", value="PATH"),
    Arg(
        "--timeout",
        "how long to wait: for the end where a command waits (default: for ever), "
        "else for the daemon's answer (default: 30s)",
        value="DUR",
        kind="duration",
    ),
    Arg("--json", "print one JSON document (streams: one object a line) and nothing else"),
    Arg("--quiet", "no progress and no hints on stderr (-q)"),
    Arg("--no-color", "no colours; so does the variable NO_COLOR"),
    Arg("--version", "print version, commit and Python"),
    Arg("--help", "print help for the command, or for all of them (-h)"),
)

COMMANDS: tuple[Command, ...] = (
    *JOBS,
    *SANDBOXES,
    *WORKSPACES,
    *SESSIONS,
    Command("profile", "list", "list profiles", (), RUN + "profile:list_", "agentlab profile list"),
    Command(
        "template", "list", "list templates", (), RUN + "template:list_", "agentlab template list"
    ),
    Command(
        "template", "build", "build a template, unless it is there",
        (
            Arg("NAME", "which; default: debian-12"),
            Arg("--image", "make it from this cloud image (qcow2 or raw); default: from the recipe",
                value="FILE"),
            Arg("--storage", "Proxmox storage for its disk; default: as set, else the roomiest",
                value="S"),
            NO_WAIT,
        ),
        RUN + "template:build", "agentlab template build debian-12",
    ),
    Command(
        "template", "check", "say what a template lacks, and what mends it",
        (Arg("NAME", "name, or VMID; default: debian-12"),),
        RUN + "template:check", "agentlab template check debian-12",
    ),
    Command(
        "init", "", "check this host; exit status 1 when something is missing", (),
        RUN + "init:init", "agentlab init --json",
    ),
    Command(
        "status", "", "show the daemon at a glance", (), RUN + "status:status", "agentlab status"
    ),
    Command(
        "logs", "", "print what happened to a sandbox", (SANDBOX, FOLLOW, TAIL),
        RUN + "logs:logs", "agentlab logs 1003 --follow",
    ),
    Command(
        "version", "", "print version, commit and Python", (), RUN + "version:version",
        "agentlab version --json",
    ),
    Command(
        "completion", "", "print the completions for a shell",
        (Arg("SHELL", "bash, zsh or fish", required=True),), RUN + "completion:completion",
        "agentlab completion bash > /etc/bash_completion.d/agentlab",
    ),
    Command(
        "docs", "", "write the reference pages from the tables",
        (
            Arg("--check", "write nothing; exit status 1 when a page is not as it should be"),
            Arg("--dir", "directory of the pages; default: docs", value="DIR"),
        ),
        RUN + "docs:docs", "agentlab docs --check",
    ),
    Command(
        "daemon", "", "run the daemon; its own help: agentlab daemon --help",
        (
            Arg("--config", "the settings; default: /etc/agentlab/config.yaml", value="PATH"),
            Arg("--log-level",
                "what the log on stderr tells: debug, info, warning or error; default: info",
                value="LEVEL"),
        ),
    ),
    Command("guest", "", "run a job inside a VM; not for people"),
)  # fmt: skip

# The sandbox verbs in short; each works as soon as its command is in the table.
_ALIASES = {
    "new": "new", "ls": "list", "show": "show", "start": "start", "stop": "stop", "rm": "destroy",
}  # fmt: skip
ALIASES: dict[str, Command] = {
    short: command
    for short, verb in _ALIASES.items()
    for command in COMMANDS
    if (command.noun, command.verb) == ("sandbox", verb)
}

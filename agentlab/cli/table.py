"""The command table: the command line, its help, docs/cli.md and the completions come from it."""

from __future__ import annotations

from agentlab.cli.command import SOCKET, Arg, Command

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
    Arg("--quiet", "no progress and no hints on stderr"),
    Arg("--no-color", "no colours; so does the variable NO_COLOR"),
    Arg("--version", "print version, commit and Python"),
    Arg("--help", "print help for the command, or for all of them"),
)

_JOB = Arg("ID", "the job's id", required=True)
_SANDBOX = Arg("SANDBOX", "VMID or name of the sandbox", required=True)
_NO_WAIT = Arg("--no-wait", "return at once; the daemon goes on")
_FOLLOW = Arg("--follow", "go on with what comes, until the end")
_TAIL = Arg("--tail", "only the last N lines", value="N", kind="count")
_YES = Arg("--yes", "do not ask")
_NO_QUEUE = Arg("--no-queue", "fail when this host has no room now, instead of waiting for it")
_SNAPSHOT = Arg("NAME", "the snapshot's name", required=True)
_LOST = "files under / that came later are lost, /work is not touched"

_PLAN = (
    Arg("--repo", "git URL, or a path on this machine", value="REPO", required=True),
    Arg("--ref", "branch, tag or commit; default: HEAD", value="REF"),
    Arg("--task", "what the agent is to do", value="TEXT"),
    Arg("--task-file", "read the task from a file; - is standard input", value="FILE"),
    Arg("--profile", "what kind of sandbox and agent", value="NAME", required=True),
    Arg("--mode", "the agent's mode; default: the profile's", value="MODE"),
    Arg("--ttl", "how long the sandbox may live; default: the profile's", value="DUR",
        kind="duration"),
    Arg("--depth", "commits of history to fetch from a git URL, 0 for all; default: 1",
        value="N", kind="count"),
    Arg("--env", "variable for the agent; KEY alone takes it from here; repeatable",
        value="KEY=VALUE", many=True),
    Arg("--label", "label of the job; repeatable", value="KEY=VALUE", many=True),
)  # fmt: skip

_SANDBOX_PLAN = (
    Arg("--profile", "what kind of sandbox", value="NAME", required=True),
    Arg("--name", "its name and host name; default: made from the profile's", value="NAME"),
    Arg("--ttl", "length of its lease; default: the profile's", value="DUR", kind="duration"),
    Arg("--keepalive", "its lease renews itself; it is RUNNING from the beginning"),
    Arg("--vmid", "its VMID; default: a free one", value="VMID", kind="number"),
    Arg("--label", "label of the sandbox; repeatable", value="KEY=VALUE", many=True),
    _NO_QUEUE,
)
_REVERT = (
    Arg("--force", "also under a job, which is cancelled and hands back first, and past later"
        " snapshots that are in the way, which are deleted; does not ask"),
    Arg("--restart", "start it afterwards; default: when it had power"),
    Arg("--no-restart", "leave it STOPPED afterwards"),
    _YES,
    _NO_WAIT,
)  # fmt: skip

_DOCTOR = (
    Arg("--out", "file to write to, or directory (one that is there, or ends with /) for a file of"
        " the default name; default: the present one", value="PATH"),
    Arg("--force", "overwrite a file that is there"),
)  # fmt: skip

_C = "agentlab.cli.commands."

COMMANDS: tuple[Command, ...] = (
    Command(
        "job", "run", "run a job",
        (*_PLAN, Arg("--follow", "show the agent's log while it works"), _NO_WAIT),
        _C + "job_run:run",
        'agentlab job run --repo . --profile demo --task "fix the failing test" --follow',
    ),
    Command(
        "job", "validate", "plan a job; nothing is run", _PLAN, _C + "job_run:validate",
        'agentlab job validate --repo . --profile demo --task "fix the failing test"',
    ),
    Command(
        "job", "list", "list jobs, newest first",
        (
            Arg("--state", "only jobs in this state", value="STATE", kind="job state"),
            Arg("--limit", "at most N jobs; default: 50", value="N", kind="count"),
        ),
        _C + "job:list_", "agentlab job list --state RUNNING",
    ),
    Command("job", "show", "show a job", (_JOB,), _C + "job:show", "agentlab job show ID"),
    Command(
        "job", "wait", "wait for a job's end; exit status 5 when it failed", (_JOB,),
        _C + "job:wait", "agentlab job wait ID --timeout 30m",
    ),
    Command(
        "job", "cancel", "cancel a job", (_JOB, _NO_WAIT), _C + "job:cancel",
        "agentlab job cancel ID",
    ),
    Command(
        "job", "logs", "print the agent's log", (_JOB, _FOLLOW, _TAIL), _C + "job_logs:logs",
        "agentlab job logs ID --follow --tail 100",
    ),
    Command(
        "job", "artifacts", "list what a job handed back", (_JOB,), _C + "artifacts:list_",
        "agentlab job artifacts ID",
    ),
    Command(
        "job", "artifacts download", "download what a job handed back",
        (
            _JOB,
            Arg("NAME", "only these artifacts; default: all", many=True),
            Arg("--out", "directory to write to; default: the present one", value="DIR"),
            Arg("--force", "overwrite files that are there"),
        ),
        _C + "artifacts:download", "agentlab job artifacts download ID changes.patch --out work",
    ),
    Command(
        "sandbox", "new", "make a sandbox",
        (
            *_SANDBOX_PLAN,
            Arg("--and-ssh", "then let our public key in, and become ssh agent@ADDRESS"),
            Arg("--identity", "key for --and-ssh; default: ~/.ssh/agentlab_id_ed25519.pub, else"
                " id_ed25519.pub, else id_rsa.pub", value="FILE"),
            _NO_WAIT,
        ),
        _C + "sandbox_new:new",
        "agentlab sandbox new --profile demo --name try --ttl 4h",
    ),
    Command(
        "sandbox", "validate", "plan a sandbox; nothing is made",
        _SANDBOX_PLAN, _C + "sandbox_new:validate", "agentlab sandbox validate --profile demo",
    ),
    Command(
        "sandbox", "list", "list sandboxes",
        (
            Arg("--all", "destroyed ones too"),
            Arg("--state", "only those in this state", value="STATE", kind="sandbox state"),
            Arg("--profile", "only those of this profile", value="NAME"),
            Arg("--label", "only those with this label: KEY, or KEY=VALUE", value="LABEL"),
        ),
        _C + "sandbox:list_", "agentlab sandbox list --state RUNNING",
    ),
    Command(
        "sandbox", "show", "show a sandbox", (_SANDBOX,), _C + "sandbox:show",
        "agentlab sandbox show 1003",
    ),
    Command(
        "sandbox", "update", "change a sandbox; cores and memory count from its next start",
        (
            _SANDBOX,
            Arg("--cores", "virtual CPUs", value="N", kind="number"),
            Arg("--memory", "memory, like 4G; a bare number is MiB", value="SIZE", kind="memory"),
            Arg("--label", "set a label; KEY= takes it away; repeatable", value="KEY=VALUE",
                many=True),
            Arg("--remove-label", "take a label away; repeatable", value="KEY", many=True),
        ),
        _C + "sandbox:update", "agentlab sandbox update 1003 --memory 4G --label ticket=42",
    ),
    Command(
        "sandbox", "start", "start a stopped sandbox; its lease begins anew",
        (_SANDBOX, _NO_QUEUE, _NO_WAIT), _C + "sandbox_power:start",
        "agentlab sandbox start 1003",
    ),
    Command(
        "sandbox", "stop", "stop sandboxes; the guest is asked first, then the power taken",
        (
            Arg("SANDBOX", "VMIDs or names of sandboxes", many=True),
            Arg("--all", "every one that has power, but for those with a job"),
            _NO_WAIT,
        ),
        _C + "sandbox_power:stop", "agentlab sandbox stop 1003",
    ),
    Command(
        "sandbox", "pause", "pause a sandbox; its virtual CPUs stand still, its lease goes on",
        (_SANDBOX, _NO_WAIT), _C + "sandbox_power:pause", "agentlab sandbox pause 1003",
    ),
    Command(
        "sandbox", "resume", "let a paused sandbox go on", (_SANDBOX, _NO_WAIT),
        _C + "sandbox_power:resume", "agentlab sandbox resume 1003",
    ),
    Command(
        "sandbox", "revert", f"put a sandbox back to snapshot clean; {_LOST}",
        (_SANDBOX, *_REVERT), _C + "sandbox_snapshot:revert",
        "agentlab sandbox revert --yes 1003",
    ),
    Command(
        "sandbox", "snapshot save", "take a snapshot of a stopped sandbox",
        (_SANDBOX, _SNAPSHOT, _NO_WAIT), _C + "sandbox_snapshot:save",
        "agentlab sandbox snapshot save 1003 before-upgrade",
    ),
    Command(
        "sandbox", "snapshot list", "list the snapshots of a sandbox, oldest first", (_SANDBOX,),
        _C + "sandbox_snapshot:list_", "agentlab sandbox snapshot list 1003",
    ),
    Command(
        "sandbox", "snapshot restore", f"put a sandbox back to a snapshot; {_LOST}",
        (_SANDBOX, _SNAPSHOT, *_REVERT), _C + "sandbox_snapshot:restore",
        "agentlab sandbox snapshot restore --yes 1003 before-upgrade",
    ),
    Command(
        "sandbox", "snapshot delete", "delete a snapshot of a stopped sandbox",
        (_SANDBOX, _SNAPSHOT, _NO_WAIT), _C + "sandbox_snapshot:delete",
        "agentlab sandbox snapshot delete 1003 before-upgrade",
    ),
    Command(
        "sandbox", "lease renew", "renew the lease of a RUNNING sandbox",
        (
            _SANDBOX,
            Arg("--ttl", "how long from now on; default: as long as before", value="DUR",
                kind="duration"),
        ),
        _C + "sandbox:renew", "agentlab sandbox lease renew --ttl 4h 1003",
    ),
    Command(
        "sandbox", "destroy", "destroy a sandbox and its disks",
        (_SANDBOX, Arg("--force", "from any state, also when its VM is gone; does not ask"),
         _YES, _NO_WAIT),
        _C + "sandbox_destroy:destroy", "agentlab sandbox destroy --yes 1003",
    ),
    Command(
        "sandbox", "prune", "remove TIMEOUT sandboxes whose VM is gone; for cron", (),
        _C + "sandbox_destroy:prune", "agentlab sandbox prune",
    ),
    Command(
        "sandbox", "inventory", "list the hypervisor's machines; says whose they are", (),
        _C + "sandbox_reconcile:inventory", "agentlab sandbox inventory",
    ),
    Command(
        "sandbox", "reconcile",
        "report where records and hypervisor differ; exit status 1 when they do",
        (Arg("--apply", "mend what can be mended; asks before leftovers are destroyed"), _YES),
        _C + "sandbox_reconcile:reconcile", "agentlab sandbox reconcile --apply --yes",
    ),
    Command(
        "sandbox", "exec",
        "run a program in a sandbox; its exit status is the program's, unless it never started",
        (
            _SANDBOX,
            Arg("COMMAND", "the program and its arguments", many=True, required=True,
                verbatim=True),
            Arg("--user", "who runs it; default: agent", value="USER"),
            Arg("--workdir", "where; default: /work, or the user's home without it", value="DIR"),
            Arg("--env", "variable for it; KEY alone takes it from here; repeatable",
                value="KEY=VALUE", many=True),
            Arg("--stdin", "send it our stdin also from a terminal (-i)"),
        ),
        _C + "sandbox_exec:exec_", "agentlab sandbox exec 1003 -- git status",
    ),
    Command(
        "sandbox", "cp", "copy a file or a directory into a sandbox or out of one",
        (
            Arg("SRC", "what: a path, or SANDBOX:PATH; - is stdin", required=True),
            Arg("DST", "where to: a path, or SANDBOX:PATH; - is stdout", required=True),
            Arg("--user", "whose files they are in the sandbox; default: agent", value="USER"),
        ),
        _C + "sandbox_cp:cp", "agentlab sandbox cp src 1003:/work",
    ),
    Command(
        "job", "doctor", "write a job's doctor bundle: records, events, no secrets",
        (_JOB, *_DOCTOR), _C + "doctor:job", "agentlab job doctor ID --out bundles/",
    ),
    Command(
        "sandbox", "doctor", "write a sandbox's doctor bundle: records, events, no secrets",
        (_SANDBOX, *_DOCTOR), _C + "doctor:sandbox",
        "agentlab sandbox doctor 1003 --out bundles/",
    ),
    Command(
        "session", "doctor", "write a session's doctor bundle: records, events, no secrets",
        (Arg("SESSION", "the session's name", required=True), *_DOCTOR), _C + "doctor:session",
        "agentlab session doctor demo-session --out bundles/",
    ),
    Command("profile", "list", "list profiles", (), _C + "profile:list_", "agentlab profile list"),
    Command(
        "template", "list", "list templates", (), _C + "template:list_", "agentlab template list"
    ),
    Command(
        "template", "build", "build a template, unless it is there",
        (
            Arg("NAME", "which; default: debian-12"),
            Arg("--image", "make it from this cloud image (qcow2 or raw); default: from the recipe",
                value="FILE"),
            Arg("--storage", "Proxmox storage for its disk; default: as set, else the roomiest",
                value="S"),
            _NO_WAIT,
        ),
        _C + "template:build", "agentlab template build debian-12",
    ),
    Command(
        "template", "check", "say what a template lacks, and what mends it",
        (Arg("NAME", "name, or VMID; default: debian-12"),),
        _C + "template:check", "agentlab template check debian-12",
    ),
    Command(
        "init", "", "check this host; exit status 1 when something is missing", (),
        _C + "init:init", "agentlab init --json",
    ),
    Command(
        "status", "", "show the daemon at a glance", (), _C + "status:status", "agentlab status"
    ),
    Command(
        "logs", "", "print what happened to a sandbox", (_SANDBOX, _FOLLOW, _TAIL),
        _C + "logs:logs", "agentlab logs 1003 --follow",
    ),
    Command(
        "version", "", "print version, commit and Python", (), _C + "version:version",
        "agentlab version --json",
    ),
    Command(
        "completion", "", "print the completions for a shell",
        (Arg("SHELL", "bash, zsh or fish", required=True),), _C + "completion:completion",
        "agentlab completion bash > /etc/bash_completion.d/agentlab",
    ),
    Command(
        "docs", "", "write the reference pages from the tables",
        (
            Arg("--check", "write nothing; exit status 1 when a page is not as it should be"),
            Arg("--dir", "directory of the pages; default: docs", value="DIR"),
        ),
        _C + "docs:docs", "agentlab docs --check",
    ),
    Command("daemon", "", "run the daemon; its own help: agentlab daemon --help"),
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

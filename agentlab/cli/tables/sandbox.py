"""The rows of sandboxes."""

from __future__ import annotations

from agentlab.cli.command import Arg, Command
from agentlab.cli.tables.common import (
    AND_SSH,
    DOCTOR,
    FORCE,
    NO_QUEUE,
    NO_WAIT,
    RUN,
    SANDBOX,
    SNAPSHOT,
    YES,
)

_LOST = "files under / that came later are lost, /work is not touched"
_SANDBOX_PLAN = (
    Arg("--profile", "what kind of sandbox", value="NAME", required=True),
    Arg("--name", "its name and host name; default: made from the profile's", value="NAME"),
    Arg("--ttl", "length of its lease; default: the profile's", value="DUR", kind="duration"),
    Arg("--keepalive", "its lease renews itself; it is RUNNING from the beginning"),
    Arg("--vmid", "its VMID; default: a free one", value="VMID", kind="number"),
    Arg("--label", "label of the sandbox; repeatable", value="KEY=VALUE", many=True),
    Arg("--workspace", "the workspace that it has at /work", value="W"),
    NO_QUEUE,
)
_REVERT = (
    Arg("--force", "also under a job, which is cancelled and hands back first, and past later"
        " snapshots that are in the way, which are deleted; does not ask"),
    Arg("--restart", "start it afterwards; default: when it had power"),
    Arg("--no-restart", "leave it STOPPED afterwards"),
    YES,
    NO_WAIT,
)  # fmt: skip

SANDBOXES: tuple[Command, ...] = (
    Command(
        "sandbox", "new", "make a sandbox",
        (
            *_SANDBOX_PLAN,
            *AND_SSH,
            NO_WAIT,
        ),
        RUN + "sandbox_new:new",
        "agentlab sandbox new --profile demo --name try --ttl 4h",
    ),
    Command(
        "sandbox", "validate", "plan a sandbox; nothing is made",
        _SANDBOX_PLAN, RUN + "sandbox_new:validate", "agentlab sandbox validate --profile demo",
    ),
    Command(
        "sandbox", "list", "list sandboxes",
        (
            Arg("--all", "destroyed ones too; so does --state DESTROYED"),
            Arg("--state", "only those in this state", value="STATE", kind="sandbox state"),
            Arg("--profile", "only those of this profile", value="NAME"),
            Arg("--label", "only those with this label: KEY, or KEY=VALUE", value="LABEL"),
        ),
        RUN + "sandbox:list_", "agentlab sandbox list --state RUNNING",
    ),
    Command(
        "sandbox", "show", "show a sandbox", (SANDBOX,), RUN + "sandbox:show",
        "agentlab sandbox show 1003",
    ),
    Command(
        "sandbox", "update", "change a sandbox; cores and memory count from its next start",
        (
            SANDBOX,
            Arg("--cores", "virtual CPUs", value="N", kind="number"),
            Arg("--memory", "memory, like 4G; a bare number is MiB", value="SIZE", kind="memory"),
            Arg("--label", "set a label; KEY= takes it away; repeatable", value="KEY=VALUE",
                many=True),
            Arg("--remove-label", "take a label away; repeatable", value="KEY", many=True),
        ),
        RUN + "sandbox:update", "agentlab sandbox update 1003 --memory 4G --label ticket=42",
    ),
    Command(
        "sandbox", "start", "start a stopped sandbox; its lease begins anew",
        (SANDBOX, NO_QUEUE, NO_WAIT), RUN + "sandbox_power:start",
        "agentlab sandbox start 1003",
    ),
    Command(
        "sandbox", "stop", "stop sandboxes; the guest is asked first, then the power taken",
        (
            Arg("SANDBOX", "VMIDs or names of sandboxes", many=True),
            Arg("--all", "every one that has power, but for those with a job"),
            NO_WAIT,
        ),
        RUN + "sandbox_power:stop", "agentlab sandbox stop 1003",
    ),
    Command(
        "sandbox", "pause", "pause a sandbox; its virtual CPUs stand still, its lease goes on",
        (SANDBOX, NO_WAIT), RUN + "sandbox_power:pause", "agentlab sandbox pause 1003",
    ),
    Command(
        "sandbox", "resume", "let a paused sandbox go on", (SANDBOX, NO_WAIT),
        RUN + "sandbox_power:resume", "agentlab sandbox resume 1003",
    ),
    Command(
        "sandbox", "revert", f"put a sandbox back to snapshot clean; {_LOST}",
        (SANDBOX, *_REVERT), RUN + "sandbox_snapshot:revert",
        "agentlab sandbox revert --yes 1003",
    ),
    Command(
        "sandbox", "snapshot save", "take a snapshot of a stopped sandbox",
        (SANDBOX, SNAPSHOT, NO_WAIT), RUN + "sandbox_snapshot:save",
        "agentlab sandbox snapshot save 1003 before-upgrade",
    ),
    Command(
        "sandbox", "snapshot list", "list the snapshots of a sandbox, oldest first", (SANDBOX,),
        RUN + "sandbox_snapshot:list_", "agentlab sandbox snapshot list 1003",
    ),
    Command(
        "sandbox", "snapshot restore", f"put a sandbox back to a snapshot; {_LOST}",
        (SANDBOX, SNAPSHOT, *_REVERT), RUN + "sandbox_snapshot:restore",
        "agentlab sandbox snapshot restore --yes 1003 before-upgrade",
    ),
    Command(
        "sandbox", "snapshot delete", "delete a snapshot of a stopped sandbox",
        (SANDBOX, SNAPSHOT, YES, FORCE, NO_WAIT), RUN + "sandbox_snapshot:delete",
        "agentlab sandbox snapshot delete --yes 1003 before-upgrade",
    ),
    Command(
        "sandbox", "lease renew", "renew the lease of a RUNNING sandbox",
        (
            SANDBOX,
            Arg("--ttl", "how long from now on; default: as long as before", value="DUR",
                kind="duration"),
        ),
        RUN + "sandbox:renew", "agentlab sandbox lease renew --ttl 4h 1003",
    ),
    Command(
        "sandbox", "destroy", "destroy a sandbox and its disks",
        (SANDBOX, Arg("--force", "from any state, also when its VM is gone; does not ask"),
         YES, NO_WAIT),
        RUN + "sandbox_destroy:destroy", "agentlab sandbox destroy --yes 1003",
    ),
    Command(
        "sandbox", "prune", "remove TIMEOUT sandboxes whose VM is gone; for cron", (),
        RUN + "sandbox_destroy:prune", "agentlab sandbox prune",
    ),
    Command(
        "sandbox", "inventory", "list the hypervisor's machines; says whose they are", (),
        RUN + "sandbox_reconcile:inventory", "agentlab sandbox inventory",
    ),
    Command(
        "sandbox", "reconcile",
        "report where records and hypervisor differ; exit status 1 when they do",
        (Arg("--apply", "mend what can be mended; asks before leftovers are destroyed"), YES),
        RUN + "sandbox_reconcile:reconcile", "agentlab sandbox reconcile --apply --yes",
    ),
    Command(
        "sandbox", "exec",
        "run a program in a sandbox; its exit status is the program's, unless it never started",
        (
            SANDBOX,
            Arg("COMMAND", "the program and its arguments", many=True, required=True,
                verbatim=True),
            Arg("--user", "who runs it; default: agent", value="USER"),
            Arg("--workdir", "where; default: /work, or the user's home without it", value="DIR"),
            Arg("--env", "variable for it; KEY alone takes it from here; repeatable",
                value="KEY=VALUE", many=True),
            Arg("--stdin", "send it our stdin also from a terminal (-i)"),
        ),
        RUN + "sandbox_exec:exec_", "agentlab sandbox exec 1003 -- git status",
    ),
    Command(
        "sandbox", "cp", "copy a file or a directory into a sandbox or out of one",
        (
            Arg("SRC", "what: a path, or SANDBOX:PATH; - is stdin", required=True),
            Arg("DST", "where to: a path, or SANDBOX:PATH; - is stdout", required=True),
            Arg("--user", "whose files they are in the sandbox; default: agent", value="USER"),
        ),
        RUN + "sandbox_cp:cp", "agentlab sandbox cp src 1003:/work",
    ),
    Command(
        "sandbox", "doctor", "write a sandbox's doctor bundle: records, events, no secrets",
        (SANDBOX, *DOCTOR), RUN + "doctor:sandbox",
        "agentlab sandbox doctor 1003 --out bundles/",
    ),
)  # fmt: skip

"""The rows of workspaces."""

from __future__ import annotations

from agentlab.cli.command import Arg, Command
from agentlab.cli.tables.common import FORCE, FROM_SNAPSHOT, NO_WAIT, RUN, SNAPSHOT, STORAGE, YES

WORKSPACE = Arg("WORKSPACE", "the workspace's name", required=True)
_RUN = RUN + "workspace:"
_LOST = "files in it that came later are lost"

WORKSPACES: tuple[Command, ...] = (
    Command(
        "workspace", "create", "make a workspace, a volume that outlives sandboxes",
        (
            Arg("NAME", "its name, if --name does not say it"),
            Arg("--name", "its name", value="NAME"),
            Arg("--size", "how large, like 80G; a bare number is GiB; default: the daemon's",
                value="SIZE", kind="volume"),
            STORAGE,
            NO_WAIT,
        ),
        _RUN + "create", "agentlab workspace create --name data --size 80G",
    ),
    Command(
        "workspace", "list", "list workspaces", (), RUN + "workspace_show:list_",
        "agentlab workspace list",
    ),
    Command(
        "workspace", "show", "show a workspace", (WORKSPACE,), RUN + "workspace_show:show",
        "agentlab workspace show data",
    ),
    Command(
        "workspace", "attach", "attach a workspace to a sandbox; its guest has it at /work",
        (WORKSPACE, Arg("SANDBOX", "VMID or name of the sandbox", required=True), NO_WAIT),
        _RUN + "attach", "agentlab workspace attach data 1003",
    ),
    Command(
        "workspace", "detach", "detach a workspace from the sandbox that has it",
        (WORKSPACE, Arg("--force", "end the programs that use it"), NO_WAIT),
        _RUN + "detach", "agentlab workspace detach data",
    ),
    Command(
        "workspace", "check",
        "check a workspace's record, volume and lease; exit status 1 when something is wrong",
        (WORKSPACE,), RUN + "workspace_check:check", "agentlab workspace check data",
    ),
    Command(
        "workspace", "fsck",
        "check the file system of a detached workspace; exit status 1 when it needs repair",
        (WORKSPACE, Arg("--repair", "mend it; without, nothing is written"), NO_WAIT),
        RUN + "workspace_check:fsck", "agentlab workspace fsck data --repair",
    ),
    Command(
        "workspace", "rebind",
        "move a workspace to a new sandbox; the old one is destroyed when that is READY",
        (
            WORKSPACE,
            Arg("--profile", "of the new sandbox; default: the old one's", value="NAME"),
            Arg("--ttl", "length of its lease; default: the profile's", value="DUR",
                kind="duration"),
            Arg("--name", "its name; default: made from the workspace's", value="NAME"),
            Arg("--keep-old", "do not destroy the old one"),
            Arg("--force", "end what uses /work in the old one; does not ask"),
            YES,
            NO_WAIT,
        ),
        _RUN + "rebind", "agentlab workspace rebind --yes data --profile demo",
    ),
    Command(
        "workspace", "fork", "copy a detached workspace to a new one",
        (WORKSPACE, Arg("--name", "name of the new one", value="NAME", required=True),
         FROM_SNAPSHOT, NO_WAIT),
        _RUN + "fork", "agentlab workspace fork data --name try --from-snapshot before",
    ),
    Command(
        "workspace", "resize", "make a detached workspace larger",
        (
            WORKSPACE,
            Arg("--size", "how large it is to be, like 80G; a bare number is GiB", value="SIZE",
                kind="volume", required=True),
            NO_WAIT,
        ),
        _RUN + "resize", "agentlab workspace resize data --size 120G",
    ),
    Command(
        "workspace", "delete", "delete a detached workspace and all that is in it",
        (WORKSPACE, YES, FORCE, NO_WAIT), _RUN + "delete",
        "agentlab workspace delete --yes data",
    ),
    Command(
        "workspace", "snapshot create", "take a snapshot of a detached workspace",
        (WORKSPACE, SNAPSHOT, NO_WAIT), RUN + "workspace_snapshot:create",
        "agentlab workspace snapshot create data before",
    ),
    Command(
        "workspace", "snapshot list", "list the snapshots of a workspace, oldest first",
        (WORKSPACE,), RUN + "workspace_snapshot:list_", "agentlab workspace snapshot list data",
    ),
    Command(
        "workspace", "snapshot restore", f"put a detached workspace back to a snapshot; {_LOST}",
        (WORKSPACE, SNAPSHOT, YES, FORCE, NO_WAIT),
        RUN + "workspace_snapshot:restore",
        "agentlab workspace snapshot restore --yes data before",
    ),
    Command(
        "workspace", "snapshot delete", "delete a snapshot of a detached workspace",
        (WORKSPACE, SNAPSHOT, YES, FORCE, NO_WAIT), RUN + "workspace_snapshot:delete",
        "agentlab workspace snapshot delete --yes data before",
    ),
    Command(
        "workspace", "lease clear", "end the lease of a workspace that nobody renews any more",
        (WORKSPACE, Arg("--force", "also one that its sandbox renews, when you know better")),
        RUN + "workspace_show:clear_lease", "agentlab workspace lease clear data",
    ),
)  # fmt: skip

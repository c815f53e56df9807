"""Arguments that mean the same in several rows."""

from __future__ import annotations

from agentlab.cli.command import Arg

RUN = "agentlab.cli.commands."  # where the code of all commands is

JOB = Arg("ID", "the job's id", required=True)
SANDBOX = Arg("SANDBOX", "VMID or name of the sandbox", required=True)
NO_WAIT = Arg("--no-wait", "return at once; the daemon goes on")
FOLLOW = Arg("--follow", "go on with what comes, until the end")
TAIL = Arg("--tail", "only the last N lines", value="N", kind="count")
YES = Arg("--yes", "do not ask")
FORCE = Arg("--force", "do not ask")
NO_QUEUE = Arg("--no-queue", "fail when this host has no room now, instead of waiting for it")
AND_SSH = (
    Arg("--and-ssh", "then let our public key in, and become ssh agent@ADDRESS"),
    Arg(
        "--identity",
        "key for --and-ssh; default: ~/.ssh/agentlab_id_ed25519.pub, else"
        " id_ed25519.pub, else id_rsa.pub",
        value="FILE",
    ),
)
STORAGE = Arg("--storage", "storage of the hypervisor; default: its choice", value="ST")
FROM_SNAPSHOT = Arg(
    "--from-snapshot", "as this snapshot has it; default: as it is now", value="NAME"
)
SNAPSHOT = Arg("NAME", "the snapshot's name", required=True)
DOCTOR = (
    Arg(
        "--out",
        "file to write to, or directory (one that is there, or ends with /) for a file of"
        " the default name; default: the present one",
        value="PATH",
    ),
    Arg("--force", "overwrite a file that is there"),
)

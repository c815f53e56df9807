"""The rows of sessions."""

from __future__ import annotations

from agentlab.cli.command import Arg, Command
from agentlab.cli.tables.common import (
    AND_SSH,
    DOCTOR,
    FORCE,
    FROM_SNAPSHOT,
    NO_QUEUE,
    NO_WAIT,
    RUN,
    STORAGE,
    YES,
)

SESSION = Arg("SESSION", "the session's name", required=True)
_RUN = RUN + "session:"

SESSIONS: tuple[Command, ...] = (
    Command(
        "session", "create", "make a session, work that can be stopped, resumed and forked",
        (
            Arg("--name", "its name", value="NAME", required=True),
            Arg("--profile", "what kind of sandbox it has", value="NAME", required=True),
            Arg("--workspace", "a workspace that is there; default: a new one of its own name",
                value="W"),
            Arg("--size", "how large the new workspace is, like 80G; default: the daemon's",
                value="SIZE", kind="volume"),
            STORAGE,
            NO_WAIT,
        ),
        _RUN + "create", "agentlab session create --name fix --profile demo --size 20G",
    ),
    Command(
        "session", "list", "list sessions", (), RUN + "session_show:list_",
        "agentlab session list",
    ),
    Command(
        "session", "show", "show a session", (SESSION,), RUN + "session_show:show",
        "agentlab session show fix",
    ),
    Command(
        "session", "resume", "resume a session in a new sandbox, with its work at /work",
        (
            SESSION,
            Arg("--ttl", "length of the sandbox's lease; default: the profile's", value="DUR",
                kind="duration"),
            Arg("--keepalive", "its lease renews itself"),
            NO_QUEUE,
            *AND_SSH,
            NO_WAIT,
        ),
        _RUN + "resume", "agentlab session resume fix --ttl 4h",
    ),
    Command(
        "session", "stop", "stop a session; its sandbox is destroyed, its work stays",
        (SESSION, Arg("--force", "cancel the job in it first"), NO_WAIT),
        _RUN + "stop", "agentlab session stop fix",
    ),
    Command(
        "session", "fork", "fork a stopped session; the new one has a copy of the work",
        (SESSION, Arg("--name", "name of the new one", value="NAME", required=True),
         FROM_SNAPSHOT, NO_WAIT),
        _RUN + "fork", "agentlab session fork fix --name other",
    ),
    Command(
        "session", "branch", "find or fork the session of a branch; prints its name",
        (SESSION, Arg("BRANCH", "a git branch", required=True), FROM_SNAPSHOT, NO_WAIT),
        _RUN + "branch", "agentlab session branch fix feature/login",
    ),
    Command(
        "session", "delete", "delete a stopped session; its workspace stays",
        (SESSION, Arg("--with-workspace", "its workspace goes too, with all that is in it"), YES,
         FORCE, NO_WAIT),
        _RUN + "delete", "agentlab session delete --yes fix",
    ),
    Command(
        "session", "doctor", "write a session's doctor bundle: records, events, no secrets",
        (SESSION, *DOCTOR), RUN + "doctor:session",
        "agentlab session doctor fix --out bundles/",
    ),
)  # fmt: skip

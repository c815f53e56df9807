"""A door of its own into the daemon, for what is asked of workspaces, sessions and their jobs.

It calls what the API's handlers call, with the same Idempotency-Key.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.api import table
from agentlab.api.table import Endpoint
from agentlab.daemon import handlers
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request
from agentlab.model.job import JobSpec, Repo
from agentlab.model.sandbox import SandboxSpec
from agentlab.model.session import SessionSpec
from agentlab.model.workspace import WorkspaceSpec
from agentlab.operations import requests, session_requests, workspace_requests


@dataclass(frozen=True, slots=True)
class Asked:
    """`name` is a workspace's, or with a verb that begins with "session" a session's.

    `to` is a sandbox, the name of what is made, or a branch; for a job its task.  With "job in a
    branch" the name is a session's, and `snapshot` the branch.  `size` in MiB, `wait` in seconds.
    """

    verb: str
    name: str
    to: str = ""
    snapshot: str = ""
    profile: str = ""
    size: int = 0
    wait: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The operation, "" for none; the job when it was one that was asked for."""

    operation: str
    job: str = ""


DOOR = Endpoint("sim", "POST", "/v1/sim", Asked, Answer, "workspaces and sessions")


def open_door() -> None:
    """Puts it into the table of this process."""
    table.ENDPOINTS = (*table.ENDPOINTS, DOOR)  # type: ignore[arg-type]
    handlers.HANDLERS["sim"] = _ask  # type: ignore[index]


def _ask(daemon: Daemon, request: Request[Asked]) -> Answer:
    asked = request.document
    if asked.verb in ("job", "job in a branch"):
        where = {"workspace": asked.name}
        if asked.verb != "job":
            where = {"session": asked.name, "branch": asked.snapshot}
        repo = Repo(url="https://example.org/x.git")
        profile = asked.profile or "demo"
        spec = JobSpec(repo, asked.to, profile, workspace_wait=asked.wait, **where)
        job = requests.create_job(daemon.world, daemon.runner, spec, request.key)
        return Answer(job.operation, job.id)
    if asked.verb.startswith("session"):
        return Answer(_session(daemon, asked, request.key))
    return Answer(_workspace(daemon, asked, request.key))


def _workspace(daemon: Daemon, asked: Asked, key: str) -> str:  # noqa: PLR0911  # one a verb
    at, name, work = (daemon.world, daemon.runner), asked.name, workspace_requests
    match asked.verb:
        case "create":
            return work.create(*at, WorkspaceSpec(name, asked.size, "local"), key)
        case "attach":
            return work.attach(*at, name, asked.to, key)
        case "detach":
            return work.detach(*at, name, key, force=asked.force)
        case "fsck":
            return work.fsck(*at, name, key, repair=asked.force)
        case "resize":
            return work.resize(*at, name, key, size=asked.size)
        case "delete":
            return work.delete(*at, name, key)
        case "snapshot":
            return work.save_snapshot(*at, name, key, asked.snapshot)
        case "restore":
            return work.restore_snapshot(*at, name, key, asked.snapshot)
        case "snapshot delete":
            return work.delete_snapshot(*at, name, key, asked.snapshot)
        case "fork":
            return work.fork(*at, name, key, new=asked.to, snapshot=asked.snapshot)
        case "rebind":
            spec = SandboxSpec(profile="", name=asked.to)
            return work.rebind(*at, name, spec, key, keep_old=asked.force)
        case "clear":
            work.clear_lease(daemon.world, name, force=asked.force)
            return ""
    raise AssertionError(asked.verb)


def _session(daemon: Daemon, asked: Asked, key: str) -> str:
    at, name, sessions = (daemon.world, daemon.runner), asked.name, session_requests
    match asked.verb.removeprefix("session "):
        case "create":
            spec = SessionSpec(name, "demo", size=asked.size, storage="local")
            return sessions.create(*at, spec, key)[1]
        case "resume":
            return sessions.resume(*at, name, key)
        case "stop":
            return sessions.stop(*at, name, key, force=asked.force)
        case "fork":
            return sessions.fork(*at, name, key, new=asked.to, snapshot=asked.snapshot)[1]
        case "branch":
            return sessions.branch(*at, name, asked.to, key, snapshot=asked.snapshot)[1]
        case "delete":
            return sessions.delete(*at, name, key, with_workspace=asked.force)
    raise AssertionError(asked.verb)

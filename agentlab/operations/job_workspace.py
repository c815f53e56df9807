"""Which workspace a job is to have: named, or that of a session, found or made with the job."""

from __future__ import annotations

import dataclasses

from agentlab.engine.runner import Runner
from agentlab.errors import Conflict, Invalid
from agentlab.model.job import JobSpec
from agentlab.model.session import (
    Session,
    SessionSpec,
    parse_branch,
    repo_session_base,
)
from agentlab.model.workspace import Workspace, WorkspaceState
from agentlab.operations import session_requests
from agentlab.operations.context import World
from agentlab.store import sessions, workspaces
from agentlab.store.db import Tx


def checked(world: World, spec: JobSpec) -> JobSpec:
    """The same spec with the profile of its session; Invalid for what does not go together."""
    if bool(spec.workspace) + bool(spec.session) + spec.stateful > 1:
        raise _bad("workspace", "name one of workspace, session and stateful")
    if spec.branch:
        parse_branch(spec.branch)
        if not (spec.session or spec.stateful):
            raise _bad("branch", "is for a session: name one, or ask for a stateful job")
    if spec.stateful and not spec.repo.url:
        raise _bad("stateful", "needs a git URL; for a path name a session")
    if spec.branch and not spec.repo.ref:
        spec = dataclasses.replace(spec, repo=dataclasses.replace(spec.repo, ref=spec.branch))
    if not spec.profile:
        spec = dataclasses.replace(spec, profile=_profile(world, spec))
    return spec


def _bad(path: str, why: str) -> Invalid:
    return Invalid(f"{path}: {why}", details={"path": path})


def _profile(world: World, spec: JobSpec) -> str:
    if not spec.session:
        raise _bad("profile", "is needed, unless a session has one")
    with world.store.read() as tx:
        return sessions.get(tx, spec.session).profile


def known(tx: Tx, spec: JobSpec) -> tuple[Workspace | None, Session | None]:
    """The workspace and session that are there for a job already; None for one to be made."""
    session: Session | None = None
    if spec.workspace:
        found = workspaces.get(tx, spec.workspace)
        return found, sessions.of_workspace(tx, found.id)
    if spec.stateful:
        session = sessions.of_branch(tx, repo=spec.repo.url, branch=_branch(spec))
    elif spec.session and spec.branch:
        sessions.get(tx, spec.session)
        session = sessions.of_branch(tx, origin=spec.session, branch=spec.branch)
    elif spec.session:
        session = sessions.get(tx, spec.session)
    if session is None:
        return None, None
    return session_requests.workspace_of(tx, session), session


def _branch(spec: JobSpec) -> str:
    """What tells the stateful sessions of a repository apart."""
    return spec.branch or spec.repo.ref or "HEAD"


def taken_up(world: World, runner: Runner, tx: Tx, spec: JobSpec) -> tuple[int, str]:
    """The workspace's id (0 for a job without one) and the session's name, made where it is missing.

    Conflict for one that another has, when it is not to be waited for.
    """
    if not (spec.workspace or spec.session or spec.stateful):
        return 0, ""
    workspace, session = known(tx, spec)
    if workspace is None:
        return _made(world, runner, tx, spec)
    if workspace.state is WorkspaceState.ATTACHED and not spec.workspace_wait:
        raise Conflict(
            f"cannot use workspace {workspace.name}: sandbox {workspace.vmid} has it",
            hint="wait for it: --workspace-wait 1h; or detach it: "
            f"agentlab workspace detach {workspace.name}",
            details={"vmid": workspace.vmid},
        )
    if session is not None:
        sessions.touch(tx, session.id)
    return workspace.id, session.name if session else ""


def _made(world: World, runner: Runner, tx: Tx, spec: JobSpec) -> tuple[int, str]:
    if spec.session:
        name, _ = session_requests.begin_branch(world, runner, tx, spec.session, spec.branch)
    else:
        name = session_requests.free_name(tx, repo_session_base(spec.repo.url), _branch(spec))
        session_requests.begin_create(
            world, runner, tx,
            SessionSpec(name, spec.profile, repo=spec.repo.url, branch=_branch(spec)),
        )  # fmt: skip
    return sessions.get(tx, name).workspace, name

"""Workspaces and sessions as the API shows them, and what of them others show."""

from __future__ import annotations

from collections.abc import Mapping

from agentlab import clock
from agentlab.api import messages as m
from agentlab.model.job import Job, JobSpec
from agentlab.model.sandbox import Sandbox
from agentlab.model.session import Session, SessionState
from agentlab.model.workspace import Workspace, WorkspaceState
from agentlab.operations.job_workspace import known
from agentlab.operations.session_stop import subject_of_session
from agentlab.operations.workspace_turn import subject_of
from agentlab.store import operations, sandboxes, sessions, workspaces
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow


def workspace_view(tx: Tx, workspace: Workspace) -> m.WorkspaceView:
    sandbox, session = _holder(tx, workspace), sessions.of_workspace(tx, workspace.id)
    at_work = _at_work(tx, workspace)
    return m.WorkspaceView(
        name=workspace.name,
        state=workspace.state.value,
        size=workspace.size,
        storage=workspace.storage,
        volid=workspace.volid,
        number=workspace.number,
        formatted=workspace.formatted,
        origin=workspace.origin,
        vmid=workspace.vmid,
        sandbox=sandbox.name if sandbox else "",
        session=session.name if session else "",
        lease_until=workspace.lease_until,
        stale=workspace.stale(clock.now()),
        created=workspace.created,
        changed=workspace.changed,
        operation=_named(at_work),
        waits_for=at_work.waits_for if at_work else "",
    )


def session_view(tx: Tx, session: Session, repo: str) -> m.SessionView:
    """A session; `repo` is its repository without credentials."""
    workspace = workspaces.by_id(tx, session.workspace)
    sandbox = _holder(tx, workspace) if workspace else None
    at_work = operations.holder_of(tx, subject_of_session(session.id))
    if at_work is None and sandbox is not None:
        at_work = operations.holder_of(tx, f"sandbox:{sandbox.vmid}")
    if at_work is None and workspace is not None:
        at_work = _at_work(tx, workspace)
    return m.SessionView(
        name=session.name,
        state=_state(workspace),
        workspace=workspace.name if workspace else "",
        profile=session.profile,
        origin=session.origin,
        repo=repo,
        branch=session.branch,
        vmid=workspace.vmid if workspace else 0,
        sandbox=sandbox.name if sandbox else "",
        job=sandbox.job if sandbox else "",
        created=session.created,
        changed=session.changed,
        operation=_named(at_work),
        waits_for=at_work.waits_for if at_work else "",
    )


def _state(workspace: Workspace | None) -> str:
    if workspace is None or workspace.state is WorkspaceState.DELETED:
        return "GONE"
    if workspace.state is WorkspaceState.CREATING:
        return workspace.state.value
    attached = workspace.state is WorkspaceState.ATTACHED
    return (SessionState.RUNNING if attached else SessionState.STOPPED).value


def _holder(tx: Tx, workspace: Workspace) -> Sandbox | None:
    """The sandbox that has it; None also when its VMID is another sandbox's by now."""
    found = sandboxes.find(tx, workspace.vmid) if workspace.vmid else None
    return found if found is not None and found.id == workspace.holder else None


def _at_work(tx: Tx, workspace: Workspace) -> OperationRow | None:
    """What is done with it, or makes it: a fork has its source's turn, not the new one's."""
    return operations.holder_of(tx, subject_of(workspace.id)) or operations.of_made(
        tx, workspace.id
    )


def _named(operation: OperationRow | None) -> str:
    return f"{operation.kind} {operation.id}" if operation else ""


def held(tx: Tx) -> Mapping[int, str]:
    """The name of the workspace that each sandbox has, by the id of its record."""
    return {each.holder: each.name for each in workspaces.live(tx) if each.holder}


def work_of_job(tx: Tx, job: Job) -> tuple[str, str]:
    """The names of the workspace and the session that a job works in, "" for none.

    Its operation knows which were found or made for it; without that one, what was asked for.
    """
    spec = job.spec
    if not (spec.workspace or spec.session or spec.stateful):
        return "", ""
    operation = operations.find(tx, job.operation)
    given = operation.input if operation else {}
    identity, labels = given.get("workspace"), given.get("labels")
    found = workspaces.by_id(tx, identity) if isinstance(identity, int) else None
    session = str(labels.get("session", "")) if isinstance(labels, dict) else spec.session
    return found.name if found else spec.workspace, session


def work_of_plan(tx: Tx, spec: JobSpec) -> tuple[str, str]:
    """As `work_of_job`, of those that are there before the job is; NotFound for unknown names."""
    workspace, session = known(tx, spec)
    return workspace.name if workspace else "", session.name if session else ""

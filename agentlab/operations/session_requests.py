"""What people ask for of sessions: refused at once where that is certain, else written down.

A session's record is there with the request; what its workspace still needs is an operation.
"""

from __future__ import annotations

import dataclasses

from agentlab import clock
from agentlab.engine.runner import Runner
from agentlab.errors import Busy, Conflict
from agentlab.model.ids import new_id
from agentlab.model.sandbox import SandboxSpec
from agentlab.model.session import (
    Session,
    SessionSpec,
    branch_session_name,
    parse_branch,
)
from agentlab.model.workspace import Workspace, WorkspaceState, check_size, parse_workspace_name
from agentlab.operations import (
    admit,
    job_run,
    sandbox_create,
    session_stop,
    workspace_create,
    workspace_requests,
    workspace_volume,
)
from agentlab.operations.asked import digest_of, earlier
from agentlab.operations.context import World
from agentlab.operations.sandbox_requests import plan_sandbox
from agentlab.operations.turn import words
from agentlab.operations.workspace_hold import next_in_line, refuse_awaited
from agentlab.operations.workspace_turn import refuse_made, refuse_making, subject_of
from agentlab.store import operations, sandboxes, sessions, workspaces
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

_COMES = "it is just being resumed"


def create(world: World, runner: Runner, spec: SessionSpec, key: str) -> tuple[str, str]:
    """The session's name, and the operation that makes its workspace ("" for one that is there)."""
    parse_workspace_name(spec.name, "session")
    if spec.branch:
        parse_branch(spec.branch)
    world.profile(spec.profile)  # NotFound, Invalid
    digest = digest_of("session.create", dataclasses.asdict(spec))
    with world.store.read() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return spec.name, before.id
    if not spec.workspace:
        world.hypervisor.check_storage(spec.storage)
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return spec.name, before.id
        if spec.workspace and _is_bound(tx, spec):
            return spec.name, ""  # as asked already: nothing else keeps the key
        return spec.name, begin_create(world, runner, tx, spec, (key, digest))


def _is_bound(tx: Tx, spec: SessionSpec) -> bool:
    """Whether there is this very session already."""
    found, workspace = sessions.find(tx, spec.name), workspaces.find(tx, spec.workspace)
    return (
        found is not None
        and workspace is not None
        and (found.workspace, found.profile) == (workspace.id, spec.profile)
    )


def begin_create(
    world: World, runner: Runner, tx: Tx, spec: SessionSpec, request: tuple[str, str] = ("", "")
) -> str:
    """Writes a session down in the caller's transaction; the operation that makes its workspace."""
    refuse_taken(tx, spec.name)
    other = sessions.of_branch(tx, repo=spec.repo, branch=spec.branch) if spec.branch else None
    if other is not None:
        raise Conflict(
            f"cannot make session {spec.name}: session {other.name} is for branch {spec.branch}",
            hint=f"use that one: agentlab session resume {other.name}",
            details={"path": "branch"},
        )
    operation = ""
    if spec.workspace:
        identity = _unbound(tx, spec.workspace).id
    else:
        size = check_size(spec.size or world.config.workspace_size)
        operation = new_id()
        identity = workspace_requests.begin_new(world, tx, spec.name, size, spec.storage, operation)
        runner.submit(
            tx, workspace_create.CREATE, [subject_of(identity)],
            {"workspace": identity, "made": identity}, operation=operation, request=request,
        )  # fmt: skip
    sessions.create(tx, _record(spec, identity), operation=operation)
    return operation


def _record(spec: SessionSpec, workspace: int, origin: str = "") -> Session:
    now = clock.now()
    return Session(
        name=spec.name, workspace=workspace, profile=spec.profile, created=now, changed=now,
        origin=origin, repo=spec.repo, branch=spec.branch,
    )  # fmt: skip


def refuse_taken(tx: Tx, name: str) -> None:
    """Conflict for a name that another session has."""
    if sessions.find(tx, name) is not None:
        raise Conflict(
            f"cannot make session {name}: there is one of that name already",
            hint=f"choose another name, or see: agentlab session show {name}",
            details={"path": "name"},
        )


def _unbound(tx: Tx, name: str) -> Workspace:
    workspace = workspaces.get(tx, name)
    other = sessions.of_workspace(tx, workspace.id)
    if other is not None:
        raise Conflict(
            f"cannot use workspace {name}: it belongs to session {other.name}",
            hint=f"use that session, or fork it: agentlab session fork {other.name} --name NEW",
        )
    subject = subject_of(workspace.id)
    holder = operations.holder_of(tx, subject)
    for each in (holder, *operations.waiting_for(tx, subject)):
        if each is not None and _frees(each):
            raise Conflict(
                f"cannot use workspace {name}: it is being deleted",
                hint="see: agentlab workspace list",
            )
    return workspace


def _frees(operation: OperationRow) -> bool:
    """Whether an operation on a workspace ends it."""
    deletes_both = operation.kind == session_stop.DELETE and session_stop.with_workspace(operation)
    return deletes_both or operation.kind == workspace_volume.DELETE


def resume(
    world: World, runner: Runner, name: str, key: str,
    *, ttl: int = 0, keepalive: bool = False, queue: bool = True,
) -> str:  # fmt: skip
    """The operation that makes a new sandbox with the session's work at /work.

    Conflict for one that runs already, and for who comes second.
    """
    identity = new_id()
    digest = digest_of("session.resume", name, ttl, keepalive, queue)
    with world.store.read() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        session = sessions.get(tx, name)
    spec = SandboxSpec(
        profile=session.profile, name=f"{name[:50]}-{identity[-7:]}", ttl=ttl,
        keepalive=keepalive, labels={"session": name}, queue=queue,
    )  # fmt: skip
    planned = plan_sandbox(world, spec)
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        session, workspace = _whole(tx, name)
        _refuse_running(tx, session, workspace)
        if not queue:
            limits = world.config.limits
            admit.refuse_now(tx, limits, planned.cores, planned.memory, new=True)
        sessions.touch(tx, session.id)
        return runner.submit(
            tx, sandbox_create.KIND, [subject_of_session(session.id)],
            {**dataclasses.asdict(spec), "plan": dataclasses.asdict(planned),
             "workspace": workspace.id},
            operation=identity, request=(key, digest),
        )  # fmt: skip


def subject_of_session(identity: int) -> str:
    """What the making of a session's sandbox locks."""
    return f"session:{identity}"


def _whole(tx: Tx, name: str) -> tuple[Session, Workspace]:
    session = sessions.get(tx, name)
    return session, workspace_of(tx, session)


def workspace_of(tx: Tx, session: Session) -> Workspace:
    """The workspace of a session; Conflict when it is gone."""
    workspace = workspaces.by_id(tx, session.workspace)
    if workspace is None or workspace.state is WorkspaceState.DELETED:
        raise Conflict(
            f"cannot use session {session.name}: its workspace is gone",
            hint=f"agentlab session delete {session.name}",
        )
    return workspace


def free_name(tx: Tx, base: str, branch: str) -> str:
    """A name that neither a session nor a workspace has, for a session of this branch."""
    taken = {each.name for each in sessions.everyone(tx)}
    return branch_session_name(base, branch, taken | {each.name for each in workspaces.live(tx)})


def _refuse_running(tx: Tx, session: Session, workspace: Workspace) -> None:
    holder = operations.holder_of(tx, subject_of_session(session.id))
    if holder is not None:
        raise Conflict(
            f"cannot resume session {session.name}: somebody else has just resumed it, as sandbox "
            f"{holder.vmid or 'that is being made'}",
            hint=f"see: agentlab session show {session.name}",
            details={"operation": holder.id, "vmid": holder.vmid},
        )
    if workspace.state is WorkspaceState.ATTACHED:
        raise Conflict(
            f"cannot resume session {session.name}: it runs in sandbox {workspace.vmid}",
            hint=f"use that one (agentlab sandbox show {workspace.vmid}), or stop it first: "
            f"agentlab session stop {session.name}",
            details={"vmid": workspace.vmid},
        )
    refuse_making(workspace, "use")


def stop(world: World, runner: Runner, name: str, key: str, *, force: bool = False) -> str:
    """The operation that ends the session's sandbox well; "" for a session that is stopped.

    Busy while a job runs in it, or is about to, or a resume is under way; `force` cancels that
    first.
    """
    digest = digest_of(session_stop.STOP, name, force)
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        session, workspace = _whole(tx, name)
        sandbox = sandboxes.find(tx, workspace.vmid) if workspace.vmid else None
        if sandbox is None or sandbox.id != workspace.holder:
            return _stop_coming(tx, runner, session, (key, digest), force=force)
        _refuse_under_way(tx, session, subject_of(workspace.id), "stop")
        holder = operations.holder_of(tx, f"sandbox:{sandbox.vmid}")
        if holder is not None and holder.kind == session_stop.STOP:
            return holder.id
        if holder is not None and holder.kind in (job_run.KIND, sandbox_create.KIND):
            runs = f"job {holder.job} runs in it" if holder.job else _COMES
            _evict(tx, runner, session, holder, runs, force=force)
            if holder.job:
                sandboxes.set_held(tx, sandbox.vmid, held=True)
        sessions.touch(tx, session.id)
        return runner.submit(
            tx, session_stop.STOP, [f"sandbox:{sandbox.vmid}"], {"id": sandbox.id},
            job=sandbox.job, vmid=sandbox.vmid, in_turn=True, request=(key, digest),
        )  # fmt: skip


def _refuse_under_way(tx: Tx, session: Session, subject: str, verb: str) -> None:
    """Busy while something else decides where its work is."""
    holder = operations.holder_of(tx, subject)
    if holder is not None:
        raise Busy(
            f"cannot {verb} session {session.name}: {words(holder)}",
            hint=f"wait until it has ended: agentlab session show {session.name}",
            details={"operation": holder.id},
        )


def _stop_coming(
    tx: Tx, runner: Runner, session: Session, request: tuple[str, str], *, force: bool
) -> str:
    """As `stop`, where no sandbox has the work yet: what is about to give it one is in the way.

    What is cancelled turns back by itself: the operation ends after it.
    """
    coming = operations.holder_of(tx, subject_of_session(session.id)) or next_in_line(
        tx, session.workspace
    )
    if coming is None:
        return ""
    if coming.kind == session_stop.STOP:
        return coming.id
    waits = f"job {coming.job} waits for its work" if coming.job else _COMES
    _evict(tx, runner, session, coming, waits, force=force)
    return runner.submit(tx, session_stop.STOP, [coming.subject], {}, in_turn=True, request=request)


def _evict(
    tx: Tx, runner: Runner, session: Session, holder: OperationRow, what: str, *, force: bool
) -> None:
    if not force:
        end = f"agentlab job cancel {holder.job}, or " if holder.job else ""
        raise Busy(
            f"cannot stop session {session.name}: {what}",
            hint=f"wait for it, {end}use --force, which cancels it first",
            details={"operation": holder.id, "job": holder.job},
        )
    runner.cancel(tx, holder.id)


def fork(
    world: World, runner: Runner, name: str, key: str, *, new: str, snapshot: str = ""
) -> tuple[str, str]:
    """A new session with a copy of the work; its name and the operation that copies."""
    parse_workspace_name(new, "session")
    digest = digest_of("session.fork", name, new, snapshot)
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return new, before.id
        return new, _begin_fork(world, runner, tx, name, new, snapshot, "", (key, digest))


def _begin_fork(
    world: World, runner: Runner, tx: Tx, name: str, new: str, snapshot: str, branch: str,
    request: tuple[str, str],
) -> str:  # fmt: skip
    session, workspace = _whole(tx, name)
    refuse_taken(tx, new)
    made, operation = workspace_requests.begin_fork(
        world, runner, tx, workspace.name, new, snapshot, request
    )
    spec = SessionSpec(new, session.profile, repo="", branch=branch)
    sessions.create(tx, _record(spec, made, origin=name), operation=operation)
    return operation


def branch(
    world: World, runner: Runner, name: str, branch: str, key: str, *, snapshot: str = ""
) -> tuple[str, str]:
    """The session of a branch of this session: found, or forked; its name, and the operation or ""."""
    parse_branch(branch)
    digest = digest_of("session.branch", name, branch, snapshot)
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return _name_made(tx, before), before.id
        return begin_branch(world, runner, tx, name, branch, snapshot, (key, digest))


def _name_made(tx: Tx, operation: OperationRow) -> str:
    """The session that an operation was asked to make: it is called like its workspace."""
    made = workspaces.by_id(tx, int(str(operation.input["made"])))
    return made.name if made else ""


def begin_branch(
    world: World, runner: Runner, tx: Tx, name: str, branch: str, snapshot: str = "",
    request: tuple[str, str] = ("", ""),
) -> tuple[str, str]:  # fmt: skip
    """As `branch`, in the caller's transaction."""
    found = sessions.of_branch(tx, origin=name, branch=branch)
    if found is not None:
        _, workspace = _whole(tx, found.name)
        holder = operations.of_made(tx, workspace.id)
        return found.name, holder.id if holder is not None else ""
    new = free_name(tx, name, branch)
    return new, _begin_fork(world, runner, tx, name, new, snapshot, branch, request)


def delete(world: World, runner: Runner, name: str, key: str, *, with_workspace: bool) -> str:
    """The operation that deletes a session, and its workspace when that is asked for too."""
    digest = digest_of(session_stop.DELETE, name, with_workspace)
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        session = sessions.get(tx, name)
        workspace = workspaces.by_id(tx, session.workspace)
        if workspace is None or workspace.state is WorkspaceState.DELETED:
            sessions.delete(tx, session.id)
            return ""
        if workspace.state is WorkspaceState.ATTACHED:
            raise Conflict(
                f"cannot delete session {name}: it runs in sandbox {workspace.vmid}",
                hint=f"stop it first: agentlab session stop {name}",
                details={"vmid": workspace.vmid},
            )
        refuse_made(tx, workspace, "delete")
        _refuse_under_way(tx, session, subject_of_session(session.id), "delete")
        if with_workspace:
            refuse_awaited(tx, workspace, "delete")
        return runner.submit(
            tx, session_stop.DELETE, [subject_of(workspace.id)],
            {"workspace": workspace.id, "session": session.id, "with_workspace": with_workspace},
            in_turn=True, request=(key, digest),
        )  # fmt: skip

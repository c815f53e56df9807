"""What people ask for of workspaces: refused at once where that is certain, else written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from agentlab import clock
from agentlab.engine.runner import Runner
from agentlab.errors import Busy, Conflict, Invalid
from agentlab.model.ids import new_id
from agentlab.model.sandbox import Sandbox, SandboxSpec, parse_snapshot_name
from agentlab.model.workspace import (
    Workspace,
    WorkspaceSpec,
    check_size,
    parse_workspace_name,
)
from agentlab.operations import (
    job_run,
    workspace_attach,
    workspace_create,
    workspace_rebind,
    workspace_volume,
)
from agentlab.operations.asked import digest_of, earlier
from agentlab.operations.context import World
from agentlab.operations.sandbox_requests import plan_sandbox
from agentlab.operations.workspace_hold import refuse_awaited
from agentlab.operations.workspace_turn import refuse_made, refuse_making, subject_of
from agentlab.store import operations, sandboxes, workspaces
from agentlab.store.db import Tx

_Checked = Callable[[Tx, Workspace], None]


def create(world: World, runner: Runner, spec: WorkspaceSpec, key: str) -> str:
    """The operation that makes a workspace; its record is there when this returns."""
    parse_workspace_name(spec.name)
    check_size(spec.size)
    digest = digest_of(workspace_create.CREATE, dataclasses.asdict(spec))
    with world.store.read() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        refuse_taken(tx, spec.name)
    world.hypervisor.check_storage(spec.storage)
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        made = begin_new(world, tx, spec.name, spec.size, spec.storage, operation := new_id())
        return runner.submit(
            tx, workspace_create.CREATE, [subject_of(made)], {"workspace": made, "made": made},
            operation=operation, request=(key, digest),
        )  # fmt: skip


def begin_new(
    world: World, tx: Tx, name: str, size: int, storage: str, operation: str,
    *, origin: str = "", formatted: bool = False,
) -> int:  # fmt: skip
    """Takes a name and a number; the id of the record, whose volume the operation makes."""
    refuse_taken(tx, name)
    storage = storage or world.hypervisor.storage_of("")  # the settings may change meanwhile
    record = workspace_create.new_record(
        name, workspace_create.free_number(world, tx), size, storage, origin, formatted=formatted
    )
    return workspaces.create(tx, record, operation=operation)


def refuse_taken(tx: Tx, name: str) -> None:
    """Conflict for a name that another workspace has."""
    if workspaces.find(tx, name) is not None:
        raise Conflict(
            f"cannot make workspace {name}: there is one of that name already",
            hint=f"choose another name, or see: agentlab workspace show {name}",
            details={"path": "name"},
        )


def attach(world: World, runner: Runner, name: str, sandbox: str, key: str) -> str:
    """The operation that gives a sandbox (VMID or name) a workspace."""
    digest = digest_of(workspace_attach.ATTACH, name, sandbox)
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        workspace, box = workspaces.get(tx, name), sandboxes.get_live(tx, sandbox)
        workspace_attach.refuse_sandbox(box, "attach")
        workspace_attach.refuse_second(tx, workspace, box)
        refuse_making(workspace, "attach")
        if workspace.holder != box.id:
            workspaces.refuse_attached(tx, workspace, "attach")
            refuse_awaited(tx, workspace, "attach")
        _refuse_job(tx, workspace, box.vmid, f"attach workspace {name} to")
        return runner.submit(
            tx, workspace_attach.ATTACH, [subject_of(workspace.id)],
            {"workspace": workspace.id, "sandbox": box.id}, vmid=box.vmid, in_turn=True,
            request=(key, digest),
        )  # fmt: skip


def detach(world: World, runner: Runner, name: str, key: str, *, force: bool) -> str:
    """The operation that takes a workspace from the sandbox that has it; detached: it does nothing."""
    digest = digest_of(workspace_attach.DETACH, name, force)
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        workspace = workspaces.get(tx, name)
        _refuse_job(tx, workspace, workspace.vmid, f"detach workspace {name} from")
        held = sandboxes.find(tx, workspace.vmid) if workspace.vmid else None
        if held is not None and held.id == workspace.holder:
            workspace_attach.refuse_sandbox(held, "detach")
        return runner.submit(
            tx, workspace_attach.DETACH, [subject_of(workspace.id)],
            {"workspace": workspace.id, "sandbox": workspace.holder, "force": force},
            vmid=workspace.vmid, in_turn=True, request=(key, digest),
        )  # fmt: skip


def _refuse_job(tx: Tx, workspace: Workspace, vmid: int, what: str) -> None:
    holder = operations.holder_of(tx, f"sandbox:{vmid}") if vmid else None
    if holder is not None and holder.kind == job_run.KIND:
        raise Busy(
            f"cannot {what} sandbox {vmid}: job {holder.job} runs in it",
            hint=f"wait for it (agentlab job wait {holder.job}), or cancel it "
            f"(agentlab job cancel {holder.job})",
            details={"operation": holder.id, "job": holder.job, "workspace": workspace.name},
        )


def fsck(world: World, runner: Runner, name: str, key: str, *, repair: bool) -> str:
    """The operation that checks the file system, and mends it with `repair`."""
    return _detached(
        world, runner, workspace_volume.FSCK, "check the file system of", name, key,
        {"repair": repair},
    )  # fmt: skip


def resize(world: World, runner: Runner, name: str, key: str, *, size: int) -> str:
    """The operation that makes it larger, to `size` MiB; Invalid for less than it has."""
    check_size(size)

    def check(_: Tx, workspace: Workspace) -> None:
        if size < workspace.size:
            raise Invalid(
                f"cannot resize workspace {name}: it has {workspace.size} MiB, and a volume is "
                "never made smaller",
                hint="make a new one, and copy what is to stay",
                details={"path": "size"},
            )

    return _detached(
        world, runner, workspace_volume.RESIZE, "resize", name, key, {"size": size}, check
    )


def delete(world: World, runner: Runner, name: str, key: str) -> str:
    """The operation that deletes a workspace with all that is in it."""
    return _detached(
        world, runner, workspace_volume.DELETE, "delete", name, key, {},
        workspace_volume.refuse_needed,
    )  # fmt: skip


def save_snapshot(world: World, runner: Runner, name: str, key: str, snapshot: str) -> str:
    """The operation that takes a snapshot."""

    def check(_: Tx, workspace: Workspace) -> None:
        if not workspace.formatted:
            raise Conflict(
                f"cannot take a snapshot of workspace {name}: there is nothing in it yet",
                hint=f"attach it once: agentlab workspace attach {name} SANDBOX",
            )

    return _snapshot(world, runner, workspace_volume.SAVE, "take a snapshot of", name, key,
                     snapshot, check)  # fmt: skip


def restore_snapshot(world: World, runner: Runner, name: str, key: str, snapshot: str) -> str:
    """The operation that puts back what a snapshot has."""
    return _snapshot(world, runner, workspace_volume.RESTORE, "restore a snapshot of", name, key,
                     snapshot)  # fmt: skip


def delete_snapshot(world: World, runner: Runner, name: str, key: str, snapshot: str) -> str:
    """The operation that deletes a snapshot."""
    return _snapshot(world, runner, workspace_volume.SNAPSHOT_DELETE, "delete a snapshot of", name,
                     key, snapshot)  # fmt: skip


def _snapshot(
    world: World, runner: Runner, kind: str, verb: str, name: str, key: str, snapshot: str,
    check: _Checked | None = None,
) -> str:  # fmt: skip
    parse_snapshot_name(snapshot)
    return _detached(world, runner, kind, verb, name, key, {"name": snapshot}, check)


def _detached(
    world: World, runner: Runner, kind: str, verb: str, name: str, key: str,
    given: Mapping[str, object], check: _Checked | None = None,
) -> str:  # fmt: skip
    """Writes an operation down that needs the workspace detached; Conflict says which sandbox has it."""
    digest = digest_of(kind, name, given)  # by its name: what was deleted is asked for again, too
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        workspace = workspaces.get(tx, name)
        workspaces.refuse_attached(tx, workspace, verb)
        if kind == workspace_volume.DELETE:
            refuse_made(tx, workspace, verb)
        else:
            refuse_making(workspace, verb)
        if check is not None:
            check(tx, workspace)
        return runner.submit(
            tx, kind, [subject_of(workspace.id)], {"workspace": workspace.id, **given},
            in_turn=True, request=(key, digest),
        )  # fmt: skip


def fork(world: World, runner: Runner, name: str, key: str, *, new: str, snapshot: str = "") -> str:
    """The operation that copies a workspace to a new one, as it is now or as a snapshot has it."""
    digest = digest_of(workspace_create.FORK, name, new, snapshot)
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        return begin_fork(world, runner, tx, name, new, snapshot, (key, digest))[1]


def begin_fork(
    world: World, runner: Runner, tx: Tx, name: str, new: str, snapshot: str,
    request: tuple[str, str],
) -> tuple[int, str]:  # fmt: skip
    """The new record's id and the operation that fills it; Conflict while the source is attached."""
    parse_workspace_name(new)
    if snapshot:
        parse_snapshot_name(snapshot)
    source = workspaces.get(tx, name)
    workspaces.refuse_attached(tx, source, "fork")
    refuse_making(source, "fork")
    operation = new_id()
    made = begin_new(
        world, tx, new, source.size, source.storage, operation,
        origin=f"{name}@{snapshot}" if snapshot else name, formatted=source.formatted,
    )  # fmt: skip
    runner.submit(
        tx, workspace_create.FORK, [subject_of(source.id)],
        {"workspace": source.id, "made": made, "snapshot": snapshot}, operation=operation,
        in_turn=True, request=request,
    )  # fmt: skip
    operations.lock(tx, operation, subject_of(made))
    return made, operation


def rebind(
    world: World, runner: Runner, name: str, spec: SandboxSpec, key: str,
    *, keep_old: bool, force: bool = False,
) -> str:  # fmt: skip
    """The operation that makes a new sandbox, and moves an attached workspace to it when it is READY.

    `spec.profile` "" is the old one's, and so are labels, for none.  The old sandbox is destroyed
    afterwards, unless `keep_old`.  `force`: what uses /work in it is ended.
    """
    digest = digest_of(workspace_rebind.KIND, name, dataclasses.asdict(spec), keep_old, force)
    with world.store.read() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        _, held = _held(tx, name)
    spec = dataclasses.replace(
        spec, profile=spec.profile or held.profile, labels=spec.labels or held.labels
    )
    planned = plan_sandbox(world, spec)
    identity = new_id()
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        workspace, _ = _held(tx, name)  # another one by now: its turn refuses that
        _refuse_job(tx, workspace, held.vmid, f"rebind workspace {name}, which is with")
        return runner.submit(
            tx, workspace_rebind.KIND, [subject_of(workspace.id)],
            {
                **dataclasses.asdict(spec),
                "name": spec.name or f"{name[:50]}-{identity[-7:]}",
                "plan": dataclasses.asdict(planned),
                "workspace": workspace.id,
                "old": {"vmid": held.vmid, "id": held.id},
                "keep_old": keep_old,
                "force": force,
            },
            operation=identity, in_turn=True, request=(key, digest),
        )  # fmt: skip


def _held(tx: Tx, name: str) -> tuple[Workspace, Sandbox]:
    """A workspace and the sandbox that has it; Conflict when there is none."""
    workspace = workspaces.get(tx, name)
    held = sandboxes.find(tx, workspace.vmid) if workspace.vmid else None
    if held is None or held.id != workspace.holder:
        raise Conflict(
            f"cannot rebind workspace {name}: no sandbox has it",
            hint=f"attach it: agentlab workspace attach {name} SANDBOX",
        )
    return workspace, held


def clear_lease(world: World, name: str, *, force: bool) -> Workspace:
    """Ends a lease by hand that nobody renews any more; with `force` also one that is renewed.

    Conflict while a machine has the volume: then it is to be detached.
    """
    with world.store.read() as tx:
        workspace = workspaces.get(tx, name)
    if not workspace.nonce:
        return workspace
    if not force and not workspace.stale(clock.now()):
        raise Conflict(
            f"cannot clear the lease of workspace {name}: sandbox {workspace.vmid} has it and renews it",
            hint=f"agentlab workspace detach {name}; or --force, when you know better",
        )
    volume = world.volume(workspace.volid)
    holders = volume.attached if volume else ()
    if holders:
        raise Conflict(
            f"cannot clear the lease of workspace {name}: machine {holders[0]} has its volume",
            hint=f"agentlab workspace detach {name}",
            details={"vmid": holders[0]},
        )
    with world.store.write() as tx:
        for subject in (subject_of(workspace.id), f"sandbox:{workspace.vmid}"):
            _refuse_under_way(tx, name, subject)  # it may have the volume out for a moment
        return workspaces.release(
            tx, workspace.id, workspace.nonce, reason="its lease was cleared by hand"
        )


def _refuse_under_way(tx: Tx, name: str, subject: str) -> None:
    holder = operations.holder_of(tx, subject)
    if holder is not None:
        raise Busy(
            f"cannot clear the lease of workspace {name}: {holder.kind} {holder.id} is under way",
            hint=f"wait until it has ended: agentlab workspace show {name}",
            details={"operation": holder.id},
        )

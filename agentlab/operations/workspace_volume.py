"""What is done to a detached workspace: checked, made larger, kept, put back, deleted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentlab.engine.step import Call, Operation, Output, Result, Step, always
from agentlab.errors import Conflict, NotFound
from agentlab.model.workspace import Workspace, WorkspaceEvent
from agentlab.operations.context import World
from agentlab.operations.workspace_hold import refuse_awaited
from agentlab.operations.workspace_turn import volid_of, workspace_turn
from agentlab.store import events, sessions, workspaces
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

FSCK, RESIZE, DELETE = "workspace.fsck", "workspace.resize", "workspace.delete"
SAVE, RESTORE = "workspace.snapshot", "workspace.restore"
SNAPSHOT_DELETE = "workspace.snapshot_delete"
_LONG = 12 * 3600.0  # for as long as a check, or a copy of the metadata, may take
_QUICK = 600.0


def _detached(verb: str) -> Step:
    """The turn of an operation that nobody may look over the shoulder of."""

    def begin(tx: Tx, workspace: Workspace, _: OperationRow) -> Mapping[str, object]:
        workspaces.refuse_attached(tx, workspace, verb)
        return {}

    return workspace_turn(begin)


def _identity(call: Call) -> int:
    return int(str(call.operation.input["workspace"]))


def fsck(world: World) -> Operation:
    """Looks at the file system on the host, and mends it when that was asked for."""

    def check(call: Call) -> Result:
        repair = call.operation.input.get("repair") is True
        found = world.hypervisor.check_volume(
            volid_of(call), repair=repair, owner=world.installation
        )
        result = {"state": found.state.value, "text": found.text}

        def write(tx: Tx) -> Output:
            _told(tx, call, f"its file system is {found.state.value}", state=found.state.value)
            return {"result": result}

        return write

    return Operation(FSCK, [_detached("check the file system of"), Step("fsck", check, _LONG)])


def resize(world: World) -> Operation:
    """Larger, never smaller; the file system grows when it is mounted next."""

    def grow(call: Call) -> Result:
        size = int(str(call.operation.input["size"]))
        world.hypervisor.grow(volid_of(call), size, owner=world.installation)

        def write(tx: Tx) -> Output:
            workspaces.set_size(tx, _identity(call), size)
            return _told(tx, call, f"it has {size} MiB", size=size)

        return write

    return Operation(RESIZE, [_detached("resize"), Step("grow", grow, _QUICK)])


def delete(world: World) -> Operation:
    """The volume goes with its snapshots and all that is in it."""

    def begin(tx: Tx, workspace: Workspace, _: OperationRow) -> Mapping[str, object]:
        workspaces.refuse_attached(tx, workspace, "delete")
        refuse_needed(tx, workspace)
        return {}

    return Operation(DELETE, [workspace_turn(begin), freeing(world)])


def refuse_needed(tx: Tx, workspace: Workspace) -> None:
    """Conflict while a session needs it, or one that waits for it."""
    session = sessions.of_workspace(tx, workspace.id)
    if session is not None:
        raise Conflict(
            f"cannot delete workspace {workspace.name}: it belongs to session {session.name}",
            hint=f"delete both: agentlab session delete {session.name} --with-workspace",
        )
    refuse_awaited(tx, workspace, "delete")


def freeing(world: World, *, applies: Callable[[OperationRow], bool] = always) -> Step:
    """The end of a workspace, from which nothing leads back."""

    def free(call: Call) -> Result:
        volid = volid_of(call)
        if volid:  # one that was never made has none
            world.hypervisor.free(volid, owner=world.installation)
        event = WorkspaceEvent.DELETE if volid else WorkspaceEvent.GIVE_UP

        def write(tx: Tx) -> Output:
            workspaces.transition(tx, _identity(call), event, operation=call.operation.id)
            return {}

        return write

    return Step("free", free, _QUICK, applies=applies)


# --- snapshots ---


def save(world: World) -> Operation:
    """Keeps what is in it now, under a name that must be a new one."""

    def take(call: Call) -> Result:
        volid, name = volid_of(call), str(call.operation.input["name"])
        there = world.hypervisor.volume_snapshots(volid, owner=world.installation)
        if call.saved.get("begun") is not True:
            if name in there:
                raise Conflict(
                    f"cannot take snapshot {name}: the workspace has one of that name",
                    hint="choose another name, or delete that one: agentlab workspace snapshot delete",
                )
            call.save(begun=True)  # from here on one of this name is our own
        if name not in there:
            world.hypervisor.snapshot_volume(volid, name, owner=world.installation)
        return lambda tx: _told(tx, call, f"snapshot {name} was taken", name=name)

    return Operation(SAVE, [_detached("take a snapshot of"), Step("snapshot", take, _QUICK)])


def restore(world: World) -> Operation:
    """Puts back what a snapshot has; what came later is lost."""

    def back(call: Call) -> Result:
        volid, name = volid_of(call), str(call.operation.input["name"])
        need_snapshot(world, volid, name, "restore")
        world.hypervisor.rollback_volume(volid, name, owner=world.installation)
        size = _size_of(world, volid)

        def write(tx: Tx) -> Output:
            if size:
                workspaces.set_size(tx, _identity(call), size)  # it has the size that it had then
            return _told(tx, call, f"it is back at snapshot {name}", name=name)

        return write

    return Operation(RESTORE, [_detached("restore a snapshot of"), Step("rollback", back, _LONG)])


def delete_snapshot(world: World) -> Operation:
    """One that is not there is NotFound, so that a typing error is seen."""

    def drop(call: Call) -> Result:
        volid, name = volid_of(call), str(call.operation.input["name"])
        if call.saved.get("begun") is not True:
            need_snapshot(world, volid, name, "delete")
            call.save(begun=True)
        world.hypervisor.delete_volume_snapshot(volid, name, owner=world.installation)
        return lambda tx: _told(tx, call, f"snapshot {name} was deleted", name=name)

    return Operation(
        SNAPSHOT_DELETE, [_detached("delete a snapshot of"), Step("delete", drop, _LONG)]
    )


def need_snapshot(world: World, volid: str, name: str, verb: str) -> None:
    """NotFound says which snapshots there are."""
    there = world.hypervisor.volume_snapshots(volid, owner=world.installation)
    if name not in there:
        raise NotFound(
            f"cannot {verb} snapshot {name}: the workspace has none of that name",
            hint=f"it has {', '.join(there)}" if there else "it has none",
        )


def _size_of(world: World, volid: str) -> int:
    found = world.volume(volid)
    return found.size if found else 0


def _told(tx: Tx, call: Call, text: str, **facts: object) -> Output:
    workspace = workspaces.by_id(tx, _identity(call))
    name = workspace.name if workspace else ""
    events.append(
        tx, call.operation.kind, f"workspace {name}: {text}", operation=call.operation.id,
        facts={"workspace": name, **facts},
    )  # fmt: skip
    return {}

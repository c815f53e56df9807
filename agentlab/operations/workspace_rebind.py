"""`workspace.rebind`: a new sandbox is READY before the old one gives the workspace up.

Until the move all is undone by destroying the new one; what fails in the move is taken back, and
the old one has the workspace as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from agentlab.engine.runner import WORTH_A_RETRY
from agentlab.engine.step import Call, Operation, Output, Result, Step
from agentlab.errors import AgentLabError, Conflict, NotFound, NotOurs
from agentlab.model.sandbox import Sandbox
from agentlab.model.workspace import Workspace
from agentlab.operations import work_mount
from agentlab.operations.boot import close_record, handed_over, is_off, unfence
from agentlab.operations.context import World
from agentlab.operations.provision import Provision
from agentlab.operations.workspace_attach import (
    mount_back,
    mount_time,
    plug_back,
    refuse_sandbox,
    running,
    unmount_time,
)
from agentlab.operations.workspace_turn import (
    live_workspace,
    lock_sandbox,
    volid_of,
    workspace_turn,
)
from agentlab.store import events, operations, sandboxes, workspaces
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

KIND = "workspace.rebind"
_OLD = "old_turn"
_TURN, _PLUG, _END = 7200.0, 120.0, 900.0


def operation(world: World) -> Operation:
    """The old sandbox keeps the workspace until the new one is there, and goes when it has moved."""
    move = _Move(world)
    return Operation(
        KIND,
        [
            workspace_turn(_begin),
            *Provision(world, handed_over, workspace=False).steps(),
            Step(_OLD, move.old_turn, _TURN),
            Step("unmount", move.unmount, unmount_time(world), undo=move.mount_again),
            Step("detach", move.unplug, _PLUG, undo=move.plug_again),
            Step("lease", move.lease, _PLUG, undo=move.lease_back),
            Step("attach", move.plug, _PLUG, undo=move.unplug_new),
            Step("mount", move.mount, mount_time(world), undo=move.unmount_new),
            Step("destroy_old", move.destroy_old, _END, no_return=True, applies=_destroys),
        ],
    )


def _begin(_: Tx, workspace: Workspace, operation: OperationRow) -> Mapping[str, object]:
    """Conflict when the sandbox that it was asked about has given it up, or handed it on."""
    vmid, identity = _old_of(operation)
    if workspace.holder != identity:
        has = f"sandbox {workspace.vmid} has it" if workspace.holder else "no sandbox has it"
        ask = f"agentlab workspace rebind {workspace.name}"
        give = f"give it to a sandbox: agentlab workspace attach {workspace.name} SANDBOX"
        raise Conflict(
            f"cannot move workspace {workspace.name} from sandbox {vmid}: {has} by now",
            hint=f"if it is to move again: {ask}" if workspace.holder else give,
            details={"vmid": workspace.vmid},
        )
    return {}


def _destroys(operation: OperationRow) -> bool:
    return operation.input.get("keep_old") is not True


def _old(call: Call) -> tuple[int, int]:
    """VMID of the old sandbox, and the id of its record."""
    return _old_of(call.operation)


def _old_of(operation: OperationRow) -> tuple[int, int]:
    old = operation.input["old"]
    if not isinstance(old, dict):
        raise TypeError("a rebind without an old sandbox")
    return int(old["vmid"]), int(old["id"])


def _gone(call: Call) -> bool:
    """Whether the old sandbox had given it up, or was gone itself, when its turn had come."""
    return call.outputs[_OLD].get("gone") is True


def _stays(tx: Tx, vmid: int, operation: str, why: str, *, off: bool) -> Output:
    """Says what has become of an old sandbox that could not be destroyed."""
    reason = f"could not be destroyed: {why}"
    if off:
        is_off(tx, vmid, operation, reason)
    events.append(
        tx, KIND, f"the old sandbox {vmid} stays, it {reason}; when that is mended: "
        f"agentlab sandbox destroy {vmid}", vmid=vmid, operation=operation,
        facts={"vmid": vmid, "reason": why},
    )  # fmt: skip
    return {"stays": vmid}


class _Move:
    def __init__(self, world: World) -> None:
        self._world = world

    def _workspace(self, call: Call) -> Workspace:
        with call.store.read() as tx:
            return live_workspace(tx, call.operation)

    def old_turn(self, call: Call) -> Result:
        """Waits until nobody works on the old sandbox.

        One that has it no more is left alone: whatever it has now is not ours to take.
        """

        def write(tx: Tx) -> Output:
            vmid, identity = _old(call)
            if live_workspace(tx, call.operation).holder != identity:
                return {"gone": True}
            sandbox = lock_sandbox(tx, call, vmid, identity)
            if sandbox is None:
                return {"gone": True}
            refuse_sandbox(sandbox, "detach")
            return {"gone": False}

        return write

    def unmount(self, call: Call) -> Result:
        vmid, _ = _old(call)
        if not _gone(call) and running(self._world, vmid):
            force = call.operation.input.get("force") is True
            workspace = self._workspace(call)
            work_mount.unmount_in_time(self._world, call, workspace, vmid, force=force)
        return None

    def mount_again(self, call: Call) -> Result:
        if self._has_it(call):
            return mount_back(self._world, call, _old(call)[0], self._workspace(call))
        return None

    def unplug(self, call: Call) -> Result:
        if not _gone(call):
            self._detach(call, _old(call)[0])
        return None

    def plug_again(self, call: Call) -> Result:
        """A lease without its disk helps nobody, and a disk without a lease harms its content."""
        if self._has_it(call):
            return plug_back(self._world, call, _old(call)[0], self._workspace(call))
        return None

    def _has_it(self, call: Call) -> bool:
        """Whether the old sandbox has the lease now."""
        return not _gone(call) and self._workspace(call).holder == _old(call)[1]

    def lease(self, call: Call) -> Result:
        """From the old one to the new one in one step: nobody gets in between."""

        def write(tx: Tx) -> Output:
            self._pass(tx, call, sandboxes.get(tx, call.operation.vmid), _old(call)[1])
            return {}

        return write

    def lease_back(self, call: Call) -> Result:
        def write(tx: Tx) -> Output:
            old, new = sandboxes.find(tx, _old(call)[0]), sandboxes.get(tx, call.operation.vmid)
            if (
                old is not None
                and not _gone(call)
                and live_workspace(tx, call.operation).holder == new.id
            ):
                self._pass(tx, call, old, new.id)
            return {}

        return write

    def _pass(self, tx: Tx, call: Call, to: Sandbox, from_: int) -> None:
        workspace = live_workspace(tx, call.operation)
        identity = call.operation.id
        if workspace.holder == from_:
            workspaces.pass_on(tx, workspace.id, workspace.nonce, to, operation=identity)
        elif workspace.holder in (0, to.id):
            workspaces.hold(tx, workspace.id, to, operation=identity)
        else:
            raise Conflict(f"workspace {workspace.name} is with sandbox {workspace.vmid} meanwhile")

    def plug(self, call: Call) -> Result:
        self._attach(call, call.operation.vmid)
        return None

    def unplug_new(self, call: Call) -> Result:
        """The new one goes anyway: without power it lets go of the disk, whatever its guest does."""
        with contextlib.suppress(NotFound, NotOurs):
            self._world.hypervisor.stop(call.operation.vmid, owner=self._world.installation)
            self._detach(call, call.operation.vmid)
        return None

    def mount(self, call: Call) -> Result:
        vmid = call.operation.vmid
        work_mount.mount_in_time(self._world, call, self._workspace(call), vmid)
        return None

    def unmount_new(self, call: Call) -> Result:
        with contextlib.suppress(AgentLabError):
            work_mount.unmount(self._world, self._workspace(call), call.operation.vmid, force=True)
        return None

    def destroy_old(self, call: Call) -> Result:
        """The move is done: one that cannot be destroyed (it is protected, say) stays, off.

        However long that takes, nobody waits for the workspace or for the new one.
        """
        vmid, identity, off = _old(call)[0], call.operation.id, False
        with call.store.write() as tx:
            operations.unlock(tx, identity, call.operation.subject)
            operations.unlock(tx, identity, f"sandbox:{call.operation.vmid}")
        if _gone(call):
            return None
        try:
            with contextlib.suppress(NotOurs):
                self._world.hypervisor.stop(vmid, owner=self._world.installation)
            unfence(self._world, vmid)
            off = True
            with contextlib.suppress(NotOurs):
                self._world.hypervisor.destroy(vmid, owner=self._world.installation)
        except WORTH_A_RETRY:
            raise
        except AgentLabError as error:
            why = error.message
            return lambda tx: _stays(tx, vmid, identity, why, off=off)
        return lambda tx: close_record(tx, vmid, "", identity)

    def _attach(self, call: Call, vmid: int) -> None:
        self._world.hypervisor.attach(vmid, volid_of(call), owner=self._world.installation)

    def _detach(self, call: Call, vmid: int) -> None:
        self._world.hypervisor.detach(vmid, volid_of(call), owner=self._world.installation)

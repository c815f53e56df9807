"""A workspace for a new sandbox: waited for, held, and attached before the first power-on."""

from __future__ import annotations

from agentlab import clock
from agentlab.engine.step import Call, Later, Output, Result, Step
from agentlab.errors import Conflict, NotFound, NotOurs
from agentlab.model.sandbox import Sandbox
from agentlab.model.workspace import Workspace, WorkspaceState
from agentlab.operations.context import World
from agentlab.operations.turn import words
from agentlab.operations.workspace_turn import live_workspace, subject_of
from agentlab.store import operations, sandboxes, workspaces
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow
from agentlab.units import render_duration

HOLD = "hold"
_PATIENCE = 30 * 86400.0  # what the request asks for is the real limit
_ATTACH = 120.0
_LOOK_AGAIN = 1.0


def wants(operation: OperationRow) -> bool:
    """Whether an operation asks for a workspace."""
    return bool(operation.input.get("workspace"))


class WorkspaceOfNew:
    """The steps of a sandbox that is made with a workspace."""

    def __init__(self, world: World) -> None:
        self._world = world

    def holding(self) -> Step:
        """What is held ends with the sandbox's record, where nothing has ended it before."""
        return Step(HOLD, self.hold, _PATIENCE, applies=wants)

    def attaching(self) -> Step:
        return Step("attach", self.attach, _ATTACH, undo=self.detach, applies=wants)

    def hold(self, call: Call) -> Result:
        """The lease, when nobody has it and nobody has waited longer for it."""
        return lambda tx: self._hold(tx, call)

    def _hold(self, tx: Tx, call: Call) -> Output:
        workspace = live_workspace(tx, call.operation)
        sandbox = sandboxes.get(tx, call.number("reserve", "vmid"))
        in_the_way = "" if workspace.holder == sandbox.id else _in_the_way(tx, workspace, call)
        if not in_the_way:
            return {
                "nonce": workspaces.hold(tx, workspace.id, sandbox, operation=call.operation.id)
            }
        wait = float(str(call.operation.input.get("workspace_wait") or 0))
        # an operation ends by itself, a sandbox need not
        if workspace.state is WorkspaceState.ATTACHED and clock.now() - call.started >= wait:
            waited = f", and {render_duration(int(wait))} are over" if wait else ""
            raise Conflict(
                f"cannot use workspace {workspace.name}: {in_the_way}{waited}",
                hint="wait for it: --workspace-wait 1h",
            )
        raise Later(_LOOK_AGAIN, f"workspace {workspace.name}: {in_the_way}")

    def attach(self, call: Call) -> Result:
        """By the lease that is ours still: one that was cleared by hand may be another's by now."""
        vmid = call.operation.vmid
        with call.store.read() as tx:
            workspace = live_workspace(tx, call.operation)
            sandbox = sandboxes.get(tx, vmid)
        if workspace.holder != sandbox.id:
            raise Conflict(f"the lease of workspace {workspace.name} was cleared meanwhile")
        self._world.hypervisor.attach(vmid, workspace.volid, owner=self._world.installation)
        return None

    def detach(self, call: Call) -> Result:
        with call.store.read() as tx:
            sandbox = sandboxes.get(tx, call.operation.vmid)
        take_away(self._world, sandbox, operation=call.operation.id)
        return None


def _in_the_way(tx: Tx, workspace: Workspace, call: Call) -> str:
    """Why a sandbox that is made cannot have it now, "" when it can."""
    if workspace.state is WorkspaceState.CREATING:
        return "it is being made"
    if workspace.state is WorkspaceState.ATTACHED:
        return f"sandbox {workspace.vmid} has it"
    holder = operations.holder_of(tx, subject_of(workspace.id))
    if holder is not None:
        return words(holder)
    for each in operations.at_step(tx, HOLD):
        if each == call.operation.id:
            break
        if operations.get(tx, each).input.get("workspace") == workspace.id:
            return "another one waits for it longer"
    return ""


def take_away(world: World, sandbox: Sandbox, *, operation: str) -> None:
    """Detaches the volume of a sandbox without power, before its machine goes: a second lock.

    No machine's end takes a volume along that has a number of its own.  The lease ends at once: if
    the machine cannot be destroyed then, its sandbox does not hold what it has no more.
    """
    with world.store.read() as tx:
        held = workspaces.held_by(tx, sandbox.id)
    if held is None:
        return
    if held.volid:
        try:
            world.hypervisor.detach(sandbox.vmid, held.volid, owner=world.installation)
        except NotOurs:
            return  # nobody knows what has become of it: it ends with the sandbox's record
        except NotFound:
            pass  # the volume, or the machine
    with world.store.write() as tx:
        workspaces.release(tx, held.id, held.nonce, operation=operation)

"""A workspace for a new sandbox: waited for, held, and attached before the first power-on."""

from __future__ import annotations

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

    def waiting(self) -> Step:
        """Before anything is reserved: who waits takes nothing that others need."""
        return Step(HOLD, self.wait, _PATIENCE, applies=wants)

    def leasing(self) -> Step:
        """What is held ends with the sandbox's record, where nothing has ended it before."""
        return Step("lease", self.lease, _PATIENCE, applies=wants)

    def attaching(self) -> Step:
        return Step("attach", self.attach, _ATTACH, undo=self.detach, applies=wants)

    def wait(self, call: Call) -> Result:
        """Ends when nobody has it and nobody has waited longer for it; then we are the next."""
        return lambda tx: self._wait(tx, call)

    def _wait(self, tx: Tx, call: Call) -> Output:
        workspace = live_workspace(tx, call.operation)
        in_the_way = _in_the_way(tx, workspace, call)
        if not in_the_way:
            operations.lock(tx, call.operation.id, _next(workspace.id))
            return {}
        wait = float(str(call.operation.input.get("workspace_wait") or 0))
        waited = _PATIENCE - call.deadline.left  # by a clock that nobody sets
        # an operation ends by itself, a sandbox need not
        if workspace.state is WorkspaceState.ATTACHED and waited >= wait:
            over = f", and {render_duration(int(wait))} are over" if wait else ""
            detach = f"detach it: agentlab workspace detach {workspace.name}"
            raise Conflict(
                f"cannot use workspace {workspace.name}: {in_the_way}{over}",
                hint=f"wait for it: --workspace-wait 1h; or {detach}"
                if call.operation.job
                else detach,
            )
        raise Later(_LOOK_AGAIN, f"workspace {workspace.name}: {in_the_way}")

    def lease(self, call: Call) -> Result:
        """The lease for the sandbox that has its record now."""

        def write(tx: Tx) -> Output:
            workspace = live_workspace(tx, call.operation)
            sandbox = sandboxes.get(tx, call.number("reserve", "vmid"))
            holder = operations.holder_of(tx, subject_of(workspace.id))
            if workspace.holder != sandbox.id and holder is not None:
                raise Later(_LOOK_AGAIN, f"workspace {workspace.name}: {words(holder)}")
            nonce = workspaces.hold(tx, workspace.id, sandbox, operation=call.operation.id)
            operations.unlock(tx, call.operation.id, _next(workspace.id))
            return {"nonce": nonce}

        return write

    def attach(self, call: Call) -> Result:
        """By the lease that is ours still: one that was cleared by hand may be another's by now."""
        vmid = call.operation.vmid
        with call.store.read() as tx:
            workspace = live_workspace(tx, call.operation)
            sandbox = sandboxes.get(tx, vmid)
        if workspace.holder != sandbox.id:
            raise Conflict(
                f"the lease of workspace {workspace.name} was cleared meanwhile",
                hint=f"see: agentlab workspace show {workspace.name}",
            )
        self._world.hypervisor.attach(vmid, workspace.volid, owner=self._world.installation)
        return None

    def detach(self, call: Call) -> Result:
        with call.store.read() as tx:
            sandbox = sandboxes.get(tx, call.operation.vmid)
        take_away(self._world, sandbox, operation=call.operation.id)
        return None


def _next(workspace: int) -> str:
    """What the one has locked who is to have a workspace next."""
    return f"workspace-next:{workspace}"


def next_in_line(tx: Tx, workspace: int) -> OperationRow | None:
    """The operation that makes a sandbox and has waited longest for a workspace."""
    first = operations.holder_of(tx, _next(workspace))
    if first is not None:
        return first
    for each in operations.at_step(tx, HOLD):
        found = operations.get(tx, each)
        if found.input.get("workspace") == workspace:
            return found
    return None


def refuse_awaited(tx: Tx, workspace: Workspace, verb: str) -> None:
    """Conflict while a sandbox that is being made waits for it: who came first has it first."""
    first = next_in_line(tx, workspace.id)
    if first is not None:
        whose = f"job {first.job}" if first.job else f"{first.kind} {first.id}"
        raise Conflict(
            f"cannot {verb} workspace {workspace.name}: {whose} waits for it",
            hint=f"agentlab job cancel {first.job}" if first.job else "wait until it has had it",
            details={"operation": first.id, "job": first.job},
        )


def _in_the_way(tx: Tx, workspace: Workspace, call: Call) -> str:
    """Why a sandbox that is to be made cannot have it now, "" when it can."""
    if workspace.state is WorkspaceState.CREATING:
        return "it is being made"
    if workspace.state is WorkspaceState.ATTACHED:
        return f"sandbox {workspace.vmid} has it"
    holder = operations.holder_of(tx, subject_of(workspace.id))
    if holder is not None:
        return words(holder)
    first = next_in_line(tx, workspace.id)
    if first is not None and first.id != call.operation.id:
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

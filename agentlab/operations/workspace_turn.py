"""The first steps of whatever acts on a workspace: its own turn, and its sandbox's where it has one.

Always in this order.  What acts on a sandbox never locks a workspace: it changes the lease that its
sandbox has, by its nonce.  So the two never wait for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentlab.engine.step import Call, Output, Result, Step, Wait
from agentlab.errors import Conflict
from agentlab.model.sandbox import Sandbox, SandboxState
from agentlab.model.workspace import Workspace, WorkspaceState
from agentlab.operations.turn import STEP as TURN
from agentlab.operations.turn import queued, words
from agentlab.store import operations, sandboxes, workspaces
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

SANDBOX_TURN = "sandbox_turn"
_PATIENCE = 7200.0  # seconds that a turn is waited for
_LOOK_AGAIN = 1.0

# Raises when the operation may not begin; gives what later steps need to know of the beginning.
Check = Callable[[Tx, Workspace, OperationRow], Mapping[str, object]]
SandboxCheck = Callable[[Tx, Workspace, Sandbox, Call], Mapping[str, object]]


def subject_of(identity: int) -> str:
    """What an operation on a workspace locks."""
    return f"workspace:{identity}"


def workspace_turn(check: Check) -> Step:
    """Waits for the workspace's turn; Conflict when it is deleted by then."""

    def begin(tx: Tx, operation: OperationRow) -> Output:
        found = live_workspace(tx, operation)
        return {"volid": found.volid, **check(tx, found, operation)}

    def take(call: Call) -> Result:
        return queued(call, lambda tx: begin(tx, call.operation))

    return Step(TURN, take, _PATIENCE)


def live_workspace(tx: Tx, operation: OperationRow) -> Workspace:
    """The workspace that an operation is about, by the record that it names; Conflict."""
    identity = operation.input["workspace"]
    found = workspaces.by_id(tx, identity) if isinstance(identity, int) else None
    if found is None or found.state is WorkspaceState.DELETED:
        name, why = (found.name, found.reason) if found else ("", "")
        raise Conflict(
            f"workspace {name} is deleted" + (f": {why}" if why else ""),
            hint="see: agentlab workspace list",
        )
    return found


def volid_of(call: Call) -> str:
    """The volume, as it was when the turn had come."""
    return call.text(TURN, "volid")


def sandbox_turn(check: SandboxCheck, *, undo: Callable[[Call], Result] | None = None) -> Step:
    """Waits until nobody works on the sandbox `input.sandbox` (its record's id), and locks it too.

    A sandbox that is gone gives {"gone": True} and locks nothing.
    """

    def take(call: Call) -> Result:
        return lambda tx: write(tx, call)

    def write(tx: Tx, call: Call) -> Output:
        workspace = live_workspace(tx, call.operation)
        identity = call.operation.input.get("sandbox")
        sandbox = lock_sandbox(tx, call, call.operation.vmid, identity)
        if sandbox is None:
            return {"gone": True}
        return {"gone": False, **check(tx, workspace, sandbox, call)}

    return Step(SANDBOX_TURN, take, _PATIENCE, undo=undo)


def lock_sandbox(tx: Tx, call: Call, vmid: int, identity: object) -> Sandbox | None:
    """The sandbox of this record, locked for the operation; None when it is gone.

    Waits while another operation works on it.
    """
    sandbox = sandboxes.find(tx, vmid)
    if sandbox is None or sandbox.id != identity or sandbox.state is SandboxState.DESTROYED:
        return None
    subject = f"sandbox:{vmid}"
    holder = operations.holder_of(tx, subject)
    if holder is not None and holder.id != call.operation.id:
        raise Wait(words(holder), after=_LOOK_AGAIN)
    operations.lock(tx, call.operation.id, subject)
    return sandbox


def is_gone(call: Call) -> bool:
    """Whether the sandbox was gone when its turn had come."""
    return call.outputs[SANDBOX_TURN].get("gone") is True


def refuse_making(workspace: Workspace, verb: str) -> None:
    """Conflict for a workspace whose volume is still being made."""
    if workspace.state is WorkspaceState.CREATING:
        raise Conflict(
            f"cannot {verb} workspace {workspace.name}: it is being made",
            hint=f"see: agentlab workspace show {workspace.name}",
        )


def refuse_made(tx: Tx, workspace: Workspace, verb: str) -> None:
    """As `refuse_making`, but for one that nothing makes any more: it can be deleted."""
    if operations.of_made(tx, workspace.id) is not None:
        refuse_making(workspace, verb)

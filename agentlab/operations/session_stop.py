"""`session.stop` and `session.delete`: the sandbox goes, the work stays; or that goes too."""

from __future__ import annotations

from collections.abc import Mapping

from agentlab.engine.step import Call, Operation, Output, Result, Step
from agentlab.errors import Conflict
from agentlab.model.sandbox import Sandbox, SandboxState
from agentlab.model.workspace import Workspace
from agentlab.operations.context import World
from agentlab.operations.sandbox_destroy import ending
from agentlab.operations.sandbox_power import halt, halting
from agentlab.operations.turn import is_gone, turn
from agentlab.operations.workspace_hold import refuse_awaited
from agentlab.operations.workspace_turn import refuse_made, workspace_turn
from agentlab.operations.workspace_volume import freeing
from agentlab.store import sessions
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

STOP, DELETE = "session.stop", "session.delete"
_QUICK = 60.0
_POWERED = (SandboxState.READY, SandboxState.RUNNING, SandboxState.SUSPENDED,
            SandboxState.COMPLETED)  # fmt: skip


def stop(world: World) -> Operation:
    """The guest powers off by itself, so that all is written; then its sandbox is destroyed."""

    def begin(_: Tx, sandbox: Sandbox, __: OperationRow) -> Mapping[str, object]:
        return {"powered": sandbox.state in _POWERED}

    def shutdown(call: Call) -> Result:
        if not is_gone(call) and call.outputs["turn"].get("powered") is True:
            halt(world, call)
        return None

    return Operation(
        STOP,
        [
            turn(begin, absent_is_done=True),
            Step("shutdown", shutdown, halting(world)),
            *ending(world),
        ],
    )


def delete(world: World) -> Operation:
    """The session's record; with `input.with_workspace` its workspace too, and all that is in it."""

    def begin(tx: Tx, workspace: Workspace, operation: OperationRow) -> Mapping[str, object]:
        if workspace.nonce:
            session = sessions.by_id(tx, int(str(operation.input["session"])))
            name = session.name if session else ""
            raise Conflict(
                f"cannot delete session {name}: it runs in sandbox {workspace.vmid}",
                hint=f"stop it first: agentlab session stop {name}".rstrip(),
            )
        refuse_made(tx, workspace, "delete")
        if with_workspace(operation):
            _refuse_others(tx, workspace, operation.input["session"])
        return {}

    def forget(call: Call) -> Result:
        def write(tx: Tx) -> Output:
            sessions.delete(
                tx, int(str(call.operation.input["session"])), operation=call.operation.id
            )
            return {}

        return write

    return Operation(
        DELETE,
        [
            workspace_turn(begin),
            freeing(world, applies=with_workspace),
            Step("forget", forget, _QUICK, no_return=True),
        ],
    )


def with_workspace(operation: OperationRow) -> bool:
    """Whether a session is deleted with its workspace."""
    return operation.input.get("with_workspace") is True


def _refuse_others(tx: Tx, workspace: Workspace, session: object) -> None:
    """Conflict for work that another session has by now, or that one waits for."""
    owner = sessions.of_workspace(tx, workspace.id)
    if owner is not None and owner.id != session:
        raise Conflict(
            f"cannot delete workspace {workspace.name}: it belongs to session {owner.name} by now",
            hint=f"delete both: agentlab session delete {owner.name} --with-workspace",
        )
    refuse_awaited(tx, workspace, "delete")

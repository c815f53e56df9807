"""The first step of whatever acts on a sandbox: it waits for its turn, and looks whether it may.

A VMID alone proves nothing: the sandbox that was meant may be gone, and its VMID another's, by the
time that the turn has come.  So an operation names the record itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentlab.engine.step import Call, Output, Result, Step, Wait
from agentlab.errors import Conflict
from agentlab.model.sandbox import Sandbox, SandboxState
from agentlab.store import operations, sandboxes
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

STEP = "turn"
_PATIENCE = 7200.0  # seconds that a turn is waited for
_LOOK_AGAIN = 2.0  # the end of what is waited for wakes us; this is for the case that it was lost

# Raises when the operation may not begin; gives what later steps need to know of the beginning.
Check = Callable[[Tx, Sandbox, OperationRow], Mapping[str, object]]


def turn(check: Check, *, absent_is_done: bool = False) -> Step:
    """The step.  `absent_is_done`: a sandbox that is gone is what was wanted (`is_gone`)."""

    def take(call: Call) -> Result:
        return queued(call, lambda tx: _begin(tx, call.operation))

    def _begin(tx: Tx, operation: OperationRow) -> Output:
        sandbox = sandboxes.find(tx, operation.vmid)
        gone = (
            sandbox is None
            or sandbox.id != operation.input.get("id", sandbox.id)
            or sandbox.state is SandboxState.DESTROYED
        )
        if sandbox is None or gone:
            if absent_is_done:
                return {"gone": True}
            raise Conflict(f"sandbox {operation.vmid} is DESTROYED")
        return {"gone": False, **check(tx, sandbox, operation)}

    return Step(STEP, take, _PATIENCE)


def queued(call: Call, begin: Callable[[Tx], Output]) -> Result:
    """Locks the operation's subject and begins, when its turn has come.

    All in the transaction that writes the step down as done: what it has begun, it knows.
    """

    def write(tx: Tx) -> Output:
        ahead = operations.ahead(tx, call.operation, STEP)
        if ahead is not None:
            raise Wait(words(ahead), after=_LOOK_AGAIN)
        operations.lock(tx, call.operation.id, call.operation.subject)
        return begin(tx)

    return write


def words(ahead: OperationRow) -> str:
    """What somebody waits for who waits for another operation's end."""
    whose = f" of job {ahead.job}" if ahead.job else ""
    return f"{ahead.kind} {ahead.id}{whose}, which is under way"


def is_gone(call: Call) -> bool:
    """Whether the sandbox was gone when the turn had come: nothing is left to do."""
    return call.outputs[STEP].get("gone") is True

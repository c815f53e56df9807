"""`sandbox.destroy` and `sandbox.expire`: machine, disks, tap and rules go; the record stays a while."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from agentlab import clock
from agentlab.engine.step import Call, Operation, Result, Step
from agentlab.errors import AgentLabError, Conflict, NotOurs
from agentlab.hypervisor.base import Power
from agentlab.model.sandbox import SANDBOX, Sandbox, SandboxEvent
from agentlab.operations.boot import close_record, is_off, unfence
from agentlab.operations.context import World
from agentlab.operations.turn import is_gone, turn
from agentlab.operations.work_mount import WRITE, let_go, mount_held, write_out_held
from agentlab.operations.workspace_hold import take_away
from agentlab.store import sandboxes
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

DESTROY, EXPIRE = "sandbox.destroy", "sandbox.expire"
_STOP = 120.0


def destroy(world: World) -> Operation:
    """What was destroyed is gone; one that could not be is STOPPED, since it has no power any more."""
    return Operation(DESTROY, [turn(_may, absent_is_done=True), *ending(world)])


def expire(world: World) -> Operation:
    """The same at the end of a lease, which is looked at again when the turn has come."""
    return Operation(EXPIRE, [turn(_expired, absent_is_done=True), *ending(world)])


def _may(_: Tx, sandbox: Sandbox, operation: OperationRow) -> Mapping[str, object]:
    if operation.input.get("force") is not True:
        refuse(sandbox)
    return {}


def refuse(sandbox: Sandbox) -> None:
    """Conflict for a state that only --force destroys from."""
    if SandboxEvent.DESTROY not in SANDBOX.allowed(sandbox.state):
        raise Conflict(
            f"failed to destroy sandbox {sandbox.vmid}: it is {sandbox.state}",
            hint="use --force to destroy it from any state",
            details={
                "state": sandbox.state.value,
                "allowed": list(SANDBOX.allowed(sandbox.state)),
            },
        )


def _expired(tx: Tx, sandbox: Sandbox, operation: OperationRow) -> Mapping[str, object]:
    if sandbox.lease_until != operation.input["lease"]:
        return {"gone": True}  # renewed meanwhile
    if SandboxEvent.EXPIRE in SANDBOX.allowed(sandbox.state):
        sandboxes.transition(
            tx, sandbox.vmid, SandboxEvent.EXPIRE, operation=operation.id,
            reason=f"its lease ended at {clock.utc(sandbox.lease_until)}",
        )  # fmt: skip
    return {}


def ending(world: World) -> list[Step]:
    """The steps from whatever it is to nothing, for an operation that had its turn."""
    return _Gone(world).steps()


class _Gone:
    """The steps to nothing; all of them do nothing when the sandbox was gone already."""

    def __init__(self, world: World) -> None:
        self._world = world

    def steps(self) -> list[Step]:
        return [
            Step("stop", self.stop, _STOP + WRITE, undo=self.mount_again, handles_cancel=True),
            Step("unfence", self.away, 60, undo=self.off, handles_cancel=True),
            Step("destroy", self.destroy, 600, handles_cancel=True),
        ]

    def stop(self, call: Call) -> Result:
        if not is_gone(call):
            sandbox = self._sandbox(call)
            if call.operation.kind == EXPIRE or not forced(call.operation):
                write_out_held(self._world, call, sandbox, reserve=_STOP)
            let_go(self._world, sandbox, operation=call.operation.id)
            try:
                self._world.hypervisor.stop(call.operation.vmid, owner=self._world.installation)
            except NotOurs:
                if not forced(call.operation):
                    raise
        return None

    def mount_again(self, call: Call) -> Result:
        """It goes on: whoever works in it finds /work, and not the root disk in its place."""
        if not is_gone(call):
            with contextlib.suppress(AgentLabError):
                machine = self._world.hypervisor.status(call.operation.vmid)
                if machine is not None and machine.power is Power.RUNNING:
                    mount_held(self._world, call.operation.vmid, self._sandbox(call).id)
        return None

    def _sandbox(self, call: Call) -> Sandbox:
        with call.store.read() as tx:
            return sandboxes.get(tx, call.operation.vmid)

    def away(self, call: Call) -> Result:
        if not is_gone(call):
            unfence(self._world, call.operation.vmid)
        return None

    def off(self, call: Call) -> Result:
        """It could not be destroyed: its record says what has become of it until then.

        At a lease's end it stays in TIMEOUT, from which it is tried again.
        """
        if is_gone(call):
            return None
        vmid, identity = call.operation.vmid, call.operation.id
        why = f"could not be destroyed: {call.operation.error}"
        unfence(self._world, vmid)
        if self._world.hypervisor.status(vmid) is None:
            return lambda tx: close_record(tx, vmid, "", identity)
        if call.operation.kind == EXPIRE:
            return None
        return lambda tx: is_off(tx, vmid, identity, why)

    def destroy(self, call: Call) -> Result:
        if is_gone(call):
            return None
        vmid, reason = call.operation.vmid, ""
        try:
            take_away(self._world, self._sandbox(call), operation=call.operation.id)
            self._world.hypervisor.destroy(vmid, owner=self._world.installation)
        except NotOurs as taken:
            if not forced(call.operation):
                raise
            reason = f"its VM was gone: {taken.message}"
        return lambda tx: close_record(tx, vmid, reason, call.operation.id, surely=not reason)


def forced(operation: OperationRow) -> bool:
    """With --force, and at a lease's end, a VM that is another's by now is none of our business."""
    return operation.kind == EXPIRE or operation.input.get("force") is True

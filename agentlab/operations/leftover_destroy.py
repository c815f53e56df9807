"""`leftover.destroy`: a machine that carries our mark, and that no record is about any more."""

from __future__ import annotations

from agentlab.engine.runner import Runner
from agentlab.engine.step import Call, Operation, Result, Step
from agentlab.errors import Busy, Conflict, NotOurs
from agentlab.model.sandbox import SANDBOX
from agentlab.operations.context import World
from agentlab.operations.work_mount import let_go_of
from agentlab.store import operations, sandboxes
from agentlab.store.db import Tx

KIND = "leftover.destroy"
_QUICK = 60.0
_DESTROY = 600.0


def operation(world: World) -> Operation:
    """Destroying has no undo; whether it is ours, the driver proves in the same call."""

    def prove(call: Call) -> Result:
        vmid = call.operation.vmid
        with call.store.read() as tx:
            _refuse_record(tx, vmid)
        machine = world.hypervisor.status(vmid)
        if machine is not None and machine.owner != world.installation:
            raise NotOurs(f"cannot destroy VM {vmid}: it does not carry our mark")
        return {"there": machine is not None}

    def destroy(call: Call) -> Result:
        vmid = call.operation.vmid
        with call.store.read() as tx:  # it may have taken long to come here
            _refuse_record(tx, vmid)
        let_go_of(world, vmid)
        world.hypervisor.destroy(vmid, owner=world.installation)
        return None

    return Operation(KIND, [Step("prove", prove, _QUICK), Step("destroy", destroy, _DESTROY)])


def submit(tx: Tx, runner: Runner, vmid: int) -> str:
    """Writes it down and locks the VMID; Conflict when there is a record, Busy while it is named.

    No new sandbox can get this VMID while it is locked.
    """
    _refuse_record(tx, vmid)
    for each in operations.unfinished(tx):
        if each.vmid == vmid:
            raise Busy(f"cannot destroy VM {vmid}: {each.kind} {each.id} is under way")
    return runner.submit(tx, KIND, [f"sandbox:{vmid}"], {}, vmid=vmid)


def _refuse_record(tx: Tx, vmid: int) -> None:
    found = sandboxes.find(tx, vmid)
    if found is not None and not SANDBOX.final(found.state):
        raise Conflict(
            f"cannot destroy VM {vmid} as a leftover: it is sandbox {found.name}",
            hint=f"agentlab sandbox destroy {vmid}",
        )

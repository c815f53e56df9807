"""`sandbox.destroy`: the machine, its disks, its tap and its rules go; the record stays a while."""

from __future__ import annotations

from agentlab.engine.step import Call, Operation, Result, Step
from agentlab.operations.context import World
from agentlab.operations.provision import close_record, unfence

KIND = "sandbox.destroy"


def operation(world: World) -> Operation:
    """Destroying has no undo: what was begun is brought to its end."""

    def stop(call: Call) -> Result:
        world.hypervisor.stop(call.operation.vmid, owner=world.installation)
        return None

    def away(call: Call) -> Result:
        unfence(world, call.operation.vmid)
        return None

    def destroy(call: Call) -> Result:
        vmid = call.operation.vmid
        world.hypervisor.destroy(vmid, owner=world.installation)
        return lambda tx: close_record(tx, vmid, "", call.operation.id)

    return Operation(
        KIND,
        [
            Step("stop", stop, 120, handles_cancel=True),
            Step("unfence", away, 60, handles_cancel=True),
            Step("destroy", destroy, 600, handles_cancel=True),
        ],
    )

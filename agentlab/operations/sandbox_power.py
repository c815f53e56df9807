"""`sandbox.start`, `stop`, `pause` and `resume`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentlab.engine.step import Call, Operation, Output, Result, Step
from agentlab.errors import Busy, Conflict, NotFound
from agentlab.hypervisor.base import Power
from agentlab.model.sandbox import SANDBOX, Sandbox, SandboxEvent
from agentlab.operations import admit
from agentlab.operations.boot import CONFIGURE, Boot, handed_over, is_off, unfence
from agentlab.operations.context import World
from agentlab.operations.turn import turn
from agentlab.operations.work_mount import WRITE, let_go, run_on, until_left, write_out_held
from agentlab.store import sandboxes
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

START, STOP, PAUSE, RESUME = "sandbox.start", "sandbox.stop", "sandbox.pause", "sandbox.resume"
EVENTS = {
    START: SandboxEvent.START,
    STOP: SandboxEvent.STOP,
    PAUSE: SandboxEvent.PAUSE,
    RESUME: SandboxEvent.RESUME,
}
_GUEST = 30.0  # seconds that a guest is given to power off by itself
_QUICK = 120.0


def may(_: Tx, sandbox: Sandbox, operation: OperationRow) -> Mapping[str, object]:
    """InvalidTransition unless the state table has this operation's edge from here."""
    SANDBOX.next(sandbox.state, EVENTS[operation.kind])
    return {}


def start(world: World) -> Operation:
    """From STOPPED to READY, with a lease that begins anew: whatever was left of it was not used.

    Somebody else may have given it power, so its rules come first.  As it is then it is taken up,
    or shut down when it has to be configured anew.
    """
    boot = Boot(world)
    shutting_down = halting(world)

    def let_in(call: Call) -> Result:
        queue = call.operation.input.get("queue") is not False
        return admit.admit(call, world.config.limits, SandboxEvent.START, queue=queue)

    def back(call: Call) -> Result:
        vmid, why = call.operation.vmid, call.operation.error
        return lambda tx: is_off(tx, vmid, call.operation.id, f"could not start: {why}")

    def configure(call: Call) -> Result:
        try:
            with until_left(call, shutting_down()):
                return boot.configure(call)
        except Conflict:
            machine = world.hypervisor.status(call.operation.vmid)
            if machine is None or machine.power not in (Power.RUNNING, Power.PAUSED):
                raise
        halt(world, call)
        return boot.configure(call)

    fence, power_on = boot.starting()
    return Operation(
        START,
        [
            turn(may),
            Step(admit.STEP, let_in, admit.PATIENCE, undo=back),
            fence,
            Step("configure", configure, lambda: CONFIGURE + shutting_down()),
            power_on,
            boot.awaiting(handed_over),
        ],
    )


def stop(world: World) -> Operation:
    """The guest is asked to power off, and loses its power when it does not in time."""

    def shutdown(call: Call) -> Result:
        halt(world, call)
        return None

    def off(call: Call) -> Result:
        vmid = call.operation.vmid
        unfence(world, vmid)
        reason = str(call.operation.input.get("reason", ""))
        return lambda tx: is_off(tx, vmid, call.operation.id, reason)

    return Operation(
        STOP,
        [turn(may), Step("shutdown", shutdown, halting(world)), Step("off", off, _QUICK)],
    )


def halting(world: World) -> Callable[[], float]:
    """The deadline of a step with `halt`."""
    slow = Boot(world).slow(_GUEST + _QUICK)
    return lambda: slow() + WRITE


def halt(world: World, call: Call) -> None:
    """Takes a machine's power, by way of its guest where that answers; Conflict when it is gone.

    Later while the guest writes its workspace out: once it ends, nobody can ask it how far it is.
    """
    vmid, hypervisor, owner = call.operation.vmid, world.hypervisor, world.installation
    patience = Boot(world).slow(_GUEST)()
    with world.store.read() as tx:
        sandbox = sandboxes.get(tx, vmid)
    write_out_held(world, call, sandbox, reserve=halting(world)() - WRITE)
    try:
        machine = hypervisor.status(vmid)
        if machine is None:
            raise NotFound(f"no VM {vmid}")
        fenced = machine.power is not Power.PAUSED or _runs_on(world, sandbox)
        if not fenced or not hypervisor.shutdown(vmid, owner=owner, timeout=patience):
            let_go(world, sandbox, operation=call.operation.id)
            hypervisor.stop(vmid, owner=owner)
    except NotFound as gone:
        raise Conflict(
            f"cannot stop sandbox {vmid}: its VM is gone",
            hint=f"agentlab sandbox destroy --force {vmid}",
        ) from gone


def _runs_on(world: World, sandbox: Sandbox) -> bool:
    """Has a paused guest run on, since one that stands still cannot power off.

    False where it would run without its rules.
    """
    try:
        run_on(world, sandbox.vmid, sandbox.tap)
    except Busy:
        raise
    except Conflict:
        return False
    return True


def pause(world: World) -> Operation:
    """Its virtual CPUs stand still; memory, address, rules and lease stay as they are."""

    def act(call: Call) -> Result:
        vmid = call.operation.vmid
        world.hypervisor.pause(vmid, owner=world.installation)
        return lambda tx: _moved(tx, vmid, SandboxEvent.PAUSE, call.operation.id)

    return Operation(PAUSE, [turn(may), Step("pause", act, _QUICK)])


def resume(world: World) -> Operation:
    """Back to what it was: RUNNING when somebody had been in it, else READY."""

    def act(call: Call) -> Result:
        vmid = call.operation.vmid
        with call.store.read() as tx:
            tap = sandboxes.get(tx, vmid).tap
        run_on(world, vmid, tap)

        def write(tx: Tx) -> Output:
            used = sandboxes.get(tx, vmid).used
            event = SandboxEvent.RESUME_RUNNING if used else SandboxEvent.RESUME
            return _moved(tx, vmid, event, call.operation.id)

        return write

    return Operation(RESUME, [turn(may), Step("resume", act, _QUICK)])


def _moved(tx: Tx, vmid: int, event: SandboxEvent, operation: str) -> Output:
    sandboxes.transition(tx, vmid, event, operation=operation)
    return {}

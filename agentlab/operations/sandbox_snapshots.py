"""`sandbox.revert`, and snapshots of a sandbox's root disk: taken, restored, deleted.

A work disk is never a part of them: it is detached before, and attached again after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentlab.engine.step import Call, Operation, Output, Result, Step
from agentlab.errors import Busy, Conflict, InvalidTransition, NotFound, NotOurs
from agentlab.model.sandbox import CLEAN, SANDBOX, Sandbox, SandboxEvent, SandboxState
from agentlab.operations import admit
from agentlab.operations.boot import Boot, handed_over, is_off, unfence
from agentlab.operations.context import World
from agentlab.operations.sandbox_power import halt, halting
from agentlab.operations.turn import STEP as TURN
from agentlab.operations.turn import Check, turn
from agentlab.store import events, sandboxes, workspaces
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

REVERT, SAVE, DELETE = "sandbox.revert", "sandbox.snapshot", "sandbox.snapshot_delete"
_S = SandboxState
REVERTIBLE = (_S.READY, _S.RUNNING, _S.SUSPENDED, _S.COMPLETED, _S.FAILED, _S.STOPPED)
_LONG = 600.0
_QUICK = 120.0
_ADMIT = 7000.0
_TRIES = 7  # about a minute


def refuse(sandbox: Sandbox, verb: str, states: Sequence[SandboxState], hint: str = "") -> None:
    """InvalidTransition unless it is in one of the states from which this can be done."""
    if sandbox.state not in states:
        raise InvalidTransition(
            f"cannot {verb} sandbox {sandbox.vmid}: it is {sandbox.state}",
            hint=hint or f"possible when it is {', '.join(states)}",
            details={"state": sandbox.state.value, "allowed": list(SANDBOX.allowed(sandbox.state))},
        )


def refuse_powered(sandbox: Sandbox, verb: str) -> None:
    """Snapshots are taken and deleted of a disk that nobody writes to."""
    hint = f"stop it first: agentlab sandbox stop {sandbox.vmid}"
    refuse(sandbox, verb, (_S.STOPPED,), hint)


class _Disks:
    """Work disks, as the hypervisor knows them."""

    def __init__(self, world: World) -> None:
        self._world = world

    def detaching(self) -> Step:
        return Step("detach", self.detach, _QUICK, undo=self.give_back)

    def attaching(self) -> Step:
        return Step("attach", self.attach, _QUICK)

    def detach(self, call: Call) -> Result:
        """What is attached is written down before it is taken away."""
        vmid, owner = call.operation.vmid, self._world.installation
        known = call.saved.get("volumes")
        if not isinstance(known, list):
            known = self.attached(vmid)
            call.save(volumes=known)
        for volid in known:
            self._world.hypervisor.detach(vmid, str(volid), owner=owner)
        return {"volumes": known}

    def attached(self, vmid: int) -> list[str]:
        """The volumes of ours that this machine has now."""
        hypervisor = self._world.hypervisor
        if not hypervisor.capabilities.volumes:
            return []
        return list(hypervisor.attached(vmid, owner=self._world.installation))

    def give_back(self, call: Call) -> Result:
        """As `attach`; a machine that is gone, or another's by now, has nothing to be given.

        Nor has one that does not take it, since it is locked: it would be tried again for ever,
        and nobody could destroy the sandbox.  The lease stays, by which the next start attaches it.
        """
        try:
            self.attach(call)
        except (NotFound, NotOurs):
            pass
        except Conflict as refused:
            if isinstance(refused, Busy) and call.attempts < _TRIES:
                raise
            text = f"its work disk is not attached: {refused.message}"
            return lambda tx: _told(tx, call, f"sandbox {call.operation.vmid}: {text}")
        return None

    def attach(self, call: Call) -> Result:
        found = call.outputs["detach"].get("volumes") if "detach" in call.outputs else None
        found = call.saved.get("volumes") if found is None else found
        for volid in found if isinstance(found, list) else []:
            if self._is_anothers(call, str(volid)):
                continue
            self._world.hypervisor.attach(
                call.operation.vmid, str(volid), owner=self._world.installation
            )
        return None

    def _is_anothers(self, call: Call, volid: str) -> bool:
        """Whether the lease was cleared by hand while the disk was out."""
        with call.store.read() as tx:
            found = workspaces.of_volume(tx, volid)
            sandbox = sandboxes.get(tx, call.operation.vmid)
        return found is not None and found.holder != sandbox.id


def save(world: World) -> Operation:
    """Takes a snapshot of a stopped sandbox's root disk."""
    disks = _Disks(world)

    def take(call: Call) -> Result:
        vmid, name = call.operation.vmid, str(call.operation.input["name"])
        world.hypervisor.snapshot(vmid, name, owner=world.installation)
        return lambda tx: _told(tx, call, f"snapshot {name} of sandbox {vmid} was taken")

    return Operation(
        SAVE,
        [
            turn(_stopped("take a snapshot of")),
            disks.detaching(),
            Step("snapshot", take, _LONG),
            disks.attaching(),
        ],
    )


def delete(world: World) -> Operation:
    """Deletes a snapshot; one that is not there is NotFound, so that a typing error is seen."""

    def look(call: Call) -> Result:
        _need(world, call.operation.vmid, str(call.operation.input["name"]), "delete", half=True)
        return None

    def drop(call: Call) -> Result:
        vmid, name = call.operation.vmid, str(call.operation.input["name"])
        world.hypervisor.delete_snapshot(vmid, name, owner=world.installation)
        return lambda tx: _told(tx, call, f"snapshot {name} of sandbox {vmid} was deleted")

    return Operation(
        DELETE,
        [
            turn(_stopped("delete a snapshot of")),
            Step("look", look, _QUICK),
            Step("delete", drop, _LONG),
        ],
    )


def revert(world: World) -> Operation:
    """Puts the root disk back to a snapshot, `clean` by default, and gives power again if asked."""
    work, boot, disks = _Revert(world), Boot(world), _Disks(world)

    def if_restarted(step: Step) -> Step:
        def do(call: Call) -> Result:
            return step.do(call) if work.restarts(call) else None

        def undo(call: Call) -> Result:
            return step.undo(call) if step.undo and work.restarts(call) else None

        return Step(step.name, do, step.deadline, undo if step.undo else None)

    return Operation(
        REVERT,
        [
            turn(work.begin),
            Step("look", work.look, _QUICK),
            Step("halt", work.halt, halting(world)),
            disks.detaching(),
            Step("rollback", work.rollback, _LONG),
            disks.attaching(),
            *(
                if_restarted(step)
                for step in (
                    Step(admit.STEP, work.admit, _ADMIT, undo=work.back),
                    boot.configuring(),
                    *boot.starting(),
                    boot.awaiting(handed_over),
                )
            ),
        ],
    )


class _Revert:
    def __init__(self, world: World) -> None:
        self._world = world
        self._disks = _Disks(world)

    def begin(self, tx: Tx, sandbox: Sandbox, operation: OperationRow) -> Mapping[str, object]:
        sandboxes.set_held(tx, sandbox.vmid, held=False)
        refuse(sandbox, "revert", REVERTIBLE)
        asked = operation.input.get("restart")
        powered = sandbox.state is not _S.STOPPED
        return {"restart": powered if asked is None else asked is True}

    def restarts(self, call: Call) -> bool:
        return call.outputs[TURN].get("restart") is True

    def look(self, call: Call) -> Result:
        """All that may stand in the way, before anything is touched."""
        vmid, name = call.operation.vmid, str(call.operation.input["name"])
        _need(self._world, vmid, name, "revert to")
        later = list(self._world.hypervisor.blockers(vmid, name))
        if later and call.operation.input.get("force") is not True:
            raise Conflict(
                f"cannot revert sandbox {vmid} to {name}: its storage goes back to the newest "
                f"snapshot only, and {', '.join(later)} came later",
                hint="delete what came later (agentlab sandbox snapshot delete), or use --force, "
                "which does that",
                details={"later": later},
            )
        return {"later": later, "works": bool(self._disks.attached(vmid))}

    def halt(self, call: Call) -> Result:
        """The root disk is thrown away; only a work disk needs a guest that ends well."""
        vmid = call.operation.vmid
        with call.store.read() as tx:
            stopped = sandboxes.get(tx, vmid).state is _S.STOPPED
        if not stopped and call.outputs["look"].get("works") is True:
            halt(self._world, call)
        if not stopped:
            self._world.hypervisor.stop(vmid, owner=self._world.installation)
            unfence(self._world, vmid)
        return lambda tx: is_off(tx, vmid, call.operation.id)

    def rollback(self, call: Call) -> Result:
        vmid, name = call.operation.vmid, str(call.operation.input["name"])
        hypervisor, owner = self._world.hypervisor, self._world.installation
        later = call.outputs["look"].get("later")
        for each in later if isinstance(later, list) else []:
            hypervisor.delete_snapshot(vmid, str(each), owner=owner)
        hypervisor.rollback(vmid, name, owner=owner)
        return lambda tx: _told(tx, call, f"sandbox {vmid} is back at snapshot {name}")

    def admit(self, call: Call) -> Result:
        return admit.admit(call, self._world.config.limits, SandboxEvent.START)

    def back(self, call: Call) -> Result:
        vmid, why = call.operation.vmid, call.operation.error
        return lambda tx: is_off(tx, vmid, call.operation.id, f"reverted, but not started: {why}")


def _stopped(verb: str) -> Check:
    def begin(_: Tx, sandbox: Sandbox, __: OperationRow) -> Mapping[str, object]:
        refuse_powered(sandbox, verb)
        return {}

    return begin


def _need(world: World, vmid: int, name: str, verb: str, *, half: bool = False) -> None:
    there = world.hypervisor.snapshots(vmid, half=half)
    if name not in there:
        why = " (it is from before snapshots, or its storage has none)" if name == CLEAN else ""
        raise NotFound(
            f"cannot {verb} {name}: sandbox {vmid} has no such snapshot{why}",
            hint=f"it has {', '.join(there)}" if there else "it has none",
        )


def _told(tx: Tx, call: Call, text: str) -> Output:
    events.append(
        tx, "sandbox.snapshot", text, job=call.operation.job, vmid=call.operation.vmid,
        operation=call.operation.id, facts={"name": call.operation.input["name"]},
    )  # fmt: skip
    return {}

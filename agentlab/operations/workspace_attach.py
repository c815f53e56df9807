"""`workspace.attach` and `workspace.detach`: a sandbox is given a workspace, and gives it up.

The lease comes first and goes last: while it is held, nobody else touches the volume.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from agentlab.engine.step import Call, Operation, Output, Result, Step
from agentlab.errors import AgentLabError, Busy, Conflict, NotFound, NotOurs
from agentlab.hypervisor.base import Power
from agentlab.model.sandbox import SANDBOX, Sandbox, SandboxState
from agentlab.model.workspace import Workspace
from agentlab.operations import work_mount
from agentlab.operations.boot import is_off, unfence
from agentlab.operations.context import World
from agentlab.operations.workspace_hold import refuse_awaited
from agentlab.operations.workspace_turn import (
    SANDBOX_TURN,
    is_gone,
    live_workspace,
    sandbox_turn,
    volid_of,
    workspace_turn,
)
from agentlab.store import events, sandboxes, workspaces
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

ATTACH, DETACH = "workspace.attach", "workspace.detach"
_PLUG = 120.0
_GUEST = 90.0  # seconds that a guest has to mount or unmount, with KVM
_TRIES = 5  # at a disk that a guest does not let go of, before it loses its power
_S = SandboxState
ATTACHABLE = (_S.READY, _S.RUNNING, _S.STOPPED)
_STILL = (_S.SUSPENDED, _S.BOOTING, _S.PROVISIONING, _S.REQUESTED)


def refuse_sandbox(sandbox: Sandbox, verb: str) -> None:
    """Conflict for a state in which a sandbox can neither be given a workspace nor give it up."""
    if sandbox.state in ATTACHABLE or (verb == "detach" and sandbox.state not in _STILL):
        return
    remedy = {
        _S.SUSPENDED: f"let it go on: agentlab sandbox resume {sandbox.vmid}",
        _S.DESTROYED: "see those that live: agentlab sandbox list",
    }.get(sandbox.state, f"possible when it is {', '.join(ATTACHABLE)}")
    ends = "to" if verb == "attach" else "from"
    raise Conflict(
        f"cannot {verb} a workspace {ends} sandbox {sandbox.vmid}: it is {sandbox.state}",
        hint=remedy,
        details={"state": sandbox.state.value, "allowed": list(SANDBOX.allowed(sandbox.state))},
    )


def refuse_second(tx: Tx, workspace: Workspace, sandbox: Sandbox) -> None:
    """Conflict for a sandbox that has another workspace already."""
    other = workspaces.held_by(tx, sandbox.id)
    if other is not None and other.id != workspace.id:
        raise Conflict(
            f"cannot attach workspace {workspace.name} to sandbox {sandbox.vmid}: it has workspace "
            f"{other.name}",
            hint=f"a sandbox has one at most: agentlab workspace detach {other.name}",
        )


def attach(world: World) -> Operation:
    """Gives a sandbox the volume, running or not, and has a running guest mount it at /work."""
    work = Attaching(world)

    def begin(tx: Tx, workspace: Workspace, operation: OperationRow) -> Mapping[str, object]:
        if workspace.holder != operation.input["sandbox"]:
            workspaces.refuse_attached(tx, workspace, "attach")
            refuse_awaited(tx, workspace, "attach")
        return {}

    return Operation(
        ATTACH,
        [
            workspace_turn(begin),
            sandbox_turn(work.lease, undo=work.end_lease),
            Step("attach", work.plug, _PLUG, undo=work.unplug),
            Step("mount", work.mount, mount_time(world), undo=work.unmount),
        ],
    )


class Attaching:
    """The steps of giving the sandbox that the operation is about a workspace; each with its undo."""

    def __init__(self, world: World) -> None:
        self._world = world

    def lease(
        self, tx: Tx, workspace: Workspace, sandbox: Sandbox, call: Call
    ) -> Mapping[str, object]:
        refuse_sandbox(sandbox, "attach")
        refuse_second(tx, workspace, sandbox)
        if workspace.holder == sandbox.id:
            return {"nonce": "", "had": True}  # had before this was asked for: nothing to undo
        nonce = workspaces.hold(tx, workspace.id, sandbox, operation=call.operation.id)
        return {"nonce": nonce, "had": False}

    def end_lease(self, call: Call) -> Result:
        found = call.outputs.get(SANDBOX_TURN, {})
        nonce = str(found.get("nonce", ""))
        identity = call.operation.input["workspace"]
        if not nonce or not isinstance(identity, int):
            return None
        why = call.operation.error

        def write(tx: Tx) -> Output:
            workspaces.release(tx, identity, nonce, operation=call.operation.id, reason=why)
            return {}

        return write

    def plug(self, call: Call) -> Result:
        if is_gone(call):
            raise Conflict(
                f"sandbox {call.operation.vmid} is DESTROYED",
                hint="see those that live: agentlab sandbox list",
            )
        owner = self._world.installation
        self._world.hypervisor.attach(call.operation.vmid, volid_of(call), owner=owner)
        return None

    def unplug(self, call: Call) -> Result:
        """A guest that keeps the disk, for whatever reason, keeps nobody waiting for ever."""
        if is_gone(call) or call.outputs[SANDBOX_TURN].get("had") is True:
            return None
        vmid, owner, identity = call.operation.vmid, self._world.installation, call.operation.id
        with contextlib.suppress(NotFound, NotOurs):
            try:
                self._world.hypervisor.detach(vmid, volid_of(call), owner=owner)
            except Busy:
                if call.attempts < _TRIES:
                    raise
                self._world.hypervisor.stop(vmid, owner=owner)
                unfence(self._world, vmid)
                self._world.hypervisor.detach(vmid, volid_of(call), owner=owner)
                why = "its guest did not let go of a disk that it could not mount"
                return lambda tx: is_off(tx, vmid, identity, why)
        return None

    def mount(self, call: Call) -> Result:
        """By a guest that runs; one without power mounts it when it is started."""
        vmid = call.operation.vmid
        with call.store.read() as tx:
            workspace = live_workspace(tx, call.operation)
        if not running(self._world, vmid):
            return {"mounted": False}
        made = work_mount.mount_in_time(self._world, call, workspace, vmid)
        return {"mounted": True, "made": made}

    def unmount(self, call: Call) -> Result:
        if call.outputs[SANDBOX_TURN].get("had") is True:
            return None
        with call.store.read() as tx:
            workspace = live_workspace(tx, call.operation)
        with contextlib.suppress(AgentLabError):  # it was mounted for a moment at most
            work_mount.unmount(self._world, workspace, call.operation.vmid, force=True)
        return None


def refuse_plugged(world: World, workspace: Workspace) -> None:
    """Conflict while any machine has the volume, whosever it is: a look, no proof of its own."""
    volume = world.volume(workspace.volid)
    if volume is None or not volume.attached:
        return
    vmid = volume.attached[0]
    machine = world.hypervisor.status(vmid)
    ours = machine is not None and machine.owner == world.installation
    raise Conflict(
        f"cannot detach workspace {workspace.name}: VM {vmid} has its volume",
        hint=f"see what mends that: agentlab workspace check {workspace.name}"
        if ours
        else f"it does not carry our mark: end it, or take {workspace.volid} out of it, by hand",
        details={"vmid": vmid},
    )


def guest_time(world: World) -> Callable[[], float]:
    """A deadline for what a guest does; asked late, since the answer may take a KVM probe."""
    return lambda: _GUEST * world.hypervisor.capabilities.slowness


def mount_time(world: World) -> Callable[[], float]:
    """The deadline of a step with `mount_in_time`."""
    answer = guest_time(world)
    return lambda: answer() + work_mount.CHECK


def unmount_time(world: World) -> Callable[[], float]:
    """The deadline of a step with `unmount_in_time`."""
    answer = guest_time(world)
    return lambda: answer() + work_mount.WRITE


def running(world: World, vmid: int) -> bool:
    """Whether there is a guest to be asked; Conflict for one that stands still."""
    machine = world.hypervisor.status(vmid)
    if machine is not None and machine.power is Power.PAUSED:
        with world.store.read() as tx:
            state = sandboxes.get(tx, vmid).state
        note = "" if state is _S.SUSPENDED else "agentlab sandbox reconcile --apply, then "
        raise Conflict(
            f"sandbox {vmid} is {state}, and its VM is paused",
            hint=f"let it go on: {note}agentlab sandbox resume {vmid}",
        )
    return machine is not None and machine.power is not Power.STOPPED


def detach(world: World) -> Operation:
    """Takes it away: written out and unmounted by the guest first, which may refuse."""
    work = Detaching(world)

    def begin(_: Tx, workspace: Workspace, operation: OperationRow) -> Mapping[str, object]:
        if workspace.holder not in (0, operation.input["sandbox"]):
            raise Conflict(
                f"cannot detach workspace {workspace.name}: sandbox {workspace.vmid} has it by now",
                hint=f"if that is to give it up: agentlab workspace detach {workspace.name}",
                details={"vmid": workspace.vmid},
            )
        return {"nonce": workspace.nonce}

    return Operation(
        DETACH,
        [
            workspace_turn(begin),
            sandbox_turn(may_detach),
            Step("unmount", work.unmount, unmount_time(world), undo=work.mount_again),
            Step("detach", work.unplug, _PLUG, undo=work.plug_again),
        ],
    )


def may_detach(_: Tx, __: Workspace, sandbox: Sandbox, ___: Call) -> Mapping[str, object]:
    refuse_sandbox(sandbox, "detach")
    return {}


def plug_back(world: World, call: Call, vmid: int, workspace: Workspace) -> Result:
    """Gives a disk back, in an undo; a machine that does not take it keeps nobody waiting for ever.

    The lease stays, by which the next start attaches it.
    """
    try:
        world.hypervisor.attach(vmid, volid_of(call), owner=world.installation)
    except (NotFound, NotOurs):
        pass
    except Conflict as refused:
        if isinstance(refused, Busy) and call.attempts < _TRIES:
            raise
        kind, identity = call.operation.kind, call.operation.id
        text = (
            f"workspace {workspace.name} is not in sandbox {vmid}, which has its lease and is given "
            f"it by its next start: {refused.message}"
        )

        def write(tx: Tx) -> Output:
            events.append(tx, kind, text, vmid=vmid, operation=identity)
            return {}

        return write
    return None


def mount_back(world: World, call: Call, vmid: int, workspace: Workspace) -> Result:
    """Has the guest mount a disk that it keeps, in an undo; says so when it does not."""
    try:
        if running(world, vmid):
            work_mount.mount(world, workspace, vmid)
    except AgentLabError as refused:
        kind, identity = call.operation.kind, call.operation.id
        text = f"workspace {workspace.name} is not mounted in sandbox {vmid}: {refused.message}"

        def write(tx: Tx) -> Output:
            events.append(tx, kind, text, vmid=vmid, operation=identity)
            return {}

        return write
    return None


class Detaching:
    """The steps of taking a workspace away from the sandbox `vmid`, the operation's by default."""

    def __init__(self, world: World) -> None:
        self._world = world

    def unmount(self, call: Call) -> Result:
        if is_gone(call) or not call.outputs["turn"].get("nonce"):
            return None
        vmid, force = call.operation.vmid, call.operation.input.get("force") is True
        with call.store.read() as tx:
            workspace = live_workspace(tx, call.operation)
        if running(self._world, vmid):
            work_mount.unmount_in_time(self._world, call, workspace, vmid, force=force)
        return None

    def mount_again(self, call: Call) -> Result:
        """It could not be taken away: the guest has it as before, if there is one that answers."""
        if is_gone(call) or not call.outputs["turn"].get("nonce"):
            return None
        with call.store.read() as tx:
            workspace = live_workspace(tx, call.operation)
        return mount_back(self._world, call, call.operation.vmid, workspace)

    def plug_again(self, call: Call) -> Result:
        """It may be out, and the lease is there still: a lease without its disk helps nobody."""
        nonce = str(call.outputs["turn"].get("nonce", ""))
        with call.store.read() as tx:
            workspace = live_workspace(tx, call.operation)
        if is_gone(call) or not nonce or workspace.nonce != nonce:
            return None
        return plug_back(self._world, call, call.operation.vmid, workspace)

    def unplug(self, call: Call) -> Result:
        """The lease ends when the hypervisor has let go, and not before.

        A VM that is gone for us may be there still, without our mark or its record.
        """
        nonce, identity = (
            str(call.outputs["turn"].get("nonce", "")),
            call.operation.input["workspace"],
        )
        if not nonce or not isinstance(identity, int):
            return None  # it was detached when the turn had come
        surely = False
        if not is_gone(call):
            with contextlib.suppress(NotFound, NotOurs):
                self._world.hypervisor.detach(
                    call.operation.vmid, volid_of(call), owner=self._world.installation
                )
                surely = True
        if not surely:
            with call.store.read() as tx:
                workspace = live_workspace(tx, call.operation)
            refuse_plugged(self._world, workspace)

        def write(tx: Tx) -> Output:
            workspaces.release(tx, identity, nonce, operation=call.operation.id)
            return {}

        return write

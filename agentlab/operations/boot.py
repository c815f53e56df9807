"""From a machine without power to a guest that answers: the steps of each start, the first or not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import IPv4Interface

from agentlab import clock
from agentlab.engine.step import Call, Later, Output, Result, Step
from agentlab.errors import AgentLabError, Conflict, DeadlineExceeded, NotFound, NotOurs
from agentlab.hypervisor.base import MachineSpec, Nic, Power
from agentlab.model.sandbox import SANDBOX, Sandbox, SandboxEvent, SandboxState
from agentlab.operations.context import World
from agentlab.operations.work_mount import CHECK, Over, let_go, mount_in_time, until_left
from agentlab.store import events, sandboxes, workspaces
from agentlab.store.db import Tx

CONFIGURE = 60.0
_FENCE = 60.0
_START = 120.0  # with the making of a memory snapshot, when there is none yet
_BOOT = 60.0
_POLL = 0.1


class Boot:
    """Configure, fence, start, await the guest; each with its undo.

    All of it is made from the sandbox's record, so that it is the same each time.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def slow(self, seconds: float) -> Callable[[], float]:
        """A deadline that waits for a guest; asked late, since the answer may take a KVM probe."""
        return lambda: seconds * self._world.hypervisor.capabilities.slowness

    def configuring(self) -> Step:
        return Step("configure", self.configure, CONFIGURE)

    def starting(self) -> list[Step]:
        return [
            Step("fence", self.fence, _FENCE, undo=self.unfence),
            Step("start", self.start, self.slow(_START), undo=self.stop),
        ]

    def awaiting(self, ready: Callable[[Tx, Call], Output]) -> Step:
        """`ready` is called in the transaction in which the sandbox becomes READY."""
        slow = self.slow(_BOOT)
        return Step(
            "await_guest", lambda call: self.await_guest(call, ready), lambda: slow() + CHECK
        )

    def configure(self, call: Call) -> Result:
        vmid = call.operation.vmid
        self._world.hypervisor.configure(vmid, self.spec(call), owner=self._world.installation)
        return None

    def spec(self, call: Call) -> MachineSpec:
        """What the machine is given."""
        with call.store.read() as tx:
            sandbox = sandboxes.get(tx, call.operation.vmid)
        return machine_spec(sandbox, self._world)

    def fence(self, call: Call) -> Result:
        """Taps and rules before power; the sandbox does not start when they cannot be put in place."""
        with call.store.write() as tx:
            sandboxes.set_fenced(tx, call.operation.vmid, fenced=True)
        self._world.sync_fence()
        return None

    def unfence(self, call: Call) -> Result:
        unfence(self._world, call.operation.vmid)
        return None

    def start(self, call: Call) -> Result:
        vmid = call.operation.vmid
        with call.store.read() as tx:
            sandbox = sandboxes.get(tx, vmid)
        if sandbox.state is not SandboxState.BOOTING:
            with call.store.write() as tx:
                sandboxes.transition(tx, vmid, SandboxEvent.BOOT, operation=call.operation.id)
        with call.store.read() as tx:
            held = workspaces.held_by(tx, sandbox.id)
        hypervisor, owner = self._world.hypervisor, self._world.installation
        asked = call.operation.input.get("workspace")
        if held is not None:  # it may have been taken out, and not been given back
            hypervisor.attach(vmid, held.volid, owner=owner)
        elif sandbox.state is not SandboxState.PROVISIONING or asked:  # else a clone, with none
            self._refuse_anothers(sandbox)
        hypervisor.start(vmid, owner=owner)
        if hypervisor.capabilities.makes_taps:
            try:
                self._world.check_port(sandbox.tap)
            except AgentLabError:  # not proven is not fenced
                hypervisor.stop(vmid, owner=owner)  # at once: the undoing comes later
                raise
        return None

    def _refuse_anothers(self, sandbox: Sandbox) -> None:
        """Conflict for the volume of a workspace that the sandbox has no lease of.

        Another may have it, and two guests would write to one file system.
        """
        hypervisor, vmid = self._world.hypervisor, sandbox.vmid
        if not hypervisor.capabilities.volumes:
            return
        for volid in hypervisor.attached(vmid, owner=self._world.installation):
            with self._world.store.read() as tx:
                found = workspaces.of_volume(tx, volid)
            if found is not None and found.holder != sandbox.id:
                raise Conflict(
                    f"cannot start sandbox {vmid}: it has volume {volid} of workspace "
                    f"{found.name} without a lease",
                    hint=f"see what mends that: agentlab workspace check {found.name}",
                    details={"workspace": found.name, "volume": volid},
                )

    def stop(self, call: Call) -> Result:
        with call.store.read() as tx:
            sandbox = sandboxes.get(tx, call.operation.vmid)
        let_go(self._world, sandbox)
        with contextlib.suppress(NotOurs):
            self._world.hypervisor.stop(call.operation.vmid, owner=self._world.installation)
        return None

    def await_guest(self, call: Call, ready: Callable[[Tx, Call], Output]) -> Result:
        """It has the time of a boot; a file system that is checked before it is mounted has more."""
        vmid = call.operation.vmid
        with until_left(call, CHECK):
            answers = self._ready(vmid, self.spec(call))
        if not answers:
            look = self._world.hypervisor.capabilities.look
            machine = self._world.glance.machine(vmid, age=look)
            if machine is None or machine.power is Power.STOPPED:  # it may be an old answer
                machine = self._world.hypervisor.status(vmid)
            if machine is None or machine.power is Power.STOPPED:
                raise Conflict(f"cannot boot sandbox {vmid}: its VM lost power while it booted")
            waits = "the guest agent's answer"
            if call.deadline.left <= CHECK:
                late = f"{call.step} took longer than it was given: still waiting for {waits}"
                raise Over(DeadlineExceeded(late))
            pause = max(_POLL * min(10.0, 1 + call.attempts / 20), look / 20)
            raise Later(min(pause, max(0.05, call.deadline.left - CHECK)), waits)

        with call.store.read() as tx:
            held = workspaces.held_by(tx, sandboxes.get(tx, vmid).id)
        if held is not None:
            mount_in_time(self._world, call, held, vmid)

        def became(tx: Tx) -> Output:
            sandboxes.transition(tx, vmid, SandboxEvent.BECOME_READY, operation=call.operation.id)
            return ready(tx, call)

        return became

    def _ready(self, vmid: int, spec: MachineSpec) -> bool:
        try:
            return self._world.hypervisor.ready(vmid, spec)
        except NotFound:  # the look that follows tells it in our words
            return False


def nothing_more(_: Tx, __: Call) -> Output:
    """What follows READY is another step's."""
    return {}


def handed_over(tx: Tx, call: Call) -> Output:
    """A sandbox made by hand is READY: its lease begins, and one that is kept alive is in use."""
    sandbox = sandboxes.get(tx, call.operation.vmid)
    until = clock.now() + sandbox.ttl
    sandboxes.set_lease(tx, sandbox.vmid, until)
    events.append(
        tx, "sandbox.lease", f"the lease of sandbox {sandbox.vmid} begins", job=sandbox.job,
        vmid=sandbox.vmid, operation=call.operation.id, facts={"until": until, "ttl": sandbox.ttl},
    )  # fmt: skip
    if sandbox.keepalive:
        sandboxes.transition(tx, sandbox.vmid, SandboxEvent.RUN, operation=call.operation.id)
    return {"lease": until}


def machine_spec(sandbox: Sandbox, world: World) -> MachineSpec:
    """A sandbox's record as a hypervisor wants it."""
    network = world.config.network
    return MachineSpec(
        hostname=sandbox.name,
        cores=sandbox.cores,
        memory=sandbox.memory,
        disk=sandbox.disk,
        nic=Nic(
            tap=sandbox.tap,
            mac=sandbox.mac,
            address=IPv4Interface(f"{sandbox.address}/{network.subnet.prefixlen}"),
            gateway=network.host,
            dns=network.dns if sandbox.network == "nat" else (),
        ),
    )


def unfence(world: World, vmid: int) -> None:
    """Takes a sandbox's tap and rules away."""
    with world.store.write() as tx:
        sandboxes.set_fenced(tx, vmid, fenced=False)
    world.sync_fence()


def close_record(tx: Tx, vmid: int, reason: str, operation: str, *, surely: bool = True) -> Output:
    """Moves a sandbox whose VM is gone to DESTROYED, by way of FAILED where its table has that.

    Its workspace is free from then on; not `surely`, when the VM may be there still under another
    name: then it is free when no machine has its volume (`workspace_leases`).
    """
    sandbox = sandboxes.get(tx, vmid)
    if surely:
        workspaces.release_of(tx, sandbox.id, operation=operation)
    if sandbox.state is SandboxState.DESTROYED:
        return {}
    if reason and SandboxEvent.FAIL in SANDBOX.allowed(sandbox.state):
        sandboxes.transition(tx, vmid, SandboxEvent.FAIL, operation=operation, reason=reason)
    sandboxes.transition(tx, vmid, SandboxEvent.FORCE_DESTROY, operation=operation)
    return {}


def is_off(tx: Tx, vmid: int, operation: str, reason: str = "") -> Output:
    """Moves a sandbox that has lost its power to STOPPED, by way of FAILED where it must."""
    sandbox = sandboxes.get(tx, vmid)
    if sandbox.state is SandboxState.STOPPED:
        return {}
    if SandboxEvent.STOP not in SANDBOX.allowed(sandbox.state):
        sandboxes.transition(tx, vmid, SandboxEvent.FAIL, operation=operation, reason=reason)
    sandboxes.transition(tx, vmid, SandboxEvent.STOP, operation=operation, reason=reason)
    return {}

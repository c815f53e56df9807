"""The steps that make a sandbox, shared by every operation that needs one."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Interface

from agentlab import clock
from agentlab.engine.step import Call, Later, Output, Result, Step
from agentlab.errors import AgentLabError, Conflict, NotOurs, Unavailable
from agentlab.hypervisor.base import MachineSpec, Nic, Power
from agentlab.model.job import JobEvent
from agentlab.model.plan import Plan
from agentlab.model.sandbox import SANDBOX, Sandbox, SandboxEvent, SandboxState
from agentlab.network.address import allot, mac_for, tap_name, tap_of
from agentlab.operations.context import World
from agentlab.store import events, jobs, operations, sandboxes
from agentlab.store.db import Tx

_log = logging.getLogger(__name__)
_RESERVE = 1500.0  # a full range is waited for
_CLONE = 300.0
_CONFIGURE = 60.0
_FENCE = 60.0
_START = 120.0  # with the making of a memory snapshot, when there is none yet
_BOOT = 60.0
_POLL = 0.1
_VMIDS_TRIED = 20  # in one operation, when strangers are faster again and again


@dataclass(frozen=True, slots=True)
class Wanted:
    """The sandbox that an operation asks for."""

    name: str
    plan: Plan
    job: str


class Provision:
    """Reserve, clone, configure, fence, start, await the guest; each with its undo.

    `wanted` reads from an operation's input which sandbox it asks for.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def slow(self, seconds: float) -> Callable[[], float]:
        """A deadline that waits for a guest; asked late, since the answer may take a KVM probe."""
        return lambda: seconds * self._world.hypervisor.capabilities.slowness

    def steps(self) -> list[Step]:
        return [
            Step("reserve", self.reserve, _RESERVE, undo=self.free),
            Step("clone", self.clone, _CLONE, undo=self.destroy),
            Step("configure", self.configure, _CONFIGURE),
            Step("fence", self.fence, _FENCE, undo=self.unfence),
            Step("start", self.start, self.slow(_START), undo=self.stop),
            Step("await_guest", self.await_guest, self.slow(_BOOT)),
        ]

    def reserve(self, call: Call) -> Result:
        """VMID, name, address, MAC and tap in one transaction; what the hypervisor has is skipped."""
        foreign, makes_taps = self._foreign(), self._world.hypervisor.capabilities.makes_taps

        def write(tx: Tx) -> Output:
            output = self._record(tx, call, foreign, makes_taps=makes_taps)
            if call.operation.job:
                jobs.transition(tx, call.operation.job, JobEvent.PROVISION)
            return output

        return write

    def _foreign(self) -> set[int]:
        return {machine.vmid for machine in self._world.hypervisor.inventory()}

    def _record(self, tx: Tx, call: Call, foreign: set[int], *, makes_taps: bool) -> Output:
        """A new sandbox's record, locked for this operation; gives the output of `reserve`."""
        wanted = wanted_of(call)
        live = sandboxes.live(tx)
        vmid = self._free_vmid({one.vmid for one in live} | foreign, sandboxes.last_vmid(tx))
        network = self._world.config.network
        address = allot(
            network.subnet,
            network.host,
            [one.address for one in live],
            after=sandboxes.last_address(tx),
        )
        now = clock.now()
        sandbox = Sandbox(
            vmid=vmid,
            name=wanted.name,
            profile=wanted.plan.profile,
            state=SANDBOX.initial,
            address=address,
            mac=mac_for(self._world.installation, vmid),
            tap=tap_of(vmid) if makes_taps else tap_name(network.bridge, vmid),
            network=wanted.plan.network,
            job=wanted.job,
            created=now,
            changed=now,
            lease_until=0.0,
            reason="",
        )
        operations.lock(tx, call.operation.id, f"sandbox:{vmid}")
        operations.set_vmid(tx, call.operation.id, vmid)
        sandboxes.create(tx, sandbox, operation=call.operation.id)
        sandboxes.transition(tx, vmid, SandboxEvent.PROVISION, operation=call.operation.id)
        if wanted.job:
            jobs.set_sandbox(tx, wanted.job, vmid)
        return {"vmid": vmid, "address": str(address), "mac": sandbox.mac, "tap": sandbox.tap}

    def _free_vmid(self, taken: set[int], last: int) -> int:
        vmids: range = self._world.config.vmids
        start = last + 1 if last + 1 in vmids else vmids.start
        for vmid in itertools.chain(range(start, vmids.stop), range(vmids.start, start)):
            if vmid not in taken:
                return vmid
        raise Unavailable(
            f"cannot reserve a VMID: all of {vmids.start} to {vmids.stop - 1} are taken",
            hint="destroy sandboxes that are no longer needed, or widen vmid_range in the settings",
        )

    def free(self, call: Call) -> Result:
        if not call.outputs.get("reserve"):
            return None
        vmid = call.number("reserve", "vmid")
        return lambda tx: close_record(tx, vmid, call.operation.error, call.operation.id)

    def clone(self, call: Call) -> Result:
        """Makes the machine; where a stranger was faster, the sandbox gets another VMID.

        A VMID that was refused is written down first, and never tried or touched again by this
        operation.
        """
        vmid, refused = vmid_of(call), _refused(call)
        if vmid not in refused:
            wanted = wanted_of(call)
            try:
                self._world.hypervisor.clone(
                    wanted.plan.template,
                    vmid,
                    name=wanted.name,
                    owner=self._world.installation,
                )
            except NotOurs as taken:
                refused = [*refused, vmid]
                call.save(refused=refused, why=taken.message)
                _log.info("VMID %d is another's by now: %s", vmid, taken)
            else:
                return None
        if len(refused) >= _VMIDS_TRIED:
            raise Conflict(
                f"cannot get a VMID: {len(refused)} in turn, {refused[0]} to {refused[-1]}, turned "
                "out to be another's when the VM was to be made",
                hint="give AgentLab a vmid_range that nobody else takes VMIDs from, and see what "
                f"is left on the storages under VMID {vmid}",
            )
        self._give_up(call, vmid, refused)
        raise Later(0.0)

    def _give_up(self, call: Call, vmid: int, refused: list[int]) -> None:
        """The record of a VMID that was refused is closed, and another takes its place: at once."""
        taken = self._foreign() | set(refused)
        makes_taps = self._world.hypervisor.capabilities.makes_taps
        operation = call.operation
        with call.store.write() as tx:
            reason = f"given up, and nothing was made: VMID {vmid} is another's"
            sandboxes.transition(
                tx, vmid, SandboxEvent.FORCE_DESTROY, operation=operation.id, reason=reason
            )
            operations.unlock(tx, operation.id, f"sandbox:{vmid}")
            output = self._record(tx, call, taken, makes_taps=makes_taps)
            operations.save_output(tx, operation.id, "reserve", output)
            events.append(
                tx, "sandbox.vmid", f"VMID {vmid} is another's; it is VMID {output['vmid']} now",
                job=operation.job, vmid=int(str(output["vmid"])), operation=operation.id,
                facts={"from": vmid, "to": output["vmid"]},
            )  # fmt: skip

    def destroy(self, call: Call) -> Result:
        if vmid_of(call) in _refused(call):
            return None  # another's
        # what is not ours was never made by this operation: nothing to undo
        with contextlib.suppress(NotOurs):
            self._world.hypervisor.destroy(vmid_of(call), owner=self._world.installation)
        return None

    def configure(self, call: Call) -> Result:
        self._world.hypervisor.configure(
            vmid_of(call), self.spec(call), owner=self._world.installation
        )
        return None

    def spec(self, call: Call) -> MachineSpec:
        """What the machine is given; from the operation alone, so that it is the same each time."""
        wanted, network = wanted_of(call), self._world.config.network
        with call.store.read() as tx:
            sandbox = sandboxes.get(tx, vmid_of(call))
        return machine_spec(sandbox, wanted.plan, network.subnet.prefixlen, self._world)

    def fence(self, call: Call) -> Result:
        """Taps and rules before power; the sandbox does not start when they cannot be put in place."""
        with call.store.write() as tx:
            sandboxes.set_fenced(tx, vmid_of(call), fenced=True)
        self._world.sync_fence()
        return None

    def unfence(self, call: Call) -> Result:
        unfence(self._world, vmid_of(call))
        return None

    def start(self, call: Call) -> Result:
        vmid = vmid_of(call)
        with call.store.read() as tx:
            booting = sandboxes.get(tx, vmid).state is SandboxState.BOOTING
        if not booting:
            with call.store.write() as tx:
                sandboxes.transition(tx, vmid, SandboxEvent.BOOT, operation=call.operation.id)
        hypervisor, owner = self._world.hypervisor, self._world.installation
        hypervisor.start(vmid, owner=owner)
        if hypervisor.capabilities.makes_taps:
            try:
                self._world.check_port(call.text("reserve", "tap"))
            except AgentLabError:  # not proven is not fenced
                hypervisor.stop(vmid, owner=owner)  # at once: the undoing comes later
                raise
        return None

    def stop(self, call: Call) -> Result:
        with contextlib.suppress(NotOurs):
            self._world.hypervisor.stop(vmid_of(call), owner=self._world.installation)
        return None

    def await_guest(self, call: Call) -> Result:
        vmid = vmid_of(call)
        if not self._world.hypervisor.ready(vmid, self.spec(call)):
            look = self._world.hypervisor.capabilities.look
            machine = self._world.glance.machine(vmid, age=look)
            if machine is None or machine.power is Power.STOPPED:  # it may be an old answer
                machine = self._world.hypervisor.status(vmid)
            if machine is None or machine.power is Power.STOPPED:
                raise Conflict(f"cannot boot sandbox {vmid}: its VM lost power while it booted")
            pause = max(_POLL * min(10.0, 1 + call.attempts / 20), look / 20)
            raise Later(pause, "the guest agent's answer")
        return lambda tx: _became(tx, vmid, SandboxEvent.BECOME_READY, call.operation.id)


def _became(tx: Tx, vmid: int, event: SandboxEvent, operation: str) -> Output:
    sandboxes.transition(tx, vmid, event, operation=operation)
    return {}


def machine_spec(sandbox: Sandbox, plan: Plan, prefix: int, world: World) -> MachineSpec:
    """A sandbox's record as a hypervisor wants it."""
    network = world.config.network
    return MachineSpec(
        hostname=sandbox.name,
        cores=plan.cores,
        memory=plan.memory,
        disk=plan.disk,
        nic=Nic(
            tap=sandbox.tap,
            mac=sandbox.mac,
            address=IPv4Interface(f"{sandbox.address}/{prefix}"),
            gateway=network.host,
            dns=network.dns if plan.network == "nat" else (),
        ),
    )


def _refused(call: Call) -> list[int]:
    """The VMIDs that `clone` found to be another's; it asks this of its own saved facts."""
    found = call.saved.get("refused")
    return [each for each in found if isinstance(each, int)] if isinstance(found, list) else []


def vmid_of(call: Call) -> int:
    """The VMID that this operation reserved."""
    return call.number("reserve", "vmid")


def wanted_of(call: Call) -> Wanted:
    """The sandbox that this operation asks for, from its input."""
    plan = call.operation.input["plan"]
    if not isinstance(plan, dict):
        raise TypeError("an operation without a plan")
    return Wanted(str(call.operation.input["name"]), Plan(**plan), call.operation.job)


def unfence(world: World, vmid: int) -> None:
    """Takes a sandbox's tap and rules away."""
    with world.store.write() as tx:
        sandboxes.set_fenced(tx, vmid, fenced=False)
    world.sync_fence()


def close_record(tx: Tx, vmid: int, reason: str, operation: str) -> Output:
    """Moves a sandbox whose VM is gone to DESTROYED, by way of FAILED where its table has that."""
    sandbox = sandboxes.get(tx, vmid)
    if sandbox.state is SandboxState.DESTROYED:
        return {}
    if SandboxEvent.FAIL in SANDBOX.allowed(sandbox.state):
        sandboxes.transition(tx, vmid, SandboxEvent.FAIL, operation=operation, reason=reason)
    sandboxes.transition(tx, vmid, SandboxEvent.FORCE_DESTROY, operation=operation)
    return {}

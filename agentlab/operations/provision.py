"""The steps that make a sandbox, shared by every operation that needs a new one."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agentlab import clock
from agentlab.engine.step import Call, Later, Output, Result, Step
from agentlab.errors import Conflict, NotOurs, Unavailable, Unsupported
from agentlab.model.job import JobEvent
from agentlab.model.plan import Plan
from agentlab.model.sandbox import CLEAN, SANDBOX, Sandbox, SandboxEvent, SandboxState
from agentlab.network.address import allot, mac_for, tap_name, tap_of
from agentlab.operations import admit
from agentlab.operations.boot import Boot, close_record, nothing_more
from agentlab.operations.context import World
from agentlab.operations.workspace_hold import WorkspaceOfNew
from agentlab.store import events, jobs, operations, sandboxes, workspaces
from agentlab.store.db import Tx

_log = logging.getLogger(__name__)
_RESERVE = 1500.0  # a full range is waited for
_CLONE = 3600.0  # a full clone of a large disk; the driver lets no single one take longer
_SNAPSHOT = 120.0
_VMIDS_TRIED = 20  # in one operation, when strangers are faster again and again


@dataclass(frozen=True, slots=True)
class Wanted:
    """The sandbox that an operation asks for.  `vmid` 0: any; `queue`: it waits for room.

    `workspace` is the id of the workspace's record that it is to have, 0 for none.
    """

    name: str
    plan: Plan
    job: str
    vmid: int = 0
    keepalive: bool = False
    queue: bool = True
    workspace: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


class Provision:
    """Reserve, admit, clone, configure, keep it clean, and boot; each with its undo.

    `ready` is called in the transaction in which the sandbox becomes READY.  `workspace` False:
    without the steps that give it one from the beginning.
    """

    def __init__(
        self,
        world: World,
        ready: Callable[[Tx, Call], Output] = nothing_more,
        *,
        workspace: bool = True,
    ) -> None:
        self._world = world
        self._with_workspace = workspace
        self._ready = ready
        self._workspace = WorkspaceOfNew(world)
        self.boot = Boot(world)

    def steps(self) -> list[Step]:
        with_it, work = self._with_workspace, self._workspace
        return [
            *([work.waiting()] if with_it else []),
            Step("reserve", self.reserve, _RESERVE, undo=self.free),
            *([work.leasing()] if with_it else []),
            Step(admit.STEP, self.admit, admit.PATIENCE),
            Step("clone", self.clone, _CLONE, undo=self.destroy),
            self.boot.configuring(),
            Step("snapshot", self.keep_clean, _SNAPSHOT),
            *([work.attaching()] if with_it else []),
            *self.boot.starting(),
            self.boot.awaiting(self._ready),
        ]

    def reserve(self, call: Call) -> Result:
        """VMID, name, address, MAC and tap in one transaction; what the hypervisor has is skipped."""
        foreign, makes_taps = self._foreign(), self._world.hypervisor.capabilities.makes_taps
        return lambda tx: self._record(tx, call, foreign, makes_taps=makes_taps)

    def admit(self, call: Call) -> Result:
        """Room for it on this host, when those that came before have theirs."""
        return admit.admit(
            call,
            self._world.config.limits,
            SandboxEvent.PROVISION,
            queue=wanted_of(call).queue,
            also=_job_begins,
        )

    def keep_clean(self, call: Call) -> Result:
        """The snapshot that `revert` goes back to, from before the first power-on."""
        vmid = call.operation.vmid
        with call.store.read() as tx:
            sandbox = sandboxes.get(tx, vmid)
        if sandbox.state is not SandboxState.PROVISIONING:
            return None  # it has power already: an older version of us has begun this
        try:
            self._world.hypervisor.snapshot(vmid, CLEAN, owner=self._world.installation)
        except Unsupported as cannot:
            reason = cannot.message
            return lambda tx: _no_snapshot(tx, sandbox, reason, call.operation.id)
        return {"snapshot": CLEAN}

    def _foreign(self) -> set[int]:
        return {machine.vmid for machine in self._world.hypervisor.inventory()}

    def _record(self, tx: Tx, call: Call, foreign: set[int], *, makes_taps: bool) -> Output:
        """A new sandbox's record, locked for this operation; gives the output of `reserve`."""
        wanted = wanted_of(call)
        live = sandboxes.live(tx)
        taken = {one.vmid for one in live} | foreign
        vmid = _asked_vmid(wanted.vmid, taken) or self._free_vmid(taken, sandboxes.last_vmid(tx))
        if any(one.name == wanted.name for one in live):
            raise Conflict(f"there is a sandbox {wanted.name} already")
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
            template=wanted.plan.template,
            cores=wanted.plan.cores,
            memory=wanted.plan.memory,
            disk=wanted.plan.disk,
            labels=dict(wanted.labels),
            ttl=float(wanted.plan.ttl),
            keepalive=wanted.keepalive,
            idle_stop=float(wanted.plan.idle_stop),
        )
        operations.lock(tx, call.operation.id, f"sandbox:{vmid}")
        operations.set_vmid(tx, call.operation.id, vmid)
        sandboxes.create(tx, sandbox, operation=call.operation.id)
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
                if wanted.vmid:
                    raise
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
            held = workspaces.held_by(tx, sandboxes.get(tx, vmid).id)
            sandboxes.transition(
                tx, vmid, SandboxEvent.FORCE_DESTROY, operation=operation.id, reason=reason
            )
            operations.unlock(tx, operation.id, f"sandbox:{vmid}")
            output = self._record(tx, call, taken, makes_taps=makes_taps)
            again = int(str(output["vmid"]))
            if held is not None:
                new = sandboxes.get(tx, again)
                workspaces.pass_on(tx, held.id, held.nonce, new, operation=operation.id)
            sandboxes.transition(tx, again, SandboxEvent.PROVISION, operation=operation.id)
            operations.save_output(tx, operation.id, "reserve", output)
            events.append(
                tx, "sandbox.vmid", f"VMID {vmid} is another's; it is VMID {again} now",
                job=operation.job, vmid=again, operation=operation.id,
                facts={"from": vmid, "to": again},
            )  # fmt: skip

    def destroy(self, call: Call) -> Result:
        if vmid_of(call) in _refused(call):
            return None  # another's
        # what is not ours was never made by this operation: nothing to undo
        with contextlib.suppress(NotOurs):
            self._world.hypervisor.destroy(vmid_of(call), owner=self._world.installation)
        return None


def _job_begins(tx: Tx, sandbox: Sandbox) -> None:
    if sandbox.job:
        jobs.transition(tx, sandbox.job, JobEvent.PROVISION)


def _no_snapshot(tx: Tx, sandbox: Sandbox, reason: str, operation: str) -> Output:
    events.append(
        tx, "sandbox.snapshot", f"sandbox {sandbox.vmid} cannot be reverted: {reason}",
        job=sandbox.job, vmid=sandbox.vmid, operation=operation, facts={"reason": reason},
    )  # fmt: skip
    return {"snapshot": ""}


def _asked_vmid(vmid: int, taken: set[int]) -> int:
    if vmid in taken:
        raise Conflict(
            f"VMID {vmid} is taken",
            hint="choose another, or leave --vmid out: see agentlab sandbox inventory",
            details={"vmid": vmid},
        )
    return vmid


def _refused(call: Call) -> list[int]:
    """The VMIDs that `clone` found to be another's; it asks this of its own saved facts."""
    found = call.saved.get("refused")
    return [each for each in found if isinstance(each, int)] if isinstance(found, list) else []


def vmid_of(call: Call) -> int:
    """The VMID that this operation reserved."""
    return call.number("reserve", "vmid")


def wanted_of(call: Call) -> Wanted:
    """The sandbox that this operation asks for, from its input."""
    given = call.operation.input
    plan, labels = given["plan"], given.get("labels") or {}
    if not isinstance(plan, dict) or not isinstance(labels, dict):
        raise TypeError("an operation without a plan")
    return Wanted(
        str(given["name"]),
        Plan(**plan),
        call.operation.job,
        vmid=int(str(given.get("vmid", 0))),
        keepalive=given.get("keepalive") is True,
        queue=given.get("queue", True) is True,
        workspace=int(str(given.get("workspace") or 0)),
        labels={str(key): str(value) for key, value in labels.items()},
    )

"""`job.run`: a sandbox is made, gets its task once, works, hands back, and is gone."""

from __future__ import annotations

import json
import time

from agentlab import clock
from agentlab.clock import Deadline
from agentlab.engine.runner import Cancelled
from agentlab.engine.step import Call, Operation, Output, Result, Step, Wait
from agentlab.errors import AgentLabError, NotFound, NotOurs
from agentlab.hypervisor.base import Power
from agentlab.model.job import JOB, Job, JobEvent
from agentlab.model.profile import After
from agentlab.model.sandbox import Sandbox, SandboxEvent
from agentlab.operations import handed_back
from agentlab.operations.boot import close_record, is_off, unfence
from agentlab.operations.context import World
from agentlab.operations.provision import Provision, vmid_of, wanted_of
from agentlab.operations.work_mount import WRITE, let_go, write_out_held
from agentlab.operations.workspace_hold import take_away
from agentlab.store import jobs, operations, sandboxes, tokens
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

KIND = "job.run"
BOOTSTRAP = "/run/agentlab/bootstrap.json"
PROTOCOL = 1

_DELIVER = 60.0
_CLAIM = 30.0  # the runner must have asked for its job by then
_GRACE = 30.0  # past the lease, and after a start of the daemon, for a report on its way
_COLLECT = 300.0
_RELEASE = 600.0  # and WRITE
_SHUTDOWN = 10.0

_OUTCOME = {
    "completed": JobEvent.COMPLETE,
    "failed": JobEvent.FAIL,
    "timeout": JobEvent.EXPIRE,
    "cancelled": JobEvent.CANCEL,
}
_SANDBOX_OUTCOME = {"completed": SandboxEvent.COMPLETE, "timeout": SandboxEvent.EXPIRE}


def operation(world: World) -> Operation:
    """All steps of a job, from the reservation to the sandbox's end."""
    run = _JobRun(world)
    return Operation(
        KIND,
        [
            *run.provision.steps(),
            Step("deliver", run.deliver, run.slow(_DELIVER), undo=run.revoke),
            Step("await_report", run.await_report, run.patience, handles_cancel=True),
            Step("collect", run.collect, _COLLECT, handles_cancel=True, no_return=True),
            Step("release", run.release, _RELEASE + WRITE, handles_cancel=True, no_return=True),
        ],
        finish=finish,
    )


class _JobRun:
    def __init__(self, world: World) -> None:
        self._world = world
        self._born = time.monotonic()
        self._leases = clock.Stamps()
        self.provision = Provision(world)
        self.slow = self.provision.boot.slow
        self.patience = 400 * 86400.0  # the lease is the real limit: await_report sees to it

    def deliver(self, call: Call) -> Result:
        """The one-shot token goes in by the guest agent; the same one when this is done again."""
        job, vmid = call.operation.job, vmid_of(call)
        token, plan = self._world.token(job), wanted_of(call).plan
        lease = float(str(call.saved.get("lease") or clock.now() + plan.ttl))
        if not call.saved:
            call.save(lease=lease)
        self._leases.deadline(call.operation.id, lease)  # seen before anybody sets the clock
        with call.store.write() as tx:
            if tokens.find(tx, token.fingerprint) is None:
                address = call.text("reserve", "address")
                tokens.put(tx, token.fingerprint, job=job, address=address, expires=lease)
            spent = tokens.spent(tx, job)
        if not spent:
            document = {"protocol": PROTOCOL, "url": self._url, "job": job, "token": token.reveal()}
            self._world.hypervisor.file_write(
                vmid, BOOTSTRAP, json.dumps(document).encode(), owner=self._world.installation
            )
        return lambda tx: self._delivered(tx, call, lease)

    @property
    def _look(self) -> float:
        return self._world.hypervisor.capabilities.look

    @property
    def _url(self) -> str:
        return f"http://{self._world.config.network.host}:{self._world.config.guest_port}"

    def _delivered(self, tx: Tx, call: Call, lease: float) -> Output:
        sandboxes.set_lease(tx, vmid_of(call), lease)
        sandboxes.transition(tx, vmid_of(call), SandboxEvent.RUN, operation=call.operation.id)
        jobs.set_deadline(tx, call.operation.job, deadline_of(lease))
        jobs.transition(tx, call.operation.job, JobEvent.RUN)
        return {"lease": lease, "at": clock.now()}

    def revoke(self, call: Call) -> Result:
        job = call.operation.job
        self._forget(call)
        return lambda tx: _revoked(tx, job)

    def await_report(self, call: Call) -> Result:
        """Ends with the guest's report, or with what the daemon itself sees of its sandbox."""
        with call.store.read() as tx:
            job = jobs.get(tx, call.operation.job)
            claimed = tokens.spent(tx, job.id)
            box = sandboxes.get(tx, vmid_of(call))  # its lease may have been renewed
        if job.report is not None:
            self._forget(call)
            status = str(job.report.get("status"))
            return {"outcome": status, "reason": _reason(job), "reported": True}
        given_up = self._lease_over(call, box) or self._silent(call, claimed) or self._lost(call)
        if given_up is not None:
            self._forget(call)
            return given_up
        raise Wait("the agent's report", after=self._look)

    def _forget(self, call: Call) -> None:
        for key in (call.operation.id, _cancel_of(call)):
            self._leases.forget(key)

    def _lease_over(self, call: Call, box: Sandbox) -> Output | None:
        """The lease by the clock as it was first seen: who sets the clock ends no lease."""
        most = box.ttl or float("inf")
        until = self._leases.deadline(call.operation.id, box.lease_until, most=most)
        grace = Deadline(max(until.at, self._born) + _GRACE)
        if grace.passed:
            return _unreported("timeout", "the lease ended and no report had come")
        return None

    def _silent(self, call: Call, claimed: bool) -> Output | None:
        waited = call.deadline.at - self.patience  # when this process began to wait
        if not claimed and Deadline(waited + self.slow(_CLAIM)()).passed:
            return _unreported("failed", "the runner in the sandbox never asked for its job")
        if call.cancelled and self._cancel_is_overdue(call, claimed):
            return _unreported("cancelled", "cancelled; the sandbox did not report in time")
        return None

    def _lost(self, call: Call) -> Output | None:
        vmid = vmid_of(call)
        try:
            machine = self._world.glance.machine(vmid, age=self._look / 2)
            if machine is None or machine.power is Power.STOPPED:  # it may be an old answer
                machine = self._world.hypervisor.status(vmid)
        except AgentLabError:
            return None  # whatever keeps us from looking (a right that is gone, say) is not its end
        if machine is not None and machine.power is not Power.STOPPED:
            return None  # unknown is not stopped
        with call.store.read() as tx:  # a forced destroy asks first and takes power then
            asked = operations.get(tx, call.operation.id).cancel
        if asked:
            return _unreported("cancelled", "cancelled; its sandbox was destroyed")
        return _unreported("failed", "the sandbox lost its power before it reported")

    def _cancel_is_overdue(self, call: Call, claimed: bool) -> bool:
        if not claimed:
            return True
        handback = float(str(call.operation.input["handback"])) + _GRACE
        asked = call.saved.get("cancel_seen")
        if asked is None:
            asked = clock.now()
            call.save(cancel_seen=asked)
        return self._leases.deadline(_cancel_of(call), float(str(asked)) + handback).passed

    def collect(self, call: Call) -> Result:
        """From here on nothing more is taken from the guest; what came is measured and kept."""
        job = call.operation.job
        with call.store.write() as tx:
            tokens.revoke(tx, job)
            record = jobs.get(tx, job)
        outcome, reason = call.text("await_report", "outcome"), call.text("await_report", "reason")
        found = handed_back.measure(self._world.job_dir(job), record, outcome, reason)

        def write(tx: Tx) -> Output:
            for artifact in found:
                jobs.put_artifact(tx, artifact)
            event = _SANDBOX_OUTCOME.get(outcome, SandboxEvent.FAIL)
            sandboxes.transition(
                tx, vmid_of(call), event, operation=call.operation.id, reason=reason
            )
            conclude(tx, job, _OUTCOME.get(outcome, JobEvent.FAIL), reason)
            return {"artifacts": len(found)}

        return write

    def release(self, call: Call) -> Result:
        """What becomes of the sandbox, by its profile; a cancelled job's is always destroyed."""
        vmid, owner = vmid_of(call), self._world.installation
        after = After(wanted_of(call).plan.after)
        with call.store.read() as tx:
            sandbox = sandboxes.get(tx, vmid)
        if call.text("await_report", "outcome") == "cancelled":
            after = After.DESTROY
        if sandbox.held or after is After.KEEP:
            return None
        try:
            write_out_held(self._world, call, sandbox, reserve=_RELEASE)
            let_go(self._world, sandbox, operation=call.operation.id)
            if after is After.STOP:
                self._halt(vmid)
                return lambda tx: is_off(tx, vmid, call.operation.id)
            self._world.hypervisor.stop(vmid, owner=owner)
            unfence(self._world, vmid)
            take_away(self._world, sandbox, operation=call.operation.id)
            self._world.hypervisor.destroy(vmid, owner=owner)
        except (NotFound, NotOurs) as gone:  # or else it would be tried for ever
            unfence(self._world, vmid)
            why, surely = f"its VM was gone: {gone.message}", isinstance(gone, NotFound)
            return lambda tx: close_record(tx, vmid, why, call.operation.id, surely=surely)
        return lambda tx: close_record(tx, vmid, "", call.operation.id)

    def _halt(self, vmid: int) -> None:
        hypervisor, owner = self._world.hypervisor, self._world.installation
        if not hypervisor.shutdown(vmid, owner=owner, timeout=self.slow(_SHUTDOWN)()):
            hypervisor.stop(vmid, owner=owner)
        unfence(self._world, vmid)


def finish(tx: Tx, operation: OperationRow, error: AgentLabError | None) -> None:
    """A job whose operation turns back has failed; one that was collected has its outcome."""
    if error is not None:
        event = JobEvent.CANCEL if isinstance(error, Cancelled) else JobEvent.FAIL
        hint = f" ({error.hint})" if error.hint else ""
        conclude(tx, operation.job, event, error.message + hint)


def deadline_of(lease: float) -> float:
    """When a job whose lease ends then must have ended, whatever its operation is stuck in."""
    return lease + _GRACE + _COLLECT + _RELEASE + WRITE


def conclude(tx: Tx, job: str, event: JobEvent, reason: str) -> None:
    """Writes a job's outcome, once: the first one stays."""
    if not JOB.final(jobs.get(tx, job).state):
        jobs.transition(tx, job, event, reason=reason)


def outcome(tx: Tx, operation: str) -> tuple[JobEvent, str] | None:
    """How a job went, as far as its operation knows that already."""
    step = operations.steps(tx, operation).get("await_report")
    if step is None or step.state != "done":
        return None
    event = _OUTCOME.get(str(step.output["outcome"]), JobEvent.FAIL)
    return event, str(step.output["reason"])


def _cancel_of(call: Call) -> str:
    return f"{call.operation.id} cancel"


def _unreported(outcome: str, reason: str) -> Output:
    return {"outcome": outcome, "reason": reason, "reported": False}


def _reason(job: Job) -> str:
    report = job.report or {}
    if report.get("status") == "completed":
        return ""
    stage, message = report.get("stage"), report.get("message")
    return f"{stage}: {message}" if message else str(stage)


def _revoked(tx: Tx, job: str) -> Output:
    tokens.revoke(tx, job)
    return {}

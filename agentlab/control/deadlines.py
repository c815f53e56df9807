"""What has had its time: a job that is past its deadline, a kept sandbox that is past its lease."""

from __future__ import annotations

import logging

from agentlab.clock import Deadline, Stamps
from agentlab.engine.runner import Runner
from agentlab.model.job import JobEvent
from agentlab.model.sandbox import SandboxState
from agentlab.operations import job_run, sandbox_destroy
from agentlab.operations.context import World
from agentlab.store import jobs, operations, sandboxes

_log = logging.getLogger(__name__)
EVERY = 10.0
_START = 120.0  # seconds after the daemon's start that jobs found unfinished have in any case

# A stopped sandbox costs nothing but its disk, and waits for its owner.
_POWERED = {SandboxState.COMPLETED, SandboxState.FAILED, SandboxState.TIMEOUT}


class Deadlines:
    """The last word: whatever an operation is stuck in, its job ends."""

    def __init__(self, world: World, runner: Runner, *, start: float = _START) -> None:
        self._world = world
        self._runner = runner
        self._stamps = Stamps()
        self._from = Deadline.after(start)

    def check(self) -> None:
        """One look at all unfinished jobs and all kept sandboxes."""
        with self._world.store.read() as tx:
            unfinished, kept = jobs.unfinished(tx), sandboxes.live(tx)
        keys = {f"job {job.id}" for job in unfinished} | {f"box {one.vmid}" for one in kept}
        self._stamps.keep(keys)
        for job in unfinished:
            passed = self._stamps.deadline(f"job {job.id}", job.deadline).passed
            if passed and self._from.passed:
                self._expire(job.id)
        for one in kept:
            leased = one.state in _POWERED and one.lease_until > 0
            if leased and self._stamps.deadline(f"box {one.vmid}", one.lease_until).passed:
                self._destroy(one.vmid)

    def _expire(self, job_id: str) -> None:
        with self._world.store.write() as tx:
            job = jobs.get(tx, job_id)
            known = job_run.outcome(tx, job.operation)
            event, reason = known or (JobEvent.EXPIRE, "past its deadline")
            if job.waits_for and known is None:
                reason += f", waiting for {job.waits_for}"
            _log.warning("job %s has had its time: %s", job_id, reason or event)
            job_run.conclude(tx, job_id, event, reason)
            self._runner.cancel(tx, job.operation)

    def _destroy(self, vmid: int) -> None:
        subject = f"sandbox:{vmid}"
        with self._world.store.write() as tx:
            if operations.holder_of(tx, subject) is None:
                one = sandboxes.get(tx, vmid)
                _log.info("the lease of sandbox %d has ended: destroying it", vmid)
                self._runner.submit(tx, sandbox_destroy.KIND, [subject], {}, job=one.job, vmid=vmid)

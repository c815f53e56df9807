"""What has had its time: a job that is past its deadline."""

from __future__ import annotations

import logging

from agentlab import clock
from agentlab.clock import Deadline, Jumps, Stamps
from agentlab.engine.runner import Runner
from agentlab.model.job import JobEvent
from agentlab.operations import job_run
from agentlab.operations.context import World
from agentlab.store import jobs

_log = logging.getLogger(__name__)
EVERY = 10.0
_START = 120.0  # seconds after the daemon's start that jobs found unfinished have in any case


class Deadlines:
    """The last word: whatever an operation is stuck in, its job ends; a clock that is set ends none."""

    def __init__(self, world: World, runner: Runner, *, start: float = _START) -> None:
        self._world = world
        self._runner = runner
        self._stamps = Stamps()
        self._jumps = Jumps()
        self._from = Deadline.after(start)

    def check(self) -> None:
        """One look at all unfinished jobs."""
        with self._world.store.read() as tx:
            unfinished = jobs.unfinished(tx)
        jumped = self._jumps.since()  # asked last: what was read is from before it
        self._stamps.keep({job.id for job in unfinished})
        for job in unfinished:
            most = job.deadline - min(job.created, clock.now())
            until = self._stamps.deadline(job.id, job.deadline, jumped=jumped, most=most)
            if until.passed and self._from.passed:
                self._expire(job.id)

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

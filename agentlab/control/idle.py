"""Sandboxes that somebody is in by ssh are RUNNING; those in which nothing happens for as long as
their profile allows are stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from agentlab.control.drift import unheld
from agentlab.engine.runner import Runner
from agentlab.errors import AgentLabError
from agentlab.hypervisor.base import Machine
from agentlab.model.idle import BUSY_CPU, BUSY_EMULATED, Sample, Watch, plan_idle
from agentlab.model.sandbox import Sandbox, SandboxState
from agentlab.network.activity import open_ssh, tap_bytes
from agentlab.operations import handed_back, job_run, requests, sandbox_power, use
from agentlab.operations.context import World
from agentlab.store import events, operations, sandboxes
from agentlab.store.operations import OperationRow
from agentlab.units import render_duration

_log = logging.getLogger(__name__)
EVERY = 20.0
_STATES = (SandboxState.READY, SandboxState.RUNNING)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sandbox that may become idle, and what holds it."""

    sandbox: Sandbox
    holder: OperationRow | None

    @property
    def key(self) -> tuple[int, float]:
        return self.sandbox.id, self.sandbox.changed

    @property
    def job(self) -> str:
        """The job that runs in it; "" for none, or one that is ending already."""
        held = self.holder
        return held.job if held and held.kind == job_run.KIND and not held.cancel else ""


class IdleStop:
    """The loop.  What it knows lasts as long as this process: a restart begins all times anew."""

    def __init__(
        self, world: World, runner: Runner, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._world = world
        self._runner = runner
        self._clock = clock
        self._watch: Watch = {}
        self._seen = -1  # the newest event that was looked at

    def check(self) -> None:
        """One look.  What cannot be looked at is as good as active."""
        unused = self._unused()
        try:
            connected = open_ssh() if unused else None
            for one in unused:
                if connected and one.address in connected:
                    use.mark_used(self._world, one.vmid, identity=one.id)
            candidates, used = self._candidates()
            if not candidates:
                self._watch = {}
                return
            connected = open_ssh() if connected is None else connected
            machines = {each.vmid: each for each in self._world.hypervisor.inventory()}
            samples = self._samples(candidates, used, machines, connected)
        except AgentLabError:
            self._watch = {}
            raise
        self._watch, idle = plan_idle(self._watch, samples, self._clock())
        by_key = {each.key: each for each in candidates}
        for key in idle:
            self._end(by_key[key])

    def _unused(self) -> list[Sandbox]:
        """Those that are READY, and that nothing holds."""
        with self._world.store.read() as tx:
            return [
                one
                for one in sandboxes.live(tx)
                if one.state is SandboxState.READY
                and operations.holder_of(tx, f"sandbox:{one.vmid}") is None
            ]

    def _candidates(self) -> tuple[list[_Candidate], set[int]]:
        """Those with a limit, and the VMIDs that somebody has used since the last look."""
        with self._world.store.read() as tx:
            used = events.used_after(tx, self._seen) if self._seen >= 0 else set()
            self._seen = events.last(tx)
            return [
                _Candidate(one, operations.holder_of(tx, f"sandbox:{one.vmid}"))
                for one in sandboxes.live(tx)
                if one.idle_stop > 0 and one.state in _STATES
            ], used

    def _samples(
        self,
        candidates: Sequence[_Candidate],
        used: set[int],
        machines: Mapping[int, Machine],
        connected: Collection[IPv4Address],
    ) -> list[Sample]:
        emulated = self._world.hypervisor.capabilities.accelerator == "tcg"
        samples = []
        for each in candidates:
            one, machine = each.sandbox, machines.get(each.sandbox.vmid)
            ours = machine is not None and machine.owner == self._world.installation
            samples.append(
                Sample(
                    key=each.key,
                    after=one.idle_stop,
                    log=self._log_size(each.job),
                    cpu=machine.cpu if machine and ours else None,
                    traffic=tap_bytes(one.tap),
                    ssh=one.address in connected,
                    used=one.vmid in used,
                    held=each.holder is not None and not each.job,
                    busy=BUSY_EMULATED if emulated else BUSY_CPU,
                )
            )
        return samples

    def _log_size(self, job: str) -> int:
        try:
            return (self._world.job_dir(job) / handed_back.LOG).lstat().st_size if job else 0
        except OSError:
            return 0

    def _end(self, idle: _Candidate) -> None:
        if idle.job:
            self._end_job(idle)
        else:
            self._stop(idle.sandbox)

    def _stop(self, seen: Sandbox) -> None:
        reason = f"idle for {render_duration(seen.idle_stop)}"
        with self._world.store.write() as tx:
            one = unheld(tx, seen)
            if one is None:
                return
            _log.info("stopping sandbox %d: %s", one.vmid, reason)
            events.append(
                tx, "sandbox.idle", f"sandbox {one.vmid} is {reason}: stopping it", job=one.job,
                vmid=one.vmid, facts={"idle": one.idle_stop},
            )  # fmt: skip
            self._runner.submit(
                tx, sandbox_power.STOP, [f"sandbox:{one.vmid}"],
                {"id": one.id, "reason": reason}, job=one.job, vmid=one.vmid, in_turn=True,
            )  # fmt: skip

    def _end_job(self, idle: _Candidate) -> None:
        """Its work is handed back, as with every cancelled job."""
        seen, job = idle.sandbox, idle.job
        reason = f"idle for {render_duration(seen.idle_stop)}"
        with self._world.store.write() as tx:
            holder = operations.holder_of(tx, f"sandbox:{seen.vmid}")
            if holder is None or holder.job != job or holder.cancel:
                return
            _log.info("cancelling job %s in sandbox %d: %s", job, seen.vmid, reason)
            events.append(
                tx, "sandbox.idle", f"job {job} is {reason}: cancelling it", job=job,
                vmid=seen.vmid, operation=holder.id, facts={"idle": seen.idle_stop},
            )  # fmt: skip
        requests.cancel_job(self._world, self._runner, job)

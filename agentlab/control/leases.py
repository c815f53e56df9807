"""Leases: kept alive, given a grace after a time without us, and ended."""

from __future__ import annotations

import logging

from agentlab import clock
from agentlab.clock import Deadline, Jumps, Stamps
from agentlab.engine.runner import Runner
from agentlab.model.sandbox import LEASED, Sandbox, SandboxState
from agentlab.operations import lease_requests, sandbox_destroy
from agentlab.operations.context import World
from agentlab.store import events, operations, sandboxes
from agentlab.store.db import Tx
from agentlab.units import render_duration

_log = logging.getLogger(__name__)
EVERY = 5.0
_AGAIN, _MOST = (
    30.0,
    1800.0,
)  # seconds before an end that failed is tried again, at first and at most


class Leases:
    """The clock of all leases.  One that a job's operation holds is that operation's affair.

    A lease ends by the clock as it was when the lease began: whoever sets the clock ends none,
    not even one that was given since the look before.
    """

    def __init__(self, world: World, runner: Runner) -> None:
        self._world = world
        self._runner = runner
        self._stamps = Stamps()
        self._jumps = Jumps()
        self._first = True
        self._ended: dict[int, tuple[Deadline, float]] = {}  # by id: when again, and the pause then

    def check(self) -> None:
        """One look at all leases."""
        with self._world.store.read() as tx:
            live = [one for one in sandboxes.live(tx) if _leased(one)]
        jumped = self._jumps.since()  # asked last: what was read is from before it
        if self._first:
            self._after_a_pause(live)
            self._first = False
            return
        self._stamps.keep({_key(one) for one in live})
        known = {one.id for one in live}
        self._ended = {key: each for key, each in self._ended.items() if key in known}
        for one in live:
            left = self._stamps.deadline(
                _key(one), one.lease_until, jumped=jumped, most=one.ttl or float("inf")
            )
            if one.keepalive and one.state is SandboxState.RUNNING and left.left < one.ttl / 2:
                self._keep_alive(one)
            elif left.passed:
                self._expire(one)

    def _after_a_pause(self, live: list[Sandbox]) -> None:
        """What was due while nobody looked, and what a clock that was set back would keep for ever."""
        now, grace = clock.now(), self._world.config.lease_grace
        for one in live:
            if one.lease_until <= now:
                self._move(
                    one, now + grace,
                    f"the lease of sandbox {one.vmid} ended at {clock.utc(one.lease_until)}, while "
                    f"the daemon was down: it has {render_duration(grace)} more",
                )  # fmt: skip
            elif one.ttl and one.lease_until > now + one.ttl:
                self._move(
                    one, now + one.ttl,
                    f"the clock was set back: the lease of sandbox {one.vmid} is "
                    f"{render_duration(one.ttl)} from now on, as it was given",
                )  # fmt: skip

    def _move(self, seen: Sandbox, until: float, text: str) -> None:
        with self._world.store.write() as tx:
            one = self._unheld(tx, seen)
            if one is not None:
                _log.info("%s", text)
                sandboxes.set_lease(tx, one.vmid, until)
                events.append(
                    tx, "sandbox.lease", text, job=one.job, vmid=one.vmid,
                    facts={"until": until, "ttl": one.ttl},
                )  # fmt: skip

    def _keep_alive(self, seen: Sandbox) -> None:
        with self._world.store.write() as tx:
            one = sandboxes.find(tx, seen.vmid)
            if one is not None and one.id == seen.id and one.state is SandboxState.RUNNING:
                lease_requests.extend(tx, one, one.ttl)

    def _expire(self, seen: Sandbox) -> None:
        """Begins the end of a lease; one that failed is tried again after a pause that grows."""
        again, pause = self._ended.get(seen.id, (Deadline.after(0), _AGAIN))
        if not again.passed:
            return
        with self._world.store.write() as tx:
            one = self._unheld(tx, seen)
            if one is None or one.lease_until != seen.lease_until:
                return
            subject = f"sandbox:{one.vmid}"
            if any(
                each.kind == sandbox_destroy.EXPIRE for each in operations.waiting_for(tx, subject)
            ):
                return
            _log.info("the lease of sandbox %d has ended: destroying it", one.vmid)
            self._runner.submit(
                tx, sandbox_destroy.EXPIRE, [subject], {"id": one.id, "lease": one.lease_until},
                job=one.job, vmid=one.vmid, in_turn=True,
            )  # fmt: skip
        self._ended[seen.id] = (Deadline.after(pause), min(2 * pause, _MOST))

    def _unheld(self, tx: Tx, seen: Sandbox) -> Sandbox | None:
        """The same sandbox as it is now, when nothing is under way with it."""
        one = sandboxes.find(tx, seen.vmid)
        if one is None or one.id != seen.id or not _leased(one):
            return None
        return one if operations.holder_of(tx, f"sandbox:{one.vmid}") is None else None


def _leased(one: Sandbox) -> bool:
    return one.state in LEASED and one.lease_until > 0


def _key(one: Sandbox) -> str:
    return f"sandbox {one.id}"

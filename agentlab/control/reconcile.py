"""Records and hypervisor brought together: each minute what is safe, and what else when asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from agentlab.control.drift import Found, look
from agentlab.control.mend import Mender, Outcome
from agentlab.engine.runner import Runner
from agentlab.model.drift import Drift, Kind, Mend
from agentlab.operations.context import World
from agentlab.store import events

_log = logging.getLogger(__name__)
EVERY = 60.0
_TRY_AGAIN = 3600.0  # seconds after which a sandbox that could not be taken up is tried once more

Key = tuple[Kind, int, int]


def apply(world: World, runner: Runner) -> tuple[Found, list[Outcome]]:
    """Mends all that can be mended; on an inventory that is not whole, nothing."""
    found = look(world)
    mender = Mender(world, runner)
    outcomes = mender.mend([(each, each.asked) for each in found.drifts if each.asked])
    rest = [Outcome(each) for each in found.drifts if not each.asked]
    for each in outcomes:
        _log.info("reconcile: %s: %s", each.drift.detail, _result(each, each.drift.asked))
    return found, sorted((*outcomes, *rest), key=lambda each: (each.drift.vmid, each.drift.kind))


def _result(outcome: Outcome, mend: Mend) -> str:
    return outcome.why or str(mend)


class Reconciler:
    """The loop: it mends what loses nothing, and tells of all else once."""

    def __init__(self, world: World, runner: Runner) -> None:
        self._world = world
        self._mender = Mender(world, runner)
        self._told: dict[Key, Drift] = {}
        self._problem = ""
        self._taken_up: dict[int, float] = {}

    def check(self) -> Sequence[Outcome]:
        """One look, and what follows from it."""
        found = look(self._world)
        if found.problem and found.problem != self._problem:
            _log.warning("reconcile: %s", found.problem)
        self._problem = found.problem
        if not found.complete:
            return []
        chosen = [(each, self._choose(each, found)) for each in found.drifts]
        self._tell([replace(drift, by_itself=mend) for drift, mend in chosen])
        outcomes = self._mender.mend([(drift, mend) for drift, mend in chosen if mend])
        for each in outcomes:
            if each.operation and each.drift.record is not None:
                self._taken_up[each.drift.record.id] = time.monotonic()
        return outcomes

    def _choose(self, drift: Drift, found: Found) -> Mend:
        if drift.kind is Kind.MISSING and found.blind:
            return Mend.NONE
        if drift.by_itself is Mend.TAKE_UP and drift.record is not None:
            before = self._taken_up.get(drift.record.id)
            if before is not None and time.monotonic() - before < _TRY_AGAIN:
                return Mend.NONE
        return drift.by_itself

    def _tell(self, drifts: Sequence[Drift]) -> None:
        """An event and a line for what was not there at the last look, and a line for its end."""
        now = {_key(each): each for each in drifts}
        for key, drift in now.items():
            before = self._told.get(key)
            if before is None or before.detail != drift.detail:
                done = f"; {drift.by_itself}" if drift.by_itself else f"; {drift.remedy}"
                _log.warning("%s: %s%s", drift.kind, drift.detail, done)
                self._note(drift)
        for key in self._told.keys() - now.keys():
            _log.info("no longer so: %s", self._told[key].detail)
        self._told = now

    def _note(self, drift: Drift) -> None:
        facts = {
            "kind": drift.kind, "vmid": drift.vmid, "mend": drift.by_itself,
            "remedy": drift.remedy,
        }  # fmt: skip
        record = drift.record
        with self._world.store.write() as tx:
            events.append(
                tx, "reconcile.drift", f"{drift.kind}: {drift.detail}", facts=facts,
                job=record.job if record else "", vmid=record.vmid if record else 0,
            )  # fmt: skip


def _key(drift: Drift) -> Key:
    return drift.kind, drift.vmid, drift.record.id if drift.record else 0

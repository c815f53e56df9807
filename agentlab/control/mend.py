"""What is done about a difference: in one transaction with a last look at the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agentlab.control.drift import unheld
from agentlab.engine.runner import Runner
from agentlab.errors import AgentLabError
from agentlab.model.drift import GONE, LOST_POWER, Drift, Mend
from agentlab.model.sandbox import Sandbox, SandboxEvent
from agentlab.operations import leftover_destroy, sandbox_power
from agentlab.operations.boot import close_record, is_off
from agentlab.operations.context import World
from agentlab.store import sandboxes
from agentlab.store.db import Tx

_WITHOUT_POWER = frozenset({Mend.FAIL, Mend.CLOSE, Mend.OFF})
_LEFT_ALONE = "left alone: it has changed meanwhile, or something is under way with it"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.  `operation` is the one that goes on with it, `why` what was in the way."""

    drift: Drift
    mended: bool = False
    operation: str = ""
    why: str = ""


class Mender:
    """Mends what it is told to; whatever has changed since it was seen is left alone."""

    def __init__(self, world: World, runner: Runner) -> None:
        self._world = world
        self._runner = runner
        self._records: Mapping[Mend, Callable[[Tx, Sandbox], None]] = {
            Mend.FAIL: _fail,
            Mend.CLOSE: _close,
            Mend.OFF: _off,
            Mend.PAUSE: _pause,
            Mend.RESUME: _resume,
        }

    def mend(self, chosen: Sequence[tuple[Drift, Mend]]) -> list[Outcome]:
        """First the rules of all that have no power, as each operation does it; then the records.

        Raises when the rules cannot be put in place: no record has changed then, and the next
        look finds the same.
        """
        unfenced = [self._unfence(drift) for drift, mend in chosen if mend in _WITHOUT_POWER]
        if any(unfenced):
            self._world.sync_fence()
        return [self._one(drift, mend) for drift, mend in chosen]

    def _unfence(self, drift: Drift) -> bool:
        with self._world.store.write() as tx:
            one = unheld(tx, drift.record)
            if one is not None:
                sandboxes.set_fenced(tx, one.vmid, fenced=False)
            return one is not None

    def _one(self, drift: Drift, mend: Mend) -> Outcome:
        try:
            with self._world.store.write() as tx:
                if mend is Mend.DESTROY:
                    operation = leftover_destroy.submit(tx, self._runner, drift.vmid)
                    return Outcome(drift, operation=operation)
                one = unheld(tx, drift.record)
                if one is None:
                    return Outcome(drift, why=_LEFT_ALONE)
                if mend is Mend.TAKE_UP:
                    return Outcome(drift, operation=self._take_up(tx, one))
                self._records[mend](tx, one)
                return Outcome(drift, mended=True)
        except AgentLabError as error:
            return Outcome(drift, why=error.message)

    def _take_up(self, tx: Tx, one: Sandbox) -> str:
        """A start of what runs already proves its fence, and returns when its guest answers."""
        return self._runner.submit(
            tx, sandbox_power.START, [f"sandbox:{one.vmid}"], {"id": one.id}, job=one.job,
            vmid=one.vmid, in_turn=True,
        )  # fmt: skip


def _fail(tx: Tx, one: Sandbox) -> None:
    """It keeps VMID, name and address until somebody destroys it, or its lease does."""
    sandboxes.transition(tx, one.vmid, SandboxEvent.FAIL, reason=GONE)


def _close(tx: Tx, one: Sandbox) -> None:
    close_record(tx, one.vmid, GONE, "", surely=False)


def _off(tx: Tx, one: Sandbox) -> None:
    is_off(tx, one.vmid, "", LOST_POWER)


def _pause(tx: Tx, one: Sandbox) -> None:
    sandboxes.transition(tx, one.vmid, SandboxEvent.PAUSE)


def _resume(tx: Tx, one: Sandbox) -> None:
    event = SandboxEvent.RESUME_RUNNING if one.used else SandboxEvent.RESUME
    sandboxes.transition(tx, one.vmid, event)

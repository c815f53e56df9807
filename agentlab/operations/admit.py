"""Room on this host: a sandbox gets its cores and memory in the order of the queue, or waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentlab.config import Limits
from agentlab.engine.step import Call, Later, Result
from agentlab.errors import Busy, Conflict
from agentlab.model.sandbox import POWERED, SANDBOX, Sandbox, SandboxEvent, SandboxState
from agentlab.store import operations, sandboxes
from agentlab.store.db import Tx
from agentlab.units import render_duration

STEP = "admit"
PATIENCE = 7000.0  # seconds that room is waited for; a job's own deadline is a little later
_LOOK_AGAIN = 1.0
HINT = "destroy or stop sandboxes that are no longer needed, or raise limits in the settings"


@dataclass(frozen=True, slots=True)
class Room:
    """What sandboxes take of a host, and what they may; 0 is no limit.  Memory in MiB."""

    sandboxes: int
    cores: int
    memory: int
    limits: Limits

    def lacks(self, cores: int, memory: int, *, new: bool) -> str:
        """What is in the way of one more, `new` or one that is there without power; "" for none."""
        limits = self.limits
        if new and limits.sandboxes and self.sandboxes + 1 > limits.sandboxes:
            return f"{self.sandboxes} of {limits.sandboxes} sandboxes are there"
        if limits.cores and self.cores + cores > limits.cores:
            return f"{self.cores} of {limits.cores} cores are taken, and it needs {cores}"
        if limits.memory and self.memory + memory > limits.memory:
            return f"{self.memory} of {limits.memory} MiB memory are taken, and it needs {memory}"
        return ""


def nothing_else(_: Tx, __: Sandbox) -> None:
    """Being let in is all."""


def measure(live: Sequence[Sandbox], limits: Limits) -> Room:
    """What the sandboxes that are let in take now."""
    there = [one for one in live if one.state is not SandboxState.REQUESTED]
    powered = [one for one in there if one.state in POWERED]
    return Room(
        len(there), sum(one.cores for one in powered), sum(one.memory for one in powered), limits
    )


def refuse_never(limits: Limits, cores: int, memory: int) -> None:
    """Conflict for what does not fit even on an empty host: it would wait for ever."""
    lacking = Room(0, 0, 0, limits).lacks(cores, memory, new=True)
    if lacking:
        raise Conflict(
            f"there is never room for it: {cores} cores and {memory} MiB memory are more than "
            f"all sandboxes together may have",
            hint="raise limits.cores or limits.memory in the settings, or use a smaller profile",
        )


def refuse_now(
    tx: Tx, limits: Limits, cores: int, memory: int, *, new: bool, but: str = ""
) -> None:
    """Busy for who does not want to queue, when others (than `but`) queue or there is no room."""
    refuse_never(limits, cores, memory)
    queue = [each for each in operations.at_step(tx, STEP) if each != but]
    lacking = measure(sandboxes.live(tx), limits).lacks(cores, memory, new=new)
    if queue and not lacking:
        lacking = f"{len(queue)} others wait"
    if lacking:
        raise Busy(f"there is no room for it now: {lacking}", hint=HINT)


def admit(
    call: Call,
    limits: Limits,
    event: SandboxEvent,
    *,
    queue: bool = True,
    also: Callable[[Tx, Sandbox], None] = nothing_else,
) -> Result:
    """Moves the sandbox by `event` in the transaction that finds room; Later tells its place.

    Whoever is first in the queue goes first, whatever the others need.  Without `queue` it is now
    or never: Conflict.  `also` is called in the same transaction.
    """
    with call.store.write() as tx:
        sandbox = sandboxes.get(tx, call.operation.vmid)
        if event not in SANDBOX.allowed(sandbox.state):
            return {}  # it is in already: this is done again after an interruption
        cores, memory, new = sandbox.cores, sandbox.memory, event is SandboxEvent.PROVISION
        refuse_never(limits, cores, memory)
        waiting = operations.at_step(tx, STEP)
        place = waiting.index(call.operation.id) if call.operation.id in waiting else 0
        lacking = measure(sandboxes.live(tx), limits).lacks(cores, memory, new=new)
        if not queue:
            _need_now(tx, limits, sandbox, call, new=new)
        if not queue or (place == 0 and not lacking):
            sandboxes.transition(tx, sandbox.vmid, event, operation=call.operation.id)
            also(tx, sandbox)
            return {}
    why = f"; {lacking}" if lacking else ""
    raise Later(
        _LOOK_AGAIN,
        f"room on this host: place {place + 1} in the queue{why}; "
        f"given up after {render_duration(PATIENCE)}",
    )


def _need_now(tx: Tx, limits: Limits, sandbox: Sandbox, call: Call, *, new: bool) -> None:
    try:
        refuse_now(tx, limits, sandbox.cores, sandbox.memory, new=new, but=call.operation.id)
    except Busy as full:  # which the engine would try again
        raise Conflict(full.message, hint=full.hint) from full

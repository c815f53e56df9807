"""What people ask for of leases: renewed in RUNNING, and refused in every other state."""

from __future__ import annotations

from agentlab import clock
from agentlab.engine.runner import Runner
from agentlab.errors import InvalidTransition
from agentlab.model.sandbox import SANDBOX, Sandbox, SandboxState
from agentlab.operations import job_run
from agentlab.operations.context import World
from agentlab.operations.sandbox_requests import remedy
from agentlab.store import events, jobs, operations, sandboxes
from agentlab.store.db import Tx
from agentlab.units import render_duration


def renew(world: World, runner: Runner, reference: str, ttl: int) -> Sandbox:
    """A lease of `ttl` seconds from now on (0: as long as before); for a RUNNING sandbox only."""
    with world.store.write() as tx:
        sandbox = sandboxes.get_live(tx, reference)
        if sandbox.state is not SandboxState.RUNNING:
            raise InvalidTransition(
                f"sandbox lease not renewable: sandbox {sandbox.vmid} is {sandbox.state}, "
                "and only RUNNING supports it",
                hint=_renewable(sandbox),
                details={
                    "state": sandbox.state.value,
                    "allowed": list(SANDBOX.allowed(sandbox.state)),
                },
            )
        length = ttl or sandbox.ttl
        extend(tx, sandbox, length)
        if sandbox.job and (holder := operations.holder_of(tx, f"sandbox:{sandbox.vmid}")):
            tx.on_commit(lambda: runner.wake(holder.id))
        return sandboxes.get(tx, sandbox.vmid)


def extend(tx: Tx, sandbox: Sandbox, length: float) -> None:
    """Moves the end of a lease, and of its job when there is one that runs."""
    until = clock.now() + length
    sandboxes.set_lease(tx, sandbox.vmid, until, ttl=length)
    holder = operations.holder_of(tx, f"sandbox:{sandbox.vmid}")
    if holder is not None and holder.kind == job_run.KIND:
        jobs.set_deadline(tx, holder.job, job_run.deadline_of(until))
    events.append(
        tx, "sandbox.lease",
        f"the lease of sandbox {sandbox.vmid} was renewed for {render_duration(length)}",
        job=sandbox.job, vmid=sandbox.vmid, facts={"until": until, "ttl": length},
    )  # fmt: skip


def _renewable(sandbox: Sandbox) -> str:
    vmid = sandbox.vmid
    if sandbox.state is SandboxState.TIMEOUT:
        return f"its lease is over: agentlab sandbox destroy --force {vmid}, and make a new one"
    if sandbox.state is SandboxState.READY:
        return f"it is RUNNING when somebody has been in it: agentlab sandbox exec {vmid} -- true"
    return remedy(sandbox) or f"see what it does: agentlab sandbox show {vmid}"

"""What it means that a sandbox is used: the first program in it, and which ones have run."""

from __future__ import annotations

from agentlab.model.sandbox import Sandbox, SandboxEvent, SandboxState
from agentlab.operations.context import World
from agentlab.store import events, operations, sandboxes


def mark_used(world: World, vmid: int, *, identity: int = 0) -> None:
    """Moves a READY sandbox to RUNNING, because somebody works in it now.

    Not while an operation holds it (a job's own moves it when its task is delivered), and nothing
    in any other state; with `identity` only the sandbox that has this id.
    """
    with world.store.write() as tx:
        sandbox = sandboxes.find(tx, vmid)
        if sandbox is None or sandbox.state is not SandboxState.READY:
            return
        if identity and sandbox.id != identity:
            return
        if operations.holder_of(tx, f"sandbox:{vmid}") is None:
            sandboxes.transition(tx, vmid, SandboxEvent.RUN, reason="in use")


def note_program_start(world: World, sandbox: Sandbox, program: str, name: str, user: str) -> None:
    """Writes down once that a program is started: its name, and never what it is given."""
    with world.store.write() as tx:
        if not events.noted(tx, "exec.start", sandbox.vmid, "program", program):
            events.append(
                tx, "exec.start", f"{user} runs {name}", job=sandbox.job, vmid=sandbox.vmid,
                facts={"program": program, "name": name, "user": user},
            )  # fmt: skip


def note_program_end(world: World, sandbox: Sandbox, program: str, status: int | None) -> None:
    """Writes down once how it ended; None: it was ended, or nobody knows.  Only what has begun."""
    how = "was ended" if status is None else f"ended with status {status}"
    with world.store.write() as tx:
        if not events.noted(tx, "exec.start", sandbox.vmid, "program", program):
            return
        if not events.noted(tx, "exec.end", sandbox.vmid, "program", program):
            events.append(
                tx, "exec.end", f"the program {how}", job=sandbox.job, vmid=sandbox.vmid,
                facts={"program": program, "status": status},
            )  # fmt: skip

"""A workspace's other side: the guest that mounts it at /work, and lets go of it.

What a guest says is hostile: of its answer only what has the right form is taken, bounded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence

from agentlab.engine.step import Call, Later
from agentlab.errors import (
    AgentLabError,
    Busy,
    Conflict,
    DeadlineExceeded,
    Unavailable,
    Unsupported,
)
from agentlab.hypervisor.base import ExecResult, Power
from agentlab.log import one_line
from agentlab.model.sandbox import Sandbox
from agentlab.model.workspace import Workspace
from agentlab.operations.context import World
from agentlab.store import events, sandboxes, workspaces

RUNNER = "/usr/local/bin/agentlab"
# Seconds that a guest has, besides what its step has anyway: to write out before it loses its
# power, and to check a file system before it is mounted.
WRITE, CHECK = 600.0, 600.0
_SYNC = ("sync", "-f", "--", "/work")
_APPEAR = 20  # seconds that a disk has to show itself
_MOUNT, _UNMOUNT, _LET_GO, _SYNCED, _STATUS = 60.0, 30.0, 20.0, 20.0, 10.0
_WITHIN = 2 / 3  # of the time that an unmount is waited for, the guest begins none any more
_MOST_SAID, _MOST_NAMED = 300, 10
_TRIED_AGAIN = (Unavailable, DeadlineExceeded, Busy)  # by the engine, while a step has time


class Over(AgentLabError):
    """The same error, when nothing is to be tried again though the step has time left."""

    def __init__(self, error: AgentLabError) -> None:
        super().__init__(error.message, hint=error.hint, details=error.details)
        self.code = error.code


@contextlib.contextmanager
def until_left(call: Call, seconds: float) -> Iterator[None]:
    """Whatever would be tried again is Over when the step has only these seconds left."""
    try:
        yield
    except _TRIED_AGAIN as error:
        if call.deadline.left > seconds:
            raise
        raise Over(error) from error


def mount(world: World, workspace: Workspace, vmid: int) -> bool:
    """Has the guest mount it; the first guest of all makes the file system.  True when it is made.

    Mounted already: returns.  Conflict for a file system that is damaged, or none of ours;
    Unavailable while the guest does not see the disk.
    """
    words = ["mount", "--wait", str(_APPEAR)]
    if not workspace.formatted:  # never again: what looks blank then is a damage, not a beginning
        words.append("--make")
    said = _ask(world, vmid, words, _MOUNT)
    if said.get("mounted") is True:
        with world.store.write() as tx:
            workspaces.set_formatted(tx, workspace.id, formatted=True)
        return said.get("made") is True
    raise _refused(workspace, vmid, said)


def mount_in_time(world: World, call: Call, workspace: Workspace, vmid: int) -> bool:
    """As `mount`, by a step that has CHECK seconds more than a guest has to answer.

    What is on it is checked first, which takes long when there is an error: Later meanwhile.
    """
    try:
        with until_left(call, CHECK):
            return mount(world, workspace, vmid)
    except (DeadlineExceeded, Over) as slow:
        if slow.code != DeadlineExceeded.code or not _status(world, vmid):
            raise
        name, patience = workspace.name, _MOUNT * world.hypervisor.capabilities.slowness
        if call.deadline.left > patience:
            raise Later(
                1.0, f"the guest of sandbox {vmid} to check the file system of workspace {name}"
            ) from None
        raise Conflict(
            f"cannot mount workspace {name} in sandbox {vmid}: its file system takes too long to check",
            hint=f"have the host do it, detached: agentlab workspace fsck {name} --repair",
        ) from slow


def mount_held(world: World, vmid: int, sandbox: int) -> None:
    """As `mount`, of the workspace that a sandbox (its record's id) has; without one: returns."""
    with world.store.read() as tx:
        held = workspaces.held_by(tx, sandbox)
    if held is not None:
        mount(world, held, vmid)


def unmount(world: World, workspace: Workspace, vmid: int, *, force: bool) -> None:
    """Has the guest write everything out and unmount it; not mounted: returns.

    Conflict names the processes that use it; with `force` they are ended.
    """
    try:
        said = _ask_unmount(world, vmid, _UNMOUNT, force=force)
    except (Unavailable, DeadlineExceeded) as silent:
        raise Unavailable(
            f"cannot unmount workspace {workspace.name} in sandbox {vmid}: {silent.message}",
            hint=f"stop a guest that does not answer: agentlab sandbox stop {vmid}",
        ) from silent
    if said.get("error") == "late":
        raise Unavailable(
            f"cannot unmount workspace {workspace.name} in sandbox {vmid}: its guest has not written "
            "everything out yet",
            hint="try again: it goes on writing",
        )
    if said.get("mounted") is not False:
        raise (
            _busy(workspace, vmid, said, forced=force)
            if said.get("error") == "busy"
            else _refused(workspace, vmid, said, "unmount")
        )


def write_out(world: World, call: Call, workspace: Workspace, vmid: int, *, reserve: float) -> None:
    """Before it is unmounted, by a step that has WRITE seconds more: what is in the guest's memory.

    That may be gigabytes.  Later while the guest writes and answers, and until `reserve` seconds
    are left.
    """
    if call.deadline.left <= reserve:
        return
    try:
        if _goes_on(world, vmid):
            patience = _SYNCED * world.hypervisor.capabilities.slowness
            world.hypervisor.exec(vmid, _SYNC, owner=world.installation, timeout=patience)
    except _TRIED_AGAIN:
        if _status(world, vmid).get("mounted") is True:
            words = f"the guest of sandbox {vmid} to write out workspace {workspace.name}"
            raise Later(1.0, words) from None
    except AgentLabError:
        return  # what follows tells it


def write_out_held(world: World, call: Call, sandbox: Sandbox, *, reserve: float) -> None:
    """As `write_out`, before `let_go`; a sandbox without a workspace: returns."""
    with world.store.read() as tx:
        held = workspaces.held_by(tx, sandbox.id)
    if held is not None:
        write_out(world, call, held, sandbox.vmid, reserve=reserve)


def unmount_in_time(
    world: World, call: Call, workspace: Workspace, vmid: int, *, force: bool
) -> None:
    """As `unmount`, by a step that has WRITE seconds more than a guest has to answer."""
    patience = 3 * _UNMOUNT * world.hypervisor.capabilities.slowness
    write_out(world, call, workspace, vmid, reserve=patience)
    with until_left(call, WRITE):
        unmount(world, workspace, vmid, force=force)


def let_go(world: World, sandbox: Sandbox, *, operation: str = "") -> None:
    """Before a sandbox loses its power: its guest unmounts it, whoever uses it.

    A guest that does not in time has what its file system's journal has; an event of the operation
    says so.
    """
    with world.store.read() as tx:
        held = workspaces.held_by(tx, sandbox.id)
    why = _unmount_if_it_answers(world, sandbox.vmid) if held is not None else ""
    if held is None or not why or not operation:
        return
    with world.store.write() as tx:
        events.append(
            tx, "workspace.unwritten",
            f"sandbox {sandbox.vmid} loses its power before its guest has unmounted workspace "
            f"{held.name}, which may lack what was written last: {why}",
            job=sandbox.job, vmid=sandbox.vmid, operation=operation,
            facts={"workspace": held.name, "reason": why},
        )  # fmt: skip


def let_go_of(world: World, vmid: int) -> None:
    """As `let_go`, for a machine of ours without a record, which may have a volume all the same."""
    if world.hypervisor.capabilities.volumes:
        with contextlib.suppress(AgentLabError):
            if world.hypervisor.attached(vmid, owner=world.installation):
                _unmount_if_it_answers(world, vmid)


def _unmount_if_it_answers(world: World, vmid: int) -> str:
    """Why it is not unmounted, or ""."""
    try:
        if not _goes_on(world, vmid):
            return ""
        said = _ask_unmount(world, vmid, _LET_GO, force=True)
    except AgentLabError as silent:
        return silent.message
    if said.get("mounted") is False:
        return ""
    return one_line(str(said.get("detail", "")))[:_MOST_SAID] or "the guest does not say why"


def run_on(world: World, vmid: int, tap: str) -> None:
    """Has a paused machine run on; Conflict, before it does, where our rules do not see its tap.

    Somebody may have moved it meanwhile.  Without a tap's name only its node is looked at.
    """
    if tap and world.hypervisor.capabilities.makes_taps:
        try:
            world.check_port(tap)
        except Conflict:
            machine = world.hypervisor.status(vmid)
            if machine is not None and machine.power is not Power.STOPPED:
                raise  # else that is why there is no tap, and the hypervisor says so
    world.hypervisor.resume(vmid, owner=world.installation)


def _goes_on(world: World, vmid: int) -> bool:
    """Whether the machine has power; a guest that stands still writes nothing, so it runs on.

    Conflict where it would run without its rules.
    """
    machine = world.hypervisor.status(vmid)
    if machine is None or machine.power is Power.STOPPED:
        return False
    if machine.power is Power.PAUSED:
        with world.store.read() as tx:
            sandbox = sandboxes.find(tx, vmid)
        run_on(world, vmid, sandbox.tap if sandbox is not None else "")
    return True


def _status(world: World, vmid: int) -> Mapping[str, object]:
    """What the guest says of its workspace; nothing when it does not answer."""
    try:
        return _ask(world, vmid, ["status"], _STATUS)
    except AgentLabError:
        return {}


def _ask_unmount(world: World, vmid: int, seconds: float, *, force: bool) -> Mapping[str, object]:
    """The guest gives up before we do: an unmount that nobody waits for might end the next mount."""
    words = ["unmount", *(["--force"] if force else [])]
    within = seconds * _WITHIN * world.hypervisor.capabilities.slowness
    try:
        return _ask(world, vmid, [*words, "--within", f"{within:.0f}"], seconds)
    except Unsupported:  # by the runner of an older template, which has the verb all the same
        return _ask(world, vmid, words, seconds)


def _ask(world: World, vmid: int, words: Sequence[str], seconds: float) -> Mapping[str, object]:
    patience = seconds * world.hypervisor.capabilities.slowness
    done = world.hypervisor.exec(
        vmid, [RUNNER, "guest", "work", *words], owner=world.installation, timeout=patience
    )
    return _parse(done, vmid)


def _parse(done: ExecResult, vmid: int) -> Mapping[str, object]:
    if done.status in (2, 126, 127):
        raise Unsupported(
            f"the runner in sandbox {vmid} knows nothing of workspaces",
            hint="build the template again: agentlab template build",
        )
    try:
        said = json.loads(done.stdout[: 64 << 10])
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        text = done.stderr.decode(errors="replace")[-_MOST_SAID:]
        raise Unavailable(f"cannot understand the runner in sandbox {vmid}: {one_line(text)}")
    return said


def _refused(
    workspace: Workspace, vmid: int, said: Mapping[str, object], verb: str = "mount"
) -> AgentLabError:
    code, name = said.get("error"), workspace.name
    detail = one_line(str(said.get("detail", "")))[:_MOST_SAID]
    what = f"cannot {verb} workspace {name} in sandbox {vmid}"
    if code == "absent":
        return Unavailable(
            f"{what}: the guest does not see its disk", hint=f"see: agentlab workspace check {name}"
        )
    repair = f"detach it, then look: agentlab workspace fsck {name}"
    if code == "damaged":
        return Conflict(f"{what}: its file system is damaged: {detail}", hint=repair)
    if code == "blank":
        return Conflict(f"{what}: its file system is gone", hint=repair)
    if code == "foreign":
        return Conflict(f"{what}: what is on it is not from us: {detail}", hint=repair)
    return Conflict(
        f"{what}: {detail or 'the guest does not say why'}",
        hint=f"look inside: agentlab sandbox exec {vmid} --user root -- dmesg",
    )


def _busy(workspace: Workspace, vmid: int, said: Mapping[str, object], *, forced: bool) -> Conflict:
    listed = said.get("processes")
    named = (
        [_process(each) for each in listed if isinstance(each, dict)]
        if isinstance(listed, list)
        else []
    )
    shown, more = named[:_MOST_NAMED], len(named) - _MOST_NAMED
    words = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return Conflict(
        f"cannot detach workspace {workspace.name}: it is in use in sandbox {vmid}"
        + (f" by {words}" if words else ""),
        hint=f"they do not end: take its power, then try again: agentlab sandbox stop {vmid}"
        if forced
        else "end them, or use --force, which does that",
        details={"processes": shown},
    )


def _process(entry: Mapping[str, object]) -> str:
    pid, name, user = entry.get("pid"), entry.get("name"), entry.get("user")
    known = isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid < 1 << 22
    number = str(pid) if known else "?"
    return f"{one_line(str(name))[:40]} ({number}, {one_line(str(user))[:32]})"

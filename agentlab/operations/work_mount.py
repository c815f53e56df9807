"""A workspace's other side: the guest that mounts it at /work, and lets go of it.

What a guest says is hostile: of its answer only what has the right form is taken, bounded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence

from agentlab.errors import AgentLabError, Conflict, DeadlineExceeded, Unavailable, Unsupported
from agentlab.hypervisor.base import ExecResult, Power
from agentlab.log import one_line
from agentlab.model.sandbox import Sandbox
from agentlab.model.workspace import Workspace
from agentlab.operations.context import World
from agentlab.store import workspaces

RUNNER = "/usr/local/bin/agentlab"
_APPEAR = 20  # seconds that a disk has to show itself
_MOUNT, _UNMOUNT, _LET_GO = 60.0, 30.0, 20.0
_MOST_SAID, _MOST_NAMED = 300, 10


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
        said = _ask(world, vmid, ["unmount", *(["--force"] if force else [])], _UNMOUNT)
    except (Unavailable, DeadlineExceeded) as silent:
        raise Unavailable(
            f"cannot unmount workspace {workspace.name} in sandbox {vmid}: {silent.message}",
            hint=f"stop a guest that does not answer: agentlab sandbox stop {vmid}",
        ) from silent
    if said.get("mounted") is not False:
        raise (
            _busy(workspace, vmid, said)
            if said.get("error") == "busy"
            else _refused(workspace, vmid, said)
        )


def let_go(world: World, sandbox: Sandbox) -> None:
    """Before a sandbox loses its power: what its guest has not written yet is written.

    A guest that does not answer in time has what its file system's journal has.
    """
    with world.store.read() as tx:
        held = workspaces.held_by(tx, sandbox.id)
    if held is not None:
        _unmount_if_it_answers(world, sandbox.vmid, sandbox.tap)


def let_go_of(world: World, vmid: int) -> None:
    """As `let_go`, for a machine of ours without a record, which may have a volume all the same."""
    if world.hypervisor.capabilities.volumes:
        with contextlib.suppress(AgentLabError):
            if world.hypervisor.attached(vmid, owner=world.installation):
                _unmount_if_it_answers(world, vmid)


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


def _unmount_if_it_answers(world: World, vmid: int, tap: str = "") -> None:
    with contextlib.suppress(AgentLabError):
        machine = world.hypervisor.status(vmid)
        if machine is None or machine.power is Power.STOPPED:
            return
        if machine.power is Power.PAUSED:  # a guest that stands still writes nothing
            run_on(world, vmid, tap)
        _ask(world, vmid, ["unmount", "--force"], _LET_GO)


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


def _refused(workspace: Workspace, vmid: int, said: Mapping[str, object]) -> AgentLabError:
    code, name = said.get("error"), workspace.name
    detail = one_line(str(said.get("detail", "")))[:_MOST_SAID]
    what = f"cannot mount workspace {name} in sandbox {vmid}"
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


def _busy(workspace: Workspace, vmid: int, said: Mapping[str, object]) -> Conflict:
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
        hint="end them, or use --force, which does that",
        details={"processes": shown},
    )


def _process(entry: Mapping[str, object]) -> str:
    pid, name, user = entry.get("pid"), entry.get("name"), entry.get("user")
    known = isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid < 1 << 22
    number = str(pid) if known else "?"
    return f"{one_line(str(name))[:40]} ({number}, {one_line(str(user))[:32]})"

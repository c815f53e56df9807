"""`workspace.create`, `workspace.fork` and `session.create`: a volume is made, or copied.

The record is written with the request, so that its name and number are taken from then on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping

from agentlab import clock
from agentlab.engine.step import Call, Later, Operation, Output, Result, Step
from agentlab.errors import AgentLabError, Conflict, Internal
from agentlab.model.workspace import Workspace, WorkspaceEvent, WorkspaceState
from agentlab.operations.context import World
from agentlab.operations.workspace_turn import workspace_turn
from agentlab.operations.workspace_volume import need_snapshot
from agentlab.store import events, operations, sessions, workspaces
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

CREATE, FORK = "workspace.create", "workspace.fork"
_ALLOT = 600.0
_COPY = 12 * 3600.0
_TELL_EVERY = 2.0  # seconds between two words on how far a copy is


def create(world: World) -> Operation:
    """An empty volume; the first guest that mounts it makes the file system."""

    def allot(call: Call) -> Result:
        with call.store.read() as tx:
            storage = _record(tx, made_of(call.operation)).storage
        return _new_volume(
            world, call, storage,
            lambda made: world.hypervisor.allot(
                made.number, made.size, storage=made.storage, owner=world.installation
            ),
        )  # fmt: skip

    return Operation(
        CREATE, [Step("allot", allot, _ALLOT, undo=_giving_up(world))], finish=_give_up
    )


def fork(world: World) -> Operation:
    """Another workspace with the same content, of now or of a snapshot; it hangs on nothing."""

    def begin(tx: Tx, source: Workspace, __: OperationRow) -> Mapping[str, object]:
        workspaces.refuse_attached(tx, source, "fork")
        return {}

    def copy(call: Call) -> Result:
        with call.store.read() as tx:
            source = _record(tx, call.operation.input["workspace"])
        snapshot = str(call.operation.input.get("snapshot", ""))
        if "before" not in call.saved:
            if snapshot:
                need_snapshot(world, source.volid, snapshot, "fork")
            _tell_how(world, call, source)
        return _new_volume(
            world, call, world.hypervisor.storage_of(source.volid),
            lambda made: world.hypervisor.clone_volume(
                source.volid, made.number, snapshot=snapshot, owner=world.installation,
                progress=_teller(call),
            ),
            formatted=source.formatted,
        )  # fmt: skip

    return Operation(
        FORK,
        [workspace_turn(begin), Step("copy", copy, _COPY, undo=_giving_up(world))],
        finish=_give_up,
    )


def made_of(operation: OperationRow) -> int:
    """The record that an operation makes: of `create` its subject's, of `fork` another one."""
    identity = operation.input["made"]
    if not isinstance(identity, int):
        raise Internal("an operation that makes no workspace")
    return identity


def _record(tx: Tx, identity: object) -> Workspace:
    found = workspaces.by_id(tx, identity) if isinstance(identity, int) else None
    if found is None or found.state is WorkspaceState.DELETED:
        raise Conflict("the workspace is deleted", hint="see: agentlab workspace list")
    return found


def _new_volume(
    world: World,
    call: Call,
    storage: str,
    make: Callable[[Workspace], str],
    *,
    formatted: bool | None = None,
) -> Result:
    """Makes the volume of a record on a storage ("": the one that is set), or finds it made.

    What has its name already when this begins was left by a database that is lost: nobody knows
    what is in it, so it is left alone, and the workspace gets another number.
    """
    with call.store.read() as tx:
        made = _record(tx, made_of(call.operation))
    before = call.saved.get("before")
    if not isinstance(before, list):
        there = world.hypervisor.volumes(owner=world.installation, storage=storage)
        before = sorted(each.volid for each in there)
        call.save(before=before, storage=storage)
    volid = make(made)
    if volid in before:
        with call.store.write() as tx:
            workspaces.set_number(tx, made.id, free_number(world, tx))
        raise Later(0.0)

    found = world.volume(volid)
    size = found.size if found else made.size

    def write(tx: Tx) -> Output:
        workspaces.set_volume(tx, made.id, volid, volid.partition(":")[0])
        workspaces.set_size(tx, made.id, size)  # of a snapshot from before it grew, say
        if formatted is not None:
            workspaces.set_formatted(tx, made.id, formatted=formatted)
        workspaces.transition(tx, made.id, WorkspaceEvent.MADE, operation=call.operation.id)
        return {"volid": volid}

    return write


def free_number(world: World, tx: Tx) -> int:
    """A number for a volume, of their own range and not the one just freed; Conflict, none is left."""
    numbers: range = world.config.volume_numbers
    taken = {one.number for one in workspaces.live(tx)}
    last = workspaces.last_number(tx)
    start = last + 1 if last + 1 in numbers else numbers.start
    for number in itertools.chain(range(start, numbers.stop), range(numbers.start, start)):
        if number not in taken:
            return number
    raise Conflict(
        f"cannot make a workspace: all numbers from {numbers.start} to {numbers.stop - 1} are taken",
        hint="delete workspaces that are no longer needed, or widen proxmox.volume_vmids",
    )


def _giving_up(world: World) -> Callable[[Call], Result]:
    """Frees what was made, and nothing that was there before; then the record, and its number."""

    def undo(call: Call) -> Result:
        before, storage = call.saved.get("before"), str(call.saved.get("storage", ""))
        with call.store.read() as tx:
            made = workspaces.by_id(tx, made_of(call.operation))
        if isinstance(before, list) and made is not None:  # else nothing was asked for yet
            for each in world.hypervisor.volumes(owner=world.installation, storage=storage):
                if each.volid not in before and number_of(each.volid) == made.number:
                    world.hypervisor.free(each.volid, owner=world.installation)

        def write(tx: Tx) -> Output:
            _close(tx, call.operation, call.operation.error)
            return {}

        return write

    return undo


def number_of(volid: str) -> int:
    """The number in the name of a volume of ours (`STORAGE:[N/]vm-N-…`); 0 for none."""
    number = volid.rpartition("/")[2].rpartition(":")[2].removeprefix("vm-").partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0


def _give_up(tx: Tx, operation: OperationRow, error: AgentLabError | None) -> None:
    """What turned back before anything was asked for has no step that closes its record."""
    begun = operations.steps(tx, operation.id)
    if error is not None and not begun.keys() & {"allot", "copy"}:
        _close(tx, operation, error.message)


def _close(tx: Tx, operation: OperationRow, reason: str) -> None:
    """Ends the record of what could not be made, and the session that was to have it."""
    made = workspaces.by_id(tx, made_of(operation))
    if made is None or made.state is not WorkspaceState.CREATING:
        return
    session = sessions.of_workspace(tx, made.id)
    if session is not None:
        sessions.delete(tx, session.id, operation=operation.id)
    workspaces.transition(
        tx, made.id, WorkspaceEvent.GIVE_UP, operation=operation.id, reason=reason
    )


def _tell_how(world: World, call: Call, source: Workspace) -> None:
    thin = world.hypervisor.clones_thin(source.volid)
    how = "shares its content at first, and takes no time" if thin else "is a whole copy"
    with call.store.write() as tx:
        events.append(
            tx, "workspace.fork", f"the fork of workspace {source.name} {how}",
            operation=call.operation.id, facts={"workspace": source.name, "thin": thin},
        )  # fmt: skip


def _teller(call: Call) -> Callable[[float], None]:
    """Notes how far a copy is where `show` and those who wait can see it."""
    last = [0.0]

    def tell(part: float) -> None:
        if time.monotonic() - last[0] >= _TELL_EVERY:
            last[0] = time.monotonic()
            with call.store.write() as tx:
                operations.set_waits_for(tx, call.operation.id, f"the copy: {part:.0%} are done")

    return tell


def new_record(name: str, number: int, size: int, storage: str, origin: str = "",
               *, formatted: bool = False) -> Workspace:  # fmt: skip
    """A record of now, before there is a volume."""
    now = clock.now()
    return Workspace(
        name=name, state=WorkspaceState.CREATING, number=number, volid="", storage=storage,
        size=size, created=now, changed=now, origin=origin, formatted=formatted,
    )  # fmt: skip

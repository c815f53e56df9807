"""Workspaces, and the lease by which one sandbox has each.

Whoever takes a lease is given a nonce, and changes the lease by that nonce alone: one whose lease
was cleared meanwhile, and given to another, changes nothing.
"""

from __future__ import annotations

import secrets
import sqlite3

from agentlab import clock
from agentlab.errors import Conflict
from agentlab.model.ids import unknown
from agentlab.model.sandbox import Sandbox
from agentlab.model.workspace import WORKSPACE, Workspace, WorkspaceEvent, WorkspaceState
from agentlab.store import events
from agentlab.store.db import Tx

LEASE = 60.0  # seconds; renewed long before by the daemon, for every sandbox that lives
_LIVE = "state != 'DELETED'"


def create(tx: Tx, workspace: Workspace, *, operation: str) -> int:
    """Writes a new workspace down and gives its id; the unique indexes refuse what another has."""
    row = tx.execute(
        "INSERT INTO workspace (name, state, number, storage, size, formatted, origin, created,"
        " changed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (workspace.name, workspace.state, workspace.number, workspace.storage, workspace.size,
         int(workspace.formatted), workspace.origin, workspace.created, workspace.changed),
    ).fetchone()  # fmt: skip
    _tell(tx, workspace.name, workspace.state, operation=operation)
    return int(row["id"])


def by_id(tx: Tx, identity: int) -> Workspace | None:
    """Also one that is deleted."""
    row = tx.execute("SELECT * FROM workspace WHERE id = ?", (identity,)).fetchone()
    return None if row is None else _workspace(row)


def find(tx: Tx, name: str) -> Workspace | None:
    """The one that lives under this name."""
    row = tx.execute(
        f"SELECT * FROM workspace WHERE name = ? AND {_LIVE}",  # noqa: S608
        (name,),
    ).fetchone()
    return None if row is None else _workspace(row)


def get(tx: Tx, name: str) -> Workspace:
    """The one that lives under this name; NotFound with a near one otherwise."""
    found = find(tx, name)
    if found is None:
        raise unknown("workspace", name, [one.name for one in live(tx)])
    return found


def live(tx: Tx) -> list[Workspace]:
    """All that are not deleted, by name."""
    rows = tx.execute(f"SELECT * FROM workspace WHERE {_LIVE} ORDER BY name")  # noqa: S608
    return [_workspace(row) for row in rows]


def held_by(tx: Tx, sandbox: int) -> Workspace | None:
    """The workspace that a sandbox has, by the id of its record."""
    row = tx.execute(
        "SELECT * FROM workspace WHERE holder = ? AND holder != 0", (sandbox,)
    ).fetchone()
    return None if row is None else _workspace(row)


def of_volume(tx: Tx, volid: str) -> Workspace | None:
    """The one that lives whose volume this is."""
    row = tx.execute(
        f"SELECT * FROM workspace WHERE volid = ? AND {_LIVE}",  # noqa: S608
        (volid,),
    ).fetchone()
    return None if row is None else _workspace(row)


def last_number(tx: Tx) -> int:
    """The number given out last, 0 for none: the next one is not the one just freed."""
    row = tx.execute("SELECT number FROM workspace ORDER BY id DESC LIMIT 1").fetchone()
    return 0 if row is None else int(row["number"])


def set_volume(tx: Tx, identity: int, volid: str, storage: str) -> None:
    """What the hypervisor calls its volume."""
    tx.execute(
        "UPDATE workspace SET volid = ?, storage = ?, changed = ? WHERE id = ?",
        (volid, storage, clock.now(), identity),
    )


def set_number(tx: Tx, identity: int, number: int) -> None:
    """Another number, for one whose volume is still to be made."""
    tx.execute("UPDATE workspace SET number = ? WHERE id = ?", (number, identity))


def set_size(tx: Tx, identity: int, size: int) -> None:
    tx.execute(
        "UPDATE workspace SET size = ?, changed = ? WHERE id = ?", (size, clock.now(), identity)
    )


def set_formatted(tx: Tx, identity: int, *, formatted: bool) -> None:
    """Whether there is a file system on it that was mounted once."""
    tx.execute("UPDATE workspace SET formatted = ? WHERE id = ?", (int(formatted), identity))


def transition(
    tx: Tx, identity: int, event: WorkspaceEvent, *, operation: str = "", reason: str = ""
) -> Workspace:
    """Moves a workspace that has no lease along its table; `hold` and `release` do the rest."""
    before = by_id(tx, identity)
    if before is None:
        raise unknown("workspace", identity, [])
    state = WORKSPACE.next(before.state, event)
    tx.execute(
        "UPDATE workspace SET state = ?, changed = ? WHERE id = ? AND state = ?",
        (state, clock.now(), identity, before.state),
    )
    _tell(tx, before.name, state, operation=operation, reason=reason)
    return _again(tx, identity)


# --- the lease ---


def hold(tx: Tx, identity: int, sandbox: Sandbox, *, operation: str = "") -> str:
    """Gives a sandbox the lease of a detached workspace; its nonce, the same for one that has it.

    InvalidTransition when another has it.
    """
    before = _again(tx, identity)
    if before.holder == sandbox.id:
        return before.nonce
    state, nonce = WORKSPACE.next(before.state, WorkspaceEvent.ATTACH), secrets.token_hex(8)
    tx.execute(
        "UPDATE workspace SET state = ?, holder = ?, vmid = ?, nonce = ?, lease_until = ?,"
        " changed = ? WHERE id = ? AND state = 'DETACHED'",
        (state, sandbox.id, sandbox.vmid, nonce, clock.now() + LEASE, clock.now(), identity),
    )
    _tell(tx, before.name, state, operation=operation, vmid=sandbox.vmid,
          reason=f"sandbox {sandbox.vmid}")  # fmt: skip
    return nonce


def pass_on(tx: Tx, identity: int, nonce: str, sandbox: Sandbox, *, operation: str = "") -> str:
    """Gives the lease from the sandbox that has it to another, in one step; the new nonce."""
    release(tx, identity, nonce, operation=operation)
    return hold(tx, identity, sandbox, operation=operation)


def renew(tx: Tx, identity: int, nonce: str) -> bool:
    """The holder is still there; False when the lease is not this one any more."""
    return bool(
        tx.execute(
            "UPDATE workspace SET lease_until = ? WHERE id = ? AND nonce = ? AND nonce != ''",
            (clock.now() + LEASE, identity, nonce),
        ).rowcount
    )


def release(
    tx: Tx, identity: int, nonce: str, *, operation: str = "", reason: str = ""
) -> Workspace:
    """Ends a lease; one that is not this nonce's any more is left alone."""
    before = _again(tx, identity)
    if not nonce or before.nonce != nonce:
        return before
    state = WORKSPACE.next(before.state, WorkspaceEvent.DETACH)
    tx.execute(
        "UPDATE workspace SET state = ?, holder = 0, vmid = 0, nonce = '', lease_until = 0,"
        " changed = ? WHERE id = ? AND nonce = ?",
        (state, clock.now(), identity, nonce),
    )
    _tell(tx, before.name, state, operation=operation, vmid=before.vmid, reason=reason)
    return _again(tx, identity)


def release_of(tx: Tx, sandbox: int, *, operation: str = "", reason: str = "") -> None:
    """Ends the lease of a sandbox whose machine is gone, by the id of its record."""
    found = held_by(tx, sandbox)
    if found is not None:
        release(tx, found.id, found.nonce, operation=operation, reason=reason)


def refuse_attached(tx: Tx, workspace: Workspace, verb: str) -> None:
    """Conflict while a sandbox has it: what is done to a volume needs it detached."""
    if workspace.state is WorkspaceState.ATTACHED:
        session = tx.execute(
            "SELECT name FROM session WHERE workspace = ?", (workspace.id,)
        ).fetchone()
        stops = f", or: agentlab session stop {session['name']}" if session else ""
        raise Conflict(
            f"cannot {verb} workspace {workspace.name}: it is attached to sandbox {workspace.vmid}",
            hint=f"detach it: agentlab workspace detach {workspace.name}{stops}",
            details={"vmid": workspace.vmid},
        )


def forget_before(tx: Tx, at: float) -> int:
    """Deletes records of workspaces that were deleted before a time; gives how many."""
    return tx.execute(
        "DELETE FROM workspace WHERE state = 'DELETED' AND changed < ?"
        " AND id NOT IN (SELECT workspace FROM session)",
        (at,),
    ).rowcount


def _again(tx: Tx, identity: int) -> Workspace:
    found = by_id(tx, identity)
    if found is None:
        raise unknown("workspace", identity, [])
    return found


def _tell(
    tx: Tx, name: str, state: WorkspaceState, *, operation: str, reason: str = "", vmid: int = 0
) -> None:
    events.append(
        tx, "workspace.state", f"workspace {name} is {state}" + (f": {reason}" if reason else ""),
        vmid=vmid, operation=operation,
        facts={"workspace": name, "to": state, "reason": reason},
    )  # fmt: skip


def _workspace(row: sqlite3.Row) -> Workspace:
    return Workspace(
        name=row["name"],
        state=WorkspaceState(row["state"]),
        number=row["number"],
        volid=row["volid"],
        storage=row["storage"],
        size=row["size"],
        created=row["created"],
        changed=row["changed"],
        id=row["id"],
        formatted=bool(row["formatted"]),
        origin=row["origin"],
        holder=row["holder"],
        vmid=row["vmid"],
        nonce=row["nonce"],
        lease_until=row["lease_until"],
    )

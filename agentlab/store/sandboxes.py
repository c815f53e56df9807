"""Sandboxes: what each one holds (VMID, name, address, MAC, tap) it holds alone while it lives."""

from __future__ import annotations

import sqlite3
from ipaddress import IPv4Address

from agentlab import clock
from agentlab.model.ids import unknown
from agentlab.model.sandbox import SANDBOX, Sandbox, SandboxEvent, SandboxState
from agentlab.store import events
from agentlab.store.db import Tx

_LIVE = "state != 'DESTROYED'"


def create(tx: Tx, sandbox: Sandbox, *, operation: str) -> None:
    """Writes a new sandbox down; the unique indexes refuse what another live one holds."""
    tx.execute(
        "INSERT INTO sandbox (vmid, name, profile, state, address, mac, tap, network, job,"
        " created, changed, lease_until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            sandbox.vmid, sandbox.name, sandbox.profile, sandbox.state, str(sandbox.address),
            sandbox.mac, sandbox.tap, sandbox.network, sandbox.job, sandbox.created,
            sandbox.changed, sandbox.lease_until,
        ),
    )  # fmt: skip
    events.append(
        tx, "sandbox.state", f"sandbox {sandbox.vmid} is {sandbox.state}", job=sandbox.job,
        vmid=sandbox.vmid, operation=operation, facts={"from": "", "to": sandbox.state},
    )  # fmt: skip


def find(tx: Tx, vmid: int) -> Sandbox | None:
    """The newest sandbox with this VMID, also a destroyed one."""
    row = tx.execute(
        "SELECT * FROM sandbox WHERE vmid = ? ORDER BY id DESC LIMIT 1", (vmid,)
    ).fetchone()
    return None if row is None else _sandbox(row)


def get(tx: Tx, reference: str | int) -> Sandbox:
    """By VMID or by name; NotFound with a near one otherwise."""
    text = str(reference)
    found = find(tx, int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else None
    if found is None:
        row = tx.execute(
            "SELECT * FROM sandbox WHERE name = ? ORDER BY id DESC LIMIT 1", (text,)
        ).fetchone()
        found = None if row is None else _sandbox(row)
    if found is None:
        near = [str(each) for one in live(tx) for each in (one.vmid, one.name)]
        raise unknown("sandbox", reference, near)
    return found


def live(tx: Tx) -> list[Sandbox]:
    """All that are not destroyed, by VMID."""
    return [
        _sandbox(row)
        for row in tx.execute(f"SELECT * FROM sandbox WHERE {_LIVE} ORDER BY vmid")  # noqa: S608
    ]


def newest(tx: Tx, limit: int = 200) -> list[Sandbox]:
    """All, destroyed ones too, newest first."""
    rows = tx.execute("SELECT * FROM sandbox ORDER BY id DESC LIMIT ?", (limit,))
    return [_sandbox(row) for row in rows]


def fenced(tx: Tx) -> list[Sandbox]:
    """Those whose tap and network rules are to be in place."""
    rows = tx.execute(
        f"SELECT * FROM sandbox WHERE {_LIVE} AND fenced = 1 ORDER BY vmid"  # noqa: S608
    )
    return [_sandbox(row) for row in rows]


def set_fenced(tx: Tx, vmid: int, *, fenced: bool) -> None:
    tx.execute(
        f"UPDATE sandbox SET fenced = ? WHERE vmid = ? AND {_LIVE}",  # noqa: S608
        (int(fenced), vmid),
    )


def set_lease(tx: Tx, vmid: int, until: float) -> None:
    tx.execute(
        f"UPDATE sandbox SET lease_until = ? WHERE vmid = ? AND {_LIVE}",  # noqa: S608
        (until, vmid),
    )


def last_address(tx: Tx) -> IPv4Address | None:
    """The address given out last, so that the next one is not the one just freed."""
    row = tx.execute("SELECT address FROM sandbox ORDER BY id DESC LIMIT 1").fetchone()
    return None if row is None else IPv4Address(row["address"])


def last_vmid(tx: Tx) -> int:
    """The VMID given out last, 0 for none."""
    row = tx.execute("SELECT vmid FROM sandbox ORDER BY id DESC LIMIT 1").fetchone()
    return 0 if row is None else int(row["vmid"])


def count_by_state(tx: Tx) -> dict[str, int]:
    rows = tx.execute(
        f"SELECT state, count(*) AS n FROM sandbox WHERE {_LIVE} GROUP BY state"  # noqa: S608
    )
    return {row["state"]: row["n"] for row in rows}


def transition(
    tx: Tx, vmid: int, event: SandboxEvent, *, operation: str = "", reason: str = ""
) -> Sandbox:
    """Moves the live sandbox along its state table, with its event; InvalidTransition otherwise."""
    before = get(tx, vmid)
    state = SANDBOX.next(before.state, event)
    tx.execute(
        "UPDATE sandbox SET state = ?, changed = ?, reason = ? WHERE vmid = ? AND state = ?",
        (state, clock.now(), reason or before.reason, vmid, before.state),
    )
    events.append(
        tx, "sandbox.state", f"sandbox {vmid} is {state}" + (f": {reason}" if reason else ""),
        job=before.job, vmid=vmid, operation=operation,
        facts={"from": before.state, "to": state, "reason": reason},
    )  # fmt: skip
    return get(tx, vmid)


def forget_before(tx: Tx, at: float) -> int:
    """Deletes records of sandboxes that were destroyed before a time; gives how many."""
    return tx.execute(
        "DELETE FROM sandbox WHERE state = 'DESTROYED' AND changed < ?", (at,)
    ).rowcount


def _sandbox(row: sqlite3.Row) -> Sandbox:
    return Sandbox(
        vmid=row["vmid"],
        name=row["name"],
        profile=row["profile"],
        state=SandboxState(row["state"]),
        address=IPv4Address(row["address"]),
        mac=row["mac"],
        tap=row["tap"],
        network=row["network"],
        job=row["job"],
        created=row["created"],
        changed=row["changed"],
        lease_until=row["lease_until"],
        reason=row["reason"],
    )

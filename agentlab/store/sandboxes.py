"""Sandboxes: what each one holds (VMID, name, address, MAC, tap) it holds alone while it lives."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
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
        " created, changed, lease_until, template, cores, memory, disk, labels, ttl, keepalive,"
        " idle_stop) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            sandbox.vmid, sandbox.name, sandbox.profile, sandbox.state, str(sandbox.address),
            sandbox.mac, sandbox.tap, sandbox.network, sandbox.job, sandbox.created,
            sandbox.changed, sandbox.lease_until, sandbox.template, sandbox.cores, sandbox.memory,
            sandbox.disk, json.dumps(sandbox.labels), float(sandbox.ttl), int(sandbox.keepalive),
            float(sandbox.idle_stop),
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


def get_live(tx: Tx, reference: str | int) -> Sandbox:
    """The one that lives under this VMID or name, before any that is destroyed; NotFound."""
    text = str(reference)
    column = "vmid" if text.isascii() and text.isdigit() and len(text) < 10 else "name"
    row = tx.execute(
        f"SELECT * FROM sandbox WHERE {column} = ? AND {_LIVE}",  # noqa: S608  # our column
        (int(text) if column == "vmid" else text,),
    ).fetchone()
    return get(tx, reference) if row is None else _sandbox(row)


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


def set_lease(tx: Tx, vmid: int, until: float, *, ttl: float = 0.0) -> None:
    """When the lease ends; with `ttl` also how long it is from now on, when it renews itself."""
    tx.execute(
        f"UPDATE sandbox SET lease_until = ?, ttl = CASE WHEN ? > 0 THEN ? ELSE ttl END"  # noqa: S608
        f" WHERE vmid = ? AND {_LIVE}",
        (until, ttl, float(ttl), vmid),
    )


def set_labels(tx: Tx, vmid: int, labels: Mapping[str, str]) -> None:
    tx.execute(
        f"UPDATE sandbox SET labels = ? WHERE vmid = ? AND {_LIVE}",  # noqa: S608
        (json.dumps(dict(labels)), vmid),
    )


def set_size(tx: Tx, vmid: int, *, cores: int, memory: int) -> None:
    """What it gets at its next start; memory in MiB."""
    tx.execute(
        f"UPDATE sandbox SET cores = ?, memory = ? WHERE vmid = ? AND {_LIVE}",  # noqa: S608
        (cores, memory, vmid),
    )


def set_held(tx: Tx, vmid: int, *, held: bool) -> None:
    """Whether its job's end is to leave it alone, for somebody who waits for it."""
    tx.execute(
        f"UPDATE sandbox SET held = ? WHERE vmid = ? AND {_LIVE}",  # noqa: S608
        (int(held), vmid),
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
        "UPDATE sandbox SET state = ?, changed = ?, reason = ?, used = ? WHERE id = ? AND state = ?",
        (state, clock.now(), _reason(before, event, reason), _used(before, event), before.id,
         before.state),
    )  # fmt: skip
    events.append(
        tx, "sandbox.state", f"sandbox {vmid} is {state}" + (f": {reason}" if reason else ""),
        job=before.job, vmid=vmid, operation=operation,
        facts={"from": before.state, "to": state, "reason": reason},
    )  # fmt: skip
    return get(tx, vmid)


def _reason(before: Sandbox, event: SandboxEvent, reason: str) -> str:
    """A new start begins with a clean slate; all else leaves what was said last."""
    return reason or ("" if event is SandboxEvent.START else before.reason)


def _used(before: Sandbox, event: SandboxEvent) -> int:
    return int(event is SandboxEvent.RUN or (before.used and event is not SandboxEvent.START))


def forget_before(tx: Tx, at: float) -> int:
    """Deletes records of sandboxes that were destroyed before a time; gives how many."""
    return tx.execute(
        "DELETE FROM sandbox WHERE state = 'DESTROYED' AND changed < ?"
        " AND id < (SELECT max(id) FROM sandbox)",  # SQLite would give the last one's id again
        (at,),
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
        id=row["id"],
        template=row["template"],
        cores=row["cores"],
        memory=row["memory"],
        disk=row["disk"],
        labels=json.loads(row["labels"]),
        ttl=row["ttl"],
        keepalive=bool(row["keepalive"]),
        idle_stop=row["idle_stop"],
        held=bool(row["held"]),
        used=bool(row["used"]),
    )

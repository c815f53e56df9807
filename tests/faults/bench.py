"""A daemon that is killed, over a Proxmox that stays; and what must be true whatever happened.

The stand-in for Proxmox runs in the test's process, the daemon is `tests/fakes/sim_daemon.py`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.api.table import Endpoint
from agentlab.client.client import Client
from agentlab.errors import Unavailable, Unreachable
from agentlab.hypervisor.proxmox.names import parse_owner
from agentlab.model.sandbox import CLEAN
from tests.fakes.pve.commands import make_commands
from tests.fakes.pve.node import TOKEN, FakeVm, TaskError
from tests.fakes.pve.serving import Served, serve
from tests.fakes.pve.tasks import TaskFault
from tests.fakes.pve.work_files import WorkFiles
from tests.fakes.sim_daemon import Order
from tests.fakes.sim_door import DOOR, Answer, Asked
from tests.fakes.sim_guests import Guests
from tests.fakes.sim_work import WORK, Content, WorkDisks, read, volid_of, write
from tests.faults.held import look_at_workspaces

ROOT = Path(__file__).resolve().parents[2]
VMIDS = (1000, 1399)
STRANGERS = (100, 1003, 1017, 2000)
PROFILE = """\
network: off
memory: 512
disk: 2G
ttl: {ttl}
handback: 5s
after: {after}
agent: {{command: 'true'}}
"""
PATIENCE = 120.0  # seconds: it only ends a hang
_OURS = {"READY": "running", "RUNNING": "running", "SUSPENDED": "paused", "STOPPED": "stopped"}


class Node(WorkFiles):
    """Notes what must never be seen: power without rules, a work disk in a snapshot, one that two
    machines have, one that is torn out of a guest.

    `disks` says for each machine what is on its root disk: "new", or how often it has had power
    since; a rollback puts it back.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.members = Path()
        self.violations: list[str] = []
        self.disks: dict[int, str] = {}
        self.kept: dict[tuple[int, str], str] = {}
        self.clones: Counter[int] = Counter()
        self.boots: Counter[int] = Counter()
        self.clone_faults: dict[int, TaskFault] = {}
        self.strangers: set[int] = set()
        self.work = WorkDisks(self)

    async def _configure(self, vm: FakeVm, user: str, asked: Any) -> None:
        try:
            await super()._configure(vm, user, asked)
        finally:
            self._one_each()

    def _one_each(self) -> None:
        """Looked at after every change of a configuration."""
        had = [{str(each).split(",")[0] for each in (vm.config.get(WORK), vm.pending.get(WORK)) if each}
               for vm in self.vms]  # fmt: skip
        names = [volid for each in had for volid in each]
        for volid in {each for each in names if names.count(each) > 1}:
            self.violations.append(f"two machines have {volid} at once")

    def powered_off(self, vm: FakeVm) -> None:
        super().powered_off(vm)
        self.work.cut(vm.vmid)

    def on_shutdown(self, vm: FakeVm, timeout: float) -> bool:
        self.work.shut_down(vm.vmid)
        return super().on_shutdown(vm, timeout)

    def on_attach(self, vm: FakeVm, key: str, volid: str, serial: str) -> None:
        super().on_attach(vm, key, volid, serial)
        if key == WORK:
            self.work.plug(vm.vmid, volid)

    def on_detach(self, vm: FakeVm, key: str, volid: str) -> None:
        super().on_detach(vm, key, volid)
        if key == WORK:
            if vm.qmpstatus != "running":
                raise TaskError(f"hotplug problem - error on hot-unplugging device '{key}'")
            self.work.unplug(vm.vmid, volid)

    def fail_clone(self, vmid: int, text: str) -> TaskFault:
        """The next clone to this VMID fails, and takes away what it made."""
        fault = self.clone_faults[vmid] = TaskFault("qmclone", text, 1)
        return fault

    def on_clone(self, source: FakeVm, vm: FakeVm, full: bool) -> None:
        super().on_clone(source, vm, full)
        fault = self.clone_faults.get(vm.vmid)
        if fault is not None and fault.times > 0:
            fault.times -= 1
            raise TaskError(fault.text)
        self.disks[vm.vmid] = "new"
        self.clones[vm.vmid] += 1
        self.kept = {key: each for key, each in self.kept.items() if key[0] != vm.vmid}

    def on_start(self, vm: FakeVm) -> None:
        super().on_start(vm)
        if vm.vmid in self.strangers:
            self.violations.append(f"stranger {vm.vmid} was started")
        elif str(vm.vmid) not in json.loads(self.members.read_text()):
            self.violations.append(f"VM {vm.vmid} has power and no rules")
        self.work.power(vm)
        self.boots[vm.vmid] += 1
        self.disks[vm.vmid] = f"used {self.boots[vm.vmid]}"

    def on_snapshot(self, vm: FakeVm, name: str, memory: bool) -> None:
        super().on_snapshot(vm, name, memory)
        self.kept[(vm.vmid, name)] = self.disks.get(vm.vmid, "")
        self._no_work_disk(vm, "taken")

    def on_rollback(self, vm: FakeVm, name: str, memory: bool) -> None:
        super().on_rollback(vm, name, memory)
        self.disks[vm.vmid] = self.kept.get((vm.vmid, name), "unknown")
        self._no_work_disk(vm, "rolled back")

    def _no_work_disk(self, vm: FakeVm, what: str) -> None:
        if "agentlab" in str(vm.config.get("scsi1", "")):
            self.violations.append(f"a snapshot of VM {vm.vmid} was {what} with its work disk")


@dataclass
class Bench:
    """One installation.  `daemon` is the process id of the daemon that runs, 0 for none."""

    scratch: Path
    data: Path
    served: Served
    guests: Guests
    forge: subprocess.Popen[str]
    port: int
    network: int
    daemon: int = 0
    starts: int = 0
    kills: int = 0
    owner: str = ""
    strangers: Mapping[str, object] = field(default_factory=dict)
    _read: int = 0  # of the log

    @property
    def node(self) -> Node:
        return self.served.node  # type: ignore[return-value]

    @property
    def order(self) -> Order:
        at = self.scratch
        return Order(
            config=f"{at}/config.yaml", control=f"{at}/control.json", trace=f"{at}/trace",
            members=f"{at}/members.json", log=f"{at}/agentlabd.log",
        )  # fmt: skip

    @property
    def client(self) -> Client:
        return Client(str(self.scratch / "api.sock"), timeout=PATIENCE)

    # ------------------------------------------------------------------- the daemon's life

    def arm(self, **faults: object) -> None:
        """What is to go wrong from now on; nothing without arguments."""
        part = self.scratch / "control.part"
        part.write_text(json.dumps(faults))
        part.replace(self.scratch / "control.json")

    def tell(self, **order: object) -> int:
        return int(self._tell(order))

    def _tell(self, order: Mapping[str, object]) -> str:
        assert self.forge.stdin is not None
        assert self.forge.stdout is not None
        self.forge.stdin.write(json.dumps(order) + "\n")
        self.forge.stdin.flush()
        return self.forge.stdout.readline()

    def start(self) -> None:
        """Starts a daemon and waits until it answers."""
        assert not self.daemon
        self.daemon = self.tell(start=asdict(self.order))
        self.starts += 1
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self.is_dead():
                break
            try:
                self.client.call(table.STATUS)
            except (Unreachable, Unavailable):
                time.sleep(0.01)
            else:
                if not self.owner:
                    self.owner = str(self.rows("SELECT value FROM setting WHERE key='installation'")
                                     [0]["value"])  # fmt: skip
                return
        raise AssertionError(f"the daemon does not answer:\n{self.log()[-3000:]}")

    def is_dead(self, timeout: float = 0.0) -> bool:
        """Whether it has ended by itself, or by the fault that was asked for; waits for that."""
        if not self.daemon:
            return True
        watched = os.pidfd_open(self.daemon)
        try:
            return bool(select.select([watched], [], [], timeout)[0])
        finally:
            os.close(watched)

    def reap(self) -> int:
        """Its exit status, when it has ended."""
        status = self.tell(wait=self.daemon)
        self.daemon = 0
        self.kills += status == -signal.SIGKILL
        return status

    def kill(self) -> None:
        os.kill(self.daemon, signal.SIGKILL)
        assert self.reap() == -signal.SIGKILL

    def stop(self) -> None:
        """As systemd does it."""
        os.kill(self.daemon, signal.SIGTERM)
        assert self.is_dead(PATIENCE), "it does not end"
        assert self.reap() == 0

    def second(self) -> tuple[int, str]:
        """The exit status of another daemon on the same database, and what it says."""
        log = self.scratch / "second.log"
        pid = self.tell(start=asdict(self.order) | {"log": str(log)})
        return self.tell(wait=pid), log.read_text()

    def fill_disk(self) -> None:
        """Not a byte more goes on the disk that the daemon's data is on."""
        with (self.data / "agentlab-ballast").open("wb", buffering=0) as ballast:
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        ballast.write(b"0" * size)

    def empty_disk(self) -> None:
        (self.data / "agentlab-ballast").unlink()

    # ------------------------------------------------------------------- to ask

    def ask(
        self, endpoint: Endpoint[Any, Any], request: object = None, *, key: str = "", **path: object
    ) -> Any:
        """One request with a key, so that asking again is the same."""
        headers = {"Idempotency-Key": key or secrets.token_urlsafe(12)}
        words = {name: str(value) for name, value in path.items()}
        return self.client.call(endpoint, request, path=words or None, headers=headers)

    def create(self, *, keepalive: bool = False, profile: str = "demo", **more: Any) -> int:
        """A sandbox that is READY (RUNNING with `keepalive`); its VMID."""
        made = self.ask(
            table.SANDBOX_CREATE, m.SandboxRequest(profile, keepalive=keepalive, **more)
        )
        return self.done(made.id).vmid

    def done(self, operation: str) -> m.OperationView:
        """An operation that has ended well."""
        found = self.ended(operation)
        assert found.state == "done", found
        return found

    def ended(self, operation: str) -> m.OperationView:
        until = time.monotonic() + PATIENCE
        while True:
            found = self.client.call(table.OPERATION_SHOW, path={"id": operation})
            if found.final:
                return found
            assert time.monotonic() < until, f"{found}\n{self.log()[-3000:]}"
            time.sleep(0.02)

    def job(self, task: str, *, profile: str = "demo", key: str = "") -> m.JobView:
        spec = m.JobRequest(m.RepoRequest(url="https://example.org/x.git"), task, profile)
        return self.ask(table.JOB_CREATE, spec, key=key)  # type: ignore[no-any-return]

    def until_job(self, job: str, *states: str) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while True:
            (row,) = self.rows("SELECT * FROM job WHERE id = ?", job)
            if row["state"] in states:
                return row
            assert time.monotonic() < until, f"{row}\n{self.log()[-3000:]}"
            time.sleep(0.02)

    def quiet(self, seconds: float = PATIENCE) -> None:
        """Waits until no operation is unfinished, and no lease's end has to be tried again."""
        until = time.monotonic() + seconds
        while rows := [
            *self.rows("SELECT * FROM operation WHERE state IN ('doing', 'undoing')"),
            *self.rows("SELECT * FROM sandbox WHERE state = 'TIMEOUT'"),
        ]:
            assert not self.is_dead(), f"the daemon died:\n{self.log()[-3000:]}"
            assert time.monotonic() < until, f"still at work: {rows}\n{self.log()[-4000:]}"
            time.sleep(0.02)

    # ------------------------------------------------------------------- to look

    def rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """What the database says; read beside the daemon."""
        if self.data != self.scratch / "data":
            return json.loads(
                self._tell({"rows": [f"{self.scratch}/data/agentlab.db", sql, values]})
            )  # type: ignore[no-any-return]
        uri = f"file:{self.data / 'agentlab.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql, values)]

    def poke(self, sql: str, *values: object) -> None:
        """Changes the database beside the daemon: for what no request can bring about."""
        with contextlib.closing(
            sqlite3.connect(self.data / "agentlab.db", timeout=PATIENCE)
        ) as found:
            found.execute(sql, values)
            found.commit()

    def log(self) -> str:
        path = Path(self.order.log)
        return path.read_text() if path.exists() else ""

    def news(self) -> str:
        """What the log has got since the last look."""
        text = self.log()
        news, self._read = text[self._read :], len(text)
        return news

    def trace(self) -> list[str]:
        path = Path(self.order.trace)
        return path.read_text().splitlines() if path.exists() else []

    def forget_trace(self) -> None:
        os.truncate(self.order.trace, 0)

    def sandbox(self, vmid: int) -> dict[str, Any]:
        found = self.rows("SELECT * FROM sandbox WHERE vmid = ? ORDER BY id DESC LIMIT 1", vmid)
        return found[0] if found else {}

    # ------------------------------------------------------------------- workspaces

    def door(self, verb: str, name: str, *, key: str = "", **asked: Any) -> Answer:
        """One request about a workspace, a session, or a job that has one."""
        return self.ask(DOOR, Asked(verb, name, **asked), key=key)  # type: ignore[no-any-return]

    def workspace(self, name: str, text: str = "", *, session: bool = False) -> str:
        """A workspace of 64 MiB with a file system, as a guest has left it; its volid."""
        verb = "session create" if session else "create"
        self.done(self.door(verb, name, size=64).operation)
        self.poke("UPDATE workspace SET formatted = 1 WHERE name = ?", name)
        volid = str(self.work(name)["volid"])
        write(self.node.file_of(volid), Content("clean", text))
        return volid

    def attach_work(self, vmid: int, name: str, text: str = "", more: str = "") -> None:
        """Gives a sandbox a workspace with a text that is synced, and `more`, which is not."""
        self.workspace(name, text)
        self.done(self.door("attach", name, to=str(vmid)).operation)
        if more:
            self.node.work.add(vmid, more)

    def work(self, name: str) -> dict[str, Any]:
        """The record of a workspace, also one that is deleted."""
        found = self.rows("SELECT * FROM workspace WHERE name = ? ORDER BY id DESC LIMIT 1", name)
        return found[0] if found else {}

    def uncovered(self) -> list[str]:
        """Machines that have a workspace without its lease: so at no moment, whatever is under way."""
        rows = self.rows("SELECT * FROM workspace WHERE volid != '' AND state != 'DELETED'")
        with self.served.paused() as node:
            return [
                f"VM {vmid} has workspace {row['name']}, whose lease is with {row['vmid']}"
                for row in rows for vmid in self.holders(node, row["volid"]) if vmid != row["vmid"]
            ]  # fmt: skip

    def content(self, volid: str) -> Content:
        """What is on a volume."""
        return read(self.node.file_of(volid))

    def holders(self, node: Node, volid: str) -> list[int]:
        """The machines that have a volume, or will have it at their next start."""
        return [vm.vmid for vm in node.vms if volid and (
            volid_of(vm) == volid or str(vm.pending.get(WORK, "")).startswith(f"{volid},"))]  # fmt: skip

    def behind(self, vmid: int, what: str) -> None:
        """Somebody else stops or destroys a machine."""
        with self.served.paused() as node:
            vm = node.vm(vmid)
            if vm is None:
                return
            if vm.status == "running":
                node.powered_off(vm)
            if what == "destroy":
                for volid in node._own_volumes(vm):
                    node._qm_free(volid)
                node._remove(vm)

    # ------------------------------------------------------------------- what must be true

    def wrong(self, *, drift: Collection[int] | None = ()) -> list[str]:
        """What is not as it has to be when nothing is under way, in sentences.

        `drift`: machines that somebody else has done something to (None: perhaps all), of which
        records may not know it yet.
        """
        with self.served.paused() as node:
            found = [*self._strangers_touched(), *node.violations]
            node.violations.clear()
            live = self.rows("SELECT * FROM sandbox WHERE state != 'DESTROYED'")
            found += self._leftovers(node, {row["vmid"] for row in live})
            seen = [row for row in live if drift is not None and row["vmid"] not in drift]
            found += self._disagreements(node, seen)
            found += node.work.torn
            node.work.torn.clear()
            sure = {row["id"]: row["vmid"] for row in seen}
            found += look_at_workspaces(self, node, sure, all_seen=drift is not None)
            on = {vm.vmid for vm in node.vms if vm.status == "running"}
        fenced = [row for row in live if row in seen or row["vmid"] in on]  # without power no need
        found += [*self._held(live), *self._unfenced(fenced)]
        return [*found, *self._operations(), *self._jobs(), *self._said()]

    def left(self) -> list[str]:
        """What is there of ours at all: machines, volumes, rules."""
        members = json.loads((self.scratch / "members.json").read_text())
        with self.served.paused() as node:
            ours = [
                vm.vmid
                for vm in node.vms
                if parse_owner(vm.config.get("description"), vm.vmid) == self.owner
            ]
        return [f"VM {each} has rules" for each in members] + [
            f"VM {each} is there" for each in ours
        ]

    def watch(self, vmid: int) -> None:
        """From now on this VM is a stranger that has to stay as it is; with the node paused."""
        self.strangers = {**self.strangers, f"VM {vmid}": fingerprint(self.node, vmid)}

    def _strangers_touched(self) -> list[str]:
        now = fingerprints(self.node)
        return [
            f"{name} is not as it was: {now.get(name)} for {was}"
            for name, was in self.strangers.items()
            if now.get(name) != was
        ]

    def _leftovers(self, node: Node, live: set[int]) -> list[str]:
        ours = {vm.vmid for vm in node.vms if parse_owner(vm.config.get("description"), vm.vmid)
                == self.owner}  # fmt: skip
        found = [f"VM {vmid} is ours and has no record" for vmid in sorted(ours - live)]
        machines = {vm.vmid for vm in node.vms}
        for name, volume in node.storages["local"]["volumes"].items():
            vmid = int(volume["vmid"])
            if vmid in range(VMIDS[0], VMIDS[1] + 1) and vmid not in machines and (
                f"local:{name}" not in self.strangers
            ):  # fmt: skip
                found.append(f"volume {name} has no VM")
        found += [
            f"VM {vm.vmid} is locked ({vm.lock})" for vm in node.vms if vm.vmid in ours and vm.lock
        ]
        return found

    def _disagreements(self, node: Node, live: Sequence[Mapping[str, Any]]) -> list[str]:
        found = []
        for row in live:
            vm, state, vmid = node.vm(row["vmid"]), row["state"], row["vmid"]
            who = f"sandbox {vmid} is {state}"
            if vm is None or parse_owner(vm.config.get("description"), vmid) != self.owner:
                found.append(f"{who}, and its VM is not there")
                continue
            power = vm.qmpstatus if vm.status == "running" else "stopped"
            if state in ("REQUESTED", "PROVISIONING", "BOOTING", "TIMEOUT"):
                found.append(f"{who}, and nothing is under way")
            elif state in _OURS and power != _OURS[state]:
                found.append(f"{who}, and its VM is {power}")
            if f"ip={row['address']}/" not in str(vm.config.get("ipconfig0")):
                found.append(f"{who} at {row['address']}, its VM at {vm.config.get('ipconfig0')}")
            if row["mac"].upper() not in str(vm.config.get("net0")):
                found.append(f"{who} with {row['mac']}, its VM with {vm.config.get('net0')}")
            if CLEAN not in vm.snapshots or vm.snapshots[CLEAN].get("snapstate"):
                found.append(f"{who}, and has no whole snapshot {CLEAN}")
            if node.kept.get((vmid, CLEAN)) != "new":
                found.append(f"{who}, and its snapshot {CLEAN} is of a disk that was used")
            if any(key.startswith("unused") for key in vm.config):
                found.append(f"{who}, and its VM has unused volumes")
        for key in ("vmid", "address", "mac", "name"):
            held = [row[key] for row in live]
            found += [f"{key} {each} is held twice" for each in set(held) if held.count(each) > 1]
        return found

    def _operations(self) -> list[str]:
        found = []
        ends = self.rows(
            "SELECT operation.*, (SELECT count(*) FROM event WHERE event.operation = operation.id"
            " AND event.kind IN ('operation.done', 'operation.failed', 'operation.cancelled'))"
            " AS ends FROM operation"
        )
        for row in ends:
            who = f"{row['kind']} {row['id']} of {row['subject']} is {row['state']}"
            if row["state"] in ("doing", "undoing"):
                found.append(f"{who}: {row['waits_for']}")
                continue
            if row["ends"] != 1:
                found.append(f"{who}, and ended {row['ends']} times")
            if row["state"] == "failed" and (not row["error"] or row["code"] == "internal"):
                found.append(f"{who} with no sentence: {row['code']} {row['error']!r}")
            if row["state"] == "done" and row["error"]:
                found.append(f"{who} with an error: {row['error']}")
        return found

    def _jobs(self) -> list[str]:
        found = []
        final = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
        for row in self.rows("SELECT * FROM job"):
            who, job = f"job {row['id']} is {row['state']} ({row['reason']})", row["id"]
            ends = [
                json.loads(each["facts"])["to"]
                for each in self.rows("SELECT facts FROM event WHERE kind='job.state' AND job=?", job)
            ]  # fmt: skip
            ended = [each for each in ends if each in final]
            if ended != [row["state"]]:
                found.append(f"{who}, and ended as {ended}")
            if len(set(self.guests.delivered.get(job, []))) > 1:
                found.append(f"{who}, and was delivered to {self.guests.delivered[job]}")
            if self.guests.claimed[job] > 1:
                found.append(f"{who}, and ran {self.guests.claimed[job]} times")
            if row["state"] == "COMPLETED" and self.guests.claimed[job] != 1:
                found.append(f"{who}, and ran {self.guests.claimed[job]} times")
            (operation,) = self.rows("SELECT * FROM operation WHERE id = ?", row["operation"])
            said = json.loads(row["report"] or "{}").get("status")
            if said == "completed" and row["state"] == "FAILED" and operation["state"] == "done":
                found.append(f"{who}, and its guest reported that it was completed")
        return found

    def _held(self, live: Sequence[Mapping[str, Any]]) -> list[str]:
        found = [f"subject {row['name']} is locked" for row in self.rows("SELECT * FROM subject")]
        found += [f"job {row['job']} has a token" for row in self.rows("SELECT * FROM token")]
        members = json.loads((self.scratch / "members.json").read_text())
        powered = {str(row["vmid"]) for row in live if row["state"] != "STOPPED"}
        found += [f"VM {vmid} has rules, and no power" for vmid in set(members) - powered]
        return found

    def _unfenced(self, sandboxes: Sequence[Mapping[str, Any]]) -> list[str]:
        members = json.loads((self.scratch / "members.json").read_text())
        return [
            f"the rules of sandbox {row['vmid']} are {members.get(str(row['vmid']))}"
            for row in sandboxes
            if row["state"] != "STOPPED"
            and members.get(str(row["vmid"])) != [row["tap"], row["mac"], row["address"]]
        ]

    def _said(self) -> list[str]:
        """No traceback, and nothing that nobody foresaw."""
        lines = self.news().splitlines()
        return [f"the log says: {line}" for line in lines if " error: " in line
                or line.startswith("Traceback")]  # fmt: skip


def fingerprints(node: Node) -> dict[str, object]:
    """All that is a stranger's, as it is now; for `strangers` and for later."""
    found: dict[str, object] = {}
    for vmid in node.strangers:
        found[f"VM {vmid}"] = fingerprint(node, vmid)
    for volid in (*_volumes_of(node, 100), *_volumes_of(node, 1003), "local:1011/vm-1011-disk-0.qcow2",
                  "local:990500/vm-990500-data.qcow2"):  # fmt: skip
        sid, _, name = volid.partition(":")
        found[volid] = json.dumps(node.storages[sid]["volumes"].get(name), sort_keys=True)
    return found


def fingerprint(node: Node, vmid: int) -> object:
    """All that there is to a machine, as a text."""
    vm = node.vm(vmid)
    if vm is None:
        return None
    seen = [vm.name, vm.status, vm.qmpstatus, vm.lock, vm.config, vm.snapshots]
    return json.dumps(seen, sort_keys=True, default=str)


def _volumes_of(node: Node, vmid: int) -> list[str]:
    return [f"local:{vmid}/vm-{vmid}-disk-0.qcow2"]


def _make_strangers(node: Node) -> None:
    for vmid in (100, 1003, 1011, 990500):
        name = f"vm-{vmid}-disk-0" if vmid != 990500 else f"vm-{vmid}-data"
        node.storages["local"]["volumes"][f"{vmid}/{name}.qcow2"] = {
            "content": "images", "format": "qcow2", "size": 1 << 30, "vmid": vmid,
            "ctime": 1795443888,
        }  # fmt: skip
    disk = "local:{0}/vm-{0}-disk-0.qcow2,size=1G"
    running = node.make_vm(100, "production", description="not to be touched",
                           scsi0=disk.format(100))  # fmt: skip
    running.status = running.qmpstatus = "running"
    node.make_vm(1003, "stranger1003", description="not to be touched", scsi0=disk.format(1003))
    node.make_vm(1017, "stranger1017", description="agentlab owner=somebody-else vmid=1017")
    node.make_vm(2000, "stranger2000", tags="agentlab")
    node.strangers = set(STRANGERS)


@contextlib.contextmanager
def bench(
    *, time_scale: float = 0.0, extra: str = "", node: Node | None = None, disk: str = ""
) -> Iterator[Bench]:
    """An installation with nothing in it; its daemon does not run yet.

    `disk` is how large a disk of its own the daemon's data has, in a mount namespace of its own.
    """
    memory = Path("/dev/shm")
    scratch = Path(
        tempfile.mkdtemp(prefix="alf", dir=memory if os.access(memory, os.W_OK) else None)
    )
    guests = Guests()
    made = node or Node(guests=guests, time_scale=time_scale)
    made.guests, guests.node, made.members = guests, made, scratch / "members.json"
    guests.work = made.work
    made.shelve(scratch / "storage")
    made.make_template(name="debian-12", size=1 << 30)
    _make_strangers(made)
    second = secrets.randbelow(250) + 2
    port = _free_port(f"127.{second}.0.1")
    data = scratch / "data"
    data.mkdir()
    words = [sys.executable, str(ROOT / "tests/fakes/sim_daemon.py")]
    if disk:
        mount = f'mount -t tmpfs -o size={disk} tmpfs {data} && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", mount, "sh", *words]
    forge = subprocess.Popen(
        words, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PATH": f"{scratch}/bin:{os.environ['PATH']}"},
    )  # fmt: skip
    if disk:
        data = Path(f"/proc/{forge.pid}/root{data}")
    built: Bench | None = None
    # a daemon that is killed, or whose reply is lost, is a broken connection on the other side
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    try:
        with serve(made, scratch) as served:
            _write_settings(scratch, served, second, port, extra)
            make_commands(served, scratch / "bin")
            made.pvesh_secs = 0.0
            built = Bench(scratch, data, served, guests, forge, port, second)
            built.arm()
            with served.paused():
                built.strangers = fingerprints(made)
            yield built
    finally:
        if built is not None and built.daemon:
            with contextlib.suppress(ProcessLookupError):
                os.kill(built.daemon, signal.SIGKILL)
            built.reap()
        made.work.close()
        assert forge.stdin is not None
        assert forge.stdout is not None
        forge.stdin.close()
        forge.wait(PATIENCE)
        forge.stdout.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _write_settings(scratch: Path, served: Served, second: int, port: int, extra: str) -> None:
    profiles = scratch / "profiles"
    profiles.mkdir()
    for name, ttl, after in (
        ("demo", "30m", "destroy"), ("keep", "30m", "keep"), ("halt", "30m", "stop"),
        ("short", "7s", "destroy"),
    ):  # fmt: skip
        (profiles / f"{name}.yaml").write_text(PROFILE.format(ttl=ttl, after=after))
    token = scratch / "token"
    token.write_text("=".join(TOKEN))
    token.chmod(0o600)
    (scratch / "trace").touch()
    (scratch / "config.yaml").write_text(
        f"data_dir: {scratch}/data\nsocket: {scratch}/api.sock\nprofiles_dir: {profiles}\n"
        f"hypervisor: proxmox\nvmid_range: [{VMIDS[0]}, {VMIDS[1]}]\nworkers: 12\n"
        f"network: {{bridge: vmbr0, subnet: 127.{second}.0.0/16, host: 127.{second}.0.1, dns: []}}\n"
        f"guest_listener: {{port: {port}}}\nlease: {{grace: 1s}}\n"
        f"proxmox: {{url: '{served.url}', token_file: {token}, ca_file: {served.ca}, node: pve}}\n"
        f"{extra}"
    )


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])

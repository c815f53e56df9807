"""Guests with a runner in them, for the stand-in of Proxmox: each fetches its job as the real one
does, by the real guest listener, from its own address, and reports how it went.

What a job does is its task: "complete", "fail", "write nothing", or "hold", which goes on until the job is
cancelled or `let_go`.  One that has /work adds a word to what is there, and syncs nothing.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.fakes.pve.node import FakeVm, ProxmoxNode, SimulatedGuests
from tests.fakes.sim_work import WorkDisks

BOOTSTRAP = "/run/agentlab/bootstrap.json"
WORK = ["/usr/local/bin/agentlab", "guest", "work"]
WROTE = " and a job"
_RETRY = 0.05
_PATIENCE = 60.0
_DONE = (200, 201, 202)


@dataclass
class Guests(SimulatedGuests):
    """`delivered`, `claimed` and `reported` say what each job's guest met with, by job."""

    node: ProxmoxNode | None = None
    work: WorkDisks | None = None
    mute: bool = False  # no agent answers
    delivered: dict[str, list[int]] = field(default_factory=dict)  # the VMID of each delivery
    claimed: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    let_go: set[str] = field(default_factory=set)
    _told: set[tuple[int, str]] = field(default_factory=set)
    _boots: Counter[int] = field(default_factory=Counter)
    _at_work: set[tuple[int, int]] = field(default_factory=set)  # (vmid, boot)

    def __post_init__(self) -> None:
        self.run = self._play

    def is_up(self, vm: FakeVm, scale: float) -> bool:
        return not self.mute and super().is_up(vm, scale)

    def forget(self, vmid: int) -> None:
        super().forget(vmid)
        with self._lock:
            self._boots[vmid] += 1

    def _play(self, vmid: int, argv: list[str], stdin: str) -> tuple[int, str, str]:
        """The driver's own script runs nothing twice: the same name is told so."""
        name = argv[3] if len(argv) > 3 else ""
        with self._lock:
            again = (vmid, name) in self._told
            self._told.add((vmid, name))
        if again and name:
            return 125, "", f"{name} again"
        if argv[4:7] == WORK and self.work is not None and self.node is not None:
            vm = self.node.vm(vmid)
            return self.work.answer(vm, argv[7:]) if vm else (1, "", "there is no machine")
        if BOOTSTRAP in argv:
            self._deliver(vmid, json.loads(base64.b64decode(stdin)))
        return 0, "", ""

    def _deliver(self, vmid: int, document: dict[str, str]) -> None:
        """A runner that is at work has read the file and removed it: another one is not seen."""
        with self._lock:
            self.delivered.setdefault(document["job"], []).append(vmid)
            boot = self._boots[vmid]
            if (vmid, boot) in self._at_work:
                return
            self._at_work.add((vmid, boot))
        runner = _Runner(self, vmid, boot, document)
        threading.Thread(target=runner.work, name=f"runner {vmid}", daemon=True).start()

    def lives(self, vmid: int, boot: int) -> bool:
        return self._boots[vmid] == boot

    def address(self, vmid: int) -> str:
        assert self.node is not None
        vm = self.node.vm(vmid)
        found = re.search(r"ip=([\d.]+)/", str(vm.config.get("ipconfig0", "")) if vm else "")
        return found[1] if found else ""


class _Runner:
    """One boot's runner; it ends with its machine's power."""

    def __init__(self, guests: Guests, vmid: int, boot: int, document: dict[str, str]) -> None:
        self._guests = guests
        self._vmid = vmid
        self._boot = boot
        self._document = document
        self._job = document["job"]
        self._session = secrets.token_urlsafe(32)

    def work(self) -> None:
        claim = {"token": self._document["token"], "session": self._session}
        status, job = self._ask("POST", "/guest/v1/claim", claim)
        if status != 200:
            self._guests.refused[self._job] = f"claim: {status} {job}"
            return
        with self._guests._lock:
            self._guests.claimed[self._job] += 1
        if self._guests.work is not None and job["task"] != "write nothing":
            self._guests.work.add(self._vmid, WROTE)
        outcome = {"fail": "failed"}.get(str(job["task"]), "completed")
        if job["task"] == "hold":
            outcome = self._hold()
        if not outcome:
            return
        report = {"status": outcome, "stage": "agent", "message": "" if outcome == "completed" else
                  "the test says so"}  # fmt: skip
        status, said = self._ask("POST", f"/guest/v1/jobs/{self._job}/report", report)
        if status in _DONE:
            with self._guests._lock:
                self._guests.reported[self._job] += 1
        else:
            self._guests.refused[self._job] = f"report: {status} {said}"

    def _hold(self) -> str:
        while self._guests.lives(self._vmid, self._boot):
            if self._job in self._guests.let_go:
                return "completed"
            beat = {"stage": "agent"}
            status, said = self._ask("POST", f"/guest/v1/jobs/{self._job}/heartbeat", beat)
            if status != 200:
                return ""
            if said.get("cancel"):
                return "cancelled"
            time.sleep(0.1)
        return ""

    def _ask(self, method: str, path: str, document: object) -> tuple[int, Any]:
        """Until there is an answer that is not 5xx; (0, …) when the machine is gone before."""
        until = time.monotonic() + _PATIENCE
        while self._guests.lives(self._vmid, self._boot) and time.monotonic() < until:
            try:
                status, answer = self._once(method, path, json.dumps(document).encode())
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(_RETRY)
                continue
            if status < 500 and status != 429:
                return status, answer
            time.sleep(_RETRY)
        return 0, "no answer"

    def _once(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        where = urlsplit(self._document["url"])
        address = self._guests.address(self._vmid)
        connection = http.client.HTTPConnection(
            str(where.hostname), where.port, timeout=10, source_address=(address, 0)
        )
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._session}"}
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read() or b"{}")
        finally:
            connection.close()

"""The guest agent of local machines, and the identity that follows a start from memory."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from agentlab.clock import Deadline, now
from agentlab.errors import Busy, DeadlineExceeded, Invalid, NotFound, Unavailable
from agentlab.hypervisor.base import ExecResult, GuestInterface, MachineSpec, Power
from agentlab.hypervisor.guest_answers import READY
from agentlab.hypervisor.local.agent import Agent
from agentlab.hypervisor.local.machine_dir import MachineDir, Record, Run
from agentlab.hypervisor.local.place import Place
from agentlab.hypervisor.local.power import look
from agentlab.hypervisor.local.template import DISK_MIB

_IDENTITY = "/run/agentlab/identity.json"
_DONE = "/run/agentlab/identity.done"
_ROUND = 2.5  # seconds that one look may take
_ANSWER = 2.0
_WRITE = 10.0  # seconds for the one write: cut off, it would have to be done again
_AGAIN = 30.0  # seconds after which an identity that had no effect is handed in once more


class LocalGuest(Place):
    """Implements `base.Guest`."""

    def ready(self, vmid: int, spec: MachineSpec) -> bool:
        machine, record = self._known(vmid)
        if record.run is None or look(machine, record) is not Power.RUNNING:
            return False
        look_at = _Round(machine, record, record.run, spec, Deadline.after(_ROUND))
        try:
            return look_at.identified() and look_at.grown() and look_at.addressed()
        except (Unavailable, DeadlineExceeded, Busy):
            return False

    def ping(self, vmid: int) -> bool:
        machine, _ = self._known(vmid)
        return Agent(machine.path).ping(timeout=_ROUND)

    def file_write(
        self, vmid: int, path: str, content: bytes, *, owner: str, mode: int = 0o600
    ) -> None:
        if not path.startswith("/"):
            raise Invalid(f"cannot write {path!r} in the guest: not an absolute path")
        self.machine(vmid).owned(owner, "write into")
        self._agent(vmid).write(path, content, mode, timeout=60.0)

    def exec(
        self, vmid: int, argv: Sequence[str], *, owner: str, stdin: bytes = b"", timeout: float
    ) -> ExecResult:
        if not argv:
            raise Invalid("cannot run nothing in the guest")
        self.machine(vmid).owned(owner, "run a program in")
        return self._agent(vmid).run(argv, stdin, timeout)

    def interfaces(self, vmid: int) -> Sequence[GuestInterface]:
        return self._agent(vmid).interfaces(timeout=10.0)

    def _agent(self, vmid: int) -> Agent:
        machine, _ = self._known(vmid)
        return Agent(machine.path)

    def _known(self, vmid: int) -> tuple[MachineDir, Record]:
        machine = self.machine(vmid)
        record = machine.read()
        if record is None:
            raise NotFound(f"cannot talk to machine {vmid}: there is no such machine")
        return machine, record


@dataclass(frozen=True, slots=True)
class _Round:
    """One look at a guest that is on its way; all that it learns is asked of the guest itself."""

    machine: MachineDir
    record: Record
    run: Run
    spec: MachineSpec
    deadline: Deadline

    @property
    def agent(self) -> Agent:
        return Agent(self.machine.path)

    @property
    def left(self) -> float:
        return max(self.deadline.left, 0.2)

    def identified(self) -> bool:
        """Whether the guest is itself, and nobody's copy; hands in what it takes to be."""
        if self.run.mode == "cold":
            return self.agent.read(READY, self.left) is not None
        age = self.machine.noted("identity", self.run.nonce)
        if age is not None and self._done(wait=0.0 if age > _AGAIN else self.left):
            return True
        if age is not None and age <= _AGAIN:
            return False
        if not self.agent.ping(self.left):
            return False
        # Noted first: a busy guest may take it later than we are willing to wait.
        self.machine.note("identity", self.run.nonce)
        identity = render_identity(self.record, self.run, self.spec)
        self.agent.write(_IDENTITY, identity, 0o600, _WRITE)
        return self._done(wait=self.left)

    def _done(self, *, wait: float) -> bool:
        return self.agent.wait_for(_DONE, self.run.nonce.encode(), wait, _ANSWER)

    def grown(self) -> bool:
        """Whether the file system fills the disk; cloud-init sees to it at a cold boot."""
        if self.run.mode == "cold" or self.spec.disk <= DISK_MIB:
            return True
        if self.machine.noted("grown", self.run.nonce) is None:
            result = self.agent.run(["/sbin/resize2fs", "/dev/vda"], b"", 60.0)
            if result.status != 0:
                raise Unavailable("the guest cannot make its file system larger")
            self.machine.note("grown", self.run.nonce)
        return True

    def addressed(self) -> bool:
        nic = self.spec.nic
        return any(
            interface.mac == nic.mac and nic.address.ip in interface.addresses
            for interface in self.agent.interfaces(self.left)
        )


def render_identity(record: Record, run: Run, spec: MachineSpec) -> bytes:
    """Part 1 of the guest protocol: fresh entropy, the time now, and who the machine is."""
    nic = spec.nic
    document = {
        "nonce": run.nonce,
        "entropy": base64.b64encode(os.urandom(64)).decode(),
        "time": now(),
        "hostname": spec.hostname,
        "machine_id": record.machine_id,
        "mac": nic.mac,
        "address": str(nic.address),
        "gateway": str(nic.gateway),
        "dns": [str(server) for server in nic.dns],
    }
    return json.dumps(document).encode()

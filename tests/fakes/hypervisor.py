"""A hypervisor in memory that keeps the contract of `agentlab.hypervisor.base` and starts nothing.

Its guests are always ready at once; a test plays the runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from agentlab.errors import Conflict, NotFound, NotOurs
from agentlab.hypervisor.base import (
    Capabilities,
    ExecResult,
    GuestInterface,
    Machine,
    MachineSpec,
    Power,
    Template,
)
from tests.fakes.shell_guest import ShellGuest


@dataclass
class FakeHypervisor:
    """`faults` maps a method's name to the errors that its next calls raise.

    `strangers` is how many of the next VMIDs somebody else takes just before we clone to them, and
    `residue` holds VMIDs under which a stranger's volumes lie.  `touched` lists every call that
    would change a machine, with its VMID.  `taken` has the snapshots of each machine, `disks` what a
    test has put on its root disk; with `newest_only` only the newest can be rolled back.
    While `deaf`, no guest powers off when it is asked to.  While `unseen`, nobody can tell what power machines
    have.  `shell` runs the programs of all guests.
    """

    machines: dict[int, Machine] = field(default_factory=dict)
    specs: dict[int, MachineSpec] = field(default_factory=dict)
    files: dict[tuple[int, str], bytes] = field(default_factory=dict)
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    strangers: int = 0
    residue: set[int] = field(default_factory=set)
    taken: dict[int, dict[str, str]] = field(default_factory=dict)
    half: set[str] = field(default_factory=set)  # names of those that a dead task has left so
    disks: dict[int, str] = field(default_factory=dict)
    newest_only: bool = False
    deaf: bool = False
    unseen: bool = False
    shell: ShellGuest | None = None
    touched: list[tuple[str, int]] = field(default_factory=list)
    capabilities: Capabilities = field(default=Capabilities("", 1.0, memory_start=False))

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    def _ours(self, vmid: int, owner: str) -> Machine:
        machine = self.machines.get(vmid)
        if machine is None:
            raise NotFound(f"no machine {vmid}")
        if machine.owner != owner:
            raise NotOurs(f"machine {vmid} is not ours")
        return machine

    def inventory(self) -> Sequence[Machine]:
        self._called("inventory")
        found = self.machines.values()
        return [replace(each, power=Power.UNKNOWN) for each in found] if self.unseen else [*found]

    def templates(self) -> Sequence[Template]:
        return [Template("debian-12", ready=True)]

    def clone(self, template: str, vmid: int, *, name: str, owner: str, full: bool = False) -> None:
        self._called("clone")
        if template != "debian-12":
            raise NotFound(f"no template {template}")
        self.touched.append(("clone", vmid))
        if self.strangers and vmid not in self.machines:
            self.strangers -= 1
            self.machines[vmid] = Machine(vmid, "production", "", Power.RUNNING)
        if vmid in self.residue:
            raise NotOurs(f"volumes of VMID {vmid} are on storage local")
        if vmid in self.machines:
            self._ours(vmid, owner)
        else:
            self.machines[vmid] = Machine(vmid, name, owner, Power.STOPPED)

    def configure(self, vmid: int, spec: MachineSpec, *, owner: str) -> None:
        self._called("configure")
        self.touched.append(("configure", vmid))
        power = self._ours(vmid, owner).power
        if self.specs.get(vmid) != spec and power is not Power.STOPPED:
            raise Conflict(f"machine {vmid} has power")
        self.specs[vmid] = spec

    def _power(self, name: str, vmid: int, owner: str, power: Power) -> None:
        self._called(name)
        self.touched.append((name, vmid))
        self.machines[vmid] = replace(self._ours(vmid, owner), power=power)

    def start(self, vmid: int, *, owner: str) -> None:
        if vmid not in self.specs:
            raise Conflict(f"machine {vmid} has not been configured")
        self._power("start", vmid, owner, Power.RUNNING)

    def shutdown(self, vmid: int, *, owner: str, timeout: float) -> bool:
        self._power("shutdown", vmid, owner, Power.RUNNING if self.deaf else Power.STOPPED)
        return not self.deaf

    def stop(self, vmid: int, *, owner: str) -> None:
        self._called("stop")
        self.touched.append(("stop", vmid))
        if vmid in self.machines:
            self.machines[vmid] = replace(self._ours(vmid, owner), power=Power.STOPPED)

    def pause(self, vmid: int, *, owner: str) -> None:
        self._power("pause", vmid, owner, Power.PAUSED)

    def resume(self, vmid: int, *, owner: str) -> None:
        self._power("resume", vmid, owner, Power.RUNNING)

    def status(self, vmid: int) -> Machine | None:
        self._called("status")
        found = self.machines.get(vmid)
        return replace(found, power=Power.UNKNOWN) if found and self.unseen else found

    def destroy(self, vmid: int, *, owner: str) -> None:
        self._called("destroy")
        self.touched.append(("destroy", vmid))
        if vmid in self.machines:
            self._ours(vmid, owner)
            del self.machines[vmid]
            self.taken.pop(vmid, None)
            self.disks.pop(vmid, None)

    def snapshot(self, vmid: int, name: str, *, owner: str) -> None:
        """Each snapshot remembers what was on the disk, as `disks` tells it."""
        self._called("snapshot")
        self._stopped(vmid, owner)
        taken = self.taken.setdefault(vmid, {})
        if name in taken and taken[name] != self.disks.get(vmid, ""):
            raise Conflict(f"machine {vmid} has a snapshot {name} already")
        taken[name] = self.disks.get(vmid, "")

    def rollback(self, vmid: int, name: str, *, owner: str) -> None:
        self._called("rollback")
        self._stopped(vmid, owner)
        taken = self.taken.get(vmid, {})
        if name not in taken:
            raise NotFound(f"no snapshot {name}")
        if self.blockers(vmid, name):
            raise Conflict(f"{name} is not the newest snapshot of machine {vmid}")
        self.disks[vmid] = taken[name]

    def _stopped(self, vmid: int, owner: str) -> None:
        if self._ours(vmid, owner).power is not Power.STOPPED:
            raise Conflict(f"machine {vmid} has power")

    def snapshots(self, vmid: int, *, half: bool = False) -> Sequence[str]:
        if vmid not in self.machines:
            raise NotFound(f"no machine {vmid}")
        return [each for each in self.taken.get(vmid, {}) if half or each not in self.half]

    def delete_snapshot(self, vmid: int, name: str, *, owner: str) -> None:
        self._called("delete_snapshot")
        self._stopped(vmid, owner)
        self.taken.get(vmid, {}).pop(name, None)

    def blockers(self, vmid: int, name: str) -> Sequence[str]:
        names = [*self.taken.get(vmid, {})]
        if not self.newest_only or name not in names:
            return ()
        return names[names.index(name) + 1 :][::-1]

    def ready(self, vmid: int, spec: MachineSpec) -> bool:
        self._called("ready")
        return (
            not self.unseen
            and self.specs[vmid] == spec
            and self.machines[vmid].power is Power.RUNNING
        )

    def ping(self, vmid: int) -> bool:
        return self.machines[vmid].power is Power.RUNNING

    def file_write(
        self, vmid: int, path: str, content: bytes, *, owner: str, mode: int = 0o600
    ) -> None:
        self._called("file_write")
        self._ours(vmid, owner)
        self.files[vmid, path] = content

    def exec(
        self, vmid: int, argv: Sequence[str], *, owner: str, stdin: bytes = b"", timeout: float
    ) -> ExecResult:
        self._called("exec")
        self._ours(vmid, owner)
        assert self.shell is not None, "no test of this kind needs it"
        return self.shell.exec(vmid, argv, owner=owner, stdin=stdin, timeout=timeout)

    def interfaces(self, vmid: int) -> Sequence[GuestInterface]:
        nic = self.specs[vmid].nic
        return [GuestInterface("eth0", nic.mac, (nic.address.ip,))]

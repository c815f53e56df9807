"""Power: from a machine's record to a QEMU whose virtual CPUs run, and what is known of it later."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from pathlib import Path

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Conflict
from agentlab.hypervisor.base import MachineSpec, Power
from agentlab.hypervisor.local import images, process
from agentlab.hypervisor.local.agent import Agent
from agentlab.hypervisor.local.machine_dir import DISK, STDERR, MachineDir, Record
from agentlab.hypervisor.local.memory import (
    MemorySnapshot,
    restore,
    template_launch,
    wait_qmp,
)
from agentlab.hypervisor.local.plug import plug
from agentlab.hypervisor.local.qemu import Boot, Launch, Memory, render_argv
from agentlab.hypervisor.local.qmp import open_qmp
from agentlab.hypervisor.local.seed import write_seed
from agentlab.hypervisor.local.tap import exists
from agentlab.hypervisor.local.template import DISK_MIB, TemplateInfo

_log = logging.getLogger(__name__)
_HALTED = ("paused", "io-error", "watchdog", "guest-panicked", "internal-error", "suspended")
_ANSWER = 5.0  # seconds for the agent to hear that the guest is to power off
_ASK_AGAIN = 1.0


def look(machine: MachineDir, record: Record) -> Power:
    """What a machine is doing.  A machine whose start was cut off has not run, so it is stopped."""
    run = record.run
    if run is None or run.stage == "starting":
        return Power.STOPPED
    if process.find(machine.path, record.uuid) is None:
        return Power.STOPPED
    process.trim(machine.path / STDERR)
    try:
        with open_qmp(machine.path) as qemu:
            status = qemu.status()
    except AgentLabError:
        # It is there and does not talk, or has just ended.
        here = process.find(machine.path, record.uuid) is not None
        return Power.RUNNING if here else Power.STOPPED
    return Power.PAUSED if status in _HALTED else Power.RUNNING


def take_up(machine: MachineDir, record: Record) -> bool:
    """Lets a QEMU that is there go on; True when its CPUs run now.

    What is left of a start that was cut off is killed: its CPUs never ran.
    """
    if process.find(machine.path, record.uuid) is None:
        return False
    if record.run is not None and record.run.stage == "on":
        with contextlib.suppress(AgentLabError), open_qmp(machine.path) as qemu:
            if qemu.status() != "running":
                qemu.execute("cont")
            if qemu.status() == "running":
                return True
    process.kill(machine.path, record.uuid)
    return False


def power_on_from_memory(
    machine: MachineDir,
    record: Record,
    spec: MachineSpec,
    template: TemplateInfo,
    accelerator: str,
    snapshot: MemorySnapshot,
    work: Path | None,
) -> None:
    """Starts a machine with the template's memory; only for a disk that nobody has written to."""
    _need_tap(spec)
    # also when it is said to be right: a crash may have come between the two
    if record.movable or record.backing != snapshot.name:
        images.change_backing(machine.path / DISK, snapshot.disk)
        record = machine.write(replace(record, backing=snapshot.name))
    record = machine.write(record.powered("memory"))
    plan = template_launch(template, accelerator, spec.cores, spec.memory)
    plan = _as(plan, record, spec)
    plan = replace(plan, ram=Memory(snapshot.ram, shared=False), incoming=True)
    _launch(machine, plan)
    try:
        restore(machine.path, snapshot)
        if spec.disk > DISK_MIB:
            with open_qmp(machine.path) as qemu:
                qemu.execute("block_resize", device="d0", size=spec.disk << 20)
        if work is not None:
            plug(machine.path, work)
    except AgentLabError:
        process.kill(machine.path, record.uuid)
        raise
    _go(machine, record)


def power_on_cold(
    machine: MachineDir,
    record: Record,
    spec: MachineSpec,
    template: TemplateInfo,
    accelerator: str,
    work: Path | None,
) -> None:
    """Boots the kernel; cloud-init reads the seed."""
    _need_tap(spec)
    if record.backing and record.movable:
        images.change_backing(machine.path / DISK, template.disk)
        record = machine.write(replace(record, backing=""))
    images.grow(machine.path / DISK, spec.disk)
    write_seed(machine.path, record.uuid, spec)
    record = machine.write(record.powered("cold"))
    plan = template_launch(template, accelerator, spec.cores, spec.memory)
    # Given here, it holds also on a disk that has the machine-id of a memory snapshot.
    boot = Boot(template.kernel, template.initrd, f"systemd.machine_id={record.machine_id}")
    plan = replace(_as(plan, record, spec), mac=spec.nic.mac, boot=boot, seed=True)
    _launch(machine, plan)
    if work is not None:
        try:
            plug(machine.path, work)
        except AgentLabError:
            process.kill(machine.path, record.uuid)
            raise
    _go(machine, record)


def power_off(machine: MachineDir, record: Record) -> Record:
    """Takes power away; QEMU is given the time to write its own caches out."""
    if process.find(machine.path, record.uuid) is not None:
        with contextlib.suppress(AgentLabError), open_qmp(machine.path) as qemu:
            qemu.execute("quit")
            process.wait_gone(machine.path, record.uuid, 10.0)
        process.kill(machine.path, record.uuid)
    if record.run is None:
        return record
    off = replace(record, run=None)
    try:
        return machine.write(off)
    except OSError as error:
        # No harm: without its process a machine is off, whatever the record says.
        _log.warning("cannot note that machine %d is off: %s", record.vmid, error.strerror or error)
        return off


def end_guest(directory: Path, uuid: str, deadline: Deadline) -> bool:
    """Asks a guest to power off until it hears; True when its QEMU has ended by the deadline.

    An agent answers late in a guest that has much to do.  The power button is for guests without
    one; those of the recipe have nothing that hears it.
    """
    while True:
        try:
            Agent(directory).power_off(min(_ANSWER, deadline.left))
        except AgentLabError:
            with contextlib.suppress(AgentLabError), open_qmp(directory) as qemu:
                qemu.execute("system_powerdown")
        else:
            return process.wait_gone(directory, uuid, deadline.left)
        if process.wait_gone(directory, uuid, min(_ASK_AGAIN, deadline.left)):
            return True
        if deadline.passed:
            return False


def _as(plan: Launch, record: Record, spec: MachineSpec) -> Launch:
    return replace(plan, name=f"agentlab-{record.vmid}", uuid=record.uuid, tap=spec.nic.tap)


def _launch(machine: MachineDir, plan: Launch) -> None:
    stderr = machine.path / STDERR
    for name in ("qmp", "ga"):
        (machine.path / name).unlink(missing_ok=True)
    child = process.launch(machine.path, render_argv(plan), stderr=stderr)
    try:
        wait_qmp(machine.path, child, stderr)
    except AgentLabError:
        process.kill(machine.path, plan.uuid)
        raise


def _go(machine: MachineDir, record: Record) -> None:
    # Written first: from here on the disk may have changed, whatever becomes of us.
    machine.write(record.going())
    with open_qmp(machine.path) as qemu:
        qemu.execute("cont")


def _need_tap(spec: MachineSpec) -> None:
    # QEMU would make a tap that is missing, and no rule would know of it.
    if not exists(spec.nic.tap):
        raise Conflict(f"cannot start {spec.hostname}: there is no interface {spec.nic.tap}")


def console(directory: Path) -> str:
    """The end of the serial console of a running machine; hostile text."""
    with open_qmp(directory) as qemu:
        return qemu.console()

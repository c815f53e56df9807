"""Machines of the local hypervisor, from clone to destroy."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Busy, Conflict, Invalid, NotFound
from agentlab.hypervisor.base import Machine, MachineSpec, Power, Template
from agentlab.hypervisor.files import new_directory, put_in_place, remove_tree, sweep
from agentlab.hypervisor.files import wait_lock as wait_for_lock
from agentlab.hypervisor.local import images, process
from agentlab.hypervisor.local.machine_dir import (
    DISK,
    MachineDir,
    Record,
    needs_spec,
)
from agentlab.hypervisor.local.memory import MemorySnapshot
from agentlab.hypervisor.local.place import Place
from agentlab.hypervisor.local.plug import plug
from agentlab.hypervisor.local.power import (
    end_guest,
    look,
    power_off,
    power_on_cold,
    power_on_from_memory,
    take_up,
)
from agentlab.hypervisor.local.qmp import open_qmp
from agentlab.hypervisor.local.template import NAME, TemplateInfo, mark_used, unmark_used

_TAP = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MEMORY_LEAST = 128

log = logging.getLogger(__name__)


class LocalMachines(Place):
    """Implements `base.Machines`."""

    def inventory(self) -> Sequence[Machine]:
        vmids = self.vmids()
        sweep(self.root)
        found = (self.status(vmid) for vmid in vmids)
        machines = [machine for machine in found if machine is not None]
        self.usage.keep([machine.vmid for machine in machines])
        return machines

    def templates(self) -> Sequence[Template]:
        try:
            template = self.template()
        except NotFound as absent:
            return [Template(NAME, ready=False, detail=absent.message)]
        return [Template(NAME, ready=True, detail=f"key {template.key[:12]}")]

    def status(self, vmid: int) -> Machine | None:
        machine = self.machine(vmid)
        record = machine.read()
        if record is not None:
            power = look(machine, record)
            cpu = None if power is Power.STOPPED else self._cpu(machine, record)
            return Machine(vmid, record.name, record.owner, power, cpu=cpu)
        if machine.path.exists():
            return Machine(vmid, "", "", Power.STOPPED)
        return None

    def _cpu(self, machine: MachineDir, record: Record) -> float | None:
        pid = process.find(machine.path, record.uuid)
        return self.usage.share(record.vmid, pid, record.spec.cores if record.spec else 1)

    def clone(self, template: str, vmid: int, *, name: str, owner: str, full: bool = False) -> None:
        machine = self.machine(vmid)
        if machine.path.exists():
            machine.owned(owner, "clone")
            return
        if template != NAME:
            raise NotFound(f"there is no template {template}", hint=f"there is {NAME}")
        info = self.template()
        sweep(self.root)
        descriptor = os.open(info.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            wait_for_lock(descriptor, Deadline.after(60.0), "the template", shared=True)
            self._make(
                machine, info, Record.new(vmid, name=name, owner=owner, template=info.key), full
            )
        finally:
            os.close(descriptor)

    def _make(self, machine: MachineDir, info: TemplateInfo, record: Record, full: bool) -> None:
        with new_directory(self.root, machine.vmid) as work:
            if full:
                images.create_copy(work / DISK, info.disk)
                record = replace(record, state="copy")
            else:
                images.create_overlay(work / DISK, info.disk)
            MachineDir(work).write(record)
            mark_used(info, record.uuid, machine.path.absolute() / "machine.json")
            if not put_in_place(work, machine.path):
                unmark_used(self.template_dir, info.key, record.uuid)
                machine.owned(record.owner, "clone")

    def configure(self, vmid: int, spec: MachineSpec, *, owner: str) -> None:
        _check(spec)
        machine = self.machine(vmid)
        with machine.locked("configure"):
            record = machine.owned(owner, "configure")
            if record.spec == spec:
                return
            if look(machine, record) is not Power.STOPPED:
                raise Conflict(f"cannot configure machine {vmid}: it has power")
            machine.write(replace(record, spec=spec))

    def start(self, vmid: int, *, owner: str) -> None:
        machine = self.machine(vmid)
        record = machine.owned(owner, "start")
        spec = needs_spec(record, "start")
        # Before the machine is locked: it can take long, and then nobody else has to wait.
        snapshot = self._snapshot_for(record, spec)
        with machine.locked("start"):
            record = machine.owned(owner, "start")
            work = self.work_image(record)
            if take_up(machine, record):
                if work is not None:
                    plug(machine.path, work)
                return
            if needs_spec(record, "start") != spec:
                raise Busy(f"cannot start machine {vmid}: it was configured anew meanwhile")
            template = self.template(record.template)
            accelerator = self.chosen_accelerator()
            if snapshot is not None and _fits(record, snapshot):
                try:
                    power_on_from_memory(
                        machine, record, spec, template, accelerator, snapshot, work
                    )
                except Conflict:
                    raise
                except AgentLabError as error:
                    if self.start_mode == "memory":
                        raise
                    log.warning("machine %d cannot start from memory, boots: %s", vmid, error)
                    record = machine.owned(owner, "start")
                else:
                    return
            power_on_cold(machine, record, spec, template, accelerator, work)

    def _snapshot_for(self, record: Record, spec: MachineSpec) -> MemorySnapshot | None:
        """The memory snapshot to start from; None when the machine has to boot."""
        if record.state != "" or not self.starts_from_memory():
            return None
        template = self.template(record.template)
        try:
            return self.memory_snapshot(template, spec.cores, spec.memory)
        except Busy:
            raise  # somebody makes it: worth coming back for
        except AgentLabError as error:
            if self.start_mode == "memory":
                raise
            log.warning("there is no memory snapshot, machine %d boots: %s", record.vmid, error)
            return None

    def shutdown(self, vmid: int, *, owner: str, timeout: float) -> bool:
        machine = self.machine(vmid)
        record = machine.owned(owner, "shut down")
        deadline = Deadline.after(timeout)
        on = look(machine, record) is not Power.STOPPED
        if on and not end_guest(machine.path, record.uuid, deadline):
            return False
        with machine.locked("shut down"):
            power_off(machine, machine.owned(owner, "shut down"))
        return True

    def stop(self, vmid: int, *, owner: str) -> None:
        machine = self.machine(vmid)
        if not machine.path.exists():
            return
        try:
            with machine.locked("stop"):
                power_off(machine, machine.owned(owner, "stop"))
        except NotFound:
            return

    def pause(self, vmid: int, *, owner: str) -> None:
        self._switch(vmid, owner, "pause", "stop")

    def resume(self, vmid: int, *, owner: str) -> None:
        self._switch(vmid, owner, "resume", "cont")

    def _switch(self, vmid: int, owner: str, verb: str, command: str) -> None:
        machine = self.machine(vmid)
        with machine.locked(verb):
            record = machine.owned(owner, verb)
            if look(machine, record) is Power.STOPPED:
                raise Conflict(f"cannot {verb} machine {vmid}: it has no power")
            with open_qmp(machine.path) as qemu:
                qemu.execute(command)

    def destroy(self, vmid: int, *, owner: str) -> None:
        machine = self.machine(vmid)
        if not machine.path.exists():
            return
        try:
            with machine.locked("destroy"):
                record = machine.owned(owner, "destroy")
                process.kill(machine.path, record.uuid)
                remove_tree(machine.path)
        except NotFound:
            return
        unmark_used(self.template_dir, record.template, record.uuid)


def _fits(record: Record, snapshot: MemorySnapshot) -> bool:
    return record.state == "" and (record.backing == snapshot.name or record.movable)


def _check(spec: MachineSpec) -> None:
    """What goes onto QEMU's command line or into the guest is of a plain form."""
    if not _TAP.fullmatch(spec.nic.tap):
        raise Invalid(f"not the name of an interface: {spec.nic.tap!r}")
    if not _MAC.fullmatch(spec.nic.mac):
        raise Invalid(f"not a MAC address in lower case: {spec.nic.mac!r}")
    if not _HOSTNAME.fullmatch(spec.hostname):
        raise Invalid(f"not a host name: {spec.hostname!r}")
    if spec.cores < 1 or spec.memory < _MEMORY_LEAST or spec.disk < 1:
        raise Invalid(f"a machine needs a core, {_MEMORY_LEAST} MiB of memory and a disk")

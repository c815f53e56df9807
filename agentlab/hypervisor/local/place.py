"""Where the local hypervisor keeps its things, and what each part of the driver needs to know."""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agentlab.errors import Conflict, NotFound, Unavailable
from agentlab.hypervisor.local.accelerator import choose, processor, qemu_version
from agentlab.hypervisor.local.machine_dir import MachineDir, Record
from agentlab.hypervisor.local.memory import MemorySnapshot, ensure_snapshot, template_launch
from agentlab.hypervisor.local.template import TemplateInfo, load_template
from agentlab.hypervisor.local.usage import Usage
from agentlab.hypervisor.local.volume_dir import VolumeDir, parse_volid

_probe = threading.Lock()


@functools.cache
def _chosen(template_dir: Path, template: TemplateInfo) -> str:
    return choose(template_dir, template)


@functools.cache
def _version() -> str:
    return qemu_version()


@dataclass(frozen=True)
class Place:
    """`root` must be there: a directory that is missing is not the same as one without machines.

    `template_key` says which of the templates in `template_dir` this installation uses: daemons
    with different runners may share that directory.

    Volumes are in `volume_dir`, which must be there too; when none is named, in `volumes` beside
    `root`, which the first one makes.
    """

    root: Path
    template_dir: Path
    template_key: str
    start_mode: Literal["auto", "cold", "memory"] = "auto"
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    volume_dir: Path | None = None
    patience: float = 600.0  # seconds that a start waits for another one's memory snapshot
    usage: Usage = field(default_factory=Usage, repr=False, compare=False)

    def machine(self, vmid: int) -> MachineDir:
        if not self.root.is_dir():
            raise Unavailable(f"cannot read the machines: {self.root} is not there")
        return MachineDir(self.root / str(vmid))

    def vmids(self) -> list[int]:
        """Of all that is there, ours or not; Unavailable when it cannot be read."""
        try:
            names = os.listdir(self.root)
        except OSError as error:
            raise Unavailable(f"cannot read the machines: {error}") from error
        return sorted(int(name) for name in names if _is_number(name))

    @property
    def volume_root(self) -> Path:
        return self.volume_dir or self.root.with_name("volumes")

    def volume(self, number: int) -> VolumeDir:
        if not self.root.is_dir() or not (self.volume_dir is None or self.volume_dir.is_dir()):
            raise Unavailable(f"cannot read the volumes: {self.volume_root} is not there")
        return VolumeDir(self.volume_root / str(number))

    def volume_numbers(self) -> list[int]:
        """Of all that is there, ours or not; Unavailable when it cannot be read."""
        try:
            names = os.listdir(self.volume_root)
        except FileNotFoundError:
            self.volume(0)
            return []
        except OSError as error:
            raise Unavailable(f"cannot read the volumes: {error}") from error
        return sorted(int(name) for name in names if _is_number(name))

    def work_image(self, record: Record) -> Path | None:
        """The image of the volume that a machine has; Conflict when that is gone."""
        if not record.volume:
            return None
        number, owner = parse_volid(record.volume)
        found = self.volume(number)
        kept = found.read()
        if kept is None or kept.owner != owner:
            raise Conflict(
                f"cannot start machine {record.vmid}: its volume {record.volume} is not there",
                hint="detach the workspace first: agentlab workspace detach",
            )
        return found.image

    def template(self, key: str = "") -> TemplateInfo:
        """The template with this key, or this installation's; NotFound."""
        return load_template(self.template_dir, key or self.template_key)

    def chosen_accelerator(self) -> str:
        """`kvm` or `tcg`; tried with the template's kernel, so `tcg` until there is one."""
        if self.accelerator != "auto":
            return self.accelerator
        try:
            template = self.template()
        except NotFound:
            return "tcg"
        with _probe:
            return _chosen(self.template_dir, template)

    def starts_from_memory(self) -> bool:
        """Asked for, or left to us where there is no KVM: there a boot is quick enough."""
        if self.start_mode == "auto":
            return self.chosen_accelerator() == "tcg"
        return self.start_mode == "memory"

    def memory_snapshot(self, template: TemplateInfo, cores: int, memory: int) -> MemorySnapshot:
        plan = template_launch(template, self.chosen_accelerator(), cores, memory)
        made_by = _version() + (processor() if plan.accelerator == "kvm" else "")
        return ensure_snapshot(template, plan, made_by, self.patience)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name

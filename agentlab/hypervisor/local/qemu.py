"""QEMU's command line, rendered from data and nothing else.

The devices of a machine that starts from a memory snapshot must be those of the machine that
the snapshot was taken of, in the same order: what differs between them comes last.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from agentlab.hypervisor.local import agent, process, qmp
from agentlab.hypervisor.local.machine_dir import DISK, SEED

PROGRAM = "qemu-system-x86_64"
WORK_PORT = "work-port"  # where a work disk is put in, before the CPUs run or later

# No process, no privilege, no odd system call from inside QEMU: it needs none.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# x86-64-v2, which some programs demand and no more: each extension costs time to emulate, and
# guests that see the newest ones ("max") boot half as fast again.
TCG_CPU = "qemu64,+cx16,+popcnt,+ssse3,+sse4.1,+sse4.2"
# Emulated cores run no speculative execution of ours, so guarding against it only costs.
_TCG_KERNEL = "mitigations=off"
_KERNEL = (
    "root=/dev/vda rw rootfstype=ext4 console=ttyS0 quiet loglevel=3 panic=1 "
    "net.ifnames=0 ipv6.disable=1 random.trust_cpu=on audit=0 nowatchdog"
)


@dataclass(frozen=True, slots=True)
class Memory:
    """Guest memory in a file: shared while a snapshot is made, copy-on-write when it is used."""

    path: Path
    shared: bool


@dataclass(frozen=True, slots=True)
class Boot:
    """A kernel that QEMU loads itself."""

    kernel: Path
    initrd: Path
    extra: str  # words for the kernel's command line


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that decides QEMU's command line; its files are in its working directory."""

    name: str
    uuid: str
    accelerator: str
    cores: int
    memory: int  # MiB
    tap: str
    mac: str
    boot: Boot
    ram: Memory | None = None
    seed: bool = False
    incoming: bool = False


def render_argv(launch: Launch) -> list[str]:
    """The whole command line; starts paused, so that the caller decides when the CPUs run."""
    kvm = launch.accelerator == "kvm"
    machine = "q35,vmport=off,hpet=off" + (",memory-backend=ram" if launch.ram else "")
    kernel = " ".join(
        word for word in (_KERNEL, "" if kvm else _TCG_KERNEL, launch.boot.extra) if word
    )
    argv = [
        PROGRAM,
        *("-name", launch.name),
        *("-uuid", launch.uuid),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"),
        *("-sandbox", _SANDBOX),
        *("-pidfile", process.PIDFILE),
        *("-accel", "kvm" if kvm else "tcg,thread=multi"),
        *("-cpu", "host" if kvm else TCG_CPU),
        *("-smp", str(launch.cores)),
        *("-m", str(launch.memory)),
        *("-rtc", "base=utc"),
    ]
    if launch.ram:
        share = "on" if launch.ram.shared else "off"
        path = escape(str(launch.ram.path))
        argv += [
            "-object",
            f"memory-backend-file,id=ram,size={launch.memory}M,mem-path={path},share={share}",
        ]
    argv += [
        *("-M", machine),
        *("-qmp", f"unix:{qmp.SOCKET},server=on,wait=off"),
        *("-chardev", "ringbuf,id=console,size=65536"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=ga,path={agent.SOCKET},server=on,wait=off"),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,id=ga0,chardev=ga,name=org.qemu.guest_agent.0"),
        *("-drive", _drive("d0", DISK, "qcow2,cache=unsafe,aio=threads,discard=unmap")),
        *("-device", "virtio-blk-pci,drive=d0,serial=root"),
        *("-object", "rng-random,filename=/dev/urandom,id=rng"),
        *("-device", "virtio-rng-pci,rng=rng"),
        *("-netdev", f"tap,id=n0,ifname={launch.tap},script=no,downscript=no,vhost=off"),
        *("-device", f"virtio-net-pci,netdev=n0,mac={launch.mac},romfile="),
        *("-device", f"pcie-root-port,id={WORK_PORT},chassis=1"),
        *("-kernel", str(launch.boot.kernel)),
        *("-initrd", str(launch.boot.initrd)),
        *("-append", kernel),
    ]
    if launch.seed:
        argv += [
            *("-drive", _drive("d1", SEED, "raw,readonly=on")),
            *("-device", "virtio-blk-pci,drive=d1,serial=seed"),
        ]
    if launch.incoming:
        argv += ["-incoming", "defer"]
    return argv


def bounded(argv: list[str], seconds: float) -> list[str]:
    """The same, killed after that time even when we are no longer there to do it."""
    return ["timeout", "--signal=KILL", f"{seconds:.0f}", *argv]


def fingerprint(launch: Launch, version: str) -> str:
    """Names all that a memory snapshot depends on: a snapshot fits a machine with the same one."""
    neutral = replace(
        launch, name="", uuid="", tap="", mac="", ram=Memory(Path("ram"), shared=True),
        boot=Boot(Path(launch.boot.kernel.name), Path(launch.boot.initrd.name), launch.boot.extra),
    )  # fmt: skip
    text = json.dumps([version, render_argv(neutral)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def escape(value: str) -> str:
    """A value inside an option list, where a comma ends it unless it is doubled."""
    return value.replace(",", ",,")


def _drive(name: str, file: str, rest: str) -> str:
    return f"if=none,id={name},file={file},format={rest}"

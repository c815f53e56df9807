"""A virtual machine as a Proxmox VE node would run it: its cloud-init disc and its QEMU.

`Settings` are the cloud-init keys of a VM's config, and `write_disc` makes of them what Proxmox
makes: version 1 of the network's configuration, on an ISO file system labelled cidata.  `Plan` is
the rest of the config that QEMU's command line comes from.  `Machine` starts it in a directory
that holds the sockets `qmp` and `ga`, so that `open_qmp` and `Agent` of the local hypervisor
work on it.  Unlike on a node, QEMU ends when the guest powers off.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from agentlab.clock import Deadline
from agentlab.hypervisor.local import process
from agentlab.hypervisor.local.agent import Agent
from agentlab.hypervisor.local.memory import wait_qmp
from agentlab.hypervisor.local.qemu import PROGRAM, TCG_CPU, escape
from agentlab.hypervisor.local.qmp import QmpRefused, open_qmp

STDERR = "stderr"
_HOSTS_OWN = ["192.0.2.53"]  # the resolver that the node itself has: for who names none
_UNPLUG = 5.0  # seconds, as a node waits
_FIRST_DISK_BUS = "pci.3"  # where a node puts the controllers of virtio-scsi-single


@dataclass(frozen=True, slots=True)
class Settings:
    """What a VM's config says to cloud-init; the keys are Proxmox's own."""

    name: str
    mac: str
    ipconfig0: str  # "ip=10.77.0.5/16,gw=10.77.0.1", "ip=dhcp" or ""
    nameserver: str = ""  # addresses between blanks
    searchdomain: str = ""
    ciuser: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """`scsiN` of a VM's config."""

    slot: int
    file: Path
    format: str = "qcow2"
    cdrom: bool = False
    serial: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The keys of a VM's config that decide QEMU's command line."""

    vmid: int
    name: str
    uuid: str
    cores: int
    memory: int  # MiB
    disks: tuple[Disk, ...]
    tap: str = ""
    mac: str = ""
    q35: bool = False
    accelerator: str = "tcg"


def render_disc(settings: Settings) -> dict[str, str]:
    """The files of the cloud-init disc by name."""
    domains = settings.searchdomain.split()
    user = ["#cloud-config", f"hostname: {settings.name}", "manage_etc_hosts: true"]
    user.append(f"fqdn: {'.'.join([settings.name, *domains[:1]])}")
    if settings.ciuser:
        user.append(f"user: {settings.ciuser}")
    user += ["chpasswd:", "  expire: False", "users:", "  - default", "package_upgrade: true"]
    network = ["version: 1", "config:"]
    given = dict(part.split("=", 1) for part in settings.ipconfig0.split(",") if part)
    if given:
        network += ["    - type: physical", "      name: eth0"]
        network += [f"      mac_address: '{settings.mac.lower()}'", "      subnets:"]
        if given.get("ip") == "dhcp":
            network.append("      - type: dhcp4")
        elif "ip" in given:
            address = IPv4Interface(given["ip"])
            network += ["      - type: static", f"        address: '{address.ip}'"]
            network.append(f"        netmask: '{address.netmask}'")
            if "gw" in given:
                network.append(f"        gateway: '{given['gw']}'")
    network += ["    - type: nameserver", "      address:"]
    network += [f"      - '{server}'" for server in settings.nameserver.split() or _HOSTS_OWN]
    if domains:
        network += ["      search:", *(f"      - '{domain}'" for domain in domains)]
    files = {"user-data": _text(user), "network-config": _text(network)}
    known = hashlib.sha1((files["user-data"] + files["network-config"]).encode()).hexdigest()
    return {**files, "meta-data": f"instance-id: {known}\n", "vendor-data": ""}


def write_disc(path: Path, settings: Settings) -> None:
    """Makes the disc anew, as Proxmox does before each start."""
    source = path.with_name(f"{path.name}.files")
    source.mkdir(exist_ok=True)
    for name, text in render_disc(settings).items():
        (source / name).write_text(text)
    argv = ["genisoimage", "-quiet", "-iso-level", "3", "-R", "-V", "cidata", "-o", path, source]
    subprocess.run(argv, check=True)


def render_argv(plan: Plan) -> list[str]:
    """The devices and where they sit are as `qm showcmd` prints them for virtio-scsi-single."""
    kvm = plan.accelerator == "kvm"
    argv = [
        *(PROGRAM, "-name", f"{plan.name},debug-threads=on", "-uuid", plan.uuid),
        *("-pidfile", process.PIDFILE, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-accel", "kvm" if kvm else "tcg,thread=multi"),
        *("-cpu", "host" if kvm else TCG_CPU),
        *("-smp", f"{plan.cores},sockets=1,cores={plan.cores},maxcpus={plan.cores}"),
        *("-m", str(plan.memory), "-rtc", "base=utc"),
        *("-boot", "menu=off,strict=on,reboot-timeout=1000"),
        *("-qmp", "unix:qmp,server=on,wait=off"),
        *("-chardev", "ringbuf,id=console,size=65536", "-serial", "chardev:console"),
        *("-chardev", "socket,path=ga,server=on,wait=off,id=qga0"),
    ]
    if plan.q35:
        argv += ["-M", "q35"]
        argv += ["-device", "i82801b11-bridge,id=pcidmi,bus=pcie.0,addr=0x1e"]
        bridges, root = ((1, 1), (2, 2), (3, 3)), "pcidmi"
    else:
        argv += ["-M", "pc,hpet=off"]
        bridges, root = ((1, 0x1E), (2, 0x1F), (3, 5)), "pci.0"
    pci = "pci.2" if plan.q35 else "pci.0"
    for number, address in bridges:
        where = f"id=pci.{number},chassis_nr={number},bus={root},addr={address:#x}"
        argv += ["-device", f"pci-bridge,{where}"]
    argv += [
        *("-device", f"vmgenid,guid={plan.uuid}"),
        *("-device", f"virtio-serial-pci,id=qga0,bus={pci},addr=0x8"),
        *("-device", "virtserialport,id=ga0,chardev=qga0,name=org.qemu.guest_agent.0"),
        *("-device", f"virtio-balloon-pci,id=balloon0,bus={pci},addr=0x3"),
    ]
    for disk in plan.disks:
        argv += _disk(disk)
    if plan.tap:
        tap = f"tap,id=net0,ifname={plan.tap},script=no,downscript=no,vhost=off"
        nic = f"virtio-net-pci,mac={plan.mac},netdev=net0,bus={pci},addr=0x12,id=net0"
        argv += ["-netdev", tap, "-device", nic]
    return argv


def _disk(disk: Disk) -> list[str]:
    bus, drive = f"virtioscsi{disk.slot}", f"drive-scsi{disk.slot}"
    controller = f"virtio-scsi-pci,id={bus},bus={_FIRST_DISK_BUS},addr={disk.slot + 1:#x}"
    words = f"file={escape(str(disk.file))},if=none,id={drive},format={disk.format}"
    words += ",media=cdrom,readonly=on" if disk.cdrom else ",cache=unsafe,discard=unmap"
    kind = "scsi-cd" if disk.cdrom else "scsi-hd"
    device = f"{kind},bus={bus}.0,channel=0,scsi-id=0,lun={disk.slot},drive={drive}"
    device += f",id=scsi{disk.slot}"
    if disk.serial:
        device += f",serial={disk.serial}"
    if disk.slot == 0:
        device += ",bootindex=100"
    return ["-device", controller, "-drive", words, "-device", device]


class Machine:
    """One QEMU and its tap, in a directory of its own; found again by its uuid."""

    def __init__(self, directory: Path, uuid: str) -> None:
        self.directory = directory
        self.uuid = uuid

    @property
    def agent(self) -> Agent:
        return Agent(self.directory)

    @property
    def running(self) -> bool:
        """Whether there is a QEMU; a paused one counts."""
        return process.find(self.directory, self.uuid) is not None

    @property
    def paused(self) -> bool:
        with open_qmp(self.directory) as qemu:
            return qemu.status() != "running"

    def start(self, plan: Plan, settings: Settings | None = None, *, bridge: str = "") -> None:
        """Gives power: the disc of `settings` comes as scsi2, the tap into the bridge."""
        if settings:
            write_disc(self.directory / "cloudinit.iso", settings)
        for socket in ("qmp", "ga"):
            (self.directory / socket).unlink(missing_ok=True)
        if plan.tap:
            make_tap(plan.tap, bridge)
        stderr = self.directory / STDERR
        child = process.launch(self.directory, render_argv(plan), stderr=stderr)
        wait_qmp(self.directory, child, stderr)

    def stop(self, tap: str = "") -> None:
        process.kill(self.directory, self.uuid)
        if tap:
            subprocess.run(["ip", "link", "delete", tap], check=False, capture_output=True)

    def pause(self) -> None:
        with open_qmp(self.directory) as qemu:
            qemu.execute("stop")

    def resume(self) -> None:
        with open_qmp(self.directory) as qemu:
            qemu.execute("cont")

    def plug(self, disk: Disk) -> None:
        """Puts a disk into a machine with power, with a controller of its own."""
        bus, node = f"virtioscsi{disk.slot}", f"hot-scsi{disk.slot}"
        file = {"driver": "file", "filename": str(disk.file), "discard": "unmap"}
        where = {"bus": _FIRST_DISK_BUS, "addr": f"{disk.slot + 1:#x}"}
        with open_qmp(self.directory) as qemu:
            qemu.execute(
                "blockdev-add", driver=disk.format, node_name=node, discard="unmap", file=file
            )
            qemu.execute("device_add", driver="virtio-scsi-pci", id=bus, **where)
            qemu.execute(
                "device_add", driver="scsi-hd", id=f"scsi{disk.slot}", bus=f"{bus}.0", drive=node,
                channel=0, scsi_id=0, lun=disk.slot, serial=disk.serial,
            )  # fmt: skip

    def unplug(self, slot: int) -> bool:
        """Takes a disk and its controller out; False when the guest keeps them, as if paused."""
        deadline = Deadline.after(_UNPLUG)
        with open_qmp(self.directory) as qemu:
            for device in (f"scsi{slot}", f"virtioscsi{slot}"):
                with contextlib.suppress(QmpRefused):  # asked for already
                    qemu.execute("device_del", id=device)
                # in quotes, since one name ends with the other
                while f"'{device}'" in str(qemu.execute("qom-list", path="/machine/peripheral")):
                    if deadline.passed:
                        return False
                    time.sleep(0.05)
            with contextlib.suppress(QmpRefused):  # one that came with the power goes by itself
                qemu.execute("blockdev-del", node_name=f"hot-scsi{slot}")
        return True

    def console(self) -> str:
        with open_qmp(self.directory) as qemu:
            return qemu.console()


def disc(directory: Path) -> Disk:
    """The cloud-init disc that `Machine.start` makes."""
    return Disk(2, directory / "cloudinit.iso", format="raw", cdrom=True)


def make_tap(name: str, bridge: str) -> None:
    """What a node's own script does when QEMU starts."""
    _ip("tuntap", "add", "dev", name, "mode", "tap")
    if bridge:
        _ip("link", "set", name, "master", bridge)
    _ip("link", "set", name, "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"

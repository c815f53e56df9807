"""What a template of Proxmox lacks, read from its configuration alone.

Whether guest agent, cloud-init and runner are inside its disk cannot be seen there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from agentlab.hypervisor.base import Finding
from agentlab.hypervisor.proxmox.names import Drive, parse_drives, past_the_fence, root_drive

_VIRTIO = ("virtio-scsi-pci", "virtio-scsi-single")
_WORK = "scsi1"  # where a sandbox's work disk goes
_SOCKET = re.compile(r"serial\d+")


def check_template(vmid: int, config: Mapping[str, object], *, bridge: str) -> list[Finding]:
    """Everything that keeps sandboxes from being cloned from this VM, and how to mend it.

    The remedies are lines for root's shell on the node; what is to be filled in stands in <>.
    They are in the order in which to run them: a VM becomes a template last.
    """
    text = {key: str(value) for key, value in config.items()}
    drives = parse_drives(config)
    return [
        *_state(vmid, text),
        *_hotplug(vmid, text),
        *_agent(vmid, text),
        *_console(vmid, text),
        *_disks(vmid, text, drives),
        *_cloudinit(vmid, drives),
        *_network(vmid, text, bridge),
        *_template(vmid, text, drives),
    ]


def _state(vmid: int, config: Mapping[str, str]) -> Iterator[Finding]:
    if lock := config.get("lock"):
        yield Finding("lock", f"it is locked ({lock})", f"qm unlock {vmid}")
    if config.get("protection") == "1":
        what = "it is protected, and so would be its clones: they could not be destroyed"
        yield Finding("protection", what, f"qm set {vmid} --protection 0")
    if config.get("ostype", "l26") not in ("l26", "l24"):
        what = f"its ostype is {config['ostype']}, for which Proxmox writes cloud-init otherwise"
        yield Finding("ostype", what, f"qm set {vmid} --ostype l26", needed=False)
    if config.get("kvm") == "0":
        what = "it runs without KVM, many times slower"
        yield Finding("kvm", what, f"qm set {vmid} --delete kvm", needed=False)
    past = past_the_fence(config)
    if past:
        what = f"its {', '.join(past)} would come along with each clone, and reach past the fence"
        yield Finding("fence", what, f"qm set {vmid} --delete {','.join(past)}")
    if config.get("bios") == "ovmf" and "efidisk0" not in config:
        what = "it boots by UEFI and has no disk for UEFI's settings"
        yield Finding("efidisk", what, f"qm set {vmid} --efidisk0 <STORAGE>:1,efitype=4m")


def _hotplug(vmid: int, config: Mapping[str, str]) -> Iterator[Finding]:
    have = config.get("hotplug", "1")
    words = have.split(",")
    if have != "1" and "disk" not in words:
        what = "its hotplug has no disks: a sandbox that runs cannot be given a workspace, or give it up"
        wanted = ",".join([*(word for word in words if word != "0"), "disk"])
        yield Finding("hotplug", what, f"qm set {vmid} --hotplug {wanted}", needed=False)


def _agent(vmid: int, config: Mapping[str, str]) -> Iterator[Finding]:
    words = config.get("agent", "0").split(",")
    on = ("1", "enabled=1", "yes", "enabled=yes", "on", "enabled=on", "true", "enabled=true")
    if not any(word in on for word in words):
        what = "the guest agent's channel is off: no command reaches the guest"
        yield Finding("agent", what, f"qm set {vmid} --agent 1")
    elif "type=isa" in words:
        what = "the guest agent's channel is an ISA port, where qemu-guest-agent does not look"
        yield Finding("agent", what, f"qm set {vmid} --agent 1")


def _console(vmid: int, config: Mapping[str, str]) -> Iterator[Finding]:
    if not any(_SOCKET.fullmatch(key) and value == "socket" for key, value in config.items()):
        what = "it has no serial console: `qm terminal` shows nothing when a guest does not boot"
        yield Finding("serial", what, f"qm set {vmid} --serial0 socket --vga serial0")


def _disks(vmid: int, config: Mapping[str, str], drives: list[Drive]) -> Iterator[Finding]:
    if config.get("scsihw", "lsi") not in _VIRTIO:
        what = "its SCSI controller is not virtio-scsi: guests made for clouds lack the driver"
        yield Finding("scsihw", what, f"qm set {vmid} --scsihw virtio-scsi-single")
    root = root_drive(config)
    if root is None:
        what = "it has no disk"
        mend = f"qm set {vmid} --scsi0 <STORAGE>:0,import-from=<IMAGE> --boot order=scsi0"
        yield Finding("disk", what, mend)
        return
    if not root.key.startswith(("scsi", "virtio")):
        what = f"its disk is {root.key}: guests made for clouds lack the driver"
        mend = f"qm set {vmid} --delete {root.key} --scsi0 {root.volid} --boot order=scsi0"
        yield Finding("disk", what, mend, needed=False)
    elif "order=" in config.get("boot", "") and root.key not in _order(config):
        what = f"it does not boot from its disk {root.key}"
        yield Finding("boot", what, f"qm set {vmid} --boot order={root.key}")
    if any(drive.key == _WORK for drive in drives):
        what = f"{_WORK} is taken, which is where the work disk of a sandbox goes"
        yield Finding("work disk", what, f"qm set {vmid} --delete {_WORK}")


def _order(config: Mapping[str, str]) -> list[str]:
    found = re.search(r"order=([^,\s]*)", config.get("boot", ""))
    return found[1].split(";") if found else []


def _cloudinit(vmid: int, drives: list[Drive]) -> Iterator[Finding]:
    found = [drive for drive in drives if drive.cloudinit]
    storage = next((drive.storage for drive in drives if drive.storage), "<STORAGE>")
    add = f"qm set {vmid} --scsi2 {storage}:cloudinit"
    if not found:
        what = "it has no cloud-init drive: a guest would not learn its name and address"
        yield Finding("cloudinit", what, add)
    elif not any(drive.key.startswith("scsi") for drive in found):
        what = f"its cloud-init drive is {found[0].key}, which Debian's cloud kernel cannot read"
        mend = f"qm set {vmid} --delete {found[0].key} && {add}"
        yield Finding("cloudinit", what, mend, needed=False)


def _network(vmid: int, config: Mapping[str, str], bridge: str) -> Iterator[Finding]:
    mend = f"qm set {vmid} --net0 virtio,bridge={bridge}"
    if "net0" not in config:
        yield Finding("net0", "it has no network card net0", mend)
    elif not config["net0"].startswith("virtio"):
        what = "its network card is not virtio: guests made for clouds lack the driver"
        yield Finding("net0", what, mend, needed=False)
    more = sorted(key for key in config if re.fullmatch(r"net[1-9]\d*", key))
    if more:
        what = f"it has another network card ({', '.join(more)}), which no rule of ours fences"
        yield Finding("net1", what, f"qm set {vmid} --delete {','.join(more)}")


def _template(vmid: int, config: Mapping[str, str], drives: list[Drive]) -> Iterator[Finding]:
    if config.get("template", "0") != "1":
        yield Finding("template", "it is a VM and not a template", f"qm template {vmid}")
        return
    for drive in drives:
        if not drive.cdrom and "base-" not in drive.volid and not drive.volid.startswith("none"):
            what = f"its disk {drive.key} is no base volume: linked clones cannot be made of it"
            yield Finding("base", what, f"qm template {vmid} --disk {drive.key}")

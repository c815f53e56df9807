"""What Proxmox's API lacks, done by programs as root on the node on which the daemon runs.

A storage that cannot do a thing is refused by `plan_volume_tool`, before anything is done.  Names
are checked there too, so that none of them can be an option or leave its storage.  One thing at
a time is done to one volume, and it is attached nowhere: that is for the caller to see to.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from agentlab.errors import Conflict, Invalid, Unavailable
from agentlab.hypervisor import fsck
from agentlab.hypervisor.base import VolumeCheck
from agentlab.hypervisor.proxmox import image_files, lvm, tool, zfs
from agentlab.hypervisor.proxmox.storage_plan import Plan, Storage, Verb, plan_volume_tool
from agentlab.hypervisor.proxmox.transport import Exists, NoSuchSnapshot, NoSuchVM, NoSuchVolume
from agentlab.hypervisor.qemu_img import Progress

_DESTROY = 600.0
_MIB = 1 << 20
_LOCAL = Path("/etc/pve/local")  # a link to nodes/<this node>
NODES = Path("/etc/pve/nodes")
_DRIVE = re.compile(
    r"(?:scsi|virtio|sata|ide|efidisk|tpmstate|mp|rootfs)\d*:\s*(?P<volume>[^,\s]+)"
)
_SNAPSHOT = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}")


class NodeTools:
    """Programs of the node `node`; "" when the daemon runs on no node.

    Errors besides those named: Unavailable and Conflict by what a program says (`classify`),
    DeadlineExceeded.
    """

    def __init__(self, node: str) -> None:
        self._node = node

    def available_on(self, node: str) -> bool:
        """Whether we are root on that node, and Proxmox's programs are there."""
        if not node or node != self._node or os.geteuid() != 0:
            return False
        with contextlib.suppress(OSError):
            if _LOCAL.readlink().name != node:
                return False
        return all(shutil.which(program) for program in ("qm", "pvesh"))

    def unlock(self, vmid: int) -> None:
        """Takes the lock word out of a VM's configuration, whatever it is; NoSuchVM."""
        tool.do(["qm", "unlock", str(vmid)], f"cannot unlock VM {vmid}")

    def destroy_locked(self, vmid: int) -> None:
        """Destroys a stopped VM with the disks that it names, whatever lock it has.  Absent: returns.

        One command: between an unlocking and a destroying the half of a clone would look whole.
        """
        words = ["qm", "destroy", str(vmid), "--skiplock", "1", "--purge", "1"]
        with contextlib.suppress(NoSuchVM):
            tool.do(words, f"cannot destroy VM {vmid}", timeout=_DESTROY)

    def detach_locked(self, vmid: int, drives: Sequence[str]) -> None:
        """Takes drives out of a stopped VM's configuration, whatever lock it has; NoSuchVM.

        Their volumes stay, as they do when Proxmox detaches one that is another VMID's.
        """
        words = ["qm", "set", str(vmid), "--delete", ",".join(drives), "--skiplock", "1"]
        tool.do(words, f"cannot detach the volumes of VM {vmid}")

    def free(self, volid: str) -> None:
        """Frees a volume that no configuration names.  Absent: returns."""
        with contextlib.suppress(NoSuchVolume):
            tool.do(["pvesm", "free", volid], f"cannot free volume {volid}", timeout=_DESTROY)

    def holders(self, volid: str) -> list[int]:
        """VMs and containers of the cluster that have a volume, whosever they are.

        By the cluster's own files, which show what no right of a token hides.  Without them: none.
        """
        files = [*NODES.glob("*/qemu-server/*.conf"), *NODES.glob("*/lxc/*.conf")]
        found = []
        for file in files:
            try:
                text = file.read_text(errors="replace")
            except FileNotFoundError:
                continue  # destroyed or moved meanwhile
            except OSError as error:
                raise Unavailable(f"cannot read who has volume {volid}: {error}") from error
            if names_volume(text, volid):
                found.append(int(file.stem))
        return sorted(found)

    def check(self, storage: Storage, volume: str, verb: Verb) -> None:
        """Raises what `plan_volume_tool` does, and does nothing."""
        plan_volume_tool(storage, volume, verb)

    def snapshot(self, storage: Storage, volume: str, name: str) -> None:
        """Takes a snapshot; one of that name: Exists."""
        plan = plan_volume_tool(storage, volume, "snapshot")
        _check_name(name)
        if name in self._names(plan):
            raise Exists(f"cannot snapshot volume {plan.volume}: it has a snapshot {name}")
        words = {
            "qcow2": ["qemu-img", "snapshot", "-q", "-c", name, plan.name],
            "lvmthin": lvm.render_lv_snapshot(plan.name, name),
            "zfspool": ["zfs", "snapshot", f"{plan.name}@{name}"],
        }[plan.tool]
        tool.do(words, f"cannot snapshot volume {plan.volume}", timeout=tool.LONG)

    def rollback(self, storage: Storage, volume: str, name: str) -> None:
        """Puts the volume back; NoSuchSnapshot.  Done again after a crash, it is whole again.

        On ZFS only the newest snapshot: Conflict, with the names of the newer ones.
        """
        plan = plan_volume_tool(storage, volume, "rollback")
        what = f"cannot roll back volume {plan.volume} to {name}"
        _check_name(name)
        names = self._names(plan)
        if name not in names:
            raise NoSuchSnapshot(f"{what}: it has no such snapshot")
        newer = names[names.index(name) + 1 :]
        if plan.tool == "zfspool" and newer:
            raise Conflict(
                f"{what}: {', '.join(newer)} is newer, and ZFS goes back to the newest only",
                hint="delete the newer snapshots, or clone the volume from the older one",
                details={"later": newer[::-1]},
            )
        if plan.tool == "qcow2":
            words = ["qemu-img", "snapshot", "-q", "-a", name, plan.name]
            tool.do(words, what, timeout=tool.LONG)
        elif plan.tool == "zfspool":
            tool.do(["zfs", "rollback", f"{plan.name}@{name}"], what, timeout=tool.LONG)
        else:
            for words in lvm.render_lv_rollback(plan.name, name):
                tool.do(words, what, timeout=tool.LONG)

    def delete_snapshot(self, storage: Storage, volume: str, name: str) -> None:
        """Absent: returns."""
        plan = plan_volume_tool(storage, volume, "delete_snapshot")
        _check_name(name)
        if name not in self._names(plan):
            return
        words = {
            "qcow2": ["qemu-img", "snapshot", "-q", "-d", name, plan.name],
            "lvmthin": lvm.render_lv_remove(lvm.lv_snapshot(plan.name, name)),
            "zfspool": ["zfs", "destroy", f"{plan.name}@{name}"],
        }[plan.tool]
        what = f"cannot delete snapshot {name} of volume {plan.volume}"
        tool.do(words, what, timeout=tool.LONG)

    def snapshots(self, storage: Storage, volume: str) -> list[str]:
        """Names, oldest first; NoSuchVolume.  Changes nothing: another may be at work on it."""
        plan = plan_volume_tool(storage, volume, "snapshots")
        return self._listed(plan, f"cannot list the snapshots of volume {plan.volume}")

    def clone(
        self,
        storage: Storage,
        volume: str,
        target: str,
        *,
        snapshot: str = "",
        progress: Progress | None = None,
    ) -> None:
        """Makes `target`, on the same storage, with the content of now or of a snapshot.

        It is a copy, which needs nothing of its source: a thin qcow2 overlay would break when the
        source is freed, and a ZFS clone would keep the source from being freed.  On LVM it is
        thin, since there nothing hangs on the source.  A target that is there is whole: returns.
        """
        plan = plan_volume_tool(storage, volume, "clone")
        new = plan_volume_tool(storage, target, "clone")
        what = f"cannot clone volume {plan.volume} to {new.volume}"
        names = self._names(plan)
        if snapshot and _check_name(snapshot) not in names:
            raise NoSuchSnapshot(f"{what}: it has no snapshot {snapshot}")
        if plan.tool == "qcow2":
            image_files.clone_file(Path(plan.name), Path(new.name), snapshot, what, progress)
        elif plan.tool == "zfspool":
            zfs.clone(plan.name, new.name, snapshot, what)
        elif lvm.base(new.name) not in lvm.lvs(new.name, what):
            tool.do(lvm.render_lv_clone(plan.name, new.name, snapshot), what)
        if progress:
            progress(1.0)

    def grow(self, storage: Storage, volume: str, size: int) -> None:
        """Makes it at least `size` MiB; never smaller."""
        plan = plan_volume_tool(storage, volume, "grow")
        what = f"cannot make volume {plan.volume} larger"
        if plan.tool in ("qcow2", "raw"):
            if int(image_files.info(plan, what)["virtual-size"]) < size * _MIB:
                words = ["qemu-img", "resize", "-q", "-f", plan.tool, plan.name, f"{size}M"]
                tool.do(words, what)
        elif plan.tool == "lvmthin":
            self._names(plan)
            if lvm.lvs(plan.name, what)[lvm.base(plan.name)] < size * _MIB:
                tool.do(["lvextend", "-L", f"{size}m", plan.name], what)
        else:
            words = ["zfs", "get", "-Hp", "-o", "value", "volsize", plan.name]
            if int(tool.do(words, what).split()[0]) < size * _MIB:
                tool.do(["zfs", "set", f"volsize={size}M", plan.name], what)

    def copy(
        self,
        source: Storage,
        volume: str,
        target: Storage,
        target_volume: str,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Fills a volume that is there, and as large, with the content of another.

        Conflict when the source has snapshots, since those would stay behind.
        """
        old = plan_volume_tool(source, volume, "copy")
        new = plan_volume_tool(target, target_volume, "copy")
        what = f"cannot copy volume {old.volume} to {new.volume}"
        names = self._names(old)
        if names:
            raise Conflict(
                f"{what}: its snapshots would stay behind ({', '.join(names)})",
                hint="delete the snapshots first",
            )
        self._names(new)
        for plan in (old, new):
            if plan.tool == "lvmthin":
                tool.do(["lvchange", "-ay", "-K", plan.name], what)
        (old_format, old_path), (new_format, new_path) = _disk(old), _disk(new)
        formats = ["-n", "-f", old_format, "-O", new_format]
        image_files.convert([*formats, old_path, new_path], what, progress)

    def settle(self, storage: Storage, volume: str) -> None:
        """Ends what was cut off, so that the volume has its own name, and all can be freed.

        Absent: returns; Busy while something still writes to it.
        """
        plan = plan_volume_tool(storage, volume, "rollback")
        what = f"cannot settle volume {plan.volume}"
        self._settle(plan, what)
        if plan.tool == "zfspool":
            zfs.sweep(plan.name, what)

    def check_volume(self, storage: Storage, volume: str, *, repair: bool) -> VolumeCheck:
        """Checks its file system, and mends it with `repair`; NoSuchVolume, Unsupported.

        A volume of LVM stays active, as those of Proxmox do.
        """
        plan = plan_volume_tool(storage, volume, "check")
        what = f"cannot check volume {plan.volume}"
        self._names(plan)
        if plan.tool in ("lvmthin", "zfspool"):
            if plan.tool == "lvmthin":
                tool.do(["lvchange", "-ay", "-K", plan.name], what)
            return fsck.check_device(Path(_disk(plan)[1]), plan.volume, repair=repair)
        form: Literal["qcow2", "raw"] = "qcow2" if plan.tool == "qcow2" else "raw"
        return fsck.check_image(Path(plan.name), form, plan.volume, repair=repair)

    def _names(self, plan: Plan) -> list[str]:
        """As `snapshots`, for what changes the volume: first ends what a crash cut off."""
        what = f"cannot list the snapshots of volume {plan.volume}"
        self._settle(plan, what)
        return self._listed(plan, what)

    def _settle(self, plan: Plan, what: str) -> None:
        if plan.tool == "lvmthin":
            lvm.settle(plan.name, what)
        elif plan.tool == "zfspool":
            zfs.settle(plan.name, what)

    def _listed(self, plan: Plan, what: str) -> list[str]:
        if plan.tool in ("qcow2", "raw"):
            snapshots = image_files.info(plan, what).get("snapshots", [])
            return [str(entry["name"]) for entry in snapshots]
        return zfs.names(plan, what) if plan.tool == "zfspool" else lvm.names(plan, what)


def names_volume(config: str, volid: str) -> bool:
    """Whether a machine's file attaches a volume, now or when a change that waits is made.

    By its last name, whatever the storage is called there, or the path that leads to it.
    """
    section, name = "", volid.rpartition(":")[2].rpartition("/")[2]
    for line in config.splitlines():
        if line.startswith("["):
            section = line.strip()
        drive = _DRIVE.match(line) if section in ("", "[PENDING]") else None
        if drive and re.split("[:/]", drive["volume"])[-1] == name:
            return True
    return False


def _disk(plan: Plan) -> tuple[str, str]:
    """Format and path of a volume for qemu-img."""
    if plan.tool == "lvmthin":
        return "raw", f"/dev/{plan.name}"
    if plan.tool == "zfspool":
        return "raw", f"/dev/zvol/{plan.name}"
    return plan.tool, plan.name


def _check_name(name: str) -> str:
    """A snapshot's name as Proxmox allows it."""
    if not _SNAPSHOT.fullmatch(name):
        raise Invalid(f"{name!r} is no name for a snapshot", hint="letters, digits, _ and -")
    return name

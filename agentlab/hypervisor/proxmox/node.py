"""What Proxmox's API lacks, done by programs as root on the node on which the daemon runs.

A storage that cannot do a thing is refused by `plan_volume_tool`, before anything is done.  Names
are checked there too, so that none of them can be an option or leave its storage.  One thing at
a time is done to one volume, and it is attached nowhere: that is for the caller to see to.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agentlab import run
from agentlab.errors import Conflict, Invalid, Unavailable, Unsupported
from agentlab.hypervisor.proxmox.transport import (
    Exists,
    NoSuchSnapshot,
    NoSuchVM,
    NoSuchVolume,
    classify,
)

Verb = Literal["snapshot", "rollback", "delete_snapshot", "snapshots", "clone", "grow", "copy"]
Progress = Callable[[float], None]  # called with 0.0 to 1.0

_QUICK = 120.0
_DESTROY = 600.0
_LONG = 12 * 3600.0  # for as long as a copy may take
_MIB = 1 << 20
_NEW = ".agentlab-new"  # no ending of an image, so that Proxmox does not list it
_COPY = "agentlab-copy"  # the ZFS snapshot that a copy is made from
_LOCAL = Path("/etc/pve/local")  # a link to nodes/<this node>

_FILE_TYPES = ("dir", "nfs", "cifs", "glusterfs", "btrfs")
_FILE = re.compile(r"(?P<vmid>\d+)/vm-(?P=vmid)-[A-Za-z0-9._-]+\.(?P<format>qcow2|raw)")
_DISK = re.compile(r"vm-\d+-[A-Za-z0-9._-]+")
_VG = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]*")
_POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:][A-Za-z0-9_.:-]*)*")
_SNAPSHOT = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}")


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as `GET /storage` shows it; "" for what its type does not have."""

    id: str
    type: str
    path: str = ""
    vgname: str = ""
    thinpool: str = ""
    pool: str = ""
    content: frozenset[str] = frozenset()
    shared: bool = False
    images: str = "images"  # the directory below `path` that holds disk images


@dataclass(frozen=True, slots=True)
class Plan:
    """The tool for a volume, and the volume's name for it: a path, `VG/LV`, or a dataset."""

    tool: Literal["qcow2", "raw", "lvmthin", "zfspool"]
    name: str
    volume: str  # as Proxmox says it, for people


def parse_storage(answer: object) -> Storage:
    """Of an entry of `GET /storage`; Unavailable when it is none."""
    if not isinstance(answer, Mapping) or not answer.get("storage") or not answer.get("type"):
        raise Unavailable("cannot read the configuration of a storage: Proxmox gave something else")
    directories = dict(
        word.partition("=")[::2] for word in str(answer.get("content-dirs", "")).split(",") if word
    )
    texts = {key: str(answer.get(key, "")) for key in ("path", "vgname", "thinpool", "pool")}
    return Storage(
        id=str(answer["storage"]),
        type=str(answer["type"]),
        content=frozenset(str(answer.get("content", "")).split(",")) - {""},
        shared=str(answer.get("shared", 0)) == "1",
        images=directories.get("images", "images").strip("/"),
        **texts,
    )


def plan_volume_tool(storage: Storage, volname: str, verb: Verb) -> Plan:
    """What works on a volume.  `volname` is what follows the colon of a volid.

    Unsupported, with the remedy, where the storage cannot; Invalid for a name that is none.
    """
    name = f"{storage.id}:{volname}"
    if storage.type in _FILE_TYPES:
        found = _FILE.fullmatch(volname)
        directory = Path(storage.path, storage.images)
        if not found or not directory.is_absolute() or ".." in directory.parts:
            raise Invalid(f"cannot {_said(verb)} volume {name}: not a disk image of a machine")
        if found["format"] == "raw" and verb not in ("grow", "copy"):
            raise Unsupported(
                f"cannot {_said(verb)} volume {name}: it is a raw file on storage {storage.id} of"
                f" type {storage.type}, which has no snapshots",
                hint="move its content to a new volume: those on such storages are qcow2",
            )
        tool: Literal["qcow2", "raw"] = "qcow2" if found["format"] == "qcow2" else "raw"
        return Plan(tool, str(directory / volname), name)
    if storage.type not in ("lvmthin", "zfspool"):
        raise Unsupported(
            f"cannot {_said(verb)} volume {name}: storage {storage.id} is of type {storage.type}",
            hint="keep volumes on a storage of type dir, nfs, cifs, btrfs, lvmthin or zfspool",
        )
    parent, rule = (
        (storage.vgname, _VG) if storage.type == "lvmthin" else (storage.pool, _POOL)
    )  # fmt: skip
    if not _DISK.fullmatch(volname) or not rule.fullmatch(parent) or ".." in parent.split("/"):
        raise Invalid(f"cannot {_said(verb)} volume {name}: not a disk of a machine")
    return Plan("lvmthin" if storage.type == "lvmthin" else "zfspool", f"{parent}/{volname}", name)


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
        _do(["qm", "unlock", str(vmid)], f"cannot unlock VM {vmid}")

    def destroy_locked(self, vmid: int) -> None:
        """Destroys a stopped VM with the disks that it names, whatever lock it has.  Absent: returns.

        One command: between an unlocking and a destroying the half of a clone would look whole.
        """
        words = ["qm", "destroy", str(vmid), "--skiplock", "1", "--purge", "1"]
        with contextlib.suppress(NoSuchVM):
            _do(words, f"cannot destroy VM {vmid}", timeout=_DESTROY)

    def free(self, volid: str) -> None:
        """Frees a volume that no configuration names.  Absent: returns."""
        with contextlib.suppress(NoSuchVolume):
            _do(["pvesm", "free", volid], f"cannot free volume {volid}", timeout=_DESTROY)

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
            "lvmthin": render_lv_snapshot(plan.name, name),
            "zfspool": ["zfs", "snapshot", f"{plan.name}@{name}"],
        }[plan.tool]
        _do(words, f"cannot snapshot volume {plan.volume}")

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
            _do(["qemu-img", "snapshot", "-q", "-a", name, plan.name], what)
        elif plan.tool == "zfspool":
            _do(["zfs", "rollback", f"{plan.name}@{name}"], what)
        else:
            for words in render_lv_rollback(plan.name, name):
                _do(words, what)

    def delete_snapshot(self, storage: Storage, volume: str, name: str) -> None:
        """Absent: returns."""
        plan = plan_volume_tool(storage, volume, "delete_snapshot")
        _check_name(name)
        if name not in self._names(plan):
            return
        words = {
            "qcow2": ["qemu-img", "snapshot", "-q", "-d", name, plan.name],
            "lvmthin": render_lv_remove(_lv_snapshot(plan.name, name)),
            "zfspool": ["zfs", "destroy", f"{plan.name}@{name}"],
        }[plan.tool]
        _do(words, f"cannot delete snapshot {name} of volume {plan.volume}")

    def snapshots(self, storage: Storage, volume: str) -> list[str]:
        """Names, oldest first; NoSuchVolume."""
        return self._names(plan_volume_tool(storage, volume, "snapshots"))

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
            _clone_file(Path(plan.name), Path(new.name), snapshot, what, progress)
        elif plan.tool == "zfspool":
            _clone_dataset(plan.name, new.name, snapshot, what)
        elif _base(new.name) not in _lvs(new.name, what):
            _do(render_lv_clone(plan.name, new.name, snapshot), what)
        if progress:
            progress(1.0)

    def grow(self, storage: Storage, volume: str, size: int) -> None:
        """Makes it at least `size` MiB; never smaller."""
        plan = plan_volume_tool(storage, volume, "grow")
        what = f"cannot make volume {plan.volume} larger"
        if plan.tool in ("qcow2", "raw"):
            if int(_info(plan, what)["virtual-size"]) < size * _MIB:
                words = ["qemu-img", "resize", "-q", "-f", plan.tool, plan.name, f"{size}M"]
                _do(words, what)
        elif plan.tool == "lvmthin":
            self._names(plan)
            if _lvs(plan.name, what)[_base(plan.name)] < size * _MIB:
                _do(["lvextend", "-L", f"{size}m", plan.name], what)
        else:
            words = ["zfs", "get", "-Hp", "-o", "value", "volsize", plan.name]
            if int(_do(words, what).split()[0]) < size * _MIB:
                _do(["zfs", "set", f"volsize={size}M", plan.name], what)

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
                _do(["lvchange", "-ay", "-K", plan.name], what)
        (old_format, old_path), (new_format, new_path) = _disk(old), _disk(new)
        formats = ["-n", "-f", old_format, "-O", new_format]
        _convert([*formats, old_path, new_path], what, progress)

    def _names(self, plan: Plan) -> list[str]:
        """Snapshots of a volume that is there, oldest first; first ends what a crash cut off."""
        what = f"cannot list the snapshots of volume {plan.volume}"
        if plan.tool in ("qcow2", "raw"):
            snapshots = _info(plan, what).get("snapshots", [])
            return [str(entry["name"]) for entry in snapshots]
        if plan.tool == "zfspool":
            return _zfs_names(plan, what)
        base = _base(plan.name)
        for words in plan_lv_repair(plan.name, _lvs(plan.name, what)):
            _do(words, what)
        lvs = _lvs(plan.name, what)
        if base not in lvs:
            raise NoSuchVolume(f"{what}: there is no such volume")
        prefix = f"snap_{base}_"
        return [name.removeprefix(prefix) for name in lvs if name.startswith(prefix)]


# --- images in files ---


def _info(plan: Plan, what: str) -> dict[str, Any]:
    if not Path(plan.name).is_file():
        raise NoSuchVolume(f"{what}: there is no such volume")
    # -U: what is read here is whole also while a QEMU has the image open
    said = _do(["qemu-img", "info", "-U", "--output=json", "-f", plan.tool, plan.name], what)
    try:
        document = json.loads(said)
    except ValueError as error:
        raise Unavailable(f"{what}: qemu-img said what is not JSON") from error
    if not isinstance(document, dict) or "virtual-size" not in document:
        raise Unavailable(f"{what}: qemu-img gave something else")
    if "backing-filename" in document:
        raise Conflict(f"{what}: it lies on another image, which ours never do")
    return document


def _clone_file(
    source: Path, target: Path, snapshot: str, what: str, progress: Progress | None
) -> None:
    """The target has its name only when it is whole, and on disk."""
    for left in target.parent.parent.glob(f"*/vm-*{_NEW}"):
        _remove_unlocked(left)
    if target.exists():
        return
    made = not target.parent.exists()
    target.parent.mkdir(mode=0o755, exist_ok=True)
    new = target.with_name(f"{target.name}.{secrets.token_hex(4)}{_NEW}")
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # until we end, however we do
        _convert(render_convert(source, new, snapshot), what, progress)
        os.fsync(descriptor)
        new.rename(target)
        _sync(target.parent)
        if made:
            _sync(target.parent.parent)
    finally:
        os.close(descriptor)
        new.unlink(missing_ok=True)
        if made and not target.exists():
            with contextlib.suppress(OSError):
                target.parent.rmdir()


def _remove_unlocked(path: Path) -> None:
    """Removes what a killed daemon left; a qemu-img that outlived it writes into nothing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def render_convert(source: Path, target: Path, snapshot: str) -> list[str]:
    """Arguments of `qemu-img convert` from qcow2 to qcow2; `snapshot` may be ""."""
    chosen = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    return ["-f", "qcow2", "-O", "qcow2", *chosen, str(source), str(target)]


def _convert(words: Sequence[str], what: str, progress: Progress | None) -> None:
    with tempfile.TemporaryFile() as output:

        def tell() -> None:
            done = parse_progress(_tail(output.fileno()))
            if progress and done is not None:
                progress(done)

        try:
            words = ["qemu-img", "convert", "-p", *words]
            run.run(words, timeout=_LONG, output=output, watch=tell)
        except run.CommandFailed as failed:
            said = re.sub(r"\s*\([0-9.]+/100%\)\s*", "", _tail(output.fileno()))
            raise classify(what, 0, said or failed.message) from failed


def _tail(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, 2000, max(0, size - 2000)).decode(errors="replace")


def parse_progress(said: str) -> float | None:
    """The last of qemu-img's "(12.34/100%)", as 0.0 to 1.0."""
    found = re.findall(r"\(([0-9.]+)/100%\)", said)
    return min(float(found[-1]) / 100, 1.0) if found else None


def _disk(plan: Plan) -> tuple[str, str]:
    """Format and path of a volume for qemu-img."""
    if plan.tool == "lvmthin":
        return "raw", f"/dev/{plan.name}"
    if plan.tool == "zfspool":
        return "raw", f"/dev/zvol/{plan.name}"
    return plan.tool, plan.name


# --- LVM thin: a snapshot of VG/LV is VG/snap_LV_NAME, as Proxmox names it and removes it ---


def render_lv_list(lv: str) -> list[str]:
    columns = ("-o", "lv_name,lv_size", "-O", "lv_time")
    form = ("--noheadings", "--separator", ":", "--units", "b", "--nosuffix")
    return ["lvs", *form, *columns, lv.partition("/")[0]]


def parse_lv_list(said: str) -> dict[str, int]:
    """Names and bytes, oldest first, of what `render_lv_list` makes lvs say."""
    lvs: dict[str, int] = {}
    for line in said.splitlines():
        name, _, size = line.strip().partition(":")
        if size.isdecimal():
            lvs[name] = int(size)
    return lvs


def render_lv_snapshot(lv: str, name: str) -> list[str]:
    return ["lvcreate", "-pr", "-n", _base(_lv_snapshot(lv, name)), "-s", lv]


def render_lv_clone(lv: str, target: str, snapshot: str) -> list[str]:
    """A thin clone: writable, active, and (`-kn`) activated with the others after a reboot."""
    source = _lv_snapshot(lv, snapshot) if snapshot else lv
    return ["lvcreate", "-kn", "-ay", "-prw", "-n", _base(target), "-s", source]


def render_lv_remove(lv: str) -> list[str]:
    return ["lvremove", "-f", "-y", lv]


def render_lv_rollback(lv: str, name: str) -> list[list[str]]:
    """Steps after each of which the whole volume, old or new, is there under some name."""
    old, back = _aside(lv)
    return [
        render_lv_clone(lv, back, name),
        ["lvrename", lv, old],
        ["lvrename", back, lv],
        render_lv_remove(old),
    ]


def plan_lv_repair(lv: str, names: Collection[str]) -> list[list[str]]:
    """What is left to do of a rollback that was cut off after any of its steps."""
    old, back = _aside(lv)
    have_old, have_back = _base(old) in names, _base(back) in names
    steps: list[list[str]] = []
    if _base(lv) not in names and have_old:
        steps.append(["lvrename", back if have_back else old, lv])
        have_old, have_back = have_back, False
    steps += [render_lv_remove(old)] if have_old else []
    return steps + ([render_lv_remove(back)] if have_back else [])


def _aside(lv: str) -> tuple[str, str]:
    group, _, name = lv.partition("/")
    return f"{group}/agentlab-old-{name}", f"{group}/agentlab-back-{name}"


def _lv_snapshot(lv: str, name: str) -> str:
    group, _, volume = lv.partition("/")
    return f"{group}/snap_{volume}_{name}"


def _lvs(lv: str, what: str) -> dict[str, int]:
    return parse_lv_list(_do(render_lv_list(lv), what))


def _base(name: str) -> str:
    return name.rpartition("/")[2]


# --- ZFS: a snapshot is pool/VOLUME@NAME ---


def render_zfs_list(dataset: str) -> list[str]:
    """Snapshots of a dataset, by the transaction that made them: a clock may be wrong."""
    form = ["-H", "-t", "snapshot", "-o", "name", "-s", "createtxg", "-d", "1"]
    return ["zfs", "list", *form, dataset]


def parse_zfs_list(said: str) -> list[str]:
    return [line.rpartition("@")[2].strip() for line in said.splitlines() if "@" in line]


def render_zfs_copy(snapshot: str, target: str) -> list[str]:
    """A whole copy of a snapshot; receive fails, and leaves nothing, when send ends early."""
    script = 'zfs send "$1" | zfs receive -u "$2"'
    return ["/bin/sh", "-c", script, "zfs-copy", snapshot, target]


def _exists(dataset: str, what: str) -> bool:
    parent = dataset.rpartition("/")[0]
    said = _do(["zfs", "list", "-H", "-o", "name", "-d", "1", "-t", "volume", parent], what)
    return dataset in said.split()


def _zfs_names(plan: Plan, what: str) -> list[str]:
    if not _exists(plan.name, what):
        raise NoSuchVolume(f"{what}: there is no such volume")
    names = parse_zfs_list(_do(render_zfs_list(plan.name), what))
    if _COPY in names:
        _do(["zfs", "destroy", f"{plan.name}@{_COPY}"], what)
    return [name for name in names if name != _COPY]


def _clone_dataset(source: str, target: str, snapshot: str, what: str) -> None:
    """The target has its name only when it is whole."""
    parent, _, name = target.rpartition("/")
    new = f"{parent}/agentlab-new-{name}"
    if _exists(new, what):
        _do(["zfs", "destroy", "-r", new], what)
    if _exists(target, what):
        return
    taken = snapshot or _COPY
    if not snapshot:
        _do(["zfs", "snapshot", f"{source}@{_COPY}"], what)
    _do(render_zfs_copy(f"{source}@{taken}", new), what, timeout=_LONG)
    _do(["zfs", "destroy", f"{new}@{taken}"], what)
    _do(["zfs", "rename", new, target], what)
    if not snapshot:
        _do(["zfs", "destroy", f"{source}@{_COPY}"], what)


def _check_name(name: str) -> str:
    """A snapshot's name as Proxmox allows it."""
    if not _SNAPSHOT.fullmatch(name):
        raise Invalid(f"{name!r} is no name for a snapshot", hint="letters, digits, _ and -")
    return name


def _said(verb: Verb) -> str:
    words = {"delete_snapshot": "delete a snapshot of", "snapshots": "list the snapshots of"}
    return {**words, "rollback": "roll back"}.get(verb, verb)


def _do(words: Sequence[str], what: str, *, timeout: float = _QUICK) -> str:
    """What a program says; its complaints as an error that begins with `what`."""
    try:
        return run.run(words, timeout=timeout).text
    except run.CommandFailed as failed:
        said = failed.completed.stderr.decode(errors="replace").strip()
        raise classify(what, 0, said or failed.message) from failed

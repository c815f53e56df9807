"""What a storage is, and which tool works on a volume of it: decided before anything is done.

Names are checked here, so that none of them can be an option or leave its storage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentlab.errors import Invalid, Unavailable, Unsupported
from agentlab.hypervisor.fsck import unsupported_path

Verb = Literal[
    "snapshot", "rollback", "delete_snapshot", "snapshots", "clone", "grow", "copy", "check"
]

# Whose volumes are files below a directory (PVE::Storage::*Plugin): a name has an ending.
FILE_TYPES = ("dir", "nfs", "cifs", "glusterfs", "btrfs")
_FILE = re.compile(r"(?P<vmid>\d+)/vm-(?P=vmid)-[A-Za-z0-9._-]+\.(?P<format>qcow2|raw)")
_DISK = re.compile(r"vm-\d+-[A-Za-z0-9._-]+")
_VG = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]*")
_POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:][A-Za-z0-9_.:-]*)*")


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
    if storage.type in FILE_TYPES:
        found = _FILE.fullmatch(volname)
        directory = Path(storage.path, storage.images)
        if not found or not directory.is_absolute() or ".." in directory.parts:
            raise Invalid(f"cannot {said_of(verb)} volume {name}: not a disk image of a machine")
        if found["format"] == "raw" and verb not in ("grow", "copy", "check"):
            raise Unsupported(
                f"cannot {said_of(verb)} volume {name}: it is a raw file on storage {storage.id} of"
                f" type {storage.type}, which has no snapshots",
                hint="move its content to a new volume: those on such storages are qcow2",
            )
        tool: Literal["qcow2", "raw"] = "qcow2" if found["format"] == "qcow2" else "raw"
        return Plan(tool, str(directory / volname), name)
    if storage.type not in ("lvmthin", "zfspool"):
        if verb == "check":
            raise unsupported_path(name, f"storage {storage.id} is of type {storage.type}")
        raise Unsupported(
            f"cannot {said_of(verb)} volume {name}: storage {storage.id} is of type {storage.type}",
            hint="keep volumes on a storage of type dir, nfs, cifs, btrfs, lvmthin or zfspool",
        )
    parent, rule = (
        (storage.vgname, _VG) if storage.type == "lvmthin" else (storage.pool, _POOL)
    )  # fmt: skip
    if not _DISK.fullmatch(volname) or not rule.fullmatch(parent) or ".." in parent.split("/"):
        raise Invalid(f"cannot {said_of(verb)} volume {name}: not a disk of a machine")
    return Plan("lvmthin" if storage.type == "lvmthin" else "zfspool", f"{parent}/{volname}", name)


def said_of(verb: Verb) -> str:
    words = {"delete_snapshot": "delete a snapshot of", "snapshots": "list the snapshots of"}
    return {**words, "rollback": "roll back"}.get(verb, verb)

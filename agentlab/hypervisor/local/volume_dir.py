"""A volume's directory: its record, which says whose it is, and its image."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from agentlab.errors import Invalid
from agentlab.hypervisor.local.owned_dir import OwnedDir

STORAGE = "local"  # the only one; a volid begins with its name, as Proxmox's do
RECORD = "volume.json"
IMAGE = "disk.qcow2"
FORMAT = 1

_OWNER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_VOLID = re.compile(rf"{STORAGE}:vm-(?P<number>[1-9][0-9]{{0,8}})-agentlab-(?P<owner>{_OWNER})")


def volume_id(number: int, owner: str) -> str:
    """The name of a volume, with its owner in it; Invalid when the owner could not stand there."""
    volid = f"{STORAGE}:vm-{number}-agentlab-{owner}"
    if not _VOLID.fullmatch(volid):
        raise Invalid(f"not the number and owner of a volume: {number}, {owner!r}")
    return volid


def parse_volid(volid: str) -> tuple[int, str]:
    """Number and owner that a volume's name carries; (0, "") for a stranger's."""
    found = _VOLID.fullmatch(volid)
    return (int(found["number"]), found["owner"]) if found else (0, "")


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """All that is known of a volume beside its image; the file `volume.json` is this."""

    number: int
    owner: str
    # The snapshot that its content is being put back to: until that is done, it is neither the
    # old one nor the new one, and whoever comes next ends it first.
    rollback: str = ""


def render_record(record: VolumeRecord) -> bytes:
    return json.dumps({"format": FORMAT, **asdict(record)}, indent=1).encode() + b"\n"


def parse_record(content: bytes) -> VolumeRecord:
    """Raises ValueError for anything that `render_record` did not write."""
    try:
        document: dict[str, Any] = json.loads(content)
        if document.pop("format") != FORMAT:
            raise ValueError("not a volume record of this format")
        record = VolumeRecord(**document)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a volume record: {error}") from error
    words = (record.owner, record.rollback)
    if not isinstance(record.number, int) or not all(isinstance(word, str) for word in words):
        raise ValueError("not a volume record: a value has the wrong type")
    return record


@dataclass(frozen=True, slots=True)
class VolumeDir(OwnedDir[VolumeRecord]):
    """The directory of one volume."""

    noun: ClassVar[str] = "volume"
    record_name: ClassVar[str] = RECORD
    other_range: ClassVar[str] = "choose another range of numbers for volumes in the configuration"

    def parse(self, content: bytes) -> VolumeRecord:
        return parse_record(content)

    def render(self, record: VolumeRecord) -> bytes:
        return render_record(record)

    def number_of(self, record: VolumeRecord) -> int:
        return record.number

    @property
    def image(self) -> Path:
        return self.path / IMAGE

"""The check of an ext4 file system on a volume that no machine has, on the host.

An image is seen as a disk through qemu-storage-daemon's FUSE export, which holds QEMU's own lock
on it: a QEMU that has the image open is not disturbed.  All of it is in namespaces that end with
us, so that nothing stays mounted or running whatever happens.  `fsck_script.py` has the steps.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentlab import run
from agentlab.clock import Deadline
from agentlab.errors import Busy, NotFound, Unavailable, Unsupported
from agentlab.hypervisor.base import FileSystem, VolumeCheck
from agentlab.hypervisor.fsck_script import SCRIPT

TEXT = 16 << 10  # bytes of what e2fsck says that are kept: the end of it
REMEDY = "use a maintenance sandbox, or run fsck manually on the storage host"

_TIMEOUT = 2 * 3600.0
_SLACK = 60.0  # for all that is not e2fsck
_MEMORY = 4 << 30  # bytes of address space: e2fsck takes some hundred MiB for a TiB
_PATIENCE = 30.0  # for a program that a killed daemon left, and that ends soon
_PROGRAMS = ("e2fsck", "dumpe2fs", "blkid", "setpriv", "unshare", "prlimit")
_FACTS = re.compile(
    r"facts type=(?P<type>[\w-]*) empty=(?P<empty>[01]) journal=(?P<journal>[01])"
    r" errors=(?P<errors>[01]) statuses=(?P<statuses>[0-9,]*)"
)
_SEEN = "/tmp/volume"  # noqa: S108  # what the script calls it, on a tmpfs of its own
_EXT = ("ext2", "ext3", "ext4")
_ALONE = ("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
          "--net", "--ipc", "--uts")  # fmt: skip


def unsupported_path(volume: str, why: str) -> Unsupported:
    """The refusal of a volume that cannot be checked from here."""
    return Unsupported(
        f"cannot check the file system of volume {volume}: unsupported volume path: {why}",
        hint=REMEDY,
    )


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen: `type` by blkid, "" for nothing that it knows; e2fsck's statuses in turn.

    `empty`: zeros wherever a file system begins or keeps a copy of its superblock.
    `journal`: it was not replayed.  `errors`: the kernel has noted an error.
    """

    type: str
    empty: bool
    journal: bool
    errors: bool
    statuses: tuple[int, ...]


def parse_facts(said: str) -> tuple[str, Facts] | None:
    """What e2fsck said, and the facts of the last line; None when the script was cut off."""
    text, _, last = said.rstrip("\n").rpartition("\n")
    found = _FACTS.fullmatch(last)
    if not found:
        return None
    statuses = tuple(int(each) for each in found["statuses"].split(",") if each)
    empty, journal, errors = (found[word] == "1" for word in ("empty", "journal", "errors"))
    return text, Facts(found["type"], empty, journal, errors, statuses)


def judge(facts: Facts, *, repair: bool) -> tuple[FileSystem, str]:
    """The state, and what is to be said of it besides e2fsck's words."""
    if facts.type and facts.type not in _EXT:
        return FileSystem.UNREPAIRABLE, f"it holds {facts.type}, not ext4: nothing was done to it"
    if facts.empty:
        return FileSystem.BLANK, "nothing was ever written to it: it has no file system yet"
    notes = []
    if facts.journal:
        notes.append("its journal was not replayed yet: it was in use when its machine ended")
    if facts.errors:
        notes.append("the kernel has noted an error in it")
    if not facts.type:
        notes.append("its superblock is gone, and something was written to it")
    first, last = (facts.statuses[0], facts.statuses[-1]) if facts.statuses else (-1, -1)
    if last not in (0, 1, 4):
        notes.append(f"e2fsck ended with status {last}")
    note = "; ".join(notes)
    if not repair:
        # its status is 0 also when it looked at a file system without its journal
        return (FileSystem.NEEDS_REPAIR if first or notes else FileSystem.CLEAN), note
    if last:
        return FileSystem.UNREPAIRABLE, note
    return (FileSystem.REPAIRED if first or notes else FileSystem.CLEAN), note


def check_image(
    path: Path, form: Literal["qcow2", "raw"], volume: str, *, repair: bool
) -> VolumeCheck:
    """Of an image file; `volume` is its name for people.

    Unsupported where this host cannot, Busy while another process has it open.
    """
    _need_programs(volume, "qemu-storage-daemon")
    if not path.is_file():
        raise NotFound(f"cannot check volume {volume}: there is no such volume")
    said = run.run(["qemu-storage-daemon", "--help"], timeout=60, check=False).text
    if "fuse" not in said or not Path("/dev/fuse").exists():
        raise unsupported_path(volume, "this host's qemu-storage-daemon has no FUSE export")
    only = not repair
    file = {"driver": "file", "filename": str(path), "read-only": only}
    node = {"driver": form, "node-name": "volume", "read-only": only, "file": file}
    export = {"type": "fuse", "id": "volume", "node-name": "volume", "mountpoint": str(path),
              "writable": repair, "allow-other": "on"}  # fmt: skip
    deadline = Deadline.after(_PATIENCE)
    while True:
        words = (json.dumps(node), json.dumps(export))
        done = _run("image", path, repair, *words)
        if done.status == 0 or b" lock" not in done.stderr or b"Failed to get" not in done.stderr:
            return _tell(done, volume, repair)
        if deadline.passed:
            raise Busy(f"cannot check volume {volume}: another process has it open")
        time.sleep(0.2)


def check_device(path: Path, volume: str, *, repair: bool) -> VolumeCheck:
    """Of a block device; Unsupported when it is none."""
    _need_programs(volume)
    try:
        if not stat.S_ISBLK(path.stat().st_mode):
            raise unsupported_path(volume, f"{path} is no block device")
    except FileNotFoundError:
        raise unsupported_path(volume, f"there is no {path}") from None
    return _tell(_run("device", path, repair), volume, repair)


def _need_programs(volume: str, *more: str) -> None:
    if os.geteuid() != 0:
        raise unsupported_path(volume, "checking it takes root on its host")
    for program in (*_PROGRAMS, *more):
        if not shutil.which(program):
            raise unsupported_path(volume, f"this host has no {program}")


def _run(kind: str, path: Path, repair: bool, *words: str) -> run.Completed:
    values: tuple[str | Path, ...] = (
        kind,
        path,
        str(int(repair)),
        f"{_TIMEOUT:.0f}",
        str(_MEMORY),
        *words,
    )
    # unshare dies with us, and with it the first process of the namespaces, and so all of them
    alone = ("setpriv", "--pdeathsig", "KILL", "unshare", *_ALONE)
    argv: list[str | Path] = [*alone, "/bin/sh", "-c", SCRIPT, "fsck", *values]
    return run.run(argv, timeout=_TIMEOUT + _SLACK, check=False)


def _tell(done: run.Completed, volume: str, repair: bool) -> VolumeCheck:
    found = parse_facts(done.text) if done.status == 0 else None
    if found is None:
        said = printable(done.stderr.decode(errors="replace"))[-2000:].strip()
        if done.status == 3 and re.search("fuse|mount", said, re.IGNORECASE):
            raise unsupported_path(volume, f"it cannot be exported by FUSE: {said}")
        raise Unavailable(
            f"cannot check the file system of volume {volume}: {said or f'status {done.status}'}"
        )
    text, facts = found
    if 128 + 9 in facts.statuses:
        raise Unavailable(
            f"cannot check the file system of volume {volume}: e2fsck was killed, after"
            f" {_TIMEOUT / 3600:g} hours or for its memory",
            hint=REMEDY,
        )
    state, note = judge(facts, repair=repair)
    words = printable(text).replace(_SEEN, volume).strip().encode()
    rest = max(0, TEXT - len(note.encode()) - 1)
    end = words[max(0, len(words) - rest) :].decode(errors="ignore")
    return VolumeCheck(state, "\n".join(part for part in (note, end) if part))


def printable(text: str) -> str:
    """The text with controls escaped, except of ends of lines and tabs."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )

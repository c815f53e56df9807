"""Disk images by qemu-img: overlays, sizes and internal snapshots of machines without power."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

from agentlab import run
from agentlab.clock import Deadline
from agentlab.errors import Busy, Unavailable
from agentlab.hypervisor.qemu_img import Progress, convert, render_convert

_TIMEOUT = 120.0
_CHANGE = 12 * 3600.0  # killed and begun again, a change of much metadata would never end
_PATIENCE = 30.0
_MIB = 1 << 20


def create_overlay(path: Path, backing: Path) -> None:
    """An empty image that reads what `backing` holds, which must never change from now on."""
    over = ("-f", "qcow2", "-F", "qcow2", "-b", backing)
    run.run(["qemu-img", "create", "-q", *over, path], timeout=_TIMEOUT)


def create_empty(path: Path, mib: int) -> None:
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{mib}M"], timeout=_TIMEOUT)


def create_copy(path: Path, source: Path) -> None:
    """An image of its own with the same content."""
    run.run(["qemu-img", "convert", "-q", "-O", "qcow2", source, path], timeout=15 * 60)


def copy_volume(path: Path, source: Path, snapshot: str, progress: Progress | None) -> None:
    """An image of its own with the content of now, or of a snapshot; none of its snapshots."""
    convert(render_convert(source, path, snapshot), progress)


def change_backing(path: Path, backing: Path) -> None:
    """Puts an image with nothing of its own on top of another one."""
    over = ("-f", "qcow2", "-F", "qcow2", "-b", backing)
    run.run(["qemu-img", "rebase", "-q", "-u", *over, path], timeout=_TIMEOUT)


def size(path: Path) -> int:
    """The size that the guest sees, in MiB, rounded up."""
    return -(-int(_info(path)["virtual-size"]) // _MIB)


def header_size(path: Path) -> int:
    """As `size`, from the image's own header (qcow2.txt of QEMU): also while a QEMU has it."""
    with path.open("rb") as file:
        magic, size = struct.unpack(">4s20xQ", file.read(32).ljust(32, b"\0"))
    if magic != b"QFI\xfb":
        raise Unavailable(f"cannot read {path}: it is no qcow2 image")
    return -(-int(size) // _MIB)


def grow(path: Path, mib: int) -> None:
    """Makes the disk at least so large; never smaller."""
    if size(path) < mib:
        _change("resize", "-q", "-f", "qcow2", path, f"{mib}M", within=_TIMEOUT)


def snapshots(path: Path) -> list[str]:
    """Names, oldest first."""
    return [str(entry["name"]) for entry in _info(path).get("snapshots", [])]


def take_snapshot(path: Path, name: str) -> None:
    _change("snapshot", "-q", "-c", name, path)


def apply_snapshot(path: Path, name: str) -> None:
    _change("snapshot", "-q", "-a", name, path)


def delete_snapshot(path: Path, name: str) -> None:
    _change("snapshot", "-q", "-d", name, path)


def mend_leaks(path: Path) -> None:
    """Gives back the room that a qemu-img which was killed had taken and not used."""
    _change("check", "-q", "-f", "qcow2", "-r", "leaks", path)


def _change(*words: str | Path, within: float = _CHANGE) -> None:
    """Runs qemu-img once nobody else has the image: one that a killed daemon left ends soon."""
    deadline = Deadline.after(_PATIENCE)
    while True:
        try:
            run.run(["qemu-img", *words], timeout=within)
        except run.CommandFailed as failed:
            if b'Failed to get "write" lock' not in failed.completed.stderr:
                raise
            if deadline.passed:
                raise Busy(f"cannot change {words[-1]}: another process has it open") from failed
            time.sleep(0.1)
        else:
            return


def _info(path: Path) -> dict[str, Any]:
    # -U: what is read here is whole also while a QEMU has the image open
    done = run.run(["qemu-img", "info", "-U", "--output=json", path], timeout=_TIMEOUT)
    try:
        document = json.loads(done.stdout)
    except ValueError as error:
        raise Unavailable(f"cannot read {path}: qemu-img said what is not JSON") from error
    if not isinstance(document, dict):
        raise Unavailable(f"cannot read {path}: qemu-img gave no object")
    return document

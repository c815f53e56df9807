"""Disk images by qemu-img: overlays, sizes and internal snapshots of machines without power."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentlab import run
from agentlab.errors import Unavailable

_TIMEOUT = 120.0
_MIB = 1 << 20


def create_overlay(path: Path, backing: Path) -> None:
    """An empty image that reads what `backing` holds, which must never change from now on."""
    over = ("-f", "qcow2", "-F", "qcow2", "-b", backing)
    run.run(["qemu-img", "create", "-q", *over, path], timeout=_TIMEOUT)


def create_copy(path: Path, source: Path) -> None:
    """An image of its own with the same content."""
    run.run(["qemu-img", "convert", "-q", "-O", "qcow2", source, path], timeout=15 * 60)


def change_backing(path: Path, backing: Path) -> None:
    """Puts an image with nothing of its own on top of another one."""
    over = ("-f", "qcow2", "-F", "qcow2", "-b", backing)
    run.run(["qemu-img", "rebase", "-q", "-u", *over, path], timeout=_TIMEOUT)


def size(path: Path) -> int:
    """The size that the guest sees, in MiB, rounded up."""
    return -(-int(_info(path)["virtual-size"]) // _MIB)


def grow(path: Path, mib: int) -> None:
    """Makes the disk at least so large; never smaller."""
    if size(path) < mib:
        run.run(["qemu-img", "resize", "-q", "-f", "qcow2", path, f"{mib}M"], timeout=_TIMEOUT)


def snapshots(path: Path) -> list[str]:
    """Names, oldest first."""
    return [str(entry["name"]) for entry in _info(path).get("snapshots", [])]


def take_snapshot(path: Path, name: str) -> None:
    run.run(["qemu-img", "snapshot", "-q", "-c", name, path], timeout=_TIMEOUT)


def apply_snapshot(path: Path, name: str) -> None:
    run.run(["qemu-img", "snapshot", "-q", "-a", name, path], timeout=_TIMEOUT)


def delete_snapshot(path: Path, name: str) -> None:
    run.run(["qemu-img", "snapshot", "-q", "-d", name, path], timeout=_TIMEOUT)


def _info(path: Path) -> dict[str, Any]:
    done = run.run(["qemu-img", "info", "--output=json", path], timeout=_TIMEOUT)
    try:
        document = json.loads(done.stdout)
    except ValueError as error:
        raise Unavailable(f"cannot read {path}: qemu-img said what is not JSON") from error
    if not isinstance(document, dict):
        raise Unavailable(f"cannot read {path}: qemu-img gave no object")
    return document

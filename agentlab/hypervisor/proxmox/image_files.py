"""Volumes that are files below a storage's directory: what qemu-img does to them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Any

from agentlab import run
from agentlab.errors import Conflict, Unavailable
from agentlab.hypervisor import qemu_img
from agentlab.hypervisor.proxmox import tool
from agentlab.hypervisor.proxmox.storage_plan import Plan
from agentlab.hypervisor.proxmox.transport import NoSuchVolume, classify
from agentlab.hypervisor.qemu_img import Progress

_NEW = ".agentlab-new"  # no ending of an image, so that Proxmox does not list it


def info(plan: Plan, what: str) -> dict[str, Any]:
    if not Path(plan.name).is_file():
        raise NoSuchVolume(f"{what}: there is no such volume")
    # -U: what is read here is whole also while a QEMU has the image open
    said = tool.do(["qemu-img", "info", "-U", "--output=json", "-f", plan.tool, plan.name], what)
    try:
        document = json.loads(said)
    except ValueError as error:
        raise Unavailable(f"{what}: qemu-img said what is not JSON") from error
    if not isinstance(document, dict) or "virtual-size" not in document:
        raise Unavailable(f"{what}: qemu-img gave something else")
    if "backing-filename" in document:
        raise Conflict(f"{what}: it lies on another image, which ours never do")
    return document


def clone_file(
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
        convert(qemu_img.render_convert(source, new, snapshot), what, progress)
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


def convert(words: list[str], what: str, progress: Progress | None) -> None:
    """`qemu-img convert` with these arguments; its complaint as an error that begins with `what`."""
    try:
        qemu_img.convert(words, progress)
    except run.CommandFailed as failed:
        said = failed.completed.stderr.decode(errors="replace")
        raise classify(what, 0, said or failed.message) from failed

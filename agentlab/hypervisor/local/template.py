"""The template: its key, its files, how it is built, and when an old one may go.

`template_dir/<key>/` holds disk.qcow2, vmlinuz, initrd and manifest.json, is made whole or not
at all, and never changes: machines read the disk through their overlays.  A key names the recipe
and the runner, so daemons of different versions can share one template directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentlab import run
from agentlab.clock import now
from agentlab.errors import NotFound
from agentlab.hypervisor.files import (
    locked,
    new_directory,
    remove_tree,
    sweep,
    sync_directory,
    sync_tree,
    try_lock,
    write_durable,
)
from agentlab.hypervisor.image import recipe
from agentlab.hypervisor.image.root import RUNNER, unpack_root
from agentlab.hypervisor.image.rootfs import ensure_rootfs, rootfs_key

NAME = "debian-12"
DISK_MIB = 8192  # what the guest sees; the file holds only what is used
BUILD_TIMEOUT = 45 * 60.0
_FORMAT = "1"
_KEEP = 2
_REST = 24 * 3600.0  # seconds without a clone or a build, before a template may go
_USED_BY = "used-by"


@dataclass(frozen=True, slots=True)
class TemplateInfo:
    """A template that is there."""

    name: str
    key: str
    path: Path
    made: float  # seconds since the epoch

    @property
    def disk(self) -> Path:
        return self.path / "disk.qcow2"

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd"


def template_key(runner: bytes) -> str:
    """Names what a template holds: the recipe, and the runner (a zipapp for the guest's Python)."""
    digest = hashlib.sha256(f"{_FORMAT}\n{rootfs_key()}\n{DISK_MIB}\n".encode())
    for name, content in [*recipe.tree(), (RUNNER, runner)]:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def load_template(template_dir: Path, key: str) -> TemplateInfo:
    """The template with this key; NotFound when it was never built here."""
    path = template_dir.resolve() / key
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        return TemplateInfo(str(manifest["name"]), key, path, float(manifest["made"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFound(
            f"there is no template {key[:12]} in {template_dir}", hint="build the template first"
        ) from error


def build_template(
    template_dir: Path, runner: bytes, *, on_step: Callable[[str], None]
) -> TemplateInfo:
    """Builds the template of this recipe and runner, or returns at once when it is there.

    Takes minutes the first time, seconds when only the runner changed.  Builders of one
    directory wait for each other.  `on_step` is told what is being done, in a few words.
    """
    template_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    key = template_key(runner)
    with locked(template_dir / "build.lock", timeout=BUILD_TIMEOUT, what="the template build"):
        sweep(template_dir)
        try:
            found = load_template(template_dir, key)
        except NotFound:
            pass
        else:
            os.utime(found.path)
            return found
        rootfs = ensure_rootfs(template_dir, on_step)
        on_step("making the template's disk")
        begun = time.monotonic()
        with new_directory(template_dir, key) as work:
            _make_image(work, rootfs, runner)
            manifest = {"format": _FORMAT, "name": NAME, "key": key, "made": now()}
            write_durable(work / "manifest.json", json.dumps(manifest).encode(), mode=0o644)
            work.chmod(0o755)
            sync_tree(work)
            work.rename(template_dir / key)
            sync_directory(template_dir)
        on_step(f"the template is ready ({time.monotonic() - begun:.0f} s)")
        _prune(template_dir, keep=key)
        return load_template(template_dir, key)


def _make_image(work: Path, rootfs: Path, runner: bytes) -> None:
    root, raw = work / "root", work / "raw"
    unpack_root(rootfs, root, runner)
    for name in ("vmlinuz", "initrd"):
        newest = max((root / "boot").glob(f"{name}*"))
        shutil.copyfile(newest, work / name)
        newest.unlink()
    with raw.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    ext4 = ("-t", "ext4", "-m", "0", "-L", "root", "-d", root)
    run.run(["mke2fs", "-q", "-F", *ext4, raw], timeout=600)
    qcow2 = ("-f", "raw", "-O", "qcow2", raw, work / "disk.qcow2")
    run.run(["qemu-img", "convert", "-q", *qcow2], timeout=600)
    raw.unlink()
    shutil.rmtree(root)


def mark_used(template: TemplateInfo, uuid: str, record: Path) -> None:
    """Says that a machine reads this template, for as long as its record is there."""
    folder = template.path / _USED_BY
    folder.mkdir(exist_ok=True)
    link = folder / uuid
    if not link.is_symlink():
        link.symlink_to(record)
    os.utime(template.path)


def unmark_used(template_dir: Path, key: str, uuid: str) -> None:
    (template_dir / key / _USED_BY / uuid).unlink(missing_ok=True)


def _prune(template_dir: Path, keep: str) -> None:
    """Removes templates that no machine reads and nobody has asked for in a day, but for two."""
    made = [manifest.parent for manifest in template_dir.glob("[0-9a-f]*/manifest.json")]
    made.sort(key=lambda path: path.stat().st_mtime)
    for path in made[:-_KEEP]:
        if path.name == keep or now() - path.stat().st_mtime < _REST:
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # A clone holds the lock from before its link is made until its record is in place.
            if try_lock(descriptor) and not any(link.exists() for link in path.glob("used-by/*")):
                remove_tree(path)
        finally:
            os.close(descriptor)

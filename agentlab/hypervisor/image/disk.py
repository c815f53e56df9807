"""A disk that boots by itself, from the recipe: for hypervisors that load no kernel.

`template_dir/disk-<key>/` holds disk.qcow2 and manifest.json, and is made whole or not at all.
The key names the recipe and the runner.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_OID, UUID, uuid5

from agentlab import run
from agentlab.clock import now
from agentlab.hypervisor.files import (
    locked,
    new_directory,
    remove_tree,
    sweep,
    sync_directory,
    sync_tree,
    write_durable,
)
from agentlab.hypervisor.image import grub, recipe
from agentlab.hypervisor.image.root import RUNNER, put, unpack_root
from agentlab.hypervisor.image.rootfs import ensure_rootfs, rootfs_key

DISK_MIB = 8192  # what the guest sees; the file holds only what is used
_FORMAT = "1"
_BUILD_TIMEOUT = 45 * 60.0
# GRUB of the building host reads it, and may be older than its mke2fs.
_EXT4 = "^orphan_file,^metadata_csum_seed"


@dataclass(frozen=True, slots=True)
class DiskImage:
    """An image that is there."""

    key: str
    path: Path  # a qcow2 file without a backing file


def disk_key(runner: bytes) -> str:
    """Names what the disk holds: the recipe, the boot loader's settings, and the runner."""
    head = (_FORMAT, rootfs_key(), str(DISK_MIB), _EXT4, grub.render_config("").decode())
    digest = hashlib.sha256("\n".join(head).encode())
    for name, content in [*recipe.tree(), (RUNNER, runner)]:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def build_disk(template_dir: Path, runner: bytes, *, on_step: Callable[[str], None]) -> DiskImage:
    """Builds the disk of this recipe and runner, or returns at once when it is there.

    Others in the directory are removed: once imported, nobody needs them.  `on_step` is told what
    is being done, in a few words.
    """
    template_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    key = disk_key(runner)
    place = template_dir / f"disk-{key}"
    what = "the template build"
    with locked(template_dir / "build.lock", timeout=_BUILD_TIMEOUT, what=what):
        sweep(template_dir)
        if (place / "manifest.json").exists():
            return DiskImage(key, place / "disk.qcow2")
        rootfs = ensure_rootfs(template_dir, on_step)
        on_step("making the template's disk")
        begun = time.monotonic()
        with new_directory(template_dir, place.name) as work:
            _make(work, rootfs, runner, uuid5(NAMESPACE_OID, key))
            manifest = {"format": _FORMAT, "key": key, "made": now()}
            write_durable(work / "manifest.json", json.dumps(manifest).encode(), mode=0o644)
            work.chmod(0o755)
            sync_tree(work)
            work.rename(place)
            sync_directory(template_dir)
        on_step(f"the template's disk is ready ({time.monotonic() - begun:.0f} s)")
        for other in template_dir.glob("disk-*"):
            if other != place:
                remove_tree(other)
    return DiskImage(key, place / "disk.qcow2")


def _make(work: Path, rootfs: Path, runner: bytes, uuid: UUID) -> None:
    root, raw = work / "root", work / "raw"
    unpack_root(rootfs, root, runner)
    put(root / grub.CONFIG, grub.render_config(str(uuid)), 0o644)
    put(root / "etc/fstab", render_fstab(str(uuid)), 0o644)
    with raw.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    make_filesystem(root, raw, str(uuid))
    grub.install(raw, work, uuid.fields[0])
    shutil.rmtree(root)
    qcow2 = ("-f", "raw", "-O", "qcow2", raw, work / "disk.qcow2")
    run.run(["qemu-img", "convert", "-q", *qcow2], timeout=600)
    raw.unlink()


def render_fstab(uuid: str) -> bytes:
    return f"UUID={uuid} / ext4 errors=remount-ro,noatime 0 1\n".encode()


def make_filesystem(root: Path, disk: Path, uuid: str) -> None:
    """Makes the ext4 file system of the disk's only partition, filled from a directory."""
    offset = grub.FIRST * grub.SECTOR
    blocks = (disk.stat().st_size - offset) >> 12
    place = ("-b", "4096", "-E", f"offset={offset},hash_seed={uuid}", "-U", uuid, "-O", _EXT4)
    ext4 = ("-t", "ext4", "-m", "0", "-L", "root", *place, "-d", root)
    run.run(["mke2fs", "-q", "-F", *ext4, disk, str(blocks)], timeout=600)

"""A copy of an operator's cloud image with what sandboxes need: guest agent, git, Python, runner.

The copy's root file system is mounted through a loop device, in a mount and a process namespace
of its own: whatever happens to us, nothing stays mounted and nothing goes on running.  What is
done inside is in recipe/adapt.sh.  The operator's file is only read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agentlab import run
from agentlab.errors import Invalid, NotFound, Unsupported
from agentlab.hypervisor.files import locked, new_directory, remove_tree, sweep, sync_tree
from agentlab.hypervisor.image import recipe
from agentlab.hypervisor.image.root import RUNNER, put

_FORMAT = "1"
_TIMEOUT = 45 * 60.0
_SCRIPT = "adapt.sh"
_AS_THEY_ARE = (
    "etc/systemd/system/agentlab-runner.service",
    "etc/systemd/system/agentlab-work.service",
    "etc/systemd/system.conf.d/agentlab.conf",
    "etc/systemd/system/cloud-init.service.d/agentlab.conf",
    "usr/local/lib/agentlab/resolv-conf",
)
_FORMATS = ("qcow2", "raw")
# Of sfdisk: the types that may hold a root file system, by GPT's and by MBR's names.
_LINUX = (
    "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",  # root on x86-64
    "0FC63DAF-8483-4772-8E79-3D69D8477DE4",  # Linux
    "83",
)

_CLOUD = b"""\
# Of AgentLab.  Short, and without upgrades: a sandbox lives for minutes.
datasource_list: [NoCloud, ConfigDrive]
cloud_config_modules: [set-passwords, timezone, runcmd]
cloud_final_modules: [scripts-per-once, scripts-per-boot, scripts-per-instance, scripts-user]
"""


@dataclass(frozen=True, slots=True)
class Partition:
    """Where a file system is on a disk, in bytes."""

    start: int
    size: int


def adapted_key(source: Path, runner: bytes) -> str:
    """Names what an adapted image holds; reads all of the file."""
    digest = hashlib.sha256(f"adapted {_FORMAT}\n".encode())
    try:
        with source.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise NotFound(f"cannot read {source}: {error.strerror}") from error
    for name, content in _files(runner).items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    digest.update(recipe.read(_SCRIPT))
    return digest.hexdigest()[:32]


def parse_partitions(document: str) -> Partition:
    """The root partition, of `sfdisk --json`: the largest of those that may be it."""
    try:
        table = json.loads(document)["partitiontable"]
        sector = int(table.get("sectorsize", 512))
        found = [
            Partition(int(each["start"]) * sector, int(each["size"]) * sector)
            for each in table["partitions"]
            if str(each["type"]).upper() in _LINUX
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid("cannot read the partitions of the image") from error
    if not found:
        raise Unsupported("cannot adapt the image: it has no Linux partition")
    return max(found, key=lambda each: each.size)


def check_image(info: str, source: Path) -> str:
    """The format, of `qemu-img info`; Invalid for an image that needs other files."""
    try:
        found = json.loads(info)
        kind, more = str(found["format"]), found.get("format-specific", {}).get("data", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Invalid(f"cannot read {source}: not a disk image") from error
    if kind not in _FORMATS:
        raise Unsupported(
            f"cannot use {source}: a {kind} image",
            hint=f"convert it: qemu-img convert -O qcow2 {source.name} {source.stem}.qcow2",
        )
    if "backing-filename" in found or "data-file" in more:
        raise Invalid(
            f"cannot use {source}: it needs another file, which it names",
            hint="make it whole: qemu-img convert -O qcow2",
        )
    return kind


def adapt_image(
    template_dir: Path, source: Path, runner: bytes, on_step: Callable[[str], None]
) -> Path:
    """The qcow2 file `template_dir/image-<key>/disk.qcow2`, made when it is not there.

    Other adapted images in the directory are removed: once imported, nobody needs them.
    """
    template_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    place = template_dir / f"image-{adapted_key(source, runner)}"
    what = "the template build"
    with locked(template_dir / "build.lock", timeout=_TIMEOUT, what=what):
        sweep(template_dir)
        if (place / "disk.qcow2").exists():
            return place / "disk.qcow2"
        begun = time.monotonic()
        with new_directory(template_dir, place.name) as work:
            _adapt(work, source, runner, on_step)
            sync_tree(work)
            work.rename(place)
        on_step(f"the image is adapted ({time.monotonic() - begun:.0f} s)")
        for other in template_dir.glob("image-*"):
            if other != place:
                remove_tree(other)
    return place / "disk.qcow2"


def _adapt(work: Path, source: Path, runner: bytes, on_step: Callable[[str], None]) -> None:
    info = run.run(["qemu-img", "info", "--output=json", source], timeout=60, check=False)
    kind = check_image(info.text, source)
    on_step(f"copying {source.name}")
    raw, mount, files = work / "raw", work / "mnt", work / "files"
    run.run(["qemu-img", "convert", "-f", kind, "-O", "raw", source, raw], timeout=1800)
    listed = run.run(["sfdisk", "--json", raw], timeout=60, check=False)
    if listed.status != 0:
        raise Unsupported(
            f"cannot adapt {source}: it has no partition table",
            hint="use an image that boots by itself, as distributions make for clouds",
        )
    root = parse_partitions(listed.text)
    mount.mkdir()
    for name, content in _files(runner).items():
        put(files / name, content, 0o755 if name == RUNNER else 0o644)
    script = work / _SCRIPT
    script.write_bytes(recipe.read(_SCRIPT))
    on_step("installing what is missing")
    alone = ("--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
    words = (raw, str(root.start), str(root.size), mount, files)
    done = run.run(["unshare", *alone, "/bin/sh", script, *words], timeout=_TIMEOUT, check=False)
    _raise_said(source, done)
    disk = ("-f", "raw", "-O", "qcow2", raw, work / "disk.qcow2")
    run.run(["qemu-img", "convert", "-q", *disk], timeout=1800)
    for path in (raw, script):
        path.unlink()
    shutil.rmtree(files)
    mount.rmdir()


def _raise_said(source: Path, done: run.Completed) -> None:
    """What the script says of itself is a line `adapt: …`; all else is of the programs it ran."""
    if done.status == 0:
        return
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    own = [line.removeprefix("adapt: ") for line in lines if line.startswith("adapt: ")]
    said = own[-1] if own else " | ".join(lines[-3:]) or f"status {done.status}"
    raise Unsupported(
        f"cannot adapt {source}: {said}",
        hint="or build the template from the recipe: agentlab template build without --image",
    )


def _files(runner: bytes) -> Mapping[str, bytes]:
    """What is put into the image, by path from its root."""
    tree = dict(recipe.tree())
    return {
        RUNNER: runner,
        **{name: tree[name] for name in _AS_THEY_ARE},
        "etc/cloud/cloud.cfg.d/99-agentlab.cfg": _CLOUD,
    }

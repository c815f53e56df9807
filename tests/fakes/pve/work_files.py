"""Volumes of a number of their own as real qcow2 files; machines' own disks are names only.

So root's tools (`NodeTools`) work on them for real, while a thousand machines cost nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from fakepve import schema
from fakepve.model import TaskError
from fakepve.server import API

from agentlab.errors import AgentLabError
from agentlab.hypervisor.local.images import header_size
from tests.fakes.pve.node import ProxmoxNode

BLOCK = 512  # bytes at the beginning of a volume, which stand for all that is in it
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_UNSHARED_WRITE = 201  # the byte by which QEMU says that nobody else may write to an image


class WorkFiles(ProxmoxNode):
    """`shelve` says where the files are; what root's tools make there is seen at once."""

    shelf: Path | None = None

    def shelve(self, directory: Path) -> None:
        self.storages[self.storage]["path"] = str(directory)
        self.shelf = directory / "images"
        self.shelf.mkdir(parents=True)

    def file_of(self, volid: str) -> Path:
        assert self.shelf is not None
        return self.shelf / volid.partition(":")[2]

    async def _fault_for(self, request: Any, match: Any) -> Any:
        """A volume's name has a slash, with which fakepve's table finds no line."""
        if match is None and "/content/" in request.path:
            path = re.sub(r"(?<=/content/)([^/]+)/", r"\1%2F", request.path.removeprefix(API))
            match = schema.load().match(path)
        return await super()._fault_for(request, match)

    def _scan(self) -> None:
        if self.shelf is None:
            return
        known = self.storages[self.storage]["volumes"]
        for path in self.shelf.glob("*/vm-*-agentlab-*.qcow2"):
            with contextlib.suppress(FileNotFoundError, AgentLabError):  # it is being made
                name, size = f"{path.parent.name}/{path.name}", header_size(path) << 20
                facts = {"content": "images", "format": "qcow2", "vmid": int(path.parent.name)}
                known.setdefault(name, {**facts, "ctime": 0})["size"] = size

    def _volumes(self, name: str) -> Any:
        self._scan()
        return super()._volumes(name)

    def _qm_volume(self, volid: str) -> Any:
        if "-agentlab-" in volid:
            self._scan()
        return super()._qm_volume(volid)

    def on_allot(self, volid: str, size: int) -> None:
        if "-agentlab-" in volid and self.shelf is not None:
            path = self.file_of(volid)
            path.parent.mkdir(exist_ok=True)
            run_image("create", "-q", "-f", "qcow2", path, str(size))

    def on_free(self, volid: str) -> None:
        if "-agentlab-" in volid and self.shelf is not None:
            path = self.file_of(volid)
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def run_image(*words: object) -> str:
    """`qemu-img`; TaskError with its complaint."""
    done = subprocess.run(
        ["qemu-img", *(str(word) for word in words)], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise TaskError(f"qemu-img {words[0]}: {done.stderr.strip()}")
    return done.stdout


def read_block(path: Path) -> bytes:
    """The first bytes of a volume as its guest sees them, without a program."""
    with path.open("rb") as image:
        head = struct.unpack(">4sIQIIQIIQ", image.read(48))
        assert head[0] == b"QFI\xfb", f"{path} is no qcow2"
        at = head[8]
        for _ in range(2):  # the table of tables, and the table
            image.seek(at)
            (entry,) = struct.unpack(">Q", image.read(8))
            at = entry & _OFFSET
            if not at or (_ == 1 and entry & 1):
                return bytes(BLOCK)
        image.seek(at)
        return image.read(BLOCK)


def write_block(path: Path, block: bytes) -> None:
    """Whoever has the image open is its QEMU, for which this stands: no lock is asked for."""
    with tempfile.NamedTemporaryFile(dir=path.parent.parent) as pattern:
        pattern.write(block.ljust(BLOCK, b"\0"))
        pattern.flush()
        where = f"driver=qcow2,file.driver=file,file.filename={path},file.locking=off"
        command = f"write -q -s {pattern.name} 0 {BLOCK}"
        subprocess.run(["qemu-io", "--image-opts", "-c", command, where], check=True)


class ImageLock:
    """QEMU's own lock on an image that a machine with power has."""

    def __init__(self, path: Path) -> None:
        """TaskError when another machine has it."""
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _range(fcntl.F_WRLCK))
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _range(fcntl.F_RDLCK))
        except OSError as error:
            os.close(self._file)
            raise TaskError('Failed to get "write" lock') from error

    def release(self) -> None:
        os.close(self._file)


def _range(kind: int) -> bytes:
    """A `struct flock` for that byte."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, _UNSHARED_WRITE, 1, 0)

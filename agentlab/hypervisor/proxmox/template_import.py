"""The import of a template's disk, and the lock of all builds on a node."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentlab import run
from agentlab.clock import Deadline
from agentlab.errors import DeadlineExceeded
from agentlab.hypervisor.files import wait_lock
from agentlab.hypervisor.proxmox.transport import classify

LONG = 3600.0  # seconds that a step of a build may take


def import_disk(vmid: int, image: Path, storage: str, format_: str, lock: int) -> None:
    """`qm disk import`, as root on the node: the disk is the VM's `unused0` then.

    It inherits the lock: should we be killed, who comes next waits until it has ended.
    """
    options = ["--format", format_] if format_ else []
    argv = ["qm", "disk", "import", str(vmid), str(image), storage, *options]
    with tempfile.TemporaryFile() as said:
        process = run.spawn(
            argv, stdout=said, stderr=said, pass_fds=(lock,), env={**os.environ, "LC_ALL": "C"}
        )
        deadline = Deadline.after(LONG)
        while (status := process.poll()) is None:
            if deadline.passed:
                run.kill_group(process)
                raise DeadlineExceeded(f"importing {image} took longer than {LONG:.0f} s")
            time.sleep(0.1)
        if status != 0:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            what = f"cannot import {image} to {storage} for VM {vmid}"
            raise classify(what, 0, lines[-1] if lines else f"status {status}")


@contextmanager
def held(work: Path) -> Iterator[int]:
    """The lock of all builds here, as a descriptor that a program may inherit."""
    work.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(work / "proxmox.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        wait_lock(descriptor, Deadline.after(LONG), "the template build")
        yield descriptor
    finally:
        os.close(descriptor)

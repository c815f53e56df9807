"""Memory snapshots of the booted template: made once, restored copy-on-write by each clone.

`template_dir/<key>/memory-<fingerprint>/` holds `ram` (the guest's memory, mapped private by each
clone), `state` (the devices) and `disk.qcow2` (what the boot wrote, on top of the template).
The guest in it has booted without cloud-init; the runner waits for its identity.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import NAMESPACE_OID, uuid4, uuid5

from agentlab.clock import Deadline, now
from agentlab.errors import AgentLabError, DeadlineExceeded, Unavailable
from agentlab.hypervisor.files import (
    locked,
    new_directory,
    sweep,
    sync_directory,
    sync_tree,
)
from agentlab.hypervisor.guest_answers import READY
from agentlab.hypervisor.local import images, qmp
from agentlab.hypervisor.local.agent import Agent
from agentlab.hypervisor.local.process import Child, kill, last_words, launch, wait_gone
from agentlab.hypervisor.local.qemu import (
    Boot,
    Launch,
    Memory,
    bounded,
    fingerprint,
    render_argv,
)
from agentlab.hypervisor.local.qmp import Qmp, open_qmp
from agentlab.hypervisor.local.tap import temporary_tap
from agentlab.hypervisor.local.template import TemplateInfo
from agentlab.log import one_line

NO_CLOUD_INIT = "cloud-init=disabled"
_MAC = "52:54:00:00:00:01"  # of the snapshot only: each clone sets its own
_STDERR = "stderr"
_DEADLINE = {"kvm": 90.0, "tcg": 300.0}
_REST = 300.0  # seconds before a snapshot that failed is tried again

# What a job will need soon, read into the snapshot's memory once instead of by every clone.
_WARM = (
    "git --version; python3 -c 'import ssl, json, subprocess, http.client'; ip address; "
    "ssh-keygen -q -t ed25519 -N '' -f /run/warm; rm -f /run/warm /run/warm.pub; "
    "bwrap --ro-bind / / true; runuser -u agent true; tar --version; sync"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """A snapshot that is there; it never changes."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def disk(self) -> Path:
        return self.path / "disk.qcow2"

    @property
    def ram(self) -> Path:
        return self.path / "ram"

    @property
    def state(self) -> Path:
        return self.path / "state"


def template_launch(template: TemplateInfo, accelerator: str, cores: int, memory: int) -> Launch:
    """A machine of this size as it is when its memory is saved, and when it is restored."""
    return Launch(
        name="template",
        uuid=str(uuid4()),
        accelerator=accelerator,
        cores=cores,
        memory=memory,
        tap="",
        mac=_MAC,
        boot=Boot(template.kernel, template.initrd, NO_CLOUD_INIT),
    )


def ensure_snapshot(
    template: TemplateInfo, plan: Launch, version: str, patience: float
) -> MemorySnapshot:
    """The snapshot for machines like `plan`, made first when it is not there.

    Many callers at once, in several processes too: one makes it and the others wait for at most
    `patience` seconds, and are told Busy then.
    """
    name = f"memory-{fingerprint(plan, version)}"
    snapshot = MemorySnapshot(template.path / name)
    if snapshot.path.is_dir():
        return snapshot
    lock = template.path / f"{name}.lock"
    with locked(lock, timeout=patience, what="the memory snapshot of the template"):
        if snapshot.path.is_dir():
            return snapshot
        failed = template.path / f"{name}.failed"
        _raise_kept(failed)
        sweep(template.path, lambda left: kill(left, _maker(left)), ours=name)
        begun = time.monotonic()
        try:
            with new_directory(template.path, name) as work, temporary_tap(lock) as tap:
                _make(work, template, replace(plan, tap=tap))
                sync_tree(work)
                work.rename(snapshot.path)
                sync_directory(template.path)
        except AgentLabError as error:
            failed.write_text(error.message)
            raise
        failed.unlink(missing_ok=True)
        log.info(
            "made a memory snapshot of the template, %d cores and %d MiB, in %.0f s",
            plan.cores, plan.memory, time.monotonic() - begun,
        )  # fmt: skip
    return snapshot


def _maker(work: Path) -> str:
    """The uuid of the QEMU that makes a snapshot there: known again when its starter was killed."""
    return str(uuid5(NAMESPACE_OID, work.name))


def _raise_kept(failed: Path) -> None:
    """Spares those who come next the wait for what has just failed."""
    try:
        if now() - failed.stat().st_mtime < _REST:
            raise Unavailable(f"a memory snapshot failed a short while ago: {failed.read_text()}")
    except FileNotFoundError:
        return


def _make(work: Path, template: TemplateInfo, plan: Launch) -> None:
    # A relative name: the template's directory may be moved as a whole.
    images.create_overlay(work / "disk.qcow2", Path("..") / template.disk.name)
    plan = replace(plan, uuid=_maker(work), ram=Memory(work / "ram", shared=True))
    limit = _DEADLINE[plan.accelerator]
    child = launch(work, bounded(render_argv(plan), 3 * limit), stderr=work / _STDERR)
    try:
        wait_qmp(work, child, work / _STDERR)
        with open_qmp(work) as qemu:
            qemu.execute("cont")
        _wait_runner(work, child, Deadline.after(limit))
        Agent(work).run(["/bin/sh", "-c", _WARM], b"", limit)
        with open_qmp(work) as qemu, (work / "state").open("wb") as state:
            _save(qemu, state.fileno())
            qemu.execute("quit")
        wait_gone(work, plan.uuid, 10.0)
    finally:
        kill(work, plan.uuid)
    for path in work.iterdir():
        if path.name not in ("disk.qcow2", "ram", "state"):
            path.unlink()


def wait_qmp(directory: Path, child: Child, stderr: Path) -> None:
    """Waits until QEMU listens, or raises Unavailable with its last words."""
    deadline = Deadline.after(30.0)
    while not child.ended:
        if (directory / qmp.SOCKET).exists():
            try:
                with open_qmp(directory):
                    return
            except Unavailable:
                pass
        if deadline.passed:
            raise DeadlineExceeded(f"QEMU in {directory} does not listen: {last_words(stderr)}")
        time.sleep(0.01)
    raise Unavailable(f"QEMU did not start: {last_words(stderr)}")


def _wait_runner(work: Path, child: Child, deadline: Deadline) -> None:
    while not child.ended:
        try:
            if Agent(work).read(READY, 2.0) is not None:
                return
        except (Unavailable, DeadlineExceeded):
            pass
        if deadline.passed:
            raise DeadlineExceeded(
                "the template did not boot in time", hint=f"its console ends: {_console(work)}"
            )
        time.sleep(0.25)
    raise Unavailable(f"the template's QEMU ended: {last_words(work / _STDERR)}")


def _console(work: Path) -> str:
    try:
        with open_qmp(work) as qemu:
            return one_line(qemu.console()[-500:])
    except AgentLabError:
        return ""


def _save(qemu: Qmp, state: int) -> None:
    qemu.execute("stop")
    set_capability(qemu)
    qemu.execute("getfd", lent=(state,), fdname="state")
    qemu.execute("migrate", uri="fd:state")
    wait_migration(qemu)


def restore(directory: Path, snapshot: MemorySnapshot) -> None:
    """Loads the devices' state into a QEMU that waits for it; its CPUs stay paused."""
    with open_qmp(directory) as qemu, snapshot.state.open("rb") as state:
        set_capability(qemu)
        qemu.execute("getfd", lent=(state.fileno(),), fdname="state")
        qemu.execute("migrate-incoming", uri="fd:state")
        wait_migration(qemu)


def set_capability(qemu: Qmp) -> None:
    """Memory that is in a file stays there, instead of going through the stream."""
    qemu.execute(
        "migrate-set-capabilities",
        capabilities=[{"capability": "x-ignore-shared", "state": True}],
    )


def wait_migration(qemu: Qmp, pause: Callable[[float], None] = time.sleep) -> None:
    deadline = Deadline.after(60.0)
    while True:
        answer = qemu.execute("query-migrate")
        status = answer.get("status") if isinstance(answer, dict) else None
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            raise Unavailable("QEMU could not save or load a memory snapshot")
        if deadline.passed:
            raise DeadlineExceeded("QEMU takes too long to save or load a memory snapshot")
        pause(0.005)

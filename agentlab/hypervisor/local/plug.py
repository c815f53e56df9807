"""The work disk of a QEMU that is there: put in and taken out while it runs.

It sits behind a port of its own, since QEMU's q35 takes nothing new on its root bus.  The guest
knows it by its serial number.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError
from agentlab.hypervisor.local.qemu import WORK_PORT
from agentlab.hypervisor.local.qmp import Qmp, QmpRefused, open_qmp

SERIAL = "work"
_DEVICE = "work"
_NODE = "work-image"
_POLL = 0.05
_AGAIN = 3.0  # seconds after which a guest that did not hear is asked again


def plug(directory: Path, image: Path) -> None:
    """Gives the machine the disk, its CPUs running or not.  It has it already: returns.

    Its writes are kept in the host's page cache until the guest flushes them.
    """
    with open_qmp(directory) as qemu:
        if _has_device(qemu):
            return
        _drop_node(qemu)  # of a plugging or an unplugging that was cut off
        qemu.execute(
            "blockdev-add",
            driver="qcow2",
            node_name=_NODE,
            discard="unmap",
            cache={"direct": False, "no-flush": False},
            file={"driver": "file", "filename": str(image.absolute()), "discard": "unmap"},
        )
        try:
            qemu.execute(
                "device_add",
                driver="virtio-blk-pci",
                id=_DEVICE,
                bus=WORK_PORT,
                drive=_NODE,
                serial=SERIAL,
            )
        except AgentLabError:
            with contextlib.suppress(AgentLabError):
                _drop_node(qemu)
            raise


def unplug(directory: Path, timeout: float) -> bool:
    """Takes the disk away; True when QEMU has let go of it, False when the guest did not in time.

    A guest that is paused, or has not booted yet, does not hear.  It is not asked whether it has
    the disk mounted: that is for the caller to end first.
    """
    deadline, again = Deadline.after(timeout), Deadline.after(0)
    while True:
        with open_qmp(directory) as qemu:
            if not _has_device(qemu):
                _drop_node(qemu)
                return True
            if again.passed:
                again = Deadline.after(_AGAIN)
                with contextlib.suppress(QmpRefused):  # it was asked, and has not answered yet
                    qemu.execute("device_del", id=_DEVICE)
        if deadline.passed:
            return False
        time.sleep(_POLL)


def _has_device(qemu: Qmp) -> bool:
    listed = qemu.execute("qom-list", path="/machine/peripheral")
    return _named(listed, "name", _DEVICE)


def _drop_node(qemu: Qmp) -> None:
    if _named(qemu.execute("query-named-block-nodes", flat=True), "node-name", _NODE):
        qemu.execute("blockdev-del", node_name=_NODE)


def _named(listed: object, key: str, name: str) -> bool:
    entries = listed if isinstance(listed, list) else []
    return any(isinstance(entry, dict) and entry.get(key) == name for entry in entries)

"""ZFS: a snapshot of pool/VOLUME is pool/VOLUME@NAME."""

from __future__ import annotations

import contextlib
import threading

from agentlab.errors import AgentLabError, Busy
from agentlab.hypervisor.proxmox import tool
from agentlab.hypervisor.proxmox.names import volume_owner
from agentlab.hypervisor.proxmox.storage_plan import Plan
from agentlab.hypervisor.proxmox.transport import NoSuchVolume

_COPY = "agentlab:copy"  # the snapshot that a copy is made from: no name that a user can give
_NEW = "agentlab-new-"  # before the name of a volume that is not whole yet
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_lock = threading.Lock()
_making: set[str] = set()  # what this process is copying to


def render_zfs_list(dataset: str) -> list[str]:
    """Snapshots of a dataset, by the transaction that made them: a clock may be wrong."""
    form = ["-H", "-t", "snapshot", "-o", "name", "-s", "createtxg", "-d", "1"]
    return ["zfs", "list", *form, dataset]


def parse_zfs_list(said: str) -> list[str]:
    return [line.rpartition("@")[2].strip() for line in said.splitlines() if "@" in line]


def render_zfs_copy(snapshot: str, target: str) -> list[str]:
    """A whole copy of a snapshot; receive fails, and leaves nothing, when send ends early.

    All of it ends with us, so that whoever does it again finds nobody else at it.
    """
    alone = " ".join(_DIES_WITH_US)
    script = f'{alone} zfs send "$1" | {alone} zfs receive -u "$2"'
    return [*_DIES_WITH_US, "/bin/sh", "-c", script, "zfs-copy", snapshot, target]


def _siblings(dataset: str, what: str) -> list[str]:
    parent = dataset.rpartition("/")[0]
    return tool.do(
        ["zfs", "list", "-H", "-o", "name", "-d", "1", "-t", "volume", parent], what
    ).split()


def exists(dataset: str, what: str) -> bool:
    return dataset in _siblings(dataset, what)


def names(plan: Plan, what: str) -> list[str]:
    """Snapshots of a volume that is there, oldest first; changes nothing."""
    if not exists(plan.name, what):
        raise NoSuchVolume(f"{what}: there is no such volume")
    return [name for name in _snapshots(plan.name, what) if name != _COPY]


def _snapshots(dataset: str, what: str) -> list[str]:
    return parse_zfs_list(tool.do(render_zfs_list(dataset), what))


def settle(dataset: str, what: str) -> None:
    """Takes away the snapshot that a copy which was cut off has left; absent: returns."""
    if exists(dataset, what) and _COPY in _snapshots(dataset, what):
        tool.do(["zfs", "destroy", f"{dataset}@{_COPY}"], what)


def sweep(dataset: str, what: str) -> None:
    """Takes away what copies that were cut off have left, of this volume and others of its owner.

    Busy when something still writes to this one.
    """
    parent, _, volume = dataset.rpartition("/")
    owner = volume_owner(f":{volume}")[1]
    for each in _siblings(dataset, what):
        name = each.removeprefix(f"{parent}/{_NEW}")
        if name == volume:
            _drop(each, what)
        elif name != each and owner and volume_owner(f":{name}")[1] == owner:
            with contextlib.suppress(Busy):
                _drop(each, what)


def _drop(new: str, what: str) -> None:
    with _lock:
        if new not in _making:
            tool.do(["zfs", "destroy", "-r", new], what)


def clone(source: str, target: str, snapshot: str, what: str) -> None:
    """The target has its name only when it is whole."""
    parent, _, name = target.rpartition("/")
    new = f"{parent}/{_NEW}{name}"
    sweep(target, what)
    if exists(target, what):
        return
    with _lock:
        _making.add(new)
    try:
        _copy(source, new, target, snapshot, what)
    except AgentLabError:
        with _lock:
            _making.discard(new)
        with contextlib.suppress(AgentLabError):
            sweep(target, what)
        raise
    finally:
        with _lock:
            _making.discard(new)


def _copy(source: str, new: str, target: str, snapshot: str, what: str) -> None:
    taken = snapshot or _COPY
    if not snapshot:
        tool.do(["zfs", "snapshot", f"{source}@{_COPY}"], what)
    tool.do(render_zfs_copy(f"{source}@{taken}", new), what, timeout=tool.LONG)
    tool.do(["zfs", "destroy", f"{new}@{taken}"], what)
    tool.do(["zfs", "rename", new, target], what)
    if not snapshot:
        tool.do(["zfs", "destroy", f"{source}@{_COPY}"], what)

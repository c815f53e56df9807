"""ZFS: a snapshot of pool/VOLUME is pool/VOLUME@NAME."""

from __future__ import annotations

from agentlab.hypervisor.proxmox import tool
from agentlab.hypervisor.proxmox.storage_plan import Plan
from agentlab.hypervisor.proxmox.transport import NoSuchVolume

_COPY = "agentlab-copy"  # the snapshot that a copy is made from


def render_zfs_list(dataset: str) -> list[str]:
    """Snapshots of a dataset, by the transaction that made them: a clock may be wrong."""
    form = ["-H", "-t", "snapshot", "-o", "name", "-s", "createtxg", "-d", "1"]
    return ["zfs", "list", *form, dataset]


def parse_zfs_list(said: str) -> list[str]:
    return [line.rpartition("@")[2].strip() for line in said.splitlines() if "@" in line]


def render_zfs_copy(snapshot: str, target: str) -> list[str]:
    """A whole copy of a snapshot; receive fails, and leaves nothing, when send ends early."""
    script = 'zfs send "$1" | zfs receive -u "$2"'
    return ["/bin/sh", "-c", script, "zfs-copy", snapshot, target]


def exists(dataset: str, what: str) -> bool:
    parent = dataset.rpartition("/")[0]
    said = tool.do(["zfs", "list", "-H", "-o", "name", "-d", "1", "-t", "volume", parent], what)
    return dataset in said.split()


def names(plan: Plan, what: str) -> list[str]:
    if not exists(plan.name, what):
        raise NoSuchVolume(f"{what}: there is no such volume")
    found = parse_zfs_list(tool.do(render_zfs_list(plan.name), what))
    if _COPY in found:
        tool.do(["zfs", "destroy", f"{plan.name}@{_COPY}"], what)
    return [name for name in found if name != _COPY]


def clone(source: str, target: str, snapshot: str, what: str) -> None:
    """The target has its name only when it is whole."""
    parent, _, name = target.rpartition("/")
    new = f"{parent}/agentlab-new-{name}"
    if exists(new, what):
        tool.do(["zfs", "destroy", "-r", new], what)
    if exists(target, what):
        return
    taken = snapshot or _COPY
    if not snapshot:
        tool.do(["zfs", "snapshot", f"{source}@{_COPY}"], what)
    tool.do(render_zfs_copy(f"{source}@{taken}", new), what, timeout=tool.LONG)
    tool.do(["zfs", "destroy", f"{new}@{taken}"], what)
    tool.do(["zfs", "rename", new, target], what)
    if not snapshot:
        tool.do(["zfs", "destroy", f"{source}@{_COPY}"], what)

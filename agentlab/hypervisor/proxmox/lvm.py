"""LVM thin: a snapshot of VG/LV is VG/snap_LV_NAME, as Proxmox names it and removes it."""

from __future__ import annotations

from collections.abc import Collection

from agentlab.hypervisor.proxmox import tool
from agentlab.hypervisor.proxmox.storage_plan import Plan
from agentlab.hypervisor.proxmox.transport import NoSuchVolume


def render_lv_list(lv: str) -> list[str]:
    columns = ("-o", "lv_name,lv_size", "-O", "lv_time")
    form = ("--noheadings", "--separator", ":", "--units", "b", "--nosuffix")
    return ["lvs", *form, *columns, lv.partition("/")[0]]


def parse_lv_list(said: str) -> dict[str, int]:
    """Names and bytes, oldest first, of what `render_lv_list` makes lvs say."""
    found: dict[str, int] = {}
    for line in said.splitlines():
        name, _, size = line.strip().partition(":")
        if size.isdecimal():
            found[name] = int(size)
    return found


def render_lv_snapshot(lv: str, name: str) -> list[str]:
    return ["lvcreate", "-pr", "-n", base(lv_snapshot(lv, name)), "-s", lv]


def render_lv_clone(lv: str, target: str, snapshot: str) -> list[str]:
    """A thin clone: writable, active, and (`-kn`) activated with the others after a reboot."""
    source = lv_snapshot(lv, snapshot) if snapshot else lv
    return ["lvcreate", "-kn", "-ay", "-prw", "-n", base(target), "-s", source]


def render_lv_remove(lv: str) -> list[str]:
    return ["lvremove", "-f", "-y", lv]


def render_lv_rollback(lv: str, name: str) -> list[list[str]]:
    """Steps after each of which the whole volume, old or new, is there under some name."""
    old, back = _aside(lv)
    return [
        render_lv_clone(lv, back, name),
        ["lvrename", lv, old],
        ["lvrename", back, lv],
        render_lv_remove(old),
    ]


def plan_lv_repair(lv: str, names: Collection[str]) -> list[list[str]]:
    """What is left to do of a rollback that was cut off after any of its steps."""
    old, back = _aside(lv)
    have_old, have_back = base(old) in names, base(back) in names
    steps: list[list[str]] = []
    if base(lv) not in names and have_old:
        steps.append(["lvrename", back if have_back else old, lv])
        have_old, have_back = have_back, False
    steps += [render_lv_remove(old)] if have_old else []
    return steps + ([render_lv_remove(back)] if have_back else [])


def _aside(lv: str) -> tuple[str, str]:
    group, _, name = lv.partition("/")
    return f"{group}/agentlab-old-{name}", f"{group}/agentlab-back-{name}"


def lv_snapshot(lv: str, name: str) -> str:
    group, _, volume = lv.partition("/")
    return f"{group}/snap_{volume}_{name}"


def lvs(lv: str, what: str) -> dict[str, int]:
    return parse_lv_list(tool.do(render_lv_list(lv), what))


def base(name: str) -> str:
    return name.rpartition("/")[2]


def settle(lv: str, what: str) -> None:
    """Ends what a rollback that was cut off has left."""
    for words in plan_lv_repair(lv, lvs(lv, what)):
        tool.do(words, what)


def names(plan: Plan, what: str) -> list[str]:
    """Snapshots of a volume that is there, oldest first; changes nothing.

    It is there, too, while a rollback has put it aside.
    """
    found = lvs(plan.name, what)
    if base(plan.name) not in found and base(_aside(plan.name)[0]) not in found:
        raise NoSuchVolume(f"{what}: there is no such volume")
    prefix = f"snap_{base(plan.name)}_"
    return [name.removeprefix(prefix) for name in found if name.startswith(prefix)]

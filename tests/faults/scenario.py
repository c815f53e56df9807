"""What is asked for while things go wrong: an operation, from what it begins with to its end."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.fakes.pve.work_files import run_image
from tests.faults.bench import Bench, Node

Outcome = Mapping[str, object]


@dataclass
class Target:
    """What one case works on; `key` makes its requests the same ones when they are asked again."""

    vmid: int = 0
    job: str = ""
    operation: str = ""
    wanted: int = 0  # the VMID that a new sandbox is to have
    clones: Counter[int] = field(default_factory=Counter)  # that there had been when it began
    boots: Counter[int] = field(default_factory=Counter)
    key: str = field(default_factory=lambda: f"k{secrets.token_hex(6)}")
    died: bool = False  # the daemon was killed at the point that was asked for
    work: bool = False  # it is about the workspace that is called as the key

    @property
    def fork(self) -> str:
        """What a workspace that is made of it is called."""
        return f"{self.key}-fork"

    def text(self, words: str) -> str:
        """What is on its volume and on no other one."""
        return f"{self.key} {words}" if words else ""


@dataclass(frozen=True)
class Scenario:
    """`ask` asks for the operation and gives its id; it may be called again after a lost reply.

    `outcome` is what has become of it in the end, by the words of `look`.  `fails` is a step
    ("KIND STEP") that raises, so that the operation turns back.
    """

    name: str
    prepare: Callable[[Bench], Target]
    ask: Callable[[Bench, Target], str]
    outcome: Outcome
    fails: str = ""

    def __str__(self) -> str:
        return self.name


def look(bench: Bench, target: Target) -> Outcome:
    """How an operation ended, and what it left, as far as two runs of it must agree."""
    (row,) = bench.rows("SELECT * FROM operation WHERE id = ?", target.operation)
    box, vmid = bench.sandbox(row["vmid"]), row["vmid"]
    found: dict[str, object] = {"operation": row["state"], "sandbox": box.get("state", "")}
    if target.job:
        found["job"] = bench.rows("SELECT * FROM job WHERE id = ?", target.job)[0]["state"]
    with bench.served.paused() as node:
        vm = node.vm(vmid)
        if vm is not None:
            found["power"] = vm.qmpstatus if vm.status == "running" else "stopped"
            found["snapshots"] = sorted(vm.snapshots)
            found["disk"] = node.disks.get(vmid, "").partition(" ")[0]
            found["work"] = "scsi1" in vm.config
        found["clones"] = node.clones[vmid] - target.clones[vmid]
        found["starts"] = node.boots[vmid] - target.boots[vmid]
        if target.work:
            found |= _look_at_work(bench, node, target, vmid)
    return found


def _look_at_work(bench: Bench, node: Node, target: Target, vmid: int) -> dict[str, object]:
    """`on`: who has it, in words; `text` and `fork`: what is on it and on its fork."""
    names = {target.vmid: "old", vmid: "its own"}
    found: dict[str, object] = {}
    for name, prefix in ((target.key, ""), (target.fork, "fork ")):
        row = bench.work(name)
        if not row:
            continue
        found[f"{prefix}workspace"] = row["state"]
        if row["state"] == "DELETED":
            continue
        found[f"{prefix}size"] = row["size"]
        there = bench.content(row["volid"])
        found[f"{prefix}fs"], text = there.fs, there.text
        found[f"{prefix}text"] = text.removeprefix(f"{target.key} ") if text else ""
        found[f"{prefix}kept"] = snapshots_of(node, row["volid"])
        on = bench.holders(node, row["volid"])
        found[f"{prefix}on"] = [names.get(each, f"VM {each}") for each in on]
        found[f"{prefix}mounted"] = [each for each in on if node.work.is_mounted(each)] == on
    found["session"] = [row["name"].removeprefix(target.key)
                        for row in bench.rows("SELECT name FROM session WHERE name LIKE ? ORDER BY 1",
                                              f"{target.key}%")]  # fmt: skip
    return found


def snapshots_of(node: Node, volid: str) -> list[str]:
    """Names, oldest first."""
    said = run_image("info", "-U", "--output=json", node.file_of(volid))
    return [each["name"] for each in json.loads(said).get("snapshots", [])]


# ------------------------------------------------------------------- what is to become of it

DONE, FAILED = {"operation": "done"}, {"operation": "failed"}
GONE = {"sandbox": "DESTROYED", "clones": 0, "starts": 0}
UP = {"power": "running", "snapshots": ["clean"], "disk": "used"}
DOWN = {"power": "stopped", "snapshots": ["clean"], "disk": "used"}
MADE = {"sandbox": "READY", "clones": 1, "starts": 1, "work": False, **UP}
NOBODY = {"sandbox": "", "clones": 0, "starts": 0}  # no sandbox has to do with it
ALL = "synced, and more"


def had(text: str = ALL, *, by: str = "its own", mounted: bool = True, kept: Sequence[str] = (),
        session: Sequence[str] = ()) -> Outcome:  # fmt: skip
    """A workspace that a sandbox has: the one that the operation is about, or the "old" one.

    The file system of one that is mounted is dirty: its journal would be replayed.
    """
    return {**apart(text, kept=kept, session=session), "workspace": "ATTACHED", "on": [by],
            "mounted": mounted, "fs": "dirty" if mounted else "clean"}  # fmt: skip


def apart(
    text: str = ALL, *, fs: str = "clean", size: int = 64, kept: Sequence[str] = (),
    session: Sequence[str] = (),
) -> Outcome:  # fmt: skip
    """A workspace that nobody has."""
    return {"workspace": "DETACHED", "fs": fs, "size": size, "text": text, "kept": list(kept), "on": [],
            "mounted": True, "session": list(session)}  # fmt: skip


def forked(text: str) -> Outcome:
    """The fork of one, that nobody has."""
    found = apart(text)
    return {f"fork {key}": value for key, value in found.items() if key != "session"}

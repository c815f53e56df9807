"""The life of a workspace: made, given and taken, looked after, copied, moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.fakes.sim_work import Content, write
from tests.faults.bench import Bench
from tests.faults.scenario import (
    DONE,
    DOWN,
    FAILED,
    MADE,
    NOBODY,
    UP,
    Scenario,
    Target,
    apart,
    forked,
    had,
)  # fmt: skip
from tests.faults.scenarios_sandbox import ready, stopped, with_work

KEPT = "kept"
BUSY: list[dict[str, object]] = [{"pid": 7, "name": "make", "user": "agent"}]


# ------------------------------------------------------------------- what they begin with


def unmade(_: Bench) -> Target:
    return Target(work=True)


def alone(bench: Bench) -> Target:
    target = Target(work=True)
    bench.workspace(target.key, target.text("synced"))
    return target


def beside(prepare: Callable[[Bench], Target]) -> Callable[[Bench], Target]:
    """A workspace, and a sandbox that does not have it."""

    def made(bench: Bench) -> Target:
        target = prepare(bench)
        target.work = True
        bench.workspace(target.key, target.text("synced"))
        return target

    return made


def dirty(bench: Bench) -> Target:
    """Its guest has lost its power."""
    target = alone(bench)
    write(bench.node.file_of(bench.work(target.key)["volid"]),
          Content("dirty", target.text("synced")))  # fmt: skip
    return target


def with_kept(bench: Bench) -> Target:
    """A snapshot, and what was written since."""
    target = alone(bench)
    bench.done(bench.door("snapshot", target.key, snapshot=KEPT).operation)
    write(bench.node.file_of(bench.work(target.key)["volid"]),
          Content("clean", target.text("later")))  # fmt: skip
    return target


def in_use(bench: Bench) -> Target:
    """Something in its guest works in /work."""
    target = with_work(bench)
    bench.node.work.busy[target.vmid] = BUSY
    return target


# ------------------------------------------------------------------- what is asked


def asks(verb: str, *, to: str = "", **given: Any) -> Callable[[Bench, Target], str]:
    """`to` is "box" for the target's sandbox, "fork" for the name of what is made.

    "branch" is a branch whose session gets that name.
    """

    def ask(bench: Bench, target: Target) -> str:
        names = {"": "", "box": str(target.vmid), "fork": target.fork, "branch": "fork"}
        answer = bench.door(verb, target.key, key=target.key, to=names[to], **given)
        target.job = answer.job
        return answer.operation

    return ask


_STAYS = {"sandbox": "READY", "clones": 0, "starts": 0, **UP}  # the sandbox, as it was
_OFF = {"sandbox": "STOPPED", "clones": 0, "starts": 0, **DOWN}
_ENDED = {"workspace": "DELETED", "session": []}

WORKSPACE = (
    Scenario("workspace create", unmade, asks("create", size=64), {**DONE, **NOBODY, **apart("", fs="")}),
    Scenario("workspace create, undone", unmade, asks("create", size=64),
             {**FAILED, **NOBODY, **_ENDED}, fails="workspace.create allot"),
    Scenario("workspace attach", beside(ready), asks("attach", to="box"),
             {**DONE, **_STAYS, "work": True, **had("synced")}),
    Scenario("workspace attach to one without power", beside(stopped), asks("attach", to="box"),
             {**DONE, **_OFF, "work": True, **had("synced", mounted=False)}),
    Scenario("workspace attach, undone", beside(ready), asks("attach", to="box"),
             {**FAILED, **_STAYS, "work": False, **apart("synced")}, fails="workspace.attach mount"),
    Scenario("workspace detach", with_work, asks("detach"),
             {**DONE, **_STAYS, "work": False, **apart()}),
    Scenario("workspace detach of one in use", in_use, asks("detach"),
             {**FAILED, **_STAYS, "work": True, **had("synced")}),
    Scenario("workspace detach --force", in_use, asks("detach", force=True),
             {**DONE, **_STAYS, "work": False, **apart()}),
    Scenario("workspace detach, undone", with_work, asks("detach"),
             {**FAILED, **_STAYS, "work": True, **had()}, fails="workspace.detach detach"),
    Scenario("workspace fsck", dirty, asks("fsck"),
             {**DONE, **NOBODY, **apart("synced", fs="dirty")}),
    Scenario("workspace fsck --repair", dirty, asks("fsck", force=True),
             {**DONE, **NOBODY, **apart("synced")}),
    Scenario("workspace resize", alone, asks("resize", size=128),
             {**DONE, **NOBODY, **apart("synced", size=128)}),
    Scenario("workspace snapshot create", alone, asks("snapshot", snapshot=KEPT),
             {**DONE, **NOBODY, **apart("synced", kept=[KEPT])}),
    Scenario("workspace snapshot restore", with_kept, asks("restore", snapshot=KEPT),
             {**DONE, **NOBODY, **apart("synced", kept=[KEPT])}),
    Scenario("workspace snapshot delete", with_kept, asks("snapshot delete", snapshot=KEPT),
             {**DONE, **NOBODY, **apart("later")}),
    Scenario("workspace fork", alone, asks("fork", to="fork"),
             {**DONE, **NOBODY, **apart("synced"), **forked("synced")}),
    Scenario("workspace fork of a snapshot", with_kept, asks("fork", to="fork", snapshot=KEPT),
             {**DONE, **NOBODY, **apart("later", kept=[KEPT]), **forked("synced")}),
    Scenario("workspace fork, undone", alone, asks("fork", to="fork"),
             {**FAILED, **NOBODY, **apart("synced"), "fork workspace": "DELETED"},
             fails="workspace.fork copy"),
    Scenario("workspace delete", alone, asks("delete"), {**DONE, **NOBODY, **_ENDED}),
    Scenario("workspace rebind", with_work, asks("rebind"),
             {**DONE, **MADE, "work": True, **had()}),
    Scenario("workspace rebind --keep-old", with_work, asks("rebind", force=True),
             {**DONE, **MADE, "work": True, **had()}),
    Scenario("workspace rebind, undone", with_work, asks("rebind"),
             {**FAILED, "sandbox": "DESTROYED", "clones": 1, "starts": 1, **had(by="old")},
             fails="workspace.rebind mount"),
)  # fmt: skip

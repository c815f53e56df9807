"""What `workspace check` finds, and that the commands it names are taken and mend it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from agentlab.control import reconcile, workspace_check
from agentlab.hypervisor.base import Machine, Power
from agentlab.model.session import Session
from agentlab.operations import session_requests as sessions_asked
from agentlab.operations import workspace_create
from agentlab.operations import workspace_requests as requests
from agentlab.store import operations, sessions, workspaces
from tests.unit.operations.work_bench import WorkBench, bench
from tests.waiting import until

__all__ = ["bench"]  # the fixture


def names(bench: WorkBench) -> list[str]:
    return [each.name for each in workspace_check.check(bench.world, "work")]


def run(bench: WorkBench, remedy: str) -> None:
    """Does what the commands in a remedy do, as the handlers of the daemon do it."""
    commands = re.findall(r"agentlab ([^,;]+)", remedy)
    assert commands, remedy
    for command in commands:
        words = command.split()
        named = [each for each in words[2:] if not each.startswith("--")]
        force, at = "--force" in words, (bench.world, bench.runner)
        match words[:2]:
            case ["workspace", "delete"]:
                asked = requests.delete(*at, *named, "")
            case ["workspace", "attach"]:
                asked = requests.attach(*at, *named, "")
            case ["workspace", "detach"]:
                asked = requests.detach(*at, *named, "", force=force)
            case ["workspace", "fsck"]:
                asked = requests.fsck(*at, *named, "", repair="--repair" in words)
            case ["workspace", "resize"]:
                size = int(named.pop().removesuffix("M"))
                asked = requests.resize(*at, *named, "", size=size)
            case ["session", "delete"]:
                asked = sessions_asked.delete(*at, *named, "", with_workspace=True)
                assert "--with-workspace" in words
            case ["sandbox", "destroy"]:
                asked = bench.destroy(*named, force=force)
            case ["sandbox", "reconcile"]:
                reconcile.apply(*at)
                until(lambda: not _under_way(bench))
                continue
            case _:
                raise AssertionError(command)
        ended = bench.ended(asked)
        assert ended.state == "done", (command, ended)


def _under_way(bench: WorkBench) -> bool:
    with bench.world.store.read() as tx:
        return bool(operations.unfinished(tx))


def bind(bench: WorkBench) -> None:
    with bench.world.store.write() as tx:
        sessions.create(tx, Session("lab", workspaces.get(tx, "work").id, "demo", 0.0, 0.0))


def unmade(bench: WorkBench) -> None:
    with bench.world.store.write() as tx:
        record = workspace_create.new_record("work", 990_009, 1024, "")
        workspaces.create(tx, record, operation="")


def unmade_of_a_session(bench: WorkBench) -> None:
    unmade(bench)
    bind(bench)


def lost(bench: WorkBench) -> None:
    bench.hypervisor.stored.pop(bench.make().volid)


def lost_of_a_session(bench: WorkBench) -> None:
    lost(bench)
    bind(bench)


def lost_while_attached(bench: WorkBench) -> None:
    bench.make()
    bench.new(workspace="work")
    bench.hypervisor.stored.pop(bench.workspace().volid)


def machine(bench: WorkBench, owner: str = "lab") -> None:
    """One without a record that has it."""
    bench.hypervisor.machines[1009] = Machine(1009, "x", owner, Power.RUNNING)
    bench.hypervisor.plugged[1009] = bench.workspace().volid


def leftover(bench: WorkBench) -> None:
    bench.make()
    machine(bench)


def without_a_lease(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    with bench.world.store.write() as tx:
        workspaces.release_of(tx, box.id)


def twice(bench: WorkBench) -> None:
    bench.make()
    bench.new(workspace="work")
    machine(bench)


def twice_in_sandboxes(bench: WorkBench) -> None:
    bench.make()
    bench.new(workspace="work")
    bench.hypervisor.plugged[bench.new().vmid] = bench.workspace().volid


def unplugged(bench: WorkBench) -> None:
    bench.make()
    del bench.hypervisor.plugged[bench.new(workspace="work").vmid]


def machine_gone(bench: WorkBench) -> None:
    bench.make()
    vmid = bench.new(workspace="work").vmid
    del bench.hypervisor.machines[vmid], bench.hypervisor.plugged[vmid]


def grown(bench: WorkBench) -> None:
    bench.make()
    bench.volume().size = 2048


def grown_while_attached(bench: WorkBench) -> None:
    grown(bench)
    bench.new(workspace="work")


def orphaned(bench: WorkBench) -> None:
    bench.make()
    vmid = bench.new(workspace="work").vmid
    with bench.world.store.write() as tx:
        tx.execute("UPDATE sandbox SET state = 'DESTROYED'")
    del bench.hypervisor.machines[vmid], bench.hypervisor.plugged[vmid]


def orphaned_and_attached(bench: WorkBench) -> None:
    bench.make()
    bench.new(workspace="work")
    with bench.world.store.write() as tx:
        tx.execute("UPDATE sandbox SET state = 'DESTROYED'")


FOUND: dict[Callable[[WorkBench], None], list[str]] = {
    unmade: ["unmade"],
    unmade_of_a_session: ["unmade"],
    lost: ["volume-missing"],
    lost_of_a_session: ["volume-missing"],
    lost_while_attached: ["volume-missing"],
    leftover: ["attached-elsewhere"],
    without_a_lease: ["attached-elsewhere"],
    twice: ["attached-elsewhere", "attached-twice"],
    twice_in_sandboxes: ["attached-elsewhere", "attached-twice"],
    unplugged: ["not-attached"],
    machine_gone: ["machine-missing"],
    grown: ["size"],
    grown_while_attached: ["size"],
    orphaned: ["lease-orphaned"],
    orphaned_and_attached: ["attached-elsewhere", "lease-orphaned"],
}


@pytest.mark.parametrize("make", FOUND, ids=lambda make: make.__name__)
def test_what_check_says_mends_it(bench: WorkBench, make: Callable[[WorkBench], None]) -> None:
    make(bench)
    found = workspace_check.check(bench.world, "work")
    assert [each.name for each in found] == FOUND[make]
    for each in found:
        run(bench, each.remedy)
    with bench.world.store.read() as tx:
        left = workspaces.find(tx, "work")
    assert left is None or names(bench) == []
    assert (left is None) == (FOUND[make][0] in ("unmade", "volume-missing"))


def test_what_is_still_made_is_not_unmade(bench: WorkBench) -> None:
    bench.make()
    assert names(bench) == []
    bench.new(workspace="work")
    assert names(bench) == []


def test_a_machine_that_is_not_ours_is_for_a_person(bench: WorkBench) -> None:
    bench.make()
    machine(bench, owner="")
    (found,) = workspace_check.check(bench.world, "work")
    assert (found.name, "VM 1009, which does not carry our mark" in found.problem) == (
        "attached-elsewhere", True,
    )  # fmt: skip
    assert "by hand" in found.remedy


def test_a_lease_that_nobody_renews(bench: WorkBench) -> None:
    bench.make()
    bench.new(workspace="work")
    with bench.world.store.write() as tx:
        tx.execute("UPDATE workspace SET lease_until = 1")
    assert names(bench) == ["lease-stale"]

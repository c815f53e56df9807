"""What has changed by the time that a turn comes: an operation does what was meant, or nothing."""

from __future__ import annotations

import pytest

from agentlab.errors import Conflict
from agentlab.model.sandbox import SandboxSpec, SandboxState
from agentlab.model.workspace import WorkspaceState
from agentlab.operations import workspace_requests as requests
from agentlab.store import workspaces
from tests.unit.operations.work_bench import Gate, WorkBench, bench

__all__ = ["bench"]  # the fixture
S, W = SandboxState, WorkspaceState


def rebind(bench: WorkBench, *, keep_old: bool = False, name: str = "work") -> str:
    spec = SandboxSpec("")
    return requests.rebind(bench.world, bench.runner, name, spec, "", keep_old=keep_old)


# --- rebind ---


def test_a_second_rebind_does_not_move_what_the_first_has_moved(bench: WorkBench) -> None:
    bench.make()
    old = bench.new(workspace="work")
    gate = Gate(bench, "clone")
    first = rebind(bench, keep_old=True)
    assert gate.began.wait(20)
    second = rebind(bench)
    gate.go.set()
    done = bench.ended(first)
    assert done.state == "done", done
    refused = bench.ended(second)
    assert (refused.state, refused.code) == ("failed", "conflict")
    assert f"sandbox {done.vmid} has it" in refused.error
    assert "agentlab workspace rebind work" in refused.hint
    assert bench.box(old.vmid).state is S.READY
    assert bench.workspace().vmid == done.vmid
    assert {*bench.hypervisor.machines} == {old.vmid, done.vmid}
    assert bench.detach("work").state == "done"


@pytest.mark.parametrize("by", ["cleared", "other"])
def test_a_rebind_leaves_an_old_one_alone_that_has_it_no_more(bench: WorkBench, by: str) -> None:
    """It has given it up while the new one was made: what it has now is not ours to take."""
    bench.make()
    bench.make("other")
    old = bench.new(workspace="work")
    gate = Gate(bench, "clone")
    moving = rebind(bench)
    assert gate.began.wait(20)
    bench.hypervisor.mounted.clear()
    bench.hypervisor.plugged.clear()
    with bench.world.store.write() as tx:
        found = workspaces.get(tx, "work")
        workspaces.release(tx, found.id, found.nonce)
    if by == "other":
        assert bench.attach("other", old.vmid).state == "done"
    gate.go.set()
    done = bench.ended(moving)
    assert done.state == "done", done
    assert bench.box(old.vmid).state is S.READY
    assert bench.workspace().vmid == done.vmid
    with_it = {old.vmid} if by == "other" else set()
    assert bench.hypervisor.mounted == {done.vmid} | with_it


def test_a_rebind_that_is_undone_gives_nothing_to_who_has_no_lease(bench: WorkBench) -> None:
    bench.make()
    old = bench.new(workspace="work")
    other = bench.new()
    plain = bench.hypervisor.attach

    def attach(vmid: int, volid: str, *, owner: str) -> None:
        if vmid in (old.vmid, other.vmid):
            return plain(vmid, volid, owner=owner)
        with bench.world.store.write() as tx:  # as if it had been cleared, and given to another
            found = workspaces.get(tx, "work")
            workspaces.pass_on(tx, found.id, found.nonce, other)
        plain(other.vmid, volid, owner=owner)
        raise Conflict("another machine has it")

    bench.hypervisor.attach = attach  # type: ignore[method-assign]
    ended = bench.ended(rebind(bench))
    assert ended.state == "failed"
    assert bench.workspace().holder == other.id
    assert bench.hypervisor.plugged == {other.vmid: bench.workspace().volid}


def test_a_rebind_of_what_is_detached_by_its_turn_destroys_nothing(bench: WorkBench) -> None:
    bench.make()
    old = bench.new(workspace="work")
    gate = Gate(bench, "detach")
    detaching = requests.detach(bench.world, bench.runner, "work", "", force=False)
    assert gate.began.wait(20)
    moving = rebind(bench)
    gate.go.set()
    assert bench.ended(detaching).state == "done"
    ended = bench.ended(moving)
    assert (ended.state, ended.code) == ("failed", "conflict")
    assert "no sandbox has it" in ended.error
    assert bench.box(old.vmid).state is S.READY

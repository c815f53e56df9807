"""What is said of workspaces when something is refused, and that the command it names is taken."""

from __future__ import annotations

import pytest

from agentlab.control import reconcile
from agentlab.hypervisor.base import Power
from agentlab.operations import workspace_requests as requests
from agentlab.operations.sandbox_power import RESUME, STOP
from tests.unit.operations.work_bench import Gate, WorkBench, bench

__all__ = ["bench"]  # the fixture


def test_an_unmount_that_fails_says_unmount(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    bench.hypervisor._unmount = lambda *_: {"error": "io", "detail": "no"}  # type: ignore[method-assign]
    ended = bench.detach("work")
    assert ended.error == f"cannot unmount workspace work in sandbox {box.vmid}: no"
    assert "dmesg" in ended.hint


def test_what_force_does_not_end_loses_its_power(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    users = [{"pid": 7, "name": "D", "user": "agent"}]
    bench.hypervisor._unmount = lambda *_: {"error": "busy", "processes": users}  # type: ignore[method-assign]
    assert "use --force" in bench.detach("work").hint
    ended = bench.detach("work", force=True)
    assert "--force" not in ended.hint
    assert f"agentlab sandbox stop {box.vmid}" in ended.hint
    assert bench.act(STOP, box).state == "done"
    assert bench.detach("work").state == "done"


def test_a_sandbox_that_cannot_have_it_is_told_of_no_option_of_jobs(bench: WorkBench) -> None:
    """It was free when it was asked for."""
    bench.make()
    box = bench.new()
    gate = Gate(bench, "attach")
    attaching = requests.attach(bench.world, bench.runner, "work", str(box.vmid), "")
    gate.wait()
    with bench.world.store.write() as tx:
        tx.execute("UPDATE workspace SET state = 'DETACHED', holder = 0, vmid = 0, nonce = ''")
    late = bench.ask(workspace="work")
    with bench.world.store.write() as tx:
        tx.execute(
            "UPDATE workspace SET state = 'ATTACHED', holder = ?, vmid = ?, nonce = 'n'",
            (box.id, box.vmid),
        )
    gate.go.set()
    bench.ended(attaching)
    ended = bench.ended(late)
    assert f"sandbox {box.vmid} has it" in ended.error
    assert "--workspace-wait" not in ended.hint
    assert "agentlab workspace detach work" in ended.hint
    assert bench.detach("work").state == "done"


def test_a_machine_that_paused_itself_is_taken_note_of_first(bench: WorkBench) -> None:
    bench.make()
    box = bench.new(workspace="work")
    bench.hypervisor.pause(box.vmid, owner="lab")
    ended = bench.detach("work")
    assert f"sandbox {box.vmid} is READY, and its VM is paused" in ended.error
    resume = f"agentlab sandbox resume {box.vmid}"
    assert ended.hint == f"let it go on: agentlab sandbox reconcile --apply, then {resume}"
    reconcile.apply(bench.world, bench.runner)
    assert bench.act(RESUME, box).state == "done"
    assert bench.hypervisor.machines[box.vmid].power is Power.RUNNING
    assert bench.detach("work").state == "done"


@pytest.mark.parametrize("there", ["first", ""])
def test_a_fork_of_no_snapshot_says_which_there_are(bench: WorkBench, there: str) -> None:
    bench.make()
    bench.ended(bench.destroy(bench.new(workspace="work").vmid))
    if there:
        bench.ended(requests.save_snapshot(bench.world, bench.runner, "work", "", there))
    ended = bench.ended(
        requests.fork(bench.world, bench.runner, "work", "", new="copy", snapshot="frist")
    )
    assert (ended.state, ended.code) == ("failed", "not_found")
    assert ended.error == "cannot fork snapshot frist: the workspace has none of that name"
    assert ended.hint == (f"it has {there}" if there else "it has none")

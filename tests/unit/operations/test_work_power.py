"""A guest that is slow: nobody takes its power, or its time, before it has written and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from agentlab.model.job import JobState
from agentlab.model.sandbox import SandboxSpec, SandboxState
from agentlab.model.workspace import WorkspaceState
from agentlab.operations import session_requests, work_mount, workspace_requests
from agentlab.operations.sandbox_power import START, STOP
from agentlab.store import events
from agentlab.store.operations import OperationRow
from tests.unit.operations.bench import SPEC
from tests.unit.operations.work_bench import WorkBench, bench

__all__ = ["bench"]  # the fixture
LONG = 10**6


def verbs(bench: WorkBench) -> list[str]:
    return [" ".join(words[:1]) for words, _ in bench.hypervisor.asked]


def told(bench: WorkBench) -> list[str]:
    """What the events say of work that was not written out."""
    with bench.world.store.read() as tx:
        found = events.after(tx, 0)
    return [each.text for each in found if each.kind == "workspace.unwritten"]


def stop_session(bench: WorkBench) -> OperationRow:
    return bench.ended(session_requests.stop(bench.world, bench.runner, "lab", ""))


def stop_sandbox(bench: WorkBench) -> OperationRow:
    return bench.act(STOP, bench.workspace("lab").vmid)


def destroy(bench: WorkBench) -> OperationRow:
    return bench.ended(bench.destroy(bench.workspace("lab").vmid))


def detach(bench: WorkBench) -> OperationRow:
    return bench.detach("lab")


def rebind(bench: WorkBench) -> OperationRow:
    moving = workspace_requests.rebind(
        bench.world, bench.runner, "lab", SandboxSpec(""), "", keep_old=False
    )
    return bench.ended(moving)


ENDS = [stop_session, stop_sandbox, destroy]


def running(bench: WorkBench) -> int:
    """A session that runs."""
    bench.session()
    done = bench.ended(session_requests.resume(bench.world, bench.runner, "lab", ""))
    assert done.state == "done"
    bench.hypervisor.asked.clear()
    return done.vmid


@pytest.mark.parametrize("end", [*ENDS, detach, rebind])
def test_a_guest_that_still_writes_keeps_its_power(
    bench: WorkBench, end: Callable[[WorkBench], OperationRow]
) -> None:
    vmid = running(bench)
    bench.hypervisor.writing[vmid] = 2
    assert end(bench).state == "done"
    assert verbs(bench)[:5] == ["sync", "status", "sync", "status", "sync"]
    assert bench.volume("lab").fs == "clean"
    assert vmid not in bench.hypervisor.mounted
    assert told(bench) == []
    with bench.world.store.read() as tx:
        waits = [each.text for each in events.after(tx, 0) if each.kind == "step.waits"]
    assert any(f"sandbox {vmid} to write out workspace lab" in each for each in waits)


@pytest.mark.parametrize("end", ENDS)
def test_an_event_tells_of_power_that_was_taken_all_the_same(
    bench: WorkBench, monkeypatch: pytest.MonkeyPatch, end: Callable[[WorkBench], OperationRow]
) -> None:
    monkeypatch.setattr("agentlab.operations.sandbox_power.WRITE", 0.5)
    monkeypatch.setattr("agentlab.operations.sandbox_destroy._STOP", 120 + work_mount.WRITE - 0.5)
    vmid = running(bench)
    bench.hypervisor.writing[vmid], bench.hypervisor.deaf = LONG, True
    assert end(bench).state == "done"
    (said,) = told(bench)
    assert f"sandbox {vmid}" in said
    assert "workspace lab" in said


def test_a_guest_that_does_not_answer_is_not_waited_for(bench: WorkBench) -> None:
    vmid = running(bench)
    bench.hypervisor.mute.add(vmid)
    assert destroy(bench).state == "done"
    assert len(told(bench)) == 1


def test_force_is_quick(bench: WorkBench) -> None:
    vmid = running(bench)
    bench.hypervisor.writing[vmid] = LONG
    bench.ended(bench.destroy(vmid, force=True))
    assert verbs(bench) == ["unmount"]
    assert len(told(bench)) == 1
    assert bench.workspace("lab").state is WorkspaceState.DETACHED


def test_a_job_ends_when_its_guest_has_written(bench: WorkBench) -> None:
    bench.make()
    job = bench.create(dataclasses.replace(SPEC, workspace="work"))
    bench.until(job, JobState.RUNNING)
    bench.hypervisor.writing[bench.workspace().vmid] = 2
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    assert bench.volume().fs == "clean"
    assert told(bench) == []


# --- an unmount that nobody waits for ---


@pytest.mark.parametrize("force", [False, True])
def test_an_unmount_ends_before_its_time_is_over_here(bench: WorkBench, force: bool) -> None:
    running(bench)
    assert bench.detach("lab", force=force).state == "done"
    words, given = bench.hypervisor.asked[-1]
    assert float(words[words.index("--within") + 1]) < given - 5


def test_a_runner_of_an_older_template_unmounts_too(bench: WorkBench) -> None:
    vmid = running(bench)
    bench.hypervisor.old.add(vmid)
    assert bench.detach("lab").state == "done"
    assert [words for words, _ in bench.hypervisor.asked][-1] == ["unmount"]
    assert bench.hypervisor.mounted == set()


def test_a_detach_of_a_guest_that_still_writes_says_so(
    bench: WorkBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlab.operations.workspace_attach._GUEST", 0.5)
    vmid = running(bench)
    bench.hypervisor._unmount = lambda *_: {"error": "late"}  # type: ignore[method-assign]
    ended = bench.detach("lab")
    assert (ended.state, ended.code) == ("failed", "unavailable")
    assert "not written everything out" in ended.error
    assert "try again" in ended.hint
    assert bench.hypervisor.mounted == {vmid}


# --- a file system that takes long to be checked ---


def test_a_check_that_takes_long_is_waited_for(bench: WorkBench) -> None:
    bench.make()
    box = bench.new()
    bench.hypervisor.checking = 2
    assert bench.attach("work", box.vmid).state == "done"
    assert bench.hypervisor.mounted == {box.vmid}
    bench.act(STOP, box)
    bench.hypervisor.checking = 2
    assert bench.act(START, box).state == "done"
    assert bench.hypervisor.mounted == {box.vmid}


def test_a_check_that_takes_too_long_names_fsck(
    bench: WorkBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.make()
    box = bench.new()
    monkeypatch.setattr(work_mount, "CHECK", 0.5)
    monkeypatch.setattr("agentlab.operations.boot.CHECK", 0.5)
    monkeypatch.setattr("agentlab.operations.workspace_attach._GUEST", 0.5)
    bench.hypervisor.checking = LONG
    ended = bench.attach("work", box.vmid)
    assert ended.state == "failed"
    assert "takes too long to check" in ended.error
    assert "agentlab workspace fsck work --repair" in ended.hint
    assert bench.workspace().state is WorkspaceState.DETACHED
    bench.hypervisor.checking = 0
    made = bench.new(workspace="work")
    bench.act(STOP, made)
    bench.hypervisor.checking = LONG
    ended = bench.act(START, made)
    assert ended.state == "failed"
    assert "takes too long to check" in ended.error
    assert "agentlab workspace fsck work --repair" in ended.hint
    assert bench.box(made.vmid).state is SandboxState.STOPPED


def test_a_guest_that_never_answers_has_the_time_of_a_boot_only(bench: WorkBench) -> None:
    quick = dataclasses.replace(bench.hypervisor.capabilities, slowness=0.02)
    bench.hypervisor.capabilities = quick
    bench.hypervisor.ready = lambda *_: False  # type: ignore[method-assign]
    ended = bench.ended(bench.ask())
    assert (ended.state, ended.code) == ("failed", "deadline_exceeded")
    assert "still waiting for the guest agent's answer" in ended.error

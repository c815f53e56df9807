"""`job.run` on a real database and engine, with a hypervisor in memory and the test as the runner."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from agentlab import clock
from agentlab.config import Limits
from agentlab.control.deadlines import Deadlines
from agentlab.control.leases import Leases
from agentlab.control.retention import sweep
from agentlab.errors import Busy, Conflict, Denied, Invalid, NotFound, Unavailable
from agentlab.hypervisor.base import Machine, Power
from agentlab.model.job import JobState
from agentlab.model.sandbox import SandboxState
from agentlab.operations import job_run, lease_requests, requests
from agentlab.store import jobs, sandboxes, tokens
from tests.unit.operations.bench import SPEC, Bench, bench
from tests.waiting import until

__all__ = ["bench"]  # the fixture


def test_a_job_runs_to_its_end_and_leaves_nothing(bench: Bench) -> None:
    job = bench.create()
    running = bench.until(job, JobState.RUNNING)
    document = json.loads(bench.hypervisor.files[running.vmid, job_run.BOOTSTRAP])
    assert document["job"] == job.id
    assert document["token"] == bench.world.token(job.id).reveal()
    assert [member.vmid for member in bench.fence.members] == [running.vmid]
    bench.report(job)
    assert bench.until(job, JobState.COMPLETED, JobState.FAILED).state is JobState.COMPLETED
    assert bench.state(job) is SandboxState.DESTROYED
    assert bench.clean()
    report = json.loads((bench.world.job_dir(job.id) / "report.json").read_text())
    assert report["status"] == "completed"


def test_rules_are_in_place_before_power(bench: Bench) -> None:
    bench.fence.faults = [Conflict("cannot put the rules in place")]
    job = bench.create()
    failed = bench.until(job, JobState.FAILED)
    assert "rules" in failed.reason
    assert "start" not in bench.hypervisor.calls
    assert bench.clean()


@pytest.mark.parametrize(
    "method", ["inventory", "clone", "configure", "start", "ready", "file_write"]
)
def test_a_failure_anywhere_is_undone(bench: Bench, method: str) -> None:
    bench.hypervisor.faults[method] = [Conflict(f"cannot {method}: no")]
    failed = bench.until(bench.create(), JobState.FAILED)
    assert failed.reason.startswith(f"cannot {method}")
    assert bench.clean()


@pytest.mark.parametrize("method", ["inventory", "clone", "configure", "start", "ready", "destroy"])
def test_what_is_unavailable_is_tried_again(bench: Bench, method: str) -> None:
    bench.hypervisor.faults[method] = [Unavailable("busy"), Unavailable("busy")]
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    bench.report(job)
    assert bench.until(job, JobState.COMPLETED, JobState.FAILED).state is JobState.COMPLETED
    assert bench.clean()


def test_a_vmid_that_a_stranger_has_is_skipped_and_left_alone(bench: Bench) -> None:
    stranger = Machine(1000, "production", "", Power.RUNNING)
    bench.hypervisor.machines[1000] = stranger
    job = bench.create()
    assert bench.until(job, JobState.RUNNING).vmid == 1001
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    assert bench.hypervisor.machines == {1000: stranger}


def test_ten_jobs_share_nothing_and_too_many_wait(bench: Bench) -> None:
    asked = [bench.create() for _ in range(5)]
    running = [bench.until(job, JobState.RUNNING) for job in asked]
    with bench.world.store.read() as tx:
        boxes = sandboxes.live(tx)
    assert len({job.vmid for job in running}) == len({box.address for box in boxes}) == 5
    late = bench.create()
    bench.waits(late, "VMID")
    bench.report(asked[0])
    bench.until(late, JobState.RUNNING)
    for job in (*asked[1:], late):
        bench.report(job)
        bench.until(job, JobState.COMPLETED)
    assert bench.clean()


def test_a_job_that_does_not_queue_is_refused_and_not_written_down(bench: Bench) -> None:
    config = replace(bench.world.config, limits=Limits(sandboxes=1))
    object.__setattr__(bench.world, "config", config)
    now = replace(SPEC, queue=False)
    first = bench.create(now, key="k1")
    bench.until(first, JobState.RUNNING)
    with pytest.raises(Busy, match="1 of 1 sandboxes are there"):
        bench.create(now)
    assert bench.create(now, key="k1").id == first.id
    with bench.world.store.read() as tx:
        assert [job.id for job in jobs.newest(tx)] == [first.id]
    waits = bench.create()
    bench.report(first)
    bench.until(waits, JobState.RUNNING)
    bench.report(waits)
    bench.until(waits, JobState.COMPLETED)
    assert bench.clean()


def test_the_same_key_gives_the_same_job(bench: Bench) -> None:
    first = bench.create(key="k1")
    assert bench.create(key="k1").id == first.id
    with pytest.raises(Conflict, match="Idempotency-Key"):
        bench.create(replace(SPEC, task="another"), key="k1")


def test_an_unknown_profile_gets_a_near_one(bench: Bench) -> None:
    with pytest.raises(NotFound) as unknown:
        bench.create(replace(SPEC, profile="demos"))
    assert unknown.value.hint == "did you mean demo?"


def test_a_ttl_that_leaves_no_time_for_work_is_refused(bench: Bench) -> None:
    with pytest.raises(Invalid, match="no time"):
        bench.create(replace(SPEC, ttl=60))


def test_a_sandbox_that_dies_fails_its_job_with_a_report(bench: Bench) -> None:
    job = bench.create()
    vmid = bench.until(job, JobState.RUNNING).vmid
    machine = bench.hypervisor.machines[vmid]
    bench.hypervisor.machines[vmid] = replace(machine, power=Power.STOPPED)
    bench.runner.wake(job.operation)
    assert "lost its power" in bench.until(job, JobState.FAILED).reason
    report = json.loads((bench.world.job_dir(job.id) / "report.json").read_text())
    assert report["status"] == "failed"
    assert bench.clean()


@pytest.mark.parametrize(
    ("status", "state"),
    [("failed", JobState.FAILED), ("timeout", JobState.TIMEOUT), ("cancelled", JobState.CANCELLED)],
)
def test_the_guests_report_decides(bench: Bench, status: str, state: JobState) -> None:
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    bench.report(job, status, "exit status 3")
    assert bench.until(job, state).reason == "agent: exit status 3"
    assert bench.clean()


def test_a_job_cancelled_before_it_claims_ends_at_once(bench: Bench) -> None:
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    requests.cancel_job(bench.world, bench.runner, job.id)
    bench.until(job, JobState.CANCELLED)
    assert bench.clean()


@pytest.mark.parametrize("after", ["stop", "keep"])
def test_a_profile_may_keep_its_sandbox(bench: Bench, after: str) -> None:
    job = bench.create(replace(SPEC, profile=after))
    bench.until(job, JobState.RUNNING)
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    states = {"stop": SandboxState.STOPPED, "keep": SandboxState.COMPLETED}
    assert bench.state(job) is states[after]
    with bench.world.store.read() as tx:
        vmid = sandboxes.live(tx)[0].vmid
    assert bench.ended(bench.destroy(vmid)).state == "done"
    assert bench.clean()


def test_destroy_is_refused_while_a_job_runs_unless_forced(bench: Bench) -> None:
    job = bench.create()
    vmid = str(bench.until(job, JobState.RUNNING).vmid)
    with pytest.raises(Conflict, match="failed to destroy sandbox"):
        bench.destroy(vmid)
    assert bench.ended(bench.destroy(vmid, force=True)).state == "done"
    bench.until(job, JobState.CANCELLED)
    assert bench.clean()


def test_a_token_delivered_twice_is_the_same_token(bench: Bench) -> None:
    bench.hypervisor.faults["file_write"] = [Unavailable("the reply was lost")]
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    with bench.world.store.read() as tx:
        rows = tx.execute("SELECT fingerprint FROM token").fetchall()
    assert [row[0] for row in rows] == [bench.world.token(job.id).fingerprint]


def test_what_is_old_and_finished_is_forgotten(bench: Bench) -> None:
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    live = bench.create()  # its sandbox is the last one, whose record stays
    bench.until(live, JobState.RUNNING)
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    bundle = bench.world.config.bundle_dir / ("a" * 64 + ".bundle")
    bundle.parent.mkdir()
    bundle.write_bytes(b"x")
    with bench.world.store.write() as tx:
        jobs.put_bundle(tx, "a" * 64, 1)
    assert sweep(bench.world, time.time()).jobs == 0
    swept = [sweep(bench.world, time.time() + day * 86400) for day in range(1, 33)]
    for forgotten in ("jobs", "sandboxes", "bundles"):
        assert sum(getattr(each, forgotten) for each in swept) == 1, forgotten
    assert not bench.world.job_dir(job.id).exists()
    assert not bundle.exists()
    with bench.world.store.read() as tx:
        assert [each.id for each in jobs.newest(tx)] == [live.id]


def _past(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() + seconds)


def test_trouble_with_the_release_changes_no_outcome(bench: Bench) -> None:
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    bench.fence.faults = [Conflict("a stray address")] * 3
    bench.report(job)
    assert bench.until(job, JobState.COMPLETED, JobState.FAILED).state is JobState.COMPLETED
    assert bench.fence.faults == []
    assert bench.clean()


def test_a_job_whose_undoing_is_stuck_has_failed_already(bench: Bench) -> None:
    bench.hypervisor.faults["start"] = [Conflict("cannot start")]
    bench.hypervisor.faults["destroy"] = [RuntimeError("stuck")] * 10_000
    job = bench.create()
    until(lambda: bench.job(job).state is JobState.FAILED)
    found = bench.job(job)
    assert (found.reason, found.settled) == ("cannot start", False)
    bench.hypervisor.faults["destroy"] = []
    bench.until(job, JobState.FAILED)
    assert bench.clean()


def test_a_job_that_is_stuck_past_its_deadline_times_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.hypervisor.faults["status"] = [Unavailable("the storage is gone")] * 10_000
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    with bench.world.store.write() as tx:
        tokens.spend(tx, bench.world.token(job.id).fingerprint, "session")
    watch = Deadlines(bench.world, bench.runner, start=0)
    watch.check()
    with bench.world.store.read() as tx:
        assert jobs.get(tx, job.id).state is JobState.RUNNING
    _past(monkeypatch, 30 * 86400)
    Deadlines(bench.world, bench.runner, start=0).check()
    with bench.world.store.read() as tx:
        assert jobs.get(tx, job.id).state is JobState.TIMEOUT


def test_a_clock_that_is_set_ends_no_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Deadlines(bench.world, bench.runner, start=0)
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    with bench.world.store.write() as tx:
        tokens.spend(tx, bench.world.token(job.id).fingerprint, "session")
    watch.check()
    time.sleep(0.2)
    _past(monkeypatch, 86400)
    watch.check()
    bench.runner.wake(job.operation)
    time.sleep(0.3)
    with bench.world.store.read() as tx:
        assert jobs.get(tx, job.id).state is JobState.RUNNING


def test_a_kept_sandbox_goes_at_the_end_of_its_lease(bench: Bench) -> None:
    job = bench.create(replace(SPEC, profile="keep"))
    bench.until(job, JobState.RUNNING)
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    leases = Leases(bench.world, bench.runner)
    leases.check()
    leases.check()
    assert len(bench.hypervisor.machines) == 1
    with bench.world.store.write() as tx:
        sandboxes.set_lease(tx, bench.job(job).vmid, clock.now() - 1)
    leases.check()
    until(bench.clean)


@pytest.mark.parametrize("error", [Unavailable("cannot be read"), Denied("it may not be seen")])
def test_an_unknown_power_is_not_a_lost_sandbox(bench: Bench, error: Exception) -> None:
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    bench.hypervisor.faults["status"] = [error] * 3
    bench.runner.wake(job.operation)
    time.sleep(0.3)
    bench.report(job)
    bench.until(job, JobState.COMPLETED)


def makes_taps(bench: Bench) -> None:
    bench.hypervisor.capabilities = replace(bench.hypervisor.capabilities, makes_taps=True)


def test_a_tap_of_the_hypervisor_is_named_before_there_is_one(bench: Bench) -> None:
    makes_taps(bench)
    job = bench.create()
    running = bench.until(job, JobState.RUNNING)
    assert [member.tap for member in bench.fence.members] == [f"tap{running.vmid}i0"]
    assert bench.hypervisor.specs[running.vmid].nic.tap == f"tap{running.vmid}i0"
    assert bench.fence.checked == [f"tap{running.vmid}i0"]
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    assert bench.clean()


def test_a_machine_that_the_rules_do_not_see_loses_its_power_at_once(bench: Bench) -> None:
    makes_taps(bench)
    bench.fence.elsewhere = [Conflict("the tap is not on this host", hint="run it there")]
    failed = bench.until(bench.create(), JobState.FAILED)
    assert failed.reason == "the tap is not on this host (run it there)"
    assert "ready" not in bench.hypervisor.calls
    assert bench.clean()


def test_a_machine_on_another_node_ends_its_job_with_that_sentence(bench: Bench) -> None:
    words = "cannot start VM 1000: it is on node pve2, and its fence is on pve1"
    bench.hypervisor.faults["start"] = [Conflict(words, hint="migrate it back, or destroy it")]
    failed = bench.until(bench.create(), JobState.FAILED)
    assert failed.reason == f"{words} (migrate it back, or destroy it)"
    assert bench.clean()


def test_a_boot_whose_power_cannot_be_seen_is_waited_for(bench: Bench) -> None:
    """UNKNOWN, as on a node that does not answer for a while, is neither stopped nor gone."""
    bench.hypervisor.unseen = True
    job = bench.create()
    until(lambda: bench.hypervisor.calls.count("inventory") >= 3)  # its second look at the boot
    assert bench.state(job) is SandboxState.BOOTING
    bench.hypervisor.unseen = False
    bench.until(job, JobState.RUNNING)
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    assert bench.clean()


def test_a_job_whose_machine_cannot_be_seen_goes_on(bench: Bench) -> None:
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    bench.hypervisor.unseen = True
    for _ in range(5):
        bench.runner.wake(job.operation)
        time.sleep(0.05)
    with bench.world.store.read() as tx:
        assert jobs.get(tx, job.id).state is JobState.RUNNING
    bench.hypervisor.unseen = False
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    assert bench.clean()


def test_a_clock_set_before_the_first_look_at_a_lease_ends_no_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its delivery, and after it was renewed: by its operation, and by who has the last word."""
    watch, write = Deadlines(bench.world, bench.runner, start=0), bench.hypervisor.file_write

    def write_late(*given: Any, **more: Any) -> None:
        write(*given, **more)
        _past(monkeypatch, 86400)

    monkeypatch.setattr(bench.hypervisor, "file_write", write_late)
    job = bench.create()
    running = bench.until(job, JobState.RUNNING, JobState.TIMEOUT)
    with bench.world.store.write() as tx:
        tokens.spend(tx, bench.world.token(job.id).fingerprint, "session")
    watch.check()
    for _ in range(2):
        bench.runner.wake(job.operation)
        time.sleep(0.2)
        assert bench.job(job).state is JobState.RUNNING
        with bench.world.store.write() as tx:
            lease_requests.extend(tx, sandboxes.get(tx, running.vmid), 600)
        _past(monkeypatch, 86400)
        watch.check()
    bench.report(job)
    bench.until(job, JobState.COMPLETED)


def test_a_clock_set_forth_delays_no_last_word(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is asked for after it has the time that it was given, and no more."""
    watch = Deadlines(bench.world, bench.runner, start=0)
    _past(monkeypatch, 30 * 86400)
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    watch.check()
    left = watch._stamps.deadline(job.id, bench.job(job).deadline).left
    assert 0 < left < 86400


def test_a_clock_set_while_a_cancel_is_waited_for_cuts_nothing_short(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.create()
    bench.until(job, JobState.RUNNING)
    with bench.world.store.write() as tx:
        tokens.spend(tx, bench.world.token(job.id).fingerprint, "session")
        bench.runner.cancel(tx, job.operation)
    time.sleep(0.2)
    _past(monkeypatch, 3600)
    bench.runner.wake(job.operation)
    time.sleep(0.2)
    assert bench.job(job).state is JobState.RUNNING
    bench.report(job, "cancelled")
    bench.until(job, JobState.CANCELLED)

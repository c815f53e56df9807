"""A sandbox that has left its rules, by a live migration, and what jobs' looks cost together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentlab.control import fence_watch
from agentlab.errors import Conflict, Unavailable
from agentlab.hypervisor.base import Power
from agentlab.model.job import JobState
from agentlab.model.sandbox import Sandbox, SandboxState
from agentlab.operations.glance import Glance
from agentlab.operations.sandbox_power import PAUSE, RESUME, STOP
from tests.fakes.hypervisor import FakeHypervisor
from tests.unit.operations.bench import SPEC, Bench, bench

__all__ = ["bench"]  # the fixture


def test_a_sandbox_whose_tap_has_gone_elsewhere_loses_its_power(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    hypervisor = bench.hypervisor
    hypervisor.capabilities = replace(hypervisor.capabilities, makes_taps=True, look=0.1)
    running = bench.until(bench.create(), JobState.RUNNING)
    fence_watch.stop_strays(bench.world)
    assert hypervisor.machines[running.vmid].power is Power.RUNNING
    bench.fence.elsewhere = [Conflict("tap1000i0 is not a port of vmbr1")]
    fence_watch.stop_strays(bench.world)
    assert "not behind its rules" in caplog.text
    bench.runner.wake(running.operation)
    assert "lost its power" in bench.until(running, JobState.FAILED).reason


@pytest.mark.parametrize(
    ("said", "state"), [("completed", SandboxState.COMPLETED), ("failed", SandboxState.FAILED)]
)
def test_one_that_is_kept_after_its_job_loses_its_power_too(
    bench: Bench, said: str, state: SandboxState
) -> None:
    hypervisor = bench.hypervisor
    hypervisor.capabilities = replace(hypervisor.capabilities, makes_taps=True)
    running = bench.until(bench.create(replace(SPEC, profile="keep")), JobState.RUNNING)
    bench.report(running, said)
    bench.until(running, JobState(said.upper()))
    vmid = running.vmid
    assert (bench.box(vmid).state, hypervisor.machines[vmid].power) == (state, Power.RUNNING)
    bench.fence.elsewhere = [Conflict("the tap is not on this host")]
    fence_watch.stop_strays(bench.world)
    assert hypervisor.machines[vmid].power is Power.STOPPED
    assert bench.ended(bench.destroy(vmid)).state == "done"


@pytest.mark.parametrize("why", ["its mark is gone", "its node is offline"])
def test_one_that_cannot_be_stopped_keeps_no_other_its_power(bench: Bench, why: str) -> None:
    hypervisor = bench.hypervisor
    hypervisor.capabilities = replace(hypervisor.capabilities, makes_taps=True)
    first, stray = bench.new(), bench.new()
    if why == "its mark is gone":
        hypervisor.machines[first.vmid] = replace(hypervisor.machines[first.vmid], owner="")
    else:
        hypervisor.faults["stop"] = [Unavailable(why)]
    bench.fence.elsewhere = [Conflict("the tap is not on this host") for _ in range(2)]
    fence_watch.stop_strays(bench.world)
    assert hypervisor.machines[first.vmid].power is Power.RUNNING
    assert hypervisor.machines[stray.vmid].power is Power.STOPPED


def test_whatever_keeps_us_from_proving_the_fence_takes_the_power(bench: Bench) -> None:
    hypervisor = bench.hypervisor
    hypervisor.capabilities = replace(hypervisor.capabilities, makes_taps=True)
    bench.fence.elsewhere = [Unavailable("ip: timed out")]
    running = bench.until(bench.create(), JobState.RUNNING)
    powers = [call for call in hypervisor.calls if call in ("start", "stop")]
    assert powers[:3] == ["start", "stop", "start"]  # off at once, and tried again
    bench.report(running)
    bench.until(running, JobState.COMPLETED)


def _paused(bench: Bench) -> Sandbox:
    """A sandbox that was paused, and then moved away from its rules."""
    hypervisor = bench.hypervisor
    hypervisor.capabilities = replace(hypervisor.capabilities, makes_taps=True)
    box = bench.new()
    assert bench.act(PAUSE, box).state == "done"
    hypervisor.calls.clear()
    bench.fence.elsewhere = [Conflict("the tap is not on this host") for _ in range(3)]
    return box


def test_a_paused_sandbox_that_the_rules_do_not_see_does_not_run_on(bench: Bench) -> None:
    box = _paused(bench)
    failed = bench.act(RESUME, box)
    assert (failed.state, failed.error) == ("failed", "the tap is not on this host")
    assert "resume" not in bench.hypervisor.calls
    assert bench.hypervisor.machines[box.vmid].power is Power.PAUSED
    assert bench.box(box.vmid).state is SandboxState.SUSPENDED
    bench.fence.elsewhere.clear()
    assert bench.act(RESUME, box).state == "done"
    assert bench.hypervisor.machines[box.vmid].power is Power.RUNNING


def test_one_without_power_and_so_without_a_tap_is_told_as_that(bench: Bench) -> None:
    box = _paused(bench)
    bench.hypervisor.stop(box.vmid, owner=bench.world.installation)
    assert "the tap" not in bench.act(RESUME, box).error


def test_a_paused_sandbox_that_the_rules_do_not_see_is_stopped_at_once(bench: Bench) -> None:
    box = _paused(bench)
    assert bench.act(STOP, box).state == "done"
    assert "resume" not in bench.hypervisor.calls
    assert bench.hypervisor.machines[box.vmid].power is Power.STOPPED


def test_a_paused_sandbox_on_another_node_is_stopped_at_once(bench: Bench) -> None:
    box = _paused(bench)
    bench.fence.elsewhere.clear()
    bench.hypervisor.faults["resume"] = [Conflict("it is on node pve2")]
    assert bench.act(STOP, box).state == "done"
    assert "shutdown" not in bench.hypervisor.calls
    assert bench.hypervisor.machines[box.vmid].power is Power.STOPPED


def test_many_looks_cost_one_inventory_and_a_failure_is_remembered_too() -> None:
    hypervisor = FakeHypervisor()
    glance = Glance(hypervisor)
    for _ in range(50):
        assert glance.machine(1000, age=60) is None
    assert hypervisor.calls == ["inventory"]
    hypervisor.faults["inventory"] = [Unavailable("away")]
    late = Glance(hypervisor)
    for _ in range(50):
        with pytest.raises(Unavailable):
            late.machine(1000, age=60)
    assert hypervisor.calls == ["inventory"] * 2

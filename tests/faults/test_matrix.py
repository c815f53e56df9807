"""Every operation made so far under kills and faults, on a Proxmox that is not there.

The points at which a daemon is killed are not listed here: each scenario is played once without
a kill, and the points that it reaches (the boundaries of its steps, and both sides of each of its
changing calls) are those at which it is killed then.  A new step or call is in the matrix by itself;
that every step of every operation is, one test asserts.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentlab.api import table

from tests.faults.bench import Bench, bench
from tests.faults.play import Tally, outcome, play
from tests.faults.scenarios import SCENARIOS, Scenario, Target
from tests.faults.trouble import batches, cases_of, play_all

_JOBS_OWN = ("deliver", "await_report", "collect", "release")
TIME_SCALE = 0.02  # tasks of Proxmox are under way for a while: a kill meets them


def points_of(installation: Bench, scenario: Scenario) -> list[str]:
    """The points of a scenario, in order, from a play in which nothing goes wrong."""
    target, wrong = play(installation, scenario)
    wrong += outcome(installation, scenario, target)
    assert not wrong, f"without any fault: {wrong}"
    return list(dict.fromkeys(installation.trace()))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_kill_at_every_point(scenario: Scenario, tally: Tally) -> None:
    found: list[str] = []
    with bench(time_scale=TIME_SCALE) as installation:
        installation.start()
        for point in points_of(installation, scenario):
            target, wrong = play(installation, scenario, kill=point)
            wrong += outcome(installation, scenario, target)
            what = "boundary" if point.startswith("step ") else "call"
            tally.note(scenario.name, f"killed at a {what}", wrong)
            found += [f"{point}: {each}" for each in wrong]
            if point.startswith("step "):
                _, _, verb, kind, step = point.split(" ")
                tally.reached.add((kind, verb, step))
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_room_that_was_given_is_not_asked_for_twice() -> None:
    """On a host with room for one: who was let in just before the kill is not in its own way."""
    with bench(extra="limits: {sandboxes: 1, cores: 1}\n") as installation:
        installation.start()
        by_name = {each.name: each for each in SCENARIOS}
        target, wrong = play(
            installation, by_name["create"], kill="step after do sandbox.create admit"
        )
        assert wrong == []
        vmid = installation.done(target.operation).vmid
        installation.done(installation.ask(table.SANDBOX_STOP, vmid=vmid).id)
        start = replace(by_name["start"], prepare=lambda _: Target(vmid))
        target, wrong = play(installation, start, kill="step after do sandbox.start admit")
        assert wrong == []
        installation.done(target.operation)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_every_trouble_with_every_call(scenario: Scenario, tally: Tally) -> None:
    """Lost replies, locks, 5xx and failed tasks: it comes to the same end, or says why not."""
    found: list[str] = []
    with bench() as installation:
        installation.start()
        calls = _calls(points_of(installation, scenario), scenario)
        for batch in batches(cases_of(scenario, calls)):
            found += play_all(installation, batch, tally)
    assert not found, "\n".join(found)


def _calls(points: list[str], scenario: Scenario) -> list[str]:
    """The changing calls of a scenario; those of a job that a creation has too are its own."""
    found = [point.split(" ", 5) for point in points if point.startswith("call after ")]
    calls = [words[5] for words in found if words[3] != "job.run" or words[4] in _JOBS_OWN]
    return list(dict.fromkeys(calls))

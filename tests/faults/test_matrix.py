"""Every operation made so far under kills and faults, on a Proxmox that is not there.

The points at which a daemon is killed are not listed here: each scenario is played once without
a kill, and the points that it reaches (the boundaries of its steps, and both sides of each of its
changing calls) are those at which it is killed then.  A new step or call is in the matrix by itself;
that every step of every operation is, one test asserts.
"""

from __future__ import annotations

import pytest

from tests.faults.bench import Bench, bench
from tests.faults.play import Tally, outcome, play
from tests.faults.scenarios import SCENARIOS, Scenario

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

"""Every operation but the build of a template under kills and faults, on a Proxmox that is not there.

The points at which a daemon is killed are not listed here: each scenario is played once without
a kill, and the points that it reaches (the boundaries of its steps, and both sides of each of its
changing calls) are those at which it is killed then.  A new step or call is in the matrix by itself;
that every step of every operation is, one test asserts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab import config
from agentlab.api import table
from agentlab.engine.step import Operation
from agentlab.operations import kinds
from agentlab.operations.context import World
from agentlab.secret import Secret
from agentlab.store.db import Store
from tests.fakes.fence import FakeFence
from tests.fakes.hypervisor import FakeHypervisor
from tests.faults.bench import Bench, bench
from tests.faults.play import PARTS, QUIET, Tally, outcome, play
from tests.faults.scenarios import SANDBOX, SCENARIOS, Scenario, Target
from tests.faults.trouble import TROUBLES, batches, cases_of, play_all

_JOBS_OWN = ("hold", "attach", "deliver", "await_report", "collect", "release")
_MAKING = ("reserve", "admit", "clone", "configure", "snapshot", "fence", "start")
_MOST = {True: 9, False: 3}  # kills in `make test`: of what a sandbox does, and a workspace
_A_HOST = 20  # kills, before another one takes over: some leave two VMs each, and it has 100 VMIDs
_SOME = ("lost reply", "failed task: lock", "failed task")
pytestmark = [pytest.mark.slow, QUIET]
TIME_SCALE = 0.02  # tasks of Proxmox are under way for a while: a kill meets them


def points_of(installation: Bench, scenario: Scenario) -> list[str]:
    """The points of a scenario, in order, from a play in which nothing goes wrong."""
    target, wrong = play(installation, scenario)
    wrong += outcome(installation, scenario, target)
    assert not wrong, f"without any fault: {wrong}"
    return list(dict.fromkeys(installation.trace()))


@PARTS
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_kill_at_every_point(scenario: Scenario, part: str, tally: Tally) -> None:
    found: list[str] = []
    points: list[str] | None = None
    while points is None or points:
        with bench(time_scale=TIME_SCALE) as installation:
            installation.start()
            if points is None:
                points = _chosen(points_of(installation, scenario), part, scenario)
            for point in points[:_A_HOST]:
                target, wrong = play(installation, scenario, kill=point)
                wrong += outcome(installation, scenario, target)
                what = "boundary" if point.startswith("step ") else "call"
                if target.died or wrong:
                    tally.note(scenario.name, f"killed at a {what}", wrong)
                found += [f"{point}: {each}" for each in wrong]
            points = points[_A_HOST:]
    assert not found, "\n".join(found)


def _chosen(points: list[str], part: str, scenario: Scenario) -> list[str]:
    """Some: where most is at stake, when something was done and is not yet written down.

    Not all of those either where there are many, but the same ones each time.
    """
    if part == "all":
        return points
    after = [point for point in points if point.split(" ")[1] == "after"]
    own = [point for point in after if not _is_creations(point, scenario)]
    return own[:: -(-len(own) // _MOST[scenario in SANDBOX])]


def _is_creations(point: str, scenario: Scenario) -> bool:
    """Whether this is of a step that the creation of a sandbox has too."""
    _, _, verb, kind, step, *_ = point.split(" ")
    if kind == "job.run":
        return verb == "do" and step not in _JOBS_OWN
    if scenario in SANDBOX and kind == "sandbox.create":
        return False
    return step in _MAKING and kind in ("sandbox.create", "workspace.rebind")


def test_room_that_was_given_is_not_asked_for_twice() -> None:
    """On a host with room for one: who was let in just before the kill is not in its own way."""
    with bench(extra="limits: {sandboxes: 1, cores: 2}\n") as installation:
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


@PARTS
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_every_trouble_with_every_call(scenario: Scenario, part: str, tally: Tally) -> None:
    """Lost replies, locks, 5xx and failed tasks: it comes to the same end, or says why not."""
    found: list[str] = []
    with bench() as installation:
        installation.start()
        calls = _calls(points_of(installation, scenario), scenario)
        for batch in batches(
            cases_of(scenario, calls, _troubles(scenario) if part == "some" else tuple(TROUBLES))
        ):
            found += play_all(installation, batch, tally)
    assert not found, "\n".join(found)


def _troubles(scenario: Scenario) -> Sequence[str]:
    """Some.

    The end of a lease that failed is tried again after half a minute: that is for the soak.  A
    branch's session is made by a fork, and its job is a job: each has its own scenario.
    """
    return _SOME[:1] if scenario.name.startswith("expire") or "branch" in scenario.name else _SOME


def _calls(points: list[str], scenario: Scenario) -> list[str]:
    """The changing calls of a scenario; those that a creation has too are that one's own."""
    calls = [each for each in points if each.startswith("call after ")]
    own = [each for each in calls if not _is_creations(each, scenario)]
    return list(dict.fromkeys(point.split(" ", 5)[5] for point in own))


def test_every_step_of_every_operation_is_in_the_matrix(tmp_path: Path) -> None:
    """Each that can be done is killed at, and each that can be undone.

    Not so a template's build, which needs the tools of a real node: it has deaths of its own in
    tests/contract/proxmox/test_template.py.
    """
    reached: set[tuple[str, str, str]] = set()
    with bench() as installation:
        installation.start()
        for scenario in SCENARIOS:
            for point in points_of(installation, scenario):
                if point.startswith("step "):
                    _, _, verb, kind, step = point.split(" ")
                    reached.add((kind, verb, step))
    wanted = {
        (kind.kind, verb, step.name)
        for kind in _kinds(tmp_path)
        for step in kind.steps
        for verb in (["do", "undo"] if step.undo else ["do"])
        if kind.kind != "template.build"
    }
    assert wanted - reached == set()


def _kinds(directory: Path) -> Sequence[Operation]:
    with closing(Store(directory / "agentlab.db")) as store:
        world = World(
            config=config.parse(f"data_dir: {directory}\n", directory / "config.yaml"),
            store=store, hypervisor=FakeHypervisor(), fence=FakeFence(),
            build_template=lambda order, on_step: None, installation="lab", key=Secret("k"),
        )  # type: ignore[arg-type]  # fmt: skip
        return kinds(world)

"""One case: a scenario is played, something goes wrong, and what has become of it is looked at."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from agentlab.client.unix import Lost
from agentlab.errors import AgentLabError, Unreachable
from tests.faults.bench import PATIENCE, Bench
from tests.faults.scenario import Scenario, Target, look

# `make test` has some of the cases, `make soak` all of them
PARTS = pytest.mark.parametrize("part", ["some", pytest.param("all", marks=pytest.mark.soak)])
# a daemon that is killed hangs up, and the stand-in's side of it is collected some time later
QUIET = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@dataclass
class Tally:
    """What was done, and what was found, for the table at the end of a run."""

    cases: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (scenario, what)
    left_over: int = 0
    jobs_wrong: int = 0
    others: int = 0

    def note(self, scenario: str, what: str, wrong: list[str]) -> None:
        self.cases[(scenario, what)] += 1
        for each in wrong:
            if "has no record" in each or "has no VM" in each or "has rules, and no" in each:
                self.left_over += 1
            elif each.startswith("job "):
                self.jobs_wrong += 1
            else:
                self.others += 1

    def table(self) -> list[str]:
        """Scenarios by what was done to them; how often."""
        columns = sorted({what for _, what in self.cases})
        names = list(dict.fromkeys(name for name, _ in self.cases))
        lines = [f"| operation | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
        for name in names:
            counts = " | ".join(str(self.cases[(name, what)] or "") for what in columns)
            lines.append(f"| {name} | {counts} |")
        sums = [sum(n for (_, what), n in self.cases.items() if what == each) for each in columns]
        lines.append(f"| **in all** | {' | '.join(str(each) for each in sums)} |")
        lines.append(
            f"left over: {self.left_over}; jobs lost, doubled or with a wrong end: "
            f"{self.jobs_wrong}; anything else not as it has to be: {self.others}"
        )
        return lines


@contextlib.contextmanager
def unmuted(bench: Bench) -> Iterator[None]:
    try:
        yield
    finally:
        bench.guests.mute = False


def begin(bench: Bench, scenario: Scenario) -> Target:
    """What a case begins with, and how it was then."""
    target = scenario.prepare(bench)
    with bench.served.paused() as node:
        target.clones, target.boots = node.clones.copy(), node.boots.copy()
    return target


def play(bench: Bench, scenario: Scenario, kill: str = "") -> tuple[Target, list[str]]:
    """Plays it, with a kill at a point and a sound daemon after that; what is wrong then."""
    bench.arm()
    target = begin(bench, scenario)
    wrong: list[str] = []
    with unmuted(bench):
        bench.forget_trace()
        bench.arm(kill=kill, fail=scenario.fails)
        if kill:
            wrong += die(bench, scenario, target, kill)
        else:
            target.operation = scenario.ask(bench, target)
        bench.quiet()
        if target.work:
            wrong += asked_again(bench, scenario, target)
    return target, wrong + bench.wrong()


def asked_again(bench: Bench, scenario: Scenario, target: Target) -> list[str]:
    """The same request after the end of all: its reply may have been lost until then."""
    try:
        again = scenario.ask(bench, target)
    except AgentLabError as error:
        return [f"asked again: {type(error).__name__}: {error}"]
    return [] if again == target.operation else [f"asked again: operation {again!r}"]


def die(
    bench: Bench,
    scenario: Scenario,
    target: Target,
    kill: str,
    meanwhile: Callable[[], None] | None = None,
) -> list[str]:
    """Asks, waits for the daemon's death, and starts another one; asks again for what was asked.

    `target.died` says afterwards whether it was killed.  `meanwhile` is done while there is no
    daemon, when the operation has been written down.
    """
    with contextlib.suppress(Lost, Unreachable):
        target.operation = scenario.ask(bench, target)
    until = time.monotonic() + PATIENCE
    while not bench.is_dead(0.01):
        busy = bench.rows("SELECT id FROM operation WHERE state IN ('doing', 'undoing')")
        if time.monotonic() > until or (not busy and not bench.is_dead(0.3)):
            # a request looks first whether it is needed at all
            by_chance = " - - - " in kill or f" {scenario.begun or '-'} " in f"{kill} "
            return [] if by_chance else ["the point was not reached"]
    target.died = bench.reap() == -signal.SIGKILL
    wrong = bench.uncovered()
    if meanwhile is not None:
        if not target.operation:
            (row,) = bench.rows("SELECT id FROM operation ORDER BY created DESC LIMIT 1")
            target.operation = row["id"]
        meanwhile()
    bench.start()
    target.operation = scenario.ask(bench, target)
    return wrong


def outcome(bench: Bench, scenario: Scenario, target: Target) -> list[str]:
    """How it differs from what it should have come to."""
    found = look(bench, target)
    if found == scenario.outcome:
        return []
    keys = sorted({*found, *scenario.outcome})
    differ = [
        f"{key} is {found.get(key)!r}, not {scenario.outcome.get(key)!r}"
        for key in keys
        if found.get(key) != scenario.outcome.get(key)
    ]
    (row,) = bench.rows("SELECT * FROM operation WHERE id = ?", target.operation)
    return [f"{', '.join(differ)} ({row['error']})"]

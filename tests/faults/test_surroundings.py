"""What goes wrong around the daemon: machines that die while it is down, a second daemon, a full
disk, a clock that is set, rights that are gone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.errors import AgentLabError, Unavailable
from tests.faults.bench import Bench, bench
from tests.faults.play import QUIET, Tally, begin, die, unmuted
from tests.faults.scenarios import SANDBOX, SCENARIOS, Scenario, at_work, booting, ready
from tests.waiting import seen

DAY = 86400.0
pytestmark = [pytest.mark.slow, QUIET]
_WITH_A_VM = [
    each
    for each in SCENARIOS
    if not each.fails and "is gone" not in each.name and each.outcome["sandbox"]
]
_SOME = ("workspace attach", "workspace detach", "workspace rebind", "session resume",
         "session stop", "job with a workspace")  # fmt: skip


def _parts() -> Iterator[object]:
    """All in `make soak`; in `make test` some, and of some only."""
    for each in _WITH_A_VM:
        if each in SANDBOX or each.name in _SOME:
            yield pytest.param(each, "some", id=f"{each}-some")
        yield pytest.param(each, "all", id=f"{each}-all", marks=pytest.mark.soak)


@pytest.mark.parametrize(("scenario", "part"), [*_parts()])
def test_a_machine_that_dies_while_the_daemon_is_down(
    scenario: Scenario, part: str, tally: Tally
) -> None:
    """It is stopped, or destroyed, after each step: what was under way ends, and all can be cleared."""
    found: list[str] = []
    with bench() as installation:
        installation.start()
        target = begin(installation, scenario)
        installation.forget_trace()
        with unmuted(installation):
            target.operation = scenario.ask(installation, target)
            installation.quiet()
        points = dict.fromkeys(installation.trace())
        after = [each for each in points if each.startswith("step after do ")]
        for point in after if part == "all" else after[-4::2]:
            for what in ("stop", "destroy"):
                wrong = _die_together(installation, scenario, point, what)
                tally.note(scenario.name, f"VM {what} while down", wrong)
                found += [f"{what} at {point}: {each}" for each in wrong]
    assert not found, "\n".join(found)


def _die_together(bench: Bench, scenario: Scenario, point: str, what: str) -> list[str]:
    bench.arm()
    target = begin(bench, scenario)
    wrong: list[str] = []
    with unmuted(bench):
        bench.arm(kill=point)

        def meanwhile() -> None:
            (row,) = bench.rows("SELECT vmid FROM operation WHERE id = ?", target.operation)
            bench.behind(row["vmid"], what)

        wrong += die(bench, scenario, target, point, meanwhile)
        bench.quiet()
    wrong += bench.wrong(drift=None)
    for row in bench.rows("SELECT vmid FROM sandbox WHERE state != 'DESTROYED'"):
        gone = bench.ask(table.SANDBOX_DESTROY, m.DestroyRequest(force=True), vmid=row["vmid"])
        wrong += [] if bench.ended(gone.id).state == "done" else [f"it cannot be cleared: {gone}"]
    bench.quiet()
    return wrong + bench.wrong()


def test_the_second_daemon_refuses(tally: Tally) -> None:
    with bench() as installation:
        installation.start()
        target = begin(installation, SCENARIOS[0])
        target.operation = SCENARIOS[0].ask(installation, target)
        status, said = installation.second()
        assert status == 1
        assert f"another agentlabd (pid {installation.daemon}) works on" in said
        assert "Traceback" not in said
        installation.done(target.operation)
        wrong = installation.wrong()
        tally.note("two daemons", "second daemon", wrong)
        assert wrong == []


def test_the_clock_is_set_a_day_forth_and_back(tally: Tally) -> None:
    """Nothing ends of it while the daemon runs; what begins then ends as ever."""
    with bench() as installation:
        installation.start()
        for offset in (DAY, -DAY, 0.0):
            box, job = ready(installation).vmid, at_work(installation)
            with unmuted(installation):
                born = booting(installation)
                _await_first_look(installation, job.operation)
                installation.arm(offset=offset)
                time.sleep(1.5)  # some rounds of all loops
            assert installation.sandbox(box)["state"] == "READY"
            assert installation.until_job(job.job, "RUNNING", "TIMEOUT")["state"] == "RUNNING"
            installation.guests.let_go.add(job.job)
            installation.until_job(job.job, "COMPLETED")
            installation.quiet()
            assert installation.sandbox(born.vmid)["state"] == "READY"
            for vmid in (box, born.vmid, installation.create()):
                gone = installation.ask(table.SANDBOX_DESTROY, m.DestroyRequest(), vmid=vmid)
                installation.done(gone.id)
            wrong = installation.wrong()
            tally.note("clock set", "clock", wrong)
            assert wrong == []


def _await_first_look(bench: Bench, operation: str) -> None:
    """A job whose lease has been looked at waits for its report."""

    def waits_for() -> object:
        return bench.rows("SELECT waits_for FROM operation WHERE id = ?", operation)[0]["waits_for"]

    assert seen(lambda: waits_for() == "the agent's report"), waits_for()


def test_the_clock_was_set_back_while_the_daemon_was_down() -> None:
    """A lease is never longer than it was given."""
    with bench() as installation:
        installation.start()
        box, job = ready(installation).vmid, at_work(installation)
        installation.kill()
        installation.arm(offset=-DAY)
        installation.start()
        most = 1800 + 1 - DAY
        assert seen(lambda: installation.sandbox(box)["lease_until"] <= time.time() + most)
        installation.guests.let_go.add(job.job)
        installation.until_job(job.job, "COMPLETED")
        installation.quiet()
        assert installation.wrong() == []


def test_the_clock_was_set_forth_while_the_daemon_was_down() -> None:
    """It cannot be told from a long night: what was due gets its grace, is told so, and ends."""
    with bench() as installation:
        installation.start()
        box, job = ready(installation).vmid, at_work(installation)
        installation.kill()
        installation.arm(offset=DAY)
        installation.start()
        row = installation.until_job(job.job, "TIMEOUT", "COMPLETED", "FAILED")
        assert row["state"] == "TIMEOUT"
        assert seen(lambda: installation.sandbox(box)["state"] == "DESTROYED", 120)
        told = installation.rows("SELECT text FROM event WHERE kind = 'sandbox.lease'")
        assert any("while the daemon was down" in each["text"] for each in told)
        installation.quiet()
        assert installation.wrong() == []


def test_machines_that_we_may_not_see_are_not_gone() -> None:
    """Without the right to look, nothing of ours is given up and nothing new takes its place."""
    with bench() as installation:
        installation.start()
        box, job = ready(installation).vmid, at_work(installation)
        with installation.served.paused() as node:
            node.hide(box, job.vmid, 1003)
        time.sleep(2.0)
        assert installation.sandbox(box)["state"] == "READY"
        assert installation.until_job(job.job, "RUNNING", "FAILED")["state"] == "RUNNING"
        with installation.served.paused() as node:
            node.hidden.clear()
        installation.guests.let_go.add(job.job)
        installation.until_job(job.job, "COMPLETED")
        installation.quiet()
        assert installation.wrong() == []


def test_a_full_disk_ends_nothing(tally: Tally) -> None:
    """What is asked for is refused in a sentence, what is under way waits, and then goes on."""
    with bench(disk="24m") as installation:
        installation.start()
        box, kept = ready(installation).vmid, ready(installation).vmid
        job = at_work(installation)
        with unmuted(installation):
            born = booting(installation)
            installation.fill_disk()
            refused = _refused(installation, box)  # what is small may fit for a while
            installation.guests.let_go.add(job.job)
        assert "full" in refused, refused
        time.sleep(3.0)
        assert installation.sandbox(born.vmid)["state"] == "BOOTING"
        assert installation.until_job(job.job, "RUNNING", "FAILED")["state"] == "RUNNING"
        installation.kill()  # and what is more: it dies of it, and starts on the full disk
        installation.empty_disk()
        installation.start()
        installation.until_job(job.job, "COMPLETED")
        installation.quiet()
        assert installation.sandbox(born.vmid)["state"] == "READY"
        assert installation.sandbox(kept)["state"] == "READY"
        wrong = installation.wrong()
        told = [each for each in wrong if "disk is full" in each or "No space left" in each]
        tally.note("full disk", "full disk", [each for each in wrong if each not in told])
        assert wrong == told
        assert 0 < len(told) < 12, "said once for each that it keeps from going on"


def _refused(bench: Bench, vmid: int) -> str:
    """What is said to somebody who asks until it is refused; small changes may still fit."""
    for _ in range(200):
        try:
            bench.ask(table.SANDBOX_UPDATE, m.UpdateRequest(labels={"a": "b" * 60}), vmid=vmid)
            bench.ask(table.SANDBOX_UPDATE, m.UpdateRequest(labels={"a": None}), vmid=vmid)
        except Unavailable as error:
            return error.message
        except AgentLabError as error:
            return json.dumps([type(error).__name__, error.message])
    return "nothing was ever refused"

"""SIGKILL of the real daemon before and after every step of `job.run`, forward and back.

Real VMs, real rules, the real client.  Each case kills once, starts the daemon again, and looks:
the job has ended exactly once, as it would have without the kill, and nothing is left over.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.lab import ROOT, Lab, git_repo, laboratory

pytestmark = [pytest.mark.vm, pytest.mark.slow]

FORWARD = [
    "reserve", "admit", "clone", "configure", "snapshot", "fence", "start", "await_guest",
    "deliver", "await_report", "collect", "release",
]  # fmt: skip
UNDONE = ["deliver", "start", "fence", "clone", "reserve"]  # those that have an undo
SUCCESS = [f"{moment}:do:{step}" for step in FORWARD for moment in ("before", "after")]
FAILURE = [f"{moment}:undo:{step}" for step in UNDONE for moment in ("before", "after")]
KILLER = [sys.executable, str(ROOT / "tests/fakes/killing_daemon.py")]
Table = dict[tuple[str, str], dict[str, str]]  # outcome by (path, step), then by moment
# the agent leaves a mark each time it runs: a job that ran twice would hand back two lines
ONCE = 'echo ran >> "$AGENTLAB_ARTIFACTS_DIR/runs"; echo more >> README'


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with laboratory() as made:
        made.profile("once", ONCE)
        git_repo(made.scratch / "repo")
        made.start()
        built = made.cli("template", "build", "debian-12", timeout=1800)
        assert built.returncode == 0, built.stderr
        made.stop()
        yield made


def _killed(lab: Lab, kill: str, *more: str) -> dict[str, object]:
    """Starts a daemon that dies at a boundary, runs a job into it, and starts a sound one."""
    try:
        killer, sound = [*KILLER, "--kill", kill, *more], [*KILLER, *more]
        job = lab.across_death(
            lambda: lab.run_job("once", "run once", lab.scratch / "repo"), killer, then=sound
        )
        return lab.wait_final(str(job["id"]))
    finally:
        assert lab.stop() == 0


def _note(table: Table, path: str, kill: str, outcome: str) -> None:
    moment, _, step = kill.split(":")
    table.setdefault((path, step), {})[moment] = outcome


def _events(lab: Lab, job: str, state: str) -> int:
    rows = lab.rows(f"SELECT facts FROM event WHERE kind = 'job.state' AND job = '{job}'")
    return sum(json.loads(str(row[0]))["to"] == state for row in rows)


def _step_names(lab: Lab, job: dict[str, object], condition: str) -> list[object]:
    rows = lab.rows(
        f"SELECT name FROM step WHERE operation = '{job['operation']}' AND {condition}"
        " ORDER BY started"
    )
    return [row[0] for row in rows]


def test_the_steps_named_here_are_the_steps_that_there_are(lab: Lab) -> None:
    lab.start()
    job = lab.run_job("once", "all steps", lab.scratch / "repo")
    assert lab.wait_final(str(job["id"]))["state"] == "COMPLETED"
    lab.stop()
    assert _step_names(lab, job, "state = 'done'") == FORWARD
    lab.start(argv=[*KILLER, "--fail", "deliver"])
    job = lab.run_job("once", "undone", lab.scratch / "repo")
    assert lab.wait_final(str(job["id"]))["state"] == "FAILED"
    lab.stop()
    undoing = lab.rows(
        "SELECT json_extract(facts, '$.step') FROM event WHERE kind = 'step.undone'"
        f" AND operation = '{job['operation']}' ORDER BY seq"
    )
    assert [row[0] for row in undoing] == UNDONE


@pytest.mark.parametrize("kill", SUCCESS)
def test_a_job_survives_a_kill(lab: Lab, table: Table, kill: str) -> None:
    job = _killed(lab, kill)
    assert job["state"] == "COMPLETED", job["reason"]
    assert _events(lab, str(job["id"]), "COMPLETED") == 1
    runs = lab.scratch / "data/artifacts" / str(job["id"]) / "files/runs"
    assert runs.read_text() == "ran\n"
    assert lab.leftovers() == []
    _note(table, "success", kill, "COMPLETED once, ran once, nothing left")


@pytest.mark.parametrize("kill", FAILURE)
def test_a_failing_job_is_undone_despite_a_kill(lab: Lab, table: Table, kill: str) -> None:
    job = _killed(lab, kill, "--fail", "deliver")
    assert job["state"] == "FAILED"
    assert "the test says so" in str(job["reason"])
    assert _events(lab, str(job["id"]), "FAILED") == 1
    assert lab.leftovers() == []
    _note(table, "failure (undo)", kill, "FAILED once, nothing left")

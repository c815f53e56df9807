"""What a sweep leaves alone: bundles that are wanted again meanwhile, and all that only the clock
calls old."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.control.retention import sweep
from agentlab.model.job import Job, JobSpec, JobState, Repo
from agentlab.operations import requests
from agentlab.operations.context import World
from agentlab.store import jobs
from agentlab.store.db import Tx
from tests.unit.daemon.bench import BUNDLE, PATIENT, Bench, open_bench, request, sha256
from tests.waiting import until

NAME = sha256(BUNDLE)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path, pace=PATIENT) as found:
        yield found


@pytest.fixture
def bundle(bench: Bench) -> Path:
    """One that was sent two hours ago, and that nobody has asked for since."""
    assert bench.ask("PUT", f"/v1/bundles/{NAME}", body=BUNDLE).status == 200
    with bench.store.write() as tx:
        tx.execute("UPDATE bundle SET created = ?", (time.time() - 7200,))
    return bench.world.config.bundle_dir / f"{NAME}.bundle"


def known(bench: Bench) -> bool:
    with bench.store.read() as tx:
        return jobs.has_bundle(tx, NAME)


def test_an_idle_bundle_goes_with_its_record(bench: Bench, bundle: Path) -> None:
    assert sweep(bench.world, time.time()).bundles == 1
    assert not bundle.exists()
    assert not known(bench)


@pytest.mark.parametrize("how", ["a job", "sent again"])
def test_a_bundle_that_is_taken_after_it_was_seen_idle_stays(
    bench: Bench, bundle: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    seen_idle = jobs.idle_bundles

    def taken_at_once(tx: Tx, before: float) -> list[str]:
        found = seen_idle(tx, before)
        if how == "a job":
            spec = JobSpec(Repo(bundle=NAME), "do it", "demo")
            requests.create_job(bench.world, bench.daemon.runner, spec, "")
        else:
            assert bench.ask("PUT", f"/v1/bundles/{NAME}", body=BUNDLE).status == 200
        return found

    monkeypatch.setattr(jobs, "idle_bundles", taken_at_once)
    assert sweep(bench.world, time.time()).bundles == 0
    assert bundle.read_bytes() == BUNDLE
    assert known(bench)


def test_a_bundle_that_is_being_sent_again_stays(bench: Bench, bundle: Path) -> None:
    wire, whole = bench.wire(), request("PUT", f"/v1/bundles/{NAME}", BUNDLE)
    wire.send(whole[:-4])
    until(lambda: _created(bench) > time.time() - 3600)
    sweep(bench.world, time.time())
    assert wire.send(whole[-4:]).reply().status == 200
    assert known(bench) is bundle.exists() is True


@pytest.mark.parametrize("days", [1, 30])
@pytest.mark.parametrize("jump", [1, 2, 365])
def test_a_clock_that_is_set_forth_loses_no_artifacts(bench: Bench, days: int, jump: int) -> None:
    world, job, now = keeping(bench, days), finished(bench), time.time()
    sweep(world, now)
    for hours in range(5):  # of which the daemon is started anew in some
        assert sweep(world, now + jump * 86400 + hours).jobs == 0
    assert sweep(world, now).jobs == 0  # it is put right
    assert (world.job_dir(job.id) / "patch").read_bytes() == b"x"


def test_a_clock_that_is_wrong_at_the_first_start_loses_no_artifacts(bench: Bench) -> None:
    world, job = keeping(bench, 1), finished(bench)
    assert sweep(world, time.time() + 365 * 86400).jobs == 0
    assert (world.job_dir(job.id) / "patch").exists()


@pytest.mark.parametrize("each", [1, 7])
@pytest.mark.parametrize("days", [1, 30])
def test_what_is_old_goes_after_as_many_days_of_running(bench: Bench, days: int, each: int) -> None:
    """The daemon runs daily, or once a week: what it keeps does not grow without bound."""
    world, job, now = keeping(bench, days), finished(bench), time.time()
    swept = [sweep(world, now + day * each * 86400).jobs for day in range(days + 3)]
    assert sum(swept) == 1
    assert swept.index(1) >= days
    assert not world.job_dir(job.id).exists()


def keeping(bench: Bench, days: int) -> World:
    return replace(bench.world, config=replace(bench.world.config, retention_days=days))


def finished(bench: Bench) -> Job:
    """A job of a moment ago, with an artifact."""
    guest = bench.running().claimed()
    assert guest.put("patch", b"x").status == 200
    guest.report()
    return bench.until(guest.job, JobState.COMPLETED)


def _created(bench: Bench) -> float:
    with bench.store.read() as tx:
        return float(tx.execute("SELECT created FROM bundle").fetchone()[0])

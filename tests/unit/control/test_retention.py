"""What a sweep leaves alone: a bundle that somebody wants again while it is under way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.control.retention import sweep
from agentlab.model.job import JobSpec, Repo
from agentlab.operations import requests
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


def _created(bench: Bench) -> float:
    with bench.store.read() as tx:
        return float(tx.execute("SELECT created FROM bundle").fetchone()[0])

"""A job's end on a disk that takes nothing more is tried again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agentlab.errors import Unavailable
from agentlab.operations import handed_back
from tests.unit.daemon.bench import SPEC, Bench


def test_a_full_disk_is_worth_a_retry(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.running(SPEC).job

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = bench.world.job_dir(job.id)
    with monkeypatch.context() as patch:
        patch.setattr(handed_back.os, "fsync", full)
        with pytest.raises(Unavailable, match=r"cannot keep what job .*: No space left"):
            handed_back.measure(folder, job, "failed", "why")
    names = [Path(each.name).name for each in handed_back.measure(folder, job, "failed", "why")]
    assert names == ["agent.log", "report.json"]

"""The bench, for all tests of the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.daemon.bench import PATIENT, Bench, open_bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path) as found:
        yield found


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path, pace=PATIENT) as found:
        yield found

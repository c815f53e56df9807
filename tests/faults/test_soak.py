"""A short soak with a seed that stays, and one with the seed of the day; the long one is `make soak`."""

from __future__ import annotations

import time

import pytest

from tests.faults.play import QUIET
from tests.faults.soak import soak

pytestmark = [pytest.mark.slow, QUIET]


@pytest.mark.parametrize("seed", [1, int(time.strftime("%Y%m%d"))])
def test_nothing_is_left_over(seed: int) -> None:
    assert soak(seed, 60, kill_each=30) == []

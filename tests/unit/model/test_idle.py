"""What counts as activity, and when a time without any is over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.model.idle import Sample, Watch, Watched, is_active, plan_idle

KEY = (1, 100.0)
REST = Sample(KEY, after=60, log=10, cpu=0.02, traffic=1000)
WAS = Watched(REST, at=100.0, since=0.0)


@pytest.mark.parametrize(
    ("change", "active"),
    [
        ({}, False),
        ({"log": 11}, True),
        ({"log": 0}, True),  # another job's
        ({"cpu": 0.049}, False),
        ({"cpu": 0.05}, True),
        ({"cpu": 0.19, "busy": 0.2}, False),
        ({"cpu": 0.2, "busy": 0.2}, True),
        ({"cpu": None}, True),
        ({"traffic": 1000 + 20 * 2048}, False),  # ARP, NTP and heartbeats are below this
        ({"traffic": 1001 + 20 * 2048}, True),
        ({"traffic": 999}, True),  # a new tap
        ({"traffic": None}, True),
        ({"ssh": True}, True),
        ({"used": True}, True),
        ({"held": True}, True),
    ],
)
def test_what_counts_between_two_looks(change: dict[str, object], active: bool) -> None:
    assert is_active(WAS, replace(REST, **change), 120.0) is active  # type: ignore[arg-type]


def test_a_tap_that_was_not_there_before_is_activity() -> None:
    before = Watched(replace(REST, traffic=None), 100.0, 0.0)
    assert is_active(before, REST, 120.0)


def test_the_time_begins_with_the_first_look_and_ends_after_the_limit() -> None:
    watch: Watch = {}
    ended = []
    for now in range(1000, 1100, 20):
        watch, idle = plan_idle(watch, [REST], float(now))
        ended += [now] if idle == [KEY] else []
    assert ended == [1060, 1080]  # until somebody stops it


def test_activity_begins_the_time_anew() -> None:
    watch: Watch = {}
    for now, log in ((0, 10), (20, 10), (40, 11), (60, 11), (80, 11)):
        watch, idle = plan_idle(watch, [replace(REST, log=log)], float(now))
        assert idle == []
    assert plan_idle(watch, [replace(REST, log=11)], 100.0)[1] == [KEY]


def test_a_sandbox_that_has_moved_or_gone_is_another_one() -> None:
    watch, _ = plan_idle({}, [REST], 0.0)
    moved = replace(REST, key=(1, 200.0))
    watch, idle = plan_idle(watch, [moved], 60.0)
    assert (list(watch), idle) == ([(1, 200.0)], [])
    assert plan_idle(watch, [], 80.0) == ({}, [])


samples = st.builds(
    Sample,
    key=st.just(KEY),
    after=st.just(60.0),
    log=st.integers(0, 2),
    cpu=st.sampled_from([None, 0.0, 0.04, 0.05, 1.0]),
    traffic=st.sampled_from([None, 0, 1000, 10**6]),
    ssh=st.booleans(),
    used=st.booleans(),
    held=st.booleans(),
)


@given(st.lists(samples, min_size=1, max_size=12))
def test_idle_means_that_nothing_was_active_for_as_long_as_the_limit(looks: list[Sample]) -> None:
    watch: Watch = {}
    now, quiet_since, before = 0.0, 0.0, None
    for look in looks:
        if before is None or is_active(before, look, now):
            quiet_since = now
        watch, idle = plan_idle(watch, [look], now)
        assert bool(idle) is (now - quiet_since >= 60)
        before, now = watch[KEY], now + 20

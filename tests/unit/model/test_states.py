"""Every pair of state and event, against the table."""

from __future__ import annotations

from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.errors import Invalid, InvalidTransition
from agentlab.model.ids import new_id
from agentlab.model.job import JOB
from agentlab.model.machine import StateMachine
from agentlab.model.sandbox import SANDBOX, SandboxEvent, SandboxState
from agentlab.model.workspace import WORKSPACE
from agentlab.units import parse_duration, parse_size, render_duration

MACHINES = [JOB, SANDBOX, WORKSPACE]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda each: each.noun)
def test_every_pair_of_state_and_event_is_an_edge_or_refused(
    machine: StateMachine[StrEnum, StrEnum],
) -> None:
    edges = {(edge.source, edge.event): edge.target for edge in machine.edges}
    assert len(edges) == len(machine.edges), "an edge stands twice"
    for state in machine.states:
        for event in {edge.event for edge in machine.edges}:
            if (state, event) in edges:
                assert machine.next(state, event) == edges[state, event]
            else:
                with pytest.raises(InvalidTransition) as refused:
                    machine.next(state, event)
                assert refused.value.details["allowed"] == machine.allowed(state)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda each: each.noun)
def test_every_state_is_explained_and_reachable(machine: StateMachine[StrEnum, StrEnum]) -> None:
    reached, todo = {machine.initial}, [machine.initial]
    while todo:
        state = todo.pop()
        for edge in machine.edges:
            if edge.source == state and edge.target not in reached:
                reached.add(edge.target)
                todo.append(edge.target)
    assert reached == set(machine.states) == set(type(machine.initial))
    assert all(machine.meaning.values())


def test_a_sandbox_may_fail_from_every_state_before_ready() -> None:
    early = [SandboxState.REQUESTED, SandboxState.PROVISIONING, SandboxState.BOOTING]
    for state in early:
        assert SANDBOX.next(state, SandboxEvent.FAIL) is SandboxState.FAILED


def test_force_destroy_is_possible_from_everywhere_but_the_end() -> None:
    for state in SANDBOX.states:
        assert (SandboxEvent.FORCE_DESTROY in SANDBOX.allowed(state)) != SANDBOX.final(state)


def test_plain_destroy_is_possible_where_nobody_is_at_work_and_a_vm_may_be_destroyed() -> None:
    assert set(SANDBOX.sources(SandboxEvent.DESTROY)) == {
        SandboxState.READY, SandboxState.COMPLETED, SandboxState.FAILED, SandboxState.STOPPED,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("4h", 14400), ("2d", 172800), ("5", 300)]
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "5x", "9999d", "1h30", "٣m", "1e9", "nan"])
def test_bad_durations_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="duration"):
        parse_duration(text)


@given(st.integers(1, 366 * 86400))
def test_a_rendered_duration_has_at_most_two_units(seconds: int) -> None:
    text = render_duration(seconds)
    assert 1 <= sum(unit in text for unit in "dhms") <= 2


@pytest.mark.parametrize(
    ("text", "bare", "mib"),
    [
        ("80G", "G", 81920),
        ("512M", "M", 512),
        ("8", "G", 8192),
        ("512", "M", 512),
        ("1T", "G", 1 << 20),
    ],
)
def test_sizes_are_read(text: str, bare: str, mib: int) -> None:
    assert parse_size(text, bare=bare) == mib


@pytest.mark.parametrize("text", ["", "0", "-1G", "G", "1K", "1.5G", "99999999T"])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="size"):
        parse_size(text, bare="M")


def test_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert [identity[:9] for identity in ids] == sorted(identity[:9] for identity in ids)

"""State tables: one literal of edges is the source of the code, the SQL CHECK and the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from agentlab.errors import InvalidTransition

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Edge(Generic[S, E]):
    """In state `source`, `event` leads to `target`."""

    source: S
    event: E
    target: S


@dataclass(frozen=True)
class StateMachine(Generic[S, E]):
    """All edges of one noun.  States without an edge leading out are final."""

    noun: str
    initial: S
    edges: tuple[Edge[S, E], ...]
    meaning: Mapping[S, str]

    def next(self, state: S, event: E) -> S:
        """The state after `event`; InvalidTransition names the events that are allowed."""
        for edge in self.edges:
            if edge.source == state and edge.event == event:
                return edge.target
        allowed = self.allowed(state)
        raise InvalidTransition(
            f"cannot {event} a {self.noun} that is {state}",
            hint=f"possible now: {', '.join(allowed)}" if allowed else f"{state} is final",
            details={"state": state.value, "allowed": [each.value for each in allowed]},
        )

    def allowed(self, state: S) -> Sequence[E]:
        return [edge.event for edge in self.edges if edge.source == state]

    def sources(self, event: E) -> Sequence[S]:
        return [edge.source for edge in self.edges if edge.event == event]

    def final(self, state: S) -> bool:
        return not self.allowed(state)

    @property
    def states(self) -> Sequence[S]:
        return list(self.meaning)


def edges(sources: Sequence[S], event: E, target: S) -> tuple[Edge[S, E], ...]:
    """The same event leading from several states to one."""
    return tuple(Edge(source, event, target) for source in sources)

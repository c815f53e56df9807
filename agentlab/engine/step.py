"""What an operation is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError
from agentlab.store.db import Store, Tx
from agentlab.store.operations import OperationRow, save_output

Output = Mapping[str, object]


class Later(Exception):  # not an error: the step wants to be asked again
    """The step is not done yet: ask again after some seconds, thread freed meanwhile."""

    def __init__(self, after: float, for_: str = "") -> None:
        super().__init__(for_)
        self.after = after
        self.for_ = for_


class Wait(Later):
    """The step waits for news of the named kind; `wake()` brings it back, or `after` seconds."""

    def __init__(self, for_: str, after: float = 5.0) -> None:
        super().__init__(after, for_)


@dataclass(frozen=True, slots=True)
class Call:
    """What a step is given: its operation, what earlier steps put out, and its deadline.

    `saved` is what this step put down by `save()` in an attempt before (empty at first).
    `deadline` counts from the step's first attempt, or from the daemon's start if that was later.
    """

    operation: OperationRow
    step: str
    outputs: Mapping[str, Output]
    saved: Output
    attempts: int
    started: float
    deadline: Deadline
    store: Store

    @property
    def cancelled(self) -> bool:
        """Somebody has asked to cancel; only a step with `handles_cancel` needs to look."""
        return self.operation.cancel

    def save(self, **facts: object) -> None:
        """Keeps facts at once, so that this step finds its own work after a crash."""
        with self.store.write() as tx:
            save_output(tx, self.operation.id, self.step, {**self.saved, **facts})

    def text(self, step: str, key: str) -> str:
        """A text that an earlier step put out."""
        return str(self.outputs[step][key])

    def number(self, step: str, key: str) -> int:
        value = self.outputs[step][key]
        if not isinstance(value, int):
            raise TypeError(f"{step}.{key} is not a number")
        return value


# A `do` gives its output, or a function that makes it inside the transaction that writes `done`.
Result = Output | Callable[[Tx], Output] | None


def always(_: OperationRow) -> bool:
    """The step is one of every operation of its kind."""
    return True


@dataclass(frozen=True, slots=True)
class Step:
    """One effect on the world.

    `do` may be called again after any interruption and finds its own earlier work.  `undo` is
    called for a step that was begun, done or not, and may be called again as well; it gets the
    same outputs.  `deadline` is in seconds, or a function that knows them when the step begins.
    A cancelled operation turns back before its next step, unless that step handles the
    cancelling itself.  Past a step with `no_return` nothing turns back: what fails is tried
    again until it succeeds.  A step that does not apply to an operation, by its input alone, is
    not one of its steps.
    """

    name: str
    do: Callable[[Call], Result]
    deadline: float | Callable[[], float]
    undo: Callable[[Call], Result] | None = None
    handles_cancel: bool = False
    no_return: bool = False
    applies: Callable[[OperationRow], bool] = always


class Finish(Protocol):
    """Called in the transaction that decides how an operation ends.

    That is when its last step is done (`error` is None), or when it turns back: what is undone
    after that changes nothing about the outcome.
    """

    def __call__(self, tx: Tx, operation: OperationRow, error: AgentLabError | None) -> None: ...


def nothing(tx: Tx, operation: OperationRow, error: AgentLabError | None) -> None:
    """No more to do at the end."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A kind of operation: its steps in order, and what is written at its end."""

    kind: str
    steps: Sequence[Step]
    finish: Finish = field(default=nothing)


class Observer(Protocol):
    """Told of each boundary: `before`/`after` a step's do or undo.  Fault tests listen here."""

    def __call__(self, moment: str, verb: str, operation: OperationRow, step: str) -> None: ...

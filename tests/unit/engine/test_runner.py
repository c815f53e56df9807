"""The engine on a real database: forward, back, again, later, cancelled, resumed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentlab.engine.runner import Runner
from agentlab.engine.step import Call, Later, Operation, Result, Step, Wait
from agentlab.errors import AgentLabError, Busy, Conflict, DeadlineExceeded, Unavailable
from agentlab.store import events, operations
from agentlab.store.db import Store, Tx
from agentlab.store.operations import OperationRow
from tests.waiting import PATIENCE, happened, read_until, until

Start = Callable[..., Runner]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "agentlab.db")
    yield made
    made.close()


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    runners: list[Runner] = []

    def begin(*kinds: Operation) -> Runner:
        runner = Runner(store, kinds, workers=2)
        runners.append(runner)
        runner.start()
        return runner

    yield begin
    for runner in runners:
        runner.stop(PATIENCE)


def _submit(store: Store, runner: Runner, kind: str = "test", subject: str = "thing:1") -> str:
    with store.write() as tx:
        return runner.submit(tx, kind, [subject], {"x": 1})


def _until_final(store: Store, operation: str) -> OperationRow:
    return read_until(store, lambda tx: operations.get(tx, operation), lambda row: row.final)


def _waits(store: Store, operation: str, words: str) -> None:
    """Until its step waits for that."""
    read_until(
        store, lambda tx: operations.get(tx, operation).waits_for, lambda found: found == words
    )


def _kinds_of_events(store: Store, operation: str) -> list[str]:
    with store.read() as tx:
        return [
            f"{event.kind} {event.facts.get('step', '')}".strip()
            for event in events.after(tx, 0, operation=operation)
        ]


def test_steps_run_in_order_and_see_what_earlier_ones_put_out(store: Store, start: Start) -> None:
    seen: list[object] = []

    def second(call: Call) -> Result:
        seen.append(call.number("first", "answer"))
        return lambda tx: {"inside": True}

    runner = start(
        Operation(
            "test", [Step("first", lambda call: {"answer": 42}, 5), Step("second", second, 5)]
        )
    )
    operation = _submit(store, runner)
    assert _until_final(store, operation).state == "done"
    assert seen == [42]
    with store.read() as tx:
        assert operations.steps(tx, operation)["second"].output == {"inside": True}
    assert _kinds_of_events(store, operation) == [
        "step.doing first", "step.done first", "step.doing second", "step.done second",
        "operation.done",
    ]  # fmt: skip


def test_a_failing_step_undoes_itself_and_all_before_in_reverse(store: Store, start: Start) -> None:
    undone: list[str] = []

    def undo(call: Call) -> Result:
        undone.append(call.step)
        return None

    def fail(call: Call) -> Result:
        raise Conflict("cannot do it: no", hint="do not")

    runner = start(
        Operation(
            "test",
            [
                Step("one", lambda call: None, 5, undo=undo),
                Step("two", lambda call: None, 5),
                Step("three", fail, 5, undo=undo),
                Step("four", lambda call: None, 5, undo=undo),
            ],
        )
    )
    row = _until_final(store, _submit(store, runner))
    assert (row.state, row.error, row.code, row.hint) == (
        "failed", "cannot do it: no", "conflict", "do not",
    )  # fmt: skip
    assert undone == ["three", "one"]


def test_an_undo_that_fails_is_tried_again_until_it_succeeds(store: Store, start: Start) -> None:
    tries: list[int] = []

    def undo(call: Call) -> Result:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("not yet")
        return None

    def fail(call: Call) -> Result:
        raise Conflict("no")

    runner = start(
        Operation("test", [Step("a", lambda call: None, 5, undo=undo), Step("b", fail, 5)])
    )
    assert _until_final(store, _submit(store, runner)).state == "failed"
    assert len(tries) == 3


def test_later_comes_back_and_the_reason_is_visible(store: Store, start: Start) -> None:
    waited: list[str] = []

    def slow(call: Call) -> Result:
        with store.read() as tx:
            waited.append(operations.get(tx, call.operation.id).waits_for)
        if len(waited) < 3:
            raise Later(0.01, "the moon")
        return None

    runner = start(Operation("test", [Step("slow", slow, 5)]))
    operation = _submit(store, runner)
    assert _until_final(store, operation).state == "done"
    assert "step.waits slow" in _kinds_of_events(store, operation)


def test_wait_is_ended_early_by_wake(store: Store, start: Start) -> None:
    news: list[int] = []

    def step(call: Call) -> Result:
        if not news:
            raise Wait("news", after=600)
        return None

    runner = start(Operation("test", [Step("wait", step, 1000)]))
    operation = _submit(store, runner)
    _waits(store, operation, "news")
    news.append(1)
    runner.wake(operation)
    assert _until_final(store, operation).state == "done"


def test_a_step_past_its_deadline_fails_the_operation(store: Store, start: Start) -> None:
    def never(call: Call) -> Result:
        raise Later(0.02, "Godot")

    row = _until_final(store, _submit(store, start(Operation("test", [Step("never", never, 0.2)]))))
    assert row.code == "deadline_exceeded"
    assert "Godot" in row.error


def test_unavailable_is_tried_again_and_then_done(store: Store, start: Start) -> None:
    tries: list[int] = []

    def flaky(call: Call) -> Result:
        tries.append(1)
        if len(tries) < 3:
            raise Unavailable("the storage is busy")
        return None

    runner = start(Operation("test", [Step("flaky", flaky, 30)]))
    assert _until_final(store, _submit(store, runner)).state == "done"


def test_cancel_turns_back_between_steps(store: Store, start: Start) -> None:
    undone: list[str] = []
    begun = threading.Event()

    def waiting(call: Call) -> Result:
        begun.set()
        raise Later(0.02)

    runner = start(
        Operation(
            "test",
            [
                Step("one", lambda call: None, 5, undo=lambda call: {"n": undone.append("one")}),
                Step("two", waiting, 60),
            ],
        )
    )
    operation = _submit(store, runner)
    happened(begun)
    with store.write() as tx:
        runner.cancel(tx, operation)
    assert _until_final(store, operation).state == "cancelled"
    assert undone == ["one"]


def test_a_step_that_handles_cancelling_is_not_turned_back(store: Store, start: Start) -> None:
    def waiting(call: Call) -> Result:
        if call.cancelled:
            return {"cancelled": True}
        raise Later(0.02)

    runner = start(Operation("test", [Step("w", waiting, 60, handles_cancel=True)]))
    operation = _submit(store, runner)
    time.sleep(0.05)
    with store.write() as tx:
        runner.cancel(tx, operation)
    assert _until_final(store, operation).state == "done"


def test_a_subject_has_one_operation_at_a_time(store: Store, start: Start) -> None:
    def waiting(call: Call) -> Result:
        raise Later(0.02)

    runner = start(Operation("test", [Step("w", waiting, 60)]))
    first = _submit(store, runner)
    with pytest.raises(Busy) as busy:
        _submit(store, runner)
    assert busy.value.details["operation"] == first
    with store.write() as tx:
        runner.cancel(tx, first)
    _until_final(store, first)
    second = _submit(store, runner)
    with store.write() as tx:
        runner.cancel(tx, second)
    assert _until_final(store, second).state == "cancelled"


def test_a_step_found_doing_is_done_again_with_what_it_saved(store: Store, start: Start) -> None:
    seen: list[object] = []
    with store.write() as tx:  # as a killed daemon left it
        operations.create(tx, "op1", "test", ["thing:1"], {})
        operations.begin_step(tx, "op1", "a")
        operations.end_step(tx, "op1", "a", "done", {"n": 1})
        operations.begin_step(tx, "op1", "b")
        operations.save_output(tx, "op1", "b", {"upid": "UPID:x"})

    def fresh(call: Call) -> Result:
        raise AssertionError("done already")

    def again(call: Call) -> Result:
        seen.append((call.saved, call.attempts, call.number("a", "n")))
        return None

    start(Operation("test", [Step("a", fresh, 5), Step("b", again, 5)]))
    assert _until_final(store, "op1").state == "done"
    assert seen == [({"upid": "UPID:x"}, 2, 1)]


def test_an_operation_found_undoing_goes_on_undoing(store: Store, start: Start) -> None:
    undone: list[str] = []
    with store.write() as tx:
        operations.create(tx, "op1", "test", ["thing:1"], {})
        for step in ("a", "b"):
            operations.begin_step(tx, "op1", step)
            operations.end_step(tx, "op1", step, "done", {})
        operations.turn_back(tx, "op1", error="no", code="conflict", hint="")
        operations.begin_undo(tx, "op1", "b")

    def undo(call: Call) -> Result:
        undone.append(call.step)
        return None

    def never(call: Call) -> Result:
        raise AssertionError("it is being undone")

    start(Operation("test", [Step("a", never, 5, undo=undo), Step("b", never, 5, undo=undo)]))
    assert _until_final(store, "op1").state == "failed"
    assert undone == ["b", "a"]


def test_finish_is_told_the_error_in_the_ending_transaction(store: Store, start: Start) -> None:
    told: list[tuple[str, str]] = []

    def finish(tx: Tx, operation: OperationRow, error: AgentLabError | None) -> None:
        told.append((operations.get(tx, operation.id).state, error.message if error else ""))

    def fail(call: Call) -> Result:
        raise Conflict("cannot")

    runner = start(Operation("test", [Step("a", fail, 5)], finish=finish))
    _until_final(store, _submit(store, runner))
    assert told == [("undoing", "cannot")]  # and nothing more when all is undone


def test_past_the_point_of_no_return_nothing_turns_back(store: Store, start: Start) -> None:
    tries: list[int] = []

    def stubborn(call: Call) -> Result:
        tries.append(1)
        if len(tries) < 4:
            raise RuntimeError("not today")
        return None

    def never(call: Call) -> Result:
        raise AssertionError("it must not be undone")

    runner = start(
        Operation(
            "test",
            [Step("a", lambda call: None, 5, undo=never), Step("b", stubborn, 0.1, no_return=True)],
        )
    )
    assert _until_final(store, _submit(store, runner)).state == "done"
    assert len(tries) == 4


def test_many_wakes_are_one_look_and_no_more_polling(store: Store, start: Start) -> None:
    looks: list[float] = []

    def waiting(call: Call) -> Result:
        looks.append(time.monotonic())
        raise Wait("news", after=0.4)

    runner = start(Operation("test", [Step("w", waiting, 60, handles_cancel=True)]))
    operation = _submit(store, runner)
    _waits(store, operation, "news")
    for _ in range(200):
        runner.wake(operation)
    time.sleep(0.2)
    since, settled, commits = time.monotonic(), len(looks), store.commits
    time.sleep(1.3)
    assert len(looks) - settled <= (time.monotonic() - since) / 0.4 + 2
    assert store.commits == commits, "waiting for the same thing writes nothing"


def test_what_a_driver_has_no_time_for_is_tried_again(store: Store, start: Start) -> None:
    tries: list[int] = []

    def slow(call: Call) -> Result:
        tries.append(1)
        if len(tries) < 2:
            raise DeadlineExceeded("the guest agent took longer than 60 s")
        return None

    assert (
        _until_final(store, _submit(store, start(Operation("test", [Step("s", slow, 9)])))).state
        == "done"
    )


def test_a_deadline_that_cannot_be_told_fails_the_step(store: Store, start: Start) -> None:
    def unknown() -> float:
        raise Conflict("cannot tell")

    row = _until_final(
        store, _submit(store, start(Operation("test", [Step("s", lambda call: None, unknown)])))
    )
    assert (row.state, row.error) == ("failed", "cannot tell")


def test_a_step_that_fails_while_the_daemon_ends_is_done_again(store: Store, start: Start) -> None:
    begun, tries = threading.Event(), []

    def cut_off(call: Call) -> Result:
        tries.append(1)
        if len(tries) == 1:
            begun.set()
            until(lambda: runner._schedule.closed)
            raise Conflict("its program was ended")
        return None

    kind = Operation("test", [Step("s", cut_off, 60)])
    runner = start(kind)
    operation = _submit(store, runner)
    happened(begun)
    runner.stop(PATIENCE)
    start(kind)
    assert _until_final(store, operation).state == "done"

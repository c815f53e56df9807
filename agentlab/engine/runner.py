"""The engine: takes every unfinished operation forward, or back, one step at a time."""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentlab import clock, log
from agentlab.clock import Deadline
from agentlab.engine.schedule import Schedule
from agentlab.engine.step import Call, Later, Observer, Operation, Output, Result, Step
from agentlab.errors import AgentLabError, Busy, DeadlineExceeded, Internal, Unavailable
from agentlab.model.ids import new_id
from agentlab.store import events, operations
from agentlab.store.db import Store, Tx
from agentlab.store.operations import OperationRow, StepRow

_log = logging.getLogger(__name__)
_MAX_BACKOFF = 60.0
WORTH_A_RETRY = (Unavailable, DeadlineExceeded, Busy)


class Cancelled(AgentLabError):
    """Somebody cancelled the operation."""

    code = "cancelled"
    http_status = 409


@dataclass(slots=True)
class _Attempt:
    """What this process has seen of the step that an operation is at; monotonic time."""

    step: str
    verb: str
    began: float
    tries: int = 0
    failures: int = 0
    trouble: str = ""


def _unobserved(moment: str, verb: str, operation: OperationRow, step: str) -> None:
    pass


class Runner:
    """Runs operations on a few threads; a step that raises Later or Wait holds none of them."""

    def __init__(
        self,
        store: Store,
        kinds: Sequence[Operation],
        *,
        workers: int = 12,
        observer: Observer = _unobserved,
    ) -> None:
        self._store = store
        self._kinds: Mapping[str, Operation] = {kind.kind: kind for kind in kinds}
        self._observer = observer
        self._schedule = Schedule()
        self._attempts: dict[str, _Attempt] = {}
        self._stuck: dict[str, str] = {}  # what keeps the store from us, by operation
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{n}", daemon=True)
            for n in range(workers)
        ]

    def start(self) -> int:
        """Claims every unfinished operation and begins to work; gives how many there were."""
        with self._store.read() as tx:
            found = operations.unfinished(tx)
        for operation in found:
            self.wake(operation.id)
        for thread in self._threads:
            if thread.ident is None:  # a start that failed half-way is made again
                thread.start()
        return len(found)

    def stop(self, timeout: float) -> None:
        """Begins no further step and waits for those under way; they are taken up at next start."""
        until = Deadline.after(timeout)
        self._schedule.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(until.left)

    def submit(
        self,
        tx: Tx,
        kind: str,
        subjects: Sequence[str],
        arguments: Mapping[str, object],
        *,
        job: str = "",
        vmid: int = 0,
        operation: str = "",
        in_turn: bool = False,
        request: tuple[str, str] = ("", ""),
    ) -> str:
        """Writes an operation down in the caller's transaction; it begins when that is on disk.

        `in_turn` and `request` as for `operations.create`.
        """
        if kind not in self._kinds:
            raise Internal(f"no operation of the kind {kind}")
        identity = operation or new_id()
        operations.create(
            tx, identity, kind, subjects, arguments, job=job, vmid=vmid, in_turn=in_turn,
            request=request,
        )  # fmt: skip
        tx.on_commit(lambda: self.wake(identity))
        return identity

    def cancel(self, tx: Tx, operation: str) -> None:
        """Asks an operation to turn back; seen between steps and by steps that wait."""
        operations.request_cancel(tx, operation)
        tx.on_commit(lambda: self.wake(operation))

    def wake(self, operation: str) -> None:
        """Has an operation looked at at once."""
        self._schedule.wake(operation)

    def _work(self) -> None:
        while True:
            operation = self._schedule.take()
            if operation is None:
                return
            pause: float | None = 1.0
            try:
                pause = self._advance(operation)
                self._stuck.pop(operation, None)
            except Exception as error:  # noqa: BLE001  # a worker outlives whatever happens
                # the store failed us: whatever step it was is still written as begun
                self._cannot_go_on(operation, error)
            finally:
                self._schedule.give_back(operation, pause)

    def _cannot_go_on(self, operation: str, error: Exception) -> None:
        """Said once for as long as it lasts: on a full disk the log must not grow each second."""
        trouble = f"{type(error).__name__}: {error}"
        if self._stuck.get(operation) != trouble:
            known = isinstance(error, AgentLabError)
            _log.error(
                "cannot go on with operation %s, trying again: %s", operation, error,
                exc_info=None if known else error,
            )  # fmt: skip
        self._stuck[operation] = trouble

    def _advance(self, identity: str) -> float | None:
        """Takes steps until the operation ends (None) or wants to sleep (seconds)."""
        while not self._schedule.closed:
            with self._store.read() as tx:
                operation = operations.find(tx, identity)
                begun = operations.steps(tx, identity)
            if operation is None or operation.final:
                self._attempts.pop(identity, None)
                return None
            kind = self._kinds.get(operation.kind)
            if kind is None:
                _log.error("operation %s is of the unknown kind %s", identity, operation.kind)
                return None
            fields = {"operation": identity, "job": operation.job}
            if operation.vmid:
                fields["sandbox"] = str(operation.vmid)
            with log.context(**{key: value for key, value in fields.items() if value}):
                turn = self._forward if operation.state == "doing" else self._back
                pause = turn(operation, kind, begun)
            if pause is not None:
                return pause
        return 0.0

    def _forward(
        self, operation: OperationRow, kind: Operation, begun: Mapping[str, StepRow]
    ) -> float | None:
        step = next(
            (
                s
                for s in kind.steps
                if (s.name not in begun and s.applies(operation))
                or (s.name in begun and begun[s.name].state == "doing")
            ),
            None,
        )
        if step is None:
            self._finish(operation, kind)
            return None
        past_return = step.no_return and step.name in begun
        if operation.cancel and not step.handles_cancel and not past_return:
            self._turn_back(operation, kind, Cancelled("cancelled"))
            return None
        attempt = self._attempt(operation, step, "do")
        if attempt.tries == 1 or step.name not in begun:
            with self._store.write() as tx:
                row = operations.begin_step(tx, operation.id, step.name)
                if row.attempts == 1:
                    _event(tx, operation, "step.doing", step.name)
        else:
            row = begun[step.name]
        outputs = {name: done.output for name, done in begun.items() if name != step.name}
        deadline = Deadline.after(_MAX_BACKOFF)  # until the step has told its own
        try:
            given = step.deadline() if callable(step.deadline) else step.deadline
            deadline = Deadline(attempt.began + given)
            self._observer("before", "do", operation, step.name)
            result = step.do(self._call(operation, outputs, row, attempt, deadline))
            self._observer("after", "do", operation, step.name)
            self._done(operation, row, result)
        except Later as later:
            if deadline.passed:
                why = f": still waiting for {later.for_}" if later.for_ else ""
                late = DeadlineExceeded(f"{step.name} took longer than it was given{why}")
                return self._failed(operation, kind, step, late, deadline)
            self._note(operation, step, later.for_)
            return min(later.after, max(0.05, deadline.left))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the step's failure
            return self._failed(operation, kind, step, error, deadline)
        return None

    def _attempt(self, operation: OperationRow, step: Step, verb: str) -> _Attempt:
        """One more try at a step; the first one of this process begins its time."""
        attempt = self._attempts.get(operation.id)
        if attempt is None or (attempt.step, attempt.verb) != (step.name, verb):
            attempt = self._attempts[operation.id] = _Attempt(step.name, verb, time.monotonic())
        attempt.tries += 1
        return attempt

    def _call(
        self,
        operation: OperationRow,
        outputs: Mapping[str, Output],
        row: StepRow,
        attempt: _Attempt,
        deadline: Deadline,
    ) -> Call:
        return Call(
            operation=operation,
            step=row.name,
            outputs=outputs,
            saved=row.output,
            attempts=max(attempt.tries, row.attempts),
            started=row.started,
            deadline=deadline,
            store=self._store,
        )

    def _done(self, operation: OperationRow, row: StepRow, result: Result) -> None:
        with self._store.write() as tx:
            output = result(tx) if callable(result) else result or {}
            operations.end_step(tx, operation.id, row.name, "done", output)
            seconds = round(clock.now() - row.started, 3)
            _event(tx, operations.get(tx, operation.id), "step.done", row.name, seconds=seconds)

    def _note(self, operation: OperationRow, step: Step, waits_for: str) -> None:
        """Writes down for what an operation waits, when that has changed."""
        if waits_for != operation.waits_for:
            with self._store.write() as tx:
                operations.set_waits_for(tx, operation.id, waits_for)
                if waits_for:
                    _event(tx, operation, "step.waits", step.name, waits_for=waits_for)

    def _failed(
        self,
        operation: OperationRow,
        kind: Operation,
        step: Step,
        error: Exception,
        deadline: Deadline,
    ) -> float | None:
        if self._schedule.closed:
            return 0.0  # what fails while the daemon ends may have been ended with it: done again
        if step.no_return:
            return self._again(operation, step, "finish", error)
        if isinstance(error, WORTH_A_RETRY) and not deadline.passed:
            self._note(operation, step, error.message)
            return self._backoff(operation)
        if not isinstance(error, AgentLabError):
            _log.error("step %s failed", step.name, exc_info=error)
            error = Internal(f"{step.name}: {type(error).__name__}: {error}")
        self._turn_back(operation, kind, error, step.name)
        return None

    def _backoff(self, operation: OperationRow) -> float:
        attempt = self._attempts[operation.id]
        attempt.failures += 1
        jitter = random.uniform(0.5, 1.0)  # noqa: S311  # not for secrets
        return min(_MAX_BACKOFF, 0.25 * 2.0 ** min(attempt.failures, 10)) * jitter

    def _again(self, operation: OperationRow, step: Step, verb: str, error: Exception) -> float:
        """What cannot be given up is tried again, and says so when the trouble is a new one."""
        if self._schedule.closed:
            return 0.0
        attempt, trouble = self._attempts[operation.id], f"{type(error).__name__}: {error}"
        if trouble != attempt.trouble:
            known = isinstance(error, AgentLabError)
            _log.warning(
                "cannot %s %s yet, trying again: %s", verb, step.name, error,
                exc_info=None if known else error,
            )  # fmt: skip
            attempt.trouble = trouble
        self._note(operation, step, f"a way to {verb} {step.name}: {error}")
        return self._backoff(operation)

    def _turn_back(
        self, operation: OperationRow, kind: Operation, error: AgentLabError, step: str = ""
    ) -> None:
        with self._store.write() as tx:
            operations.turn_back(
                tx, operation.id, error=error.message, code=error.code, hint=error.hint
            )
            if step:
                _event(tx, operation, "step.failed", step, error=error.message, hint=error.hint)
            kind.finish(tx, operation, error)

    def _back(
        self, operation: OperationRow, kind: Operation, begun: Mapping[str, StepRow]
    ) -> float | None:
        todo = [
            s for s in reversed(kind.steps) if s.name in begun and begun[s.name].state != "undone"
        ]
        if not todo:
            self._undone(operation)
            return None
        step, row = todo[0], begun[todo[0].name]
        attempt = self._attempt(operation, step, "undo")
        if attempt.tries == 1:
            with self._store.write() as tx:
                operations.begin_undo(tx, operation.id, step.name)
                if step.undo is not None and row.state != "undoing":
                    _event(tx, operation, "step.undoing", step.name)
        if step.undo is not None:
            outputs = {name: each.output for name, each in begun.items()}
            call = self._call(operation, outputs, row, attempt, Deadline.after(_MAX_BACKOFF))
            try:
                self._observer("before", "undo", operation, step.name)
                result = step.undo(call)
                self._observer("after", "undo", operation, step.name)
                self._undid(operation, row, result)
            except Later as later:
                return later.after
            except Exception as error:  # noqa: BLE001  # an undo is never dropped
                return self._again(operation, step, "undo", error)
        else:
            with self._store.write() as tx:
                operations.end_step(tx, operation.id, step.name, "undone", row.output)
        return None

    def _undid(self, operation: OperationRow, row: StepRow, result: Result) -> None:
        with self._store.write() as tx:
            if callable(result):
                result(tx)
            operations.end_step(tx, operation.id, row.name, "undone", row.output)
            _event(tx, operation, "step.undone", row.name)

    def _undone(self, operation: OperationRow) -> None:
        state = "cancelled" if operation.code == Cancelled.code else "failed"
        with self._store.write() as tx:
            self._end(tx, operation, state)
            facts = {"error": operation.error, "hint": operation.hint}
            _event(tx, operation, f"operation.{state}", "", **facts)

    def _finish(self, operation: OperationRow, kind: Operation) -> None:
        with self._store.write() as tx:
            kind.finish(tx, operation, None)
            self._end(tx, operation, "done")
            _event(tx, operation, "operation.done", "")

    def _end(self, tx: Tx, operation: OperationRow, state: str) -> None:
        """Those who wait for what it held are looked at as soon as that is on disk."""
        waiting = operations.finish(tx, operation.id, state)
        for each in waiting:
            tx.on_commit(functools.partial(self.wake, each))


def _event(tx: Tx, operation: OperationRow, kind: str, step: str, **facts: object) -> None:
    what = f"{operation.kind} {step}".strip()
    error = facts.get("error") or facts.get("waits_for")
    events.append(
        tx,
        kind,
        f"{what}: {kind.rpartition('.')[2]}" + (f": {error}" if error else ""),
        job=operation.job,
        vmid=operation.vmid,
        operation=operation.id,
        facts={"operation": operation.kind, **({"step": step} if step else {}), **facts},
    )

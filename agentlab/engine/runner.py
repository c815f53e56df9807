"""The engine: takes every unfinished operation forward, or back, one step at a time."""

from __future__ import annotations

import heapq
import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence

from agentlab import clock, log
from agentlab.clock import Deadline
from agentlab.engine.step import Call, Later, Observer, Operation, Result, Step
from agentlab.errors import AgentLabError, DeadlineExceeded, Internal, Unavailable
from agentlab.model.ids import new_id
from agentlab.store import events, operations
from agentlab.store.db import Store, Tx
from agentlab.store.operations import OperationRow, StepRow

_log = logging.getLogger(__name__)
_MAX_BACKOFF = 60.0


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
        self._born = clock.now()
        self._turn = threading.Condition()
        self._due: list[tuple[float, str]] = []
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}  # in a row, of operations that are retried
        self._stopping = False
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
            thread.start()
        return len(found)

    def stop(self, timeout: float) -> None:
        """Begins no further step and waits for those under way; they are taken up at next start."""
        until = Deadline.after(timeout)
        with self._turn:
            self._stopping = True
            self._turn.notify_all()
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
    ) -> str:
        """Writes an operation down in the caller's transaction; it begins when that is on disk."""
        if kind not in self._kinds:
            raise Internal(f"no operation of the kind {kind}")
        identity = operation or new_id()
        operations.create(tx, identity, kind, subjects, arguments, job=job, vmid=vmid)
        tx.on_commit(lambda: self.wake(identity))
        return identity

    def cancel(self, tx: Tx, operation: str) -> None:
        """Asks an operation to turn back; seen between steps and by steps that wait."""
        operations.request_cancel(tx, operation)
        tx.on_commit(lambda: self.wake(operation))

    def wake(self, operation: str, after: float = 0.0) -> None:
        """Has an operation looked at after some seconds; one under way is looked at again."""
        with self._turn:
            if operation in self._running:
                self._again.add(operation)
            else:
                heapq.heappush(self._due, (time.monotonic() + after, operation))
                self._turn.notify()

    def _work(self) -> None:
        while True:
            operation = self._take()
            if operation is None:
                return
            pause: float | None = 1.0
            try:
                pause = self._advance(operation)
            except Exception:  # noqa: BLE001  # a worker outlives whatever happens
                # the store failed us: whatever step it was is still written as begun
                _log.exception("cannot go on with operation %s; trying again", operation)
            finally:
                self._give_back(operation, pause)

    def _take(self) -> str | None:
        with self._turn:
            while not self._stopping:
                now = time.monotonic()
                while self._due and self._due[0][0] <= now:
                    operation = heapq.heappop(self._due)[1]
                    if operation not in self._running:
                        self._running.add(operation)
                        return operation
                    self._again.add(operation)
                self._turn.wait(self._due[0][0] - now if self._due else None)
        return None

    def _give_back(self, operation: str, pause: float | None) -> None:
        with self._turn:
            self._running.discard(operation)
            again = operation in self._again
            self._again.discard(operation)
        if again:
            self.wake(operation)
        elif pause is not None:
            self.wake(operation, pause)

    def _advance(self, identity: str) -> float | None:
        """Takes steps until the operation ends (None) or wants to sleep (seconds)."""
        while not self._stopping:
            with self._store.read() as tx:
                operation = operations.find(tx, identity)
            if operation is None or operation.final:
                return None
            kind = self._kinds.get(operation.kind)
            if kind is None:
                _log.error("operation %s is of the unknown kind %s", identity, operation.kind)
                return None
            fields = {"operation": identity, "job": operation.job}
            if operation.vmid:
                fields["sandbox"] = str(operation.vmid)
            with log.context(**{key: value for key, value in fields.items() if value}):
                forward = operation.state == "doing"
                pause = self._forward(operation, kind) if forward else self._back(operation, kind)
            if pause is not None:
                return pause
        return 0.0

    def _forward(self, operation: OperationRow, kind: Operation) -> float | None:
        with self._store.read() as tx:
            begun = operations.steps(tx, operation.id)
        step = next(
            (s for s in kind.steps if s.name not in begun or begun[s.name].state == "doing"), None
        )
        if step is None:
            self._finish(operation, kind, None)
            return None
        if operation.cancel and not step.handles_cancel:
            self._turn_back(operation, Cancelled("cancelled"))
            return None
        with self._store.write() as tx:
            row = operations.begin_step(tx, operation.id, step.name)
            if row.attempts == 1:
                _event(tx, operation, "step.doing", step.name)
        outputs = {name: done.output for name, done in begun.items() if name != step.name}
        call = self._call(operation, step, outputs, row)
        try:
            self._observer("before", "do", operation, step.name)
            result = step.do(call)
            self._observer("after", "do", operation, step.name)
            self._done(operation, row, result)
        except Later as later:
            return self._put_off(operation, call, later)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the step's failure
            return self._failed(operation, call, error)
        self._failures.pop(operation.id, None)
        return None

    def _done(self, operation: OperationRow, row: StepRow, result: Result) -> None:
        with self._store.write() as tx:
            output = result(tx) if callable(result) else result or {}
            operations.end_step(tx, operation.id, row.name, "done", output)
            seconds = round(clock.now() - row.started, 3)
            _event(tx, operations.get(tx, operation.id), "step.done", row.name, seconds=seconds)

    def _call(
        self,
        operation: OperationRow,
        step: Step,
        outputs: Mapping[str, Mapping[str, object]],
        row: StepRow,
    ) -> Call:
        since = clock.now() - max(row.started, self._born)
        given = step.deadline() if callable(step.deadline) else step.deadline
        return Call(
            operation=operation,
            step=step.name,
            outputs=outputs,
            saved=row.output,
            attempts=row.attempts,
            started=row.started,
            deadline=Deadline.after(given - max(0.0, since)),
            store=self._store,
        )

    def _put_off(self, operation: OperationRow, call: Call, later: Later) -> float | None:
        if call.deadline.passed:
            why = f": still waiting for {later.for_}" if later.for_ else ""
            late = DeadlineExceeded(f"{call.step} took longer than it was given{why}")
            return self._failed(operation, call, late)
        pause = min(later.after, max(0.05, call.deadline.left))
        with self._store.write() as tx:
            wake = clock.now() + pause
            if later.for_ and later.for_ != operation.waits_for:
                _event(tx, operation, "step.waits", call.step, waits_for=later.for_)
            operations.sleep(tx, operation.id, wake=wake, waits_for=later.for_)
        return pause

    def _failed(self, operation: OperationRow, call: Call, error: Exception) -> float | None:
        if isinstance(error, Unavailable) and not call.deadline.passed:
            return self._put_off(operation, call, Later(self._backoff(operation), error.message))
        if not isinstance(error, AgentLabError):
            _log.error("step %s failed", call.step, exc_info=error)
            error = Internal(f"{call.step}: {type(error).__name__}: {error}")
        self._turn_back(operation, error, call.step)
        return None

    def _backoff(self, operation: OperationRow) -> float:
        failures = self._failures.get(operation.id, 0) + 1
        self._failures[operation.id] = failures
        jitter = random.uniform(0.5, 1.0)  # noqa: S311  # not for secrets
        return min(_MAX_BACKOFF, 0.25 * 2.0 ** min(failures, 10)) * jitter

    def _turn_back(self, operation: OperationRow, error: AgentLabError, step: str = "") -> None:
        with self._store.write() as tx:
            operations.turn_back(
                tx, operation.id, error=error.message, code=error.code, hint=error.hint
            )
            if step:
                _event(tx, operation, "step.failed", step, error=error.message, hint=error.hint)

    def _back(self, operation: OperationRow, kind: Operation) -> float | None:
        with self._store.read() as tx:
            begun = operations.steps(tx, operation.id)
        todo = [
            s for s in reversed(kind.steps) if s.name in begun and begun[s.name].state != "undone"
        ]
        if not todo:
            error = Cancelled if operation.code == Cancelled.code else AgentLabError
            self._finish(operation, kind, error(operation.error, hint=operation.hint))
            return None
        step, row = todo[0], begun[todo[0].name]
        with self._store.write() as tx:
            operations.begin_undo(tx, operation.id, step.name)
            if step.undo is not None and row.state != "undoing":
                _event(tx, operation, "step.undoing", step.name)
        outputs = {name: each.output for name, each in begun.items()}
        call = self._call(operation, step, outputs, row)
        result = None
        if step.undo is not None:
            try:
                self._observer("before", "undo", operation, step.name)
                result = step.undo(call)
                self._observer("after", "undo", operation, step.name)
            except Later as later:
                return later.after
            except Exception as error:  # noqa: BLE001  # an undo is never dropped
                return self._undo_failed(operation, step, error)
        with self._store.write() as tx:
            output = result(tx) if callable(result) else row.output
            operations.end_step(tx, operation.id, step.name, "undone", output)
            if step.undo is not None:
                _event(tx, operation, "step.undone", step.name)
        self._failures.pop(operation.id, None)
        return None

    def _undo_failed(self, operation: OperationRow, step: Step, error: Exception) -> float:
        pause = self._backoff(operation)
        _log.warning("cannot undo %s yet (%s); again in %.0f s", step.name, error, pause)
        with self._store.write() as tx:
            waits = f"undoing {step.name}: {error}"
            operations.sleep(tx, operation.id, wake=clock.now() + pause, waits_for=waits)
        return pause

    def _finish(
        self, operation: OperationRow, kind: Operation, error: AgentLabError | None
    ) -> None:
        state = "done"
        if error is not None:
            state = "cancelled" if isinstance(error, Cancelled) else "failed"
        with self._store.write() as tx:
            kind.finish(tx, operation, error)
            operations.finish(tx, operation.id, state)
            facts = {} if error is None else {"error": error.message, "hint": error.hint}
            _event(tx, operation, f"operation.{state}", "", **facts)


class Cancelled(AgentLabError):
    """Somebody cancelled the operation."""

    code = "cancelled"
    http_status = 409


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

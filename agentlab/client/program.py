"""A program in a sandbox, followed: its output as it comes, its input as it takes it.

Everything may be asked again: the program has an id that we choose, output has numbers, input has
offsets.  So a daemon that is restarted meanwhile costs a pause and nothing else.
"""

from __future__ import annotations

import binascii
import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.client.client import PATIENCE, Client, patiently
from agentlab.client.follow import TICK, WAIT, Tick, Trouble
from agentlab.client.unix import Lost
from agentlab.errors import AgentLabError, DeadlineExceeded, NotFound, Unavailable

INPUT = 256 << 10  # bytes of stdin sent at once
_FIRST_WAIT = 1.0  # seconds in which most programs have ended
_FIRST_WAIT_FED = 0.1  # or less, when it waits for us
_FEED_WAIT = 10.0
_PATIENCE = 180.0  # seconds that a busy guest's agent, or a restart of the daemon, may take
_PATIENCE_START = 20.0  # as long as nothing runs, somebody rather hears of it


@dataclass(frozen=True, slots=True)
class Piece:
    """What it wrote to stdout and to stderr."""

    out: bytes
    err: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended, and whether something that it started still holds its output."""

    status: int
    cut: bool


Item = Piece | Ended | Tick | Trouble
Source = Callable[[], bytes]


class Program:
    """`source` gives the next bytes of its stdin, b"" at their end; None: there are none.

    `order.input` says whether there is a source.
    """

    def __init__(
        self,
        client: Client,
        sandbox: str,
        order: m.ExecRequest,
        source: Source | None = None,
        *,
        patience: float = _PATIENCE,
    ) -> None:
        self._client = client
        self.sandbox = sandbox
        self._order = order
        self._path = {"vmid": sandbox, "id": order.id}
        self._source = source
        self._patience = patience
        self._over = threading.Event()
        # Bounded: who reads slowly holds back the program, and not our memory.
        self._queue: queue.Queue[m.ExecOutput | Trouble | BaseException] = queue.Queue(2)
        self.sent = 0  # bytes of input that are in the sandbox
        self.begun = False  # it may run: there is something to end
        self.unread = False  # the program has ended or closed its input before the end of it

    def start(self) -> m.ExecOutput:
        """Runs it, once; an error means that it has not run, but for Lost, when nobody knows."""
        query = {"wait": _FIRST_WAIT_FED if self._order.input else _FIRST_WAIT}
        path = {"vmid": self._path["vmid"]}

        def once() -> m.ExecOutput:
            return self._client.call(table.EXEC_START, self._order, path=path, query=query)

        self.begun = True
        try:
            try:
                return once()
            except Lost:
                return patiently(once, patience=PATIENCE)
            except Unavailable:  # the guest is busy, or its agent is; the same id runs once
                return patiently(once, patience=min(_PATIENCE_START, self._patience))
        except AgentLabError as error:
            self.begun = isinstance(error, (Lost, Unavailable, DeadlineExceeded))
            raise

    def items(self) -> Generator[Item, None, None]:
        """Starts it and follows it to its end, with ticks in between; raises what went wrong."""
        first = self.start()
        yield from _pieces(first)
        if first.status is None:
            threading.Thread(target=self._guarded, args=(self._hear, first), daemon=True).start()
            if self._source is not None:
                given = (self._feed, self._source)
                threading.Thread(target=self._guarded, args=given, daemon=True).start()
        last = first
        while last.status is None:
            try:
                found = self._queue.get(timeout=TICK)
            except queue.Empty:
                yield Tick()
                continue
            if isinstance(found, BaseException):
                raise found
            if isinstance(found, Trouble):
                yield found
                continue
            last = found
            yield from _pieces(last)
        self._over.set()
        if last.broken:
            raise AgentLabError(
                f"the program ended with status {last.status}, and some of its output is lost:"
                " the guest had no room in /run"
            )
        yield Ended(last.status, last.cut)

    def end(self, *, ended: bool) -> None:
        """Ends it if it runs, and forgets it; `ended` says that it has, and does not wait."""
        self._over.set()
        query = {"ended": 1} if ended else {}
        self._client.call(table.EXEC_END, path=self._path, query=query)

    def _guarded(self, work: Callable[..., None], *given: object) -> None:
        try:
            work(*given)
        except Exception as error:  # noqa: BLE001  # handed to the caller's thread
            self._put(error)

    def _trouble(self, error: AgentLabError) -> None:
        self._put(Trouble(error))

    def _put(self, found: m.ExecOutput | Trouble | BaseException) -> None:
        while not self._over.is_set():
            try:
                self._queue.put(found, timeout=TICK)
            except queue.Full:
                continue
            return

    def _hear(self, last: m.ExecOutput) -> None:
        while last.status is None and not self._over.is_set():
            query = {"out": last.next_out, "err": last.next_err, "wait": WAIT}

            def ask(query: dict[str, int | float] = query) -> m.ExecOutput:
                return self._client.call(table.EXEC_OUTPUT, path=self._path, query=query)

            last = patiently(ask, patience=self._patience, on_trouble=self._trouble)
            self._put(last)

    def _feed(self, source: Source) -> None:
        while not self._over.is_set():
            content = source()
            try:
                state = self._send(content)
            except NotFound:  # it has ended and is cleaned away: who hears it knows
                return
            if state == "closed":
                self.unread = True
                return
            self.sent += len(content)
            if not content:
                return

    def _send(self, content: bytes) -> str:
        query = {"offset": self.sent, "last": int(not content), "wait": _FEED_WAIT}
        state = "full"
        while state == "full" and not self._over.is_set():
            state = patiently(
                lambda: (
                    self._client.put(table.EXEC_INPUT, content, path=self._path, query=query).state
                ),
                patience=self._patience,
                on_trouble=self._trouble,
            )
        return state


def _pieces(found: m.ExecOutput) -> Generator[Item, None, None]:
    if found.lost:
        raise AgentLabError(
            "cannot say how the program ended: what kept it in the guest was killed",
            hint="see what happened: agentlab sandbox exec SANDBOX --user root -- journalctl -b",
        )
    try:
        piece = Piece(binascii.a2b_base64(found.stdout), binascii.a2b_base64(found.stderr))
    except ValueError as error:
        raise Unavailable("cannot understand the daemon's answer: no base64") from error
    if piece.out or piece.err:
        yield piece

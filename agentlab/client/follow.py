"""Following a job, an operation or a sandbox: events and log, from where one left off.

Two threads poll, one generator yields, so that the caller can draw a clock in between and ^C
takes effect at once.  The daemon may restart meanwhile: events go on after the last sequence
number, the log after the last byte.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.client.client import PATIENCE, Client, patiently
from agentlab.client.unix import Lost, Reply
from agentlab.errors import AgentLabError

WAIT = 25.0  # seconds of one long poll
TICK = 0.1  # seconds between two chances for the caller to redraw
_PAGE = 500  # events asked for at once
_LOG_GRACE = 15.0  # seconds that the log may go on after its job has ended


@dataclass(frozen=True, slots=True)
class LogPart:
    """Bytes of a job's log, the first of them at `offset`."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened for a moment."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """The daemon, or a guest behind it, does not answer; it is asked again."""

    error: AgentLabError


Item = m.EventView | LogPart | Tick | Trouble
_Report = Callable[[AgentLabError], None]


def _ignore(_error: AgentLabError) -> None:
    return None


def events(
    client: Client,
    *,
    query: dict[str, str | int],
    after: int = 0,
    ended: Callable[[], bool] | None = None,
    patience: float = PATIENCE,
    on_trouble: _Report = _ignore,
) -> Iterator[m.EventView]:
    """Events in order and once each; ends when `ended()` says so and no event is left.

    `ended` is asked before the first long poll and whenever something has happened or nothing
    did for a while.  Without it only what is there now is yielded.
    """
    over = ended is None
    wait = 0.0
    while True:

        def poll(after: int = after, wait: float = wait) -> m.EventList:
            asked = {**query, "after": after, "limit": _PAGE}
            return client.call(table.EVENTS, query={**asked, "wait": wait} if wait else asked)

        page = patiently(poll, patience=patience, on_trouble=on_trouble)
        fresh = [each for each in page.events if each.seq > after]
        yield from fresh
        after = max([after, *(each.seq for each in fresh)])
        if over and not fresh:
            return
        if ended is not None and not over:
            over = patiently(ended, patience=patience, on_trouble=on_trouble)
        wait = 0.0 if over or len(fresh) >= _PAGE else WAIT


def log(
    client: Client,
    job: str,
    *,
    offset: int = 0,
    follow: bool = True,
    patience: float = PATIENCE,
    on_trouble: _Report = _ignore,
) -> Iterator[LogPart]:
    """The log from `offset` on; with `follow` until the daemon says that there is no more."""
    wait = 0.0
    until = time.monotonic() + patience
    while True:

        def ask(offset: int = offset, wait: float = wait) -> Reply:
            query: dict[str, int | float] = {"offset": offset}
            return client.stream(
                table.JOB_LOG, path={"id": job}, query={**query, "wait": wait} if wait else query
            )

        reply = patiently(ask, patience=patience, on_trouble=on_trouble)
        start = offset
        try:
            for piece in reply.blocks():
                yield LogPart(offset, piece)
                offset += len(piece)
        except Lost as error:  # what came is good; the rest is asked for again
            if offset == start and time.monotonic() > until:
                raise
            on_trouble(error)
            time.sleep(TICK)
            continue
        until = time.monotonic() + patience
        if offset == start and (not follow or reply.headers.get("x-final") == "1"):
            return
        wait = WAIT if follow and offset == start else 0.0


class _Deaf(BaseException):
    """Nobody listens any more: the thread is to end."""


class Feed:
    """Events, and a log if asked for, merged into one stream with ticks."""

    def __init__(self, client: Client, *, patience: float = PATIENCE) -> None:
        self._client = client
        self._patience = patience
        # Bounded, so that a slow terminal slows the polling and not our memory down.
        self._queue: queue.Queue[Item | BaseException | str] = queue.Queue(64)
        self._running: set[str] = set()
        self._stop = threading.Event()

    def follow_events(
        self, query: dict[str, str | int], ended: Callable[[], bool], *, after: int = 0
    ) -> None:
        self._start(
            "events",
            lambda: events(
                self._client, query=query, after=after, ended=ended,
                patience=self._patience, on_trouble=self._trouble,
            ),
        )  # fmt: skip

    def follow_log(self, job: str, *, offset: int = 0) -> None:
        self._start(
            "log",
            lambda: log(
                self._client, job, offset=offset, patience=self._patience, on_trouble=self._trouble
            ),
        )

    def items(self) -> Generator[Item, None, None]:
        """Everything, until all sources have ended; raises what a source raised."""
        idle = 0.0
        try:
            while self._running:
                try:
                    item = self._queue.get(timeout=TICK)
                except queue.Empty:
                    idle += TICK
                    if "events" not in self._running and idle > _LOG_GRACE:
                        return  # the job has ended, and its log never got an end
                    yield Tick()
                    continue
                idle = 0.0
                if isinstance(item, str):
                    self._running.discard(item)
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            self._stop.set()

    def _trouble(self, error: AgentLabError) -> None:
        self._put(Trouble(error))

    def _put(self, item: Item | BaseException | str) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=TICK)
            except queue.Full:
                continue
        raise _Deaf

    def _start(self, name: str, source: Callable[[], Iterator[Item]]) -> None:
        def pump() -> None:
            try:
                try:
                    for item in source():
                        self._put(item)
                except Exception as error:  # noqa: BLE001  # handed to the caller's thread
                    self._put(error)
                self._put(name)
            except _Deaf:
                pass

        self._running.add(name)
        threading.Thread(target=pump, daemon=True).start()

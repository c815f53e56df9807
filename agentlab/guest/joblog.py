"""The job's log: its head is streamed live, its last bytes come at the end, memory stays flat."""

from __future__ import annotations

import logging
import threading
import time

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Unavailable
from agentlab.guest.daemon import Daemon
from agentlab.guest.paths import Pace
from agentlab.guest.spool import Spool

TAIL = 64 * 1024  # bytes kept free at the end of the log
_NOTICE = 128  # … of which the line about what was left out may take so many
_SEND = 256 * 1024  # bytes in one request


class JobLog:
    """Takes what the agent writes, at the agent's pace, whatever the daemon's is."""

    def __init__(self, spool: Spool, limit: int) -> None:
        self._spool = spool
        self._head = max(0, limit - TAIL)
        self._ring_most = max(0, min(limit, TAIL) - _NOTICE)
        self._ring = bytearray()
        self._news = threading.Condition()
        self.closed = False
        self.written = 0
        self.truncated = False

    @property
    def size(self) -> int:
        """Bytes that can be sent by now."""
        return self._spool.size

    def write(self, data: bytes) -> None:
        with self._news:
            if self.closed:
                return
            self.written += len(data)
            room = max(0, self._head - self._spool.size)
            if room:
                self._append(data[:room])
                room = max(0, min(room, len(data)))
            self._ring += data[room:]
            if len(self._ring) > self._ring_most:
                del self._ring[: len(self._ring) - self._ring_most]
            self._news.notify_all()

    def _append(self, data: bytes) -> None:
        before = self._spool.size
        try:
            self._spool.write(data)
        except OSError as full:
            logging.warning("no room for the whole log: %s", full.strerror)
            self._head = self._spool.size  # from here on only the last bytes are kept
            self._ring += data[self._spool.size - before :]

    def close(self) -> None:
        """Nothing more is taken; the end of the log can be sent now."""
        with self._news:
            if self.closed:
                return
            left_out = self.written - self._spool.size - len(self._ring)
            self.truncated = left_out > 0
            try:
                if self.truncated:
                    self._spool.write(b"\n[agentlab: %d bytes left out here]\n" % left_out)
                self._spool.write(bytes(self._ring))
            except OSError as full:
                logging.warning("no room for the end of the log: %s", full.strerror)
                self.truncated = True
            self._ring.clear()
            self.closed = True
            self._news.notify_all()

    def read(self, offset: int) -> bytes:
        return self._spool.read(offset, _SEND)

    def wait(self, offset: int, seconds: float) -> None:
        """Until there is more than `offset` bytes, or the log is closed."""
        with self._news:
            self._news.wait_for(lambda: self.closed or self._spool.size > offset, seconds)


class LogSender:
    """Sends a log from its own thread, and goes on where the daemon says that it stands."""

    def __init__(self, daemon: Daemon, log: JobLog, pace: Pace) -> None:
        self._daemon, self._log, self._pace = daemon, log, pace
        self._offset = 0
        self._give_up: Deadline | None = None
        self._refused = ""
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, deadline: Deadline) -> str:
        """Closes the log and sends the rest; the reason when some of it could not be sent."""
        self._log.close()
        self._give_up = deadline
        # One request may be under way when time is up; nothing may follow after the report.
        self._thread.join(deadline.left + self._pace.request + 5)
        if self._refused or self._offset >= self._log.size:
            return self._refused
        return f"the daemon took {self._offset} of {self._log.size} bytes in time"

    def _done(self) -> bool:
        if self._refused or (self._give_up is not None and self._give_up.passed):
            return True
        return self._log.closed and self._offset >= self._log.size

    def _work(self) -> None:
        pause = self._pace.retry
        while not self._done():
            if self._offset >= self._log.size:
                self._log.wait(self._offset, 1.0)
                if not self._log.closed:
                    time.sleep(self._pace.log)
                continue
            try:
                self._send()
                pause = self._pace.retry
            except Unavailable:
                time.sleep(pause)
                pause = min(2 * pause, self._pace.retry_most)
            except AgentLabError as refused:
                self._refused = refused.message
                logging.warning("the daemon refused the log: %s", refused.message)

    def _send(self) -> None:
        data = self._log.read(self._offset)
        size = self._daemon.put_log(self._offset, data)
        if size > self._log.size:
            self._refused = f"the daemon has {size} bytes of log already"
            return
        if size <= self._offset:
            time.sleep(self._pace.retry)  # never in a tight loop when it goes back
        self._offset = size

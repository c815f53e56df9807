"""Logging to stderr for the journal: one line an event, `key=value` context, sd-daemon priorities.

The context (`operation=`, `job=`, `sandbox=`) comes from one ContextVar, so that a log
line deep in a driver says for whom it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar

_context: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("agentlab_log", default=())

# sd-daemon(3): a "<N>" prefix sets the priority of a line in the journal.
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


@contextlib.contextmanager
def context(**fields: str) -> Iterator[None]:
    """Adds fields to every log line of this thread while the block runs."""
    token = _context.set((*_context.get(), *fields.items()))
    try:
        yield
    finally:
        _context.reset(token)


def one_line(text: str) -> str:
    """The text with control characters escaped: hostile input cannot forge a log line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Lines(logging.Formatter):
    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={one_line(value)}" for key, value in _context.get())
        text = f"{record.levelname.lower()}: {one_line(record.getMessage())}{fields}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if self._journal:
            prefix = f"<{_PRIORITY.get(record.levelname, 6)}>"
            return "\n".join(prefix + line for line in text.splitlines())
        return f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')} {text}"


def setup(level: str = "INFO") -> None:
    """Sends the log to stderr; under systemd (JOURNAL_STREAM) with priorities and no time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(journal="JOURNAL_STREAM" in os.environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)

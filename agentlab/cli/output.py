"""The only place that prints.  Answers go to stdout; progress, hints and questions to stderr."""

from __future__ import annotations

import os
import sys
import time

from agentlab.cli.text import Plain, safe
from agentlab.errors import AgentLabError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from agentlab.cli.command import Answer

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "dim": "2", "bold": "1"}
_SPINNER = "|/-\\"
_CLEAR = "\r\x1b[2K"


class Output:
    """Where a command's words go, and in which form.

    `json` and `quiet` are the global flags.  Colours and the moving line are for terminals only.
    """

    def __init__(self, *, json: bool, quiet: bool, no_color: bool) -> None:
        self.json = json
        self._out: TextIO = sys.stdout
        self._err: TextIO = sys.stderr
        self.quiet = quiet or (json and not self._err.isatty())
        for stream in (self._out, self._err):
            if hasattr(stream, "reconfigure"):  # an ASCII locale must not end in a traceback
                stream.reconfigure(errors="backslashreplace")
        self.to_terminal = self._out.isatty()
        self.live = self._err.isatty() and os.environ.get("TERM") != "dumb" and not self.quiet
        self._colour = not (no_color or os.environ.get("NO_COLOR"))
        self._moving = False
        self._log = Plain()

    def answer(self, answer: Answer) -> None:
        """A command's result, in the form that was asked for."""
        self.still()
        if answer.document is not None and self.json:
            self.record(answer.document)
        elif not self.json:
            self.lines(answer.lines)

    def lines(self, lines: Sequence[str]) -> None:
        """Text for people on stdout; the caller has made hostile parts safe."""
        self.still()
        for line in lines:
            self._out.write(self._painted(line) + "\n")
        self._out.flush()

    def record(self, document: object) -> None:
        """One JSON document on one line; ASCII only, so that no terminal and no locale minds."""
        import json

        self.still()
        self._out.write(json.dumps(document, separators=(",", ":"), default=_plain) + "\n")
        self._out.flush()

    def log(self, data: bytes, *, final: bool = False) -> None:
        """A piece of an agent's log: as it is into a file or pipe, made harmless on a terminal."""
        self.still()
        if self.to_terminal or not hasattr(self._out, "buffer"):
            self._out.write(self._log.feed(data, final=final))
        else:
            self._out.flush()
            self._out.buffer.write(data)
        self._out.flush()

    def pipe(self, data: bytes, *, err: bool = False) -> None:
        """What a program wrote, byte for byte, to the stream that it wrote it to."""
        self.still()
        stream = self._err if err else self._out
        stream.flush()
        stream.buffer.write(data)
        stream.flush()

    def unread(self) -> bool:
        """Whether stdout goes to nobody: a pipe whose reader has left."""
        import select

        poll = select.poll()
        poll.register(self._out.fileno(), 0)
        return any(found & select.POLLERR for _, found in poll.poll(0))

    def note(self, text: str, colour: str = "") -> None:
        """A line of progress or advice on stderr, unless quiet."""
        if self.quiet:
            return
        self.still()
        self._err.write(self._paint(safe(text), colour, self._err) + "\n")
        self._err.flush()

    def warn(self, text: str) -> None:
        """Something that the user should know, quiet or not."""
        self.still()
        self._err.write(self._paint("warning:", "yellow", self._err) + f" {safe(text)}\n")
        self._err.flush()

    def moving(self, text: str) -> None:
        """A line that is drawn over by the next one; nothing where stderr is no terminal."""
        if not self.live:
            return
        turn = _SPINNER[int(time.monotonic() * 8) % len(_SPINNER)]
        width = max(20, _columns(self._err) - 1)
        self._err.write(_CLEAR + f"{turn} {safe(text)}"[:width])
        self._err.flush()
        self._moving = True

    def still(self) -> None:
        """Takes the moving line away."""
        if self._moving:
            self._moving = False
            self._err.write(_CLEAR)
            self._err.flush()

    def error(self, error: AgentLabError, text: str) -> None:
        """An error: `error:` and `hint:` on stderr, or an object on stdout with --json."""
        if self.json:
            self.record(
                {
                    "error": text,
                    "message": error.message,
                    "code": error.code,
                    "hint": error.hint,
                    "details": error.details,
                }
            )
            return
        self.still()
        lines = [safe(line) for line in text.splitlines()] or [""]
        self._err.write(self._paint("error:", "red", self._err) + " " + "\n  ".join(lines) + "\n")
        if error.hint:
            self._err.write(self._paint("hint:", "blue", self._err) + f" {safe(error.hint)}\n")
        self._err.flush()

    def can_ask(self) -> bool:
        """Whether somebody sits there to answer a question."""
        return sys.stdin.isatty() and self._err.isatty() and not self.json

    def ask(self, question: str) -> bool:
        """Yes or no; no is the answer to all but `y` and `yes`."""
        self.still()
        self._err.write(f"{safe(question)} [y/N] ")
        self._err.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _painted(self, line: str) -> str:
        first, gap, rest = line.partition(" ")
        return self._paint(first, "bold", self._out) + gap + rest if first.isupper() else line

    def _paint(self, text: str, colour: str, stream: TextIO) -> str:
        if not (colour and self._colour and stream.isatty()):
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 80


def _plain(value: object) -> object:
    from agentlab.api.codec import to_plain

    return to_plain(value)

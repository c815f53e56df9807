"""The event stream as lines for people: one for each step, with the time that it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from agentlab.api.messages import EventView
from agentlab.cli.output import Output
from agentlab.cli.text import clock, safe, size, span
from agentlab.client.follow import Trouble


@dataclass(frozen=True, slots=True)
class Line:
    """What an event says: about what, what of it, and whether that is good or bad."""

    what: str
    how: str
    colour: str = ""


_NOUNS = ("workspace", "session")  # whose events say all in their text
_SAY_EVERY = 10.0  # seconds between two lines of how far a step is


def _fact(event: EventView, name: str) -> str:
    value = event.facts.get(name)
    return str(value) if isinstance(value, (str, int, float)) else ""


def _number(event: EventView, name: str) -> float:
    value = event.facts.get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0


_QUIET = ("step.doing", "step.undoing", "sandbox.state", "operation.done", "operation.failed",
          "operation.cancelled")  # fmt: skip  # the job's state or our own error says it
_SHOWN: dict[str, Callable[[EventView], Line]] = {
    "step.done": lambda e: Line(_fact(e, "step"), f"done  {span(_number(e, 'seconds'))}"),
    "step.failed": lambda e: Line(
        _fact(e, "step"), f"failed  {_fact(e, 'error') or e.text}", "red"
    ),
    "step.waits": lambda e: Line(
        _fact(e, "step"), f"waits for {_fact(e, 'waits_for') or e.text}", "yellow"
    ),
    "step.undone": lambda e: Line(_fact(e, "step"), "undone", "yellow"),
    "sandbox.vmid": lambda e: Line("sandbox", e.text, "yellow"),
    "job.state": lambda e: Line("job", _fact(e, "to") or e.text),
    "job.stage": lambda e: Line("guest", _fact(e, "stage") or e.text),
    "job.waits": lambda e: Line("waits", e.text, "yellow"),
    "artifact.stored": lambda e: Line(
        "artifact", f"{_fact(e, 'name')}  {size(_number(e, 'size'))}"
    ),
    "workspace.unwritten": lambda e: Line("workspace", e.text, "red"),
    "sandbox.lease": lambda e: Line("lease", e.text),
    "sandbox.snapshot": lambda e: Line("snapshot", e.text),
    "job.cancel": lambda e: Line("job", e.text.rpartition(": ")[2], "yellow"),
    "template.step": lambda e: Line("template", e.text),
    "guest.refused": lambda e: Line("refused", e.text, "yellow"),
}


def describe(event: EventView) -> Line | None:
    """The line for an event; None for those that only programs want."""
    if event.kind in _QUIET:
        return None
    how = _SHOWN.get(event.kind)
    if how is None:
        noun = event.kind.partition(".")[0]
        return Line(noun if noun in _NOUNS else event.kind, event.text)
    return how(event)


def line_of(event: EventView) -> str:
    """One event as a line of `agentlab logs`."""
    facts = " ".join(f"{key}={safe(str(value))}" for key, value in event.facts.items())
    text = f"{clock(event.at)}  {safe(event.kind):<16}  {safe(event.text)}"
    return f"{text}  ({facts})".rstrip() if facts else text.rstrip()


class Progress:
    """Draws events as they come; `tick` moves the clock of the step that is being done."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._now = ""
        self._since = time.monotonic()
        self._waits = ""
        self._said = time.monotonic()

    def event(self, event: EventView) -> None:
        if event.kind in ("step.doing", "step.undoing"):
            undo = "undo " if event.kind == "step.undoing" else ""
            self._begin(undo + _fact(event, "step"))
        elif event.kind in ("step.done", "step.failed", "step.undone"):
            self._now = ""
        elif event.kind == "job.stage":
            self._begin(_fact(event, "stage"))
        line = describe(event)
        if line is not None:
            self._out.note(f"{clock(event.at)}  {line.what:<12}  {line.how}", line.colour)
        self.tick()

    def tick(self) -> None:
        if self._now:
            waits = f"  {self._waits}" if self._waits else ""
            self._out.moving(f"{self._now}  {span(time.monotonic() - self._since)}{waits}")

    def waits(self, text: str) -> None:
        """For what the step waits, or how far it is; a line now and then where none can move."""
        news, self._waits = text != self._waits, text
        if text and news and not self._out.live and time.monotonic() - self._said >= _SAY_EVERY:
            self._said = time.monotonic()
            self._out.note(f"{clock(time.time())}  {self._now:<12}  {text}")

    def trouble(self, trouble: Trouble) -> None:
        self._out.note(f"{trouble.error.message}; trying again", "yellow")

    def _begin(self, what: str) -> None:
        self._now = what
        self._waits = ""
        self._since = time.monotonic()

"""Text for people: what hostile guests wrote made harmless, tables, sizes and times.  Pure."""

from __future__ import annotations

import re
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_COLOUR = re.compile(r"\x1b\[[0-9;:]{0,32}m")
_CUT = re.compile(r"\x1b(?:\[[0-9;:]{0,32})?\Z")


def safe(text: str) -> str:
    """One line: control characters, escapes and text direction marks are shown, not obeyed."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class Plain:
    """Turns a log that comes in pieces into text that a terminal cannot be harmed by.

    Colours are dropped, a carriage return ends a line, all other controls are shown.
    """

    def __init__(self) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        if not final:
            cut = _CUT.search(text)
            at = cut.start() if cut else len(text) - text.endswith("\r")
            text, self._held = text[:at], text[at:]
        text = _COLOUR.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
        return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns under their headers; the last column is not padded."""
    lines = [list(headers), *([safe(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(headers))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def fields(pairs: Sequence[tuple[str, object]]) -> list[str]:
    """`name  value` lines; empty values are left out."""
    shown = [(name, safe(str(value))) for name, value in pairs if value not in ("", None)]
    width = max((len(name) for name, _ in shown), default=0)
    return [f"{name.ljust(width)}  {value}" for name, value in shown]


def short(text: str, most: int) -> str:
    """The first line, cut to `most` characters."""
    first = safe(text.strip().partition("\n")[0])
    return first if len(first) <= most else first[: most - 1] + "…"


def size(count: float) -> str:
    """`312 B`, `4.5 KiB`, `1.2 GiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    if count < 1 << 20:
        return f"{count / 1024:.1f} KiB"
    return f"{count / (1 << 20):.1f} MiB" if count < 1 << 30 else f"{count / (1 << 30):.1f} GiB"


def span(seconds: float) -> str:
    """`0.4s`, `12.0s`, `3m05s`, `2h10m`."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes}m{int(seconds) % 60:02d}s"
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24}h"


def ago(at: float) -> str:
    """How long ago, roughly: `3m05s`; "" for never."""
    if not at:
        return ""
    return span(int(time.time() - at)).replace(".0s", "s")


def clock(at: float) -> str:
    """`12:00:01`, in the time of this machine."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def moment(at: float) -> str:
    """`2026-01-31 12:00:01`, in the time of this machine; "" for never."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else ""

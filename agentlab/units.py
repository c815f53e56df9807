"""The sizes and durations that people write."""

from __future__ import annotations

import re

from agentlab.errors import Invalid

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?", re.ASCII)
_SIZE = re.compile(r"(\d+)([KMGT]?)i?B?", re.ASCII | re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "": 60, "h": 3600, "d": 86400}
_MIB = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


def parse_duration(text: str) -> int:
    """Seconds from `90s`, `30m`, `4h`, `2d`; a bare number is minutes.  Invalid otherwise."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2] or ""] if match else 0
    if not 1 <= seconds <= 366 * 86400:
        raise Invalid(
            f"cannot read the duration {text!r}", hint="write 90s, 30m, 4h or 2d; at most a year"
        )
    return int(seconds)


def render_duration(seconds: float) -> str:
    """`1h30m`, `45s`: at most two units, for people."""
    left, parts = int(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
    return "".join(parts[:2]) or "0s"


def parse_size(text: str, *, bare: str) -> int:
    """MiB from `80G`, `512M`; `bare` is the unit of a bare number (`G` for volumes, `M` for memory)."""
    match = _SIZE.fullmatch(text.strip())
    mib = int(int(match[1]) * _MIB[(match[2] or bare).upper()]) if match else 0
    if not 1 <= mib <= 64 * 1024 * 1024:
        raise Invalid(f"cannot read the size {text!r}", hint="write 512M, 80G or 1T")
    return mib

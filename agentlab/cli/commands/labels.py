"""KEY=VALUE, as flags give it."""

from __future__ import annotations

from collections.abc import Sequence

from agentlab.cli.command import Usage


def pair(flag: str, text: str) -> tuple[str, str]:
    """Key and value, which may be empty; Usage names the flag."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise Usage(
            f"cannot read {flag} {text!r}: must be KEY=VALUE",
            hint=f"like {flag} ticket=42; a value may be empty, a key may not",
        )
    return key, value


def pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """Every value of a flag that may be repeated."""
    return dict(pair(flag, each) for each in texts)

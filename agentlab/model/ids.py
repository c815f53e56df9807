"""Identifiers and names."""

from __future__ import annotations

import difflib
import re
import secrets
import time
from collections.abc import Iterable

from agentlab.errors import Invalid, NotFound

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
# Where those are listed that have no `list` of their own.
_LISTS = {"artifact": "agentlab job artifacts ID", "operation": "agentlab sandbox list"}
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)


def new_id() -> str:
    """16 characters that sort by time of creation: 9 of milliseconds, 7 of chance (35 bits)."""
    number = (int(time.time() * 1000) << 35) | secrets.randbits(35)
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(75, -1, -5))


def parse_name(text: str, *, what: str) -> str:
    """A name of ours: lower-case letters, digits, `.`, `_` and `-`, 1 to 63 long."""
    if not NAME.fullmatch(text):
        raise Invalid(
            f"cannot use {text!r} as the name of a {what}",
            hint="use 1 to 63 lower-case letters, digits, '.', '_' and '-', a letter or digit first",
        )
    return text


def unknown(what: str, name: object, known: Iterable[object]) -> NotFound:
    """The error for a name that does not exist, with the nearest one that does."""
    names = [str(each) for each in known]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    see = _LISTS.get(what, f"agentlab {what} list")
    hint = f"did you mean {near[0]}?" if near else f"see: {see}"
    return NotFound(f"no {what} {name}", hint=hint, details={"did_you_mean": near})

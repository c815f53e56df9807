"""Waiting for a fact: as long as a busy machine needs for it, and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(look: Callable[[], T], seconds: float = 60.0, *, pause: float = 0.02) -> T:
    """What `look` gives as soon as it is true, or at the end of its time: to be asserted."""
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        time.sleep(pause)
    return found

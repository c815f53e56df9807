"""Waiting for a fact: as long as it takes, and never longer than only a fault takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from agentlab.store.db import Store, Tx

PATIENCE = 60.0  # seconds; a busy machine needs less, and nobody waits for them on a sound one
T = TypeVar("T")


def seen(look: Callable[[], T], seconds: float = PATIENCE, *, pause: float = 0.02) -> T:
    """What `look` gives as soon as it is true, or at the end of its time: to be asserted."""
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        time.sleep(pause)
    return found


def until(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits until it is true."""
    assert seen(true, seconds, pause=0.01), "it did not happen in time"


def read_until(store: Store, look: Callable[[Tx], T], right: Callable[[T], object]) -> T:
    """What is in the store, once it is right: looks again at each commit."""
    end = time.monotonic() + PATIENCE
    while True:
        seen = store.commits
        with store.read() as tx:
            found = look(tx)
        if right(found):
            return found
        assert time.monotonic() < end, f"it stays {found}"
        store.wait(seen, 0.2)


def happened(event: threading.Event) -> None:
    """Waits until it is set."""
    assert event.wait(PATIENCE), "it did not happen in time"


def ended(*threads: threading.Thread) -> None:
    """Waits for threads that are about to end."""
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{thread.name} does not end"

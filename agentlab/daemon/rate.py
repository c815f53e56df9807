"""How often a source may ask: a bucket of tokens for each, and a bound on the buckets."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

_MOST = 4096  # sources that are remembered; the one longest silent has a full bucket again


class Rate:
    """`burst` requests at once, then `rate` a second."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, source: str) -> bool:
        """False when the source has asked too often."""
        now = time.monotonic()
        with self._lock:
            tokens, at = self._buckets.pop(source, (self._burst, now))
            tokens = min(self._burst, tokens + (now - at) * self._rate)
            allowed = tokens >= 1
            self._buckets[source] = (tokens - allowed, now)
            if len(self._buckets) > _MOST:
                self._buckets.popitem(last=False)
        return allowed

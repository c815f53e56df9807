"""What guests were refused: written down once for each source, reason and job, in bounded space."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

from agentlab.errors import AgentLabError
from agentlab.store import events, sandboxes
from agentlab.store.db import Store

_log = logging.getLogger(__name__)
_MOST = 1024
_FORGET = 3600.0  # seconds after which the same refusal is worth another line
_MAX_TEXT = 500


class Refusals:
    """A hostile guest can make only as many lines and events as there are reasons."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def note(
        self, source: str, error: AgentLabError, *, job: str = "", level: int = logging.WARNING
    ) -> None:
        """`job` is the one whose session it was; never one that the guest merely named."""
        reason = f"{error.http_status} {error.code}"
        if not self._new((source, reason, job)):
            return
        text = error.message[:_MAX_TEXT]
        _log.log(level, "refused a request of the guest at %s: %s", source, text)
        try:
            self._record(source, reason, text, job)
        except AgentLabError as problem:
            _log.error("cannot write the refusal down: %s", problem)

    def _new(self, key: tuple[str, str, str]) -> bool:
        now = time.monotonic()
        with self._lock:
            at = self._seen.get(key)
            if at is not None and now - at < _FORGET:
                return False
            self._seen.pop(key, None)
            self._seen[key] = now
            if len(self._seen) > _MOST:
                self._seen.popitem(last=False)
        return True

    def _record(self, source: str, reason: str, text: str, job: str) -> None:
        with self._store.read() as tx:
            sandbox = next((s for s in sandboxes.live(tx) if str(s.address) == source), None)
        with self._store.write() as tx:
            events.append(
                tx, "guest.refused", f"the guest at {source} was refused: {text}",
                job=job or (sandbox.job if sandbox else ""), vmid=sandbox.vmid if sandbox else 0,
                facts={"source": source, "reason": reason},
            )  # fmt: skip

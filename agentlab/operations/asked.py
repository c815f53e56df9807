"""The same request twice is the same operation: by its key, and a hash of what it asked."""

from __future__ import annotations

import hashlib
import json

from agentlab.errors import Conflict
from agentlab.store import operations
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow


def digest_of(*asked: object) -> str:
    """A hash of what a request asks for."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def earlier(tx: Tx, key: str, digest: str) -> OperationRow | None:
    """The operation that the same request has made before; Conflict when it was a different one."""
    found = operations.by_request(tx, key) if key else None
    if found is not None and found.request_hash != digest:
        raise Conflict("cannot use this Idempotency-Key: it asked for something else before")
    return found

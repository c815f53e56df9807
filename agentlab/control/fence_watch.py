"""Rules that somebody else has taken away are put back, and it is said."""

from __future__ import annotations

import logging

from agentlab.errors import Unavailable
from agentlab.operations.context import World

_log = logging.getLogger(__name__)
EVERY = 30.0


def check(world: World) -> bool:
    """True when the kernel's rules are those asked for; else they are put in place again."""
    try:
        world.fence.verify()
    except Unavailable as gone:
        _log.warning("the sandboxes' network rules were changed by others, mending: %s", gone)
        world.sync_fence()
        return False
    return True

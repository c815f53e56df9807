"""What every request is given: the installation, its engine, and facts about this process."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field

from agentlab import clock
from agentlab.engine.runner import Runner
from agentlab.operations.context import World


@dataclass(frozen=True, slots=True)
class Daemon:
    """One running daemon.  Files that it is still receiving begin with `.incoming-` and `boot`."""

    world: World
    runner: Runner
    commit: str = ""
    started: float = field(default_factory=clock.now)
    stopping: threading.Event = field(default_factory=threading.Event)
    boot: str = field(default_factory=lambda: secrets.token_hex(8))

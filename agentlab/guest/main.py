"""`agentlab guest VERB`: the entry point of the runner inside the VM."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from agentlab import log
from agentlab.errors import AgentLabError

# All that a job will need is imported here, before the runner says that it is ready:
# a memory snapshot then holds it warm.
from agentlab.guest import runner

_USAGE = "usage: agentlab guest run"


def _warm() -> None:
    """What Python loads only at its first use: the codec for host names."""
    "localhost".encode("idna")


def main(argv: Sequence[str]) -> int:
    """Runs one verb; the exit status: 0 done, 1 failed, 2 usage, 4 the claim was refused."""
    log.setup()
    if list(argv) != ["run"]:
        logging.error(_USAGE)
        return 2
    os.umask(0o022)
    _warm()
    try:
        return runner.run(runner.Guest())
    except AgentLabError as problem:
        logging.error("%s", problem.message)
        return runner.FAILED

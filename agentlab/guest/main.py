"""`agentlab guest VERB`: the entry point of the runner inside the VM."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from agentlab import log
from agentlab.errors import AgentLabError

_USAGE = "usage: agentlab guest run"


def _warm() -> None:
    """What Python loads only at its first use: the codec for host names."""
    "localhost".encode("idna")


def main(argv: Sequence[str]) -> int:
    """Runs one verb; the exit status: 0 done, 1 failed, 2 usage, 4 the claim was refused.

    Each verb imports what it needs and no more: starting costs seconds in an emulated machine.
    """
    log.setup()
    os.umask(0o022)
    if list(argv[:1]) == ["work"]:
        from agentlab.guest import work

        return work.main(argv[1:])
    if list(argv) == ["run"]:
        return _run()
    from agentlab.guest import work

    logging.error("%s | %s", _USAGE, work.USAGE.removeprefix("usage: agentlab guest "))
    return 2


def _run() -> int:
    # All that a job will need is imported here, before the runner says that it is ready:
    # a memory snapshot then holds it warm.
    from agentlab.guest import runner

    _warm()
    try:
        return runner.run(runner.Guest())
    except AgentLabError as problem:
        logging.error("%s", problem.message)
        return runner.FAILED

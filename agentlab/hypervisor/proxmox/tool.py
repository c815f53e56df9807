"""How a program of the node is run, and what its complaint becomes."""

from __future__ import annotations

from collections.abc import Sequence

from agentlab import run
from agentlab.hypervisor.proxmox.transport import classify

QUICK = 120.0
LONG = 12 * 3600.0  # for as long as a copy may take, of content or of the metadata of a snapshot


def do(words: Sequence[str], what: str, *, timeout: float = QUICK) -> str:
    """What a program says; its complaints as an error that begins with `what`."""
    try:
        return run.run(words, timeout=timeout).text
    except run.CommandFailed as failed:
        said = failed.completed.stderr.decode(errors="replace").strip()
        raise classify(what, 0, said or failed.message) from failed

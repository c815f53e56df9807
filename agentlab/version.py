"""Which build this is: from `_build.py`, which `make dist` writes, or from git in a checkout."""

from __future__ import annotations

import sys

from agentlab import VERSION

UNKNOWN = "unknown"


def commit() -> str:
    """Twelve hex digits, with `-dirty` when files differed from it; `unknown` without git."""
    try:
        from agentlab._build import COMMIT
    except ImportError:
        return _from_git()
    return str(COMMIT)


def text() -> str:
    """`agentlab 0.1.0 (commit abc123def456, Python 3.11.2)`."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return f"agentlab {VERSION} (commit {commit()}, Python {python})"


def _from_git() -> str:
    from pathlib import Path

    from agentlab.errors import AgentLabError
    from agentlab.run import run

    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return UNKNOWN
    # safe.directory: a checkout may belong to someone else than root, who runs this
    git = ["git", "-c", f"safe.directory={root}", "-C", str(root)]
    describe = ["describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return run([*git, *describe], timeout=10).text.strip()
    except AgentLabError:
        return UNKNOWN

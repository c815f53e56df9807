"""The fixture that every test of the runner begins with."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.guest.account import kill_all
from tests.unit.guest.world import World


@pytest.fixture
def world() -> Iterator[World]:
    # Not pytest's own directory: the throw-away user could not enter it.
    root = Path(tempfile.mkdtemp(prefix="agentlab-guest-test-"))
    root.chmod(0o755)
    handler = signal.getsignal(signal.SIGTERM)
    made = World(root)
    try:
        yield made
        assert made.daemon.violations == []
    finally:
        signal.signal(signal.SIGTERM, handler)
        made.daemon.down()
        kill_all(made.account)
        shutil.rmtree(root, ignore_errors=True)

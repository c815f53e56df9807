"""The daemon at a glance."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import agentlab
from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request
from agentlab.store import jobs, sandboxes


def show(daemon: Daemon, _: Request[m.Nothing]) -> m.Status:
    """Counts come from indexes of what is live, so that old records cost nothing."""
    world = daemon.world
    with world.store.read() as tx:
        job_counts, sandbox_counts = jobs.count_by_state(tx), sandboxes.count_by_state(tx)
    return m.Status(
        version=agentlab.VERSION,
        commit=daemon.commit,
        python=".".join(str(part) for part in sys.version_info[:3]),
        pid=os.getpid(),
        started=daemon.started,
        hypervisor=world.config.hypervisor,
        accelerator=world.hypervisor.capabilities.accelerator,
        data_dir=str(world.config.data_dir),
        resident=resident(),
        jobs=job_counts,
        sandboxes=sandbox_counts,
    )


def resident() -> int:
    """Bytes of memory that this process holds: proc(5), the second number of statm, in pages."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

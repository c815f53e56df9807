"""Copies by `qemu-img convert` that tell how far they are."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from agentlab import run

Progress = Callable[[float], None]  # called with 0.0 to 1.0

_LONG = 12 * 3600.0  # for as long as a copy may take


def render_convert(source: Path, target: Path, snapshot: str) -> list[str]:
    """Arguments of `convert` from qcow2 to qcow2; `snapshot` may be ""."""
    chosen = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    return ["-f", "qcow2", "-O", "qcow2", *chosen, str(source), str(target)]


def convert(words: Sequence[str], progress: Progress | None) -> None:
    """Runs it with these arguments.  What `progress` raises ends it.

    CommandFailed has its complaint as stderr; DeadlineExceeded.
    """
    with tempfile.TemporaryFile() as output:

        def tell() -> None:
            done = parse_progress(_tail(output.fileno()))
            if progress and done is not None:
                progress(done)

        try:
            words = ["qemu-img", "convert", "-p", *words]
            run.run(words, timeout=_LONG, output=output, watch=tell)
        except run.CommandFailed as failed:
            said = re.sub(r"\s*\([0-9.]+/100%\)\s*", "", _tail(output.fileno()))
            raise run.CommandFailed(replace(failed.completed, stderr=said.encode())) from failed


def _tail(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, 2000, max(0, size - 2000)).decode(errors="replace")


def parse_progress(said: str) -> float | None:
    """The last of qemu-img's "(12.34/100%)", as 0.0 to 1.0."""
    found = re.findall(r"\(([0-9.]+)/100%\)", said)
    return min(float(found[-1]) / 100, 1.0) if found else None

"""A qemu-img whose snapshots take their time, as those of an image with much metadata do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

SECONDS = 2.5
_SCRIPT = """#!/bin/sh
case "$*" in snapshot*)
    echo "$3" >>"{told}"
    sleep {seconds}
esac
exec {real} "$@"
"""


def slow_qemu_img(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts it first in PATH; the file in which each call's kind of change (-c, -a, -d) is a line."""
    told, program = directory / "told", directory / "bin/qemu-img"
    program.parent.mkdir()
    program.write_text(_SCRIPT.format(told=told, seconds=SECONDS, real=shutil.which("qemu-img")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return told

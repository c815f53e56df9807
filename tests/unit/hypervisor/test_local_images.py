"""qemu-img on images of the local hypervisor."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from agentlab.hypervisor.local import images

_SLOW = """#!/bin/sh
case " $* " in *" snapshot "*) echo "$3" >>{told}; sleep 3 ;; esac
exec {real} "$@"
"""


def test_a_snapshot_takes_as_long_as_its_metadata_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, told, program = shutil.which("qemu-img"), tmp_path / "told", tmp_path / "bin/qemu-img"
    program.parent.mkdir()
    program.write_text(_SLOW.format(told=told, real=real))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(images, "_TIMEOUT", 2.0)
    image = tmp_path / "disk.qcow2"
    images.create_empty(image, 64)
    images.take_snapshot(image, "first")
    assert images.snapshots(image) == ["first"]
    images.apply_snapshot(image, "first")
    images.delete_snapshot(image, "first")
    assert images.snapshots(image) == []
    assert told.read_text().split() == ["-c", "-a", "-d"]

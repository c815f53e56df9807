"""qemu-img on images of the local hypervisor."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.hypervisor.local import images
from tests.fakes.slow_qemu_img import SECONDS, slow_qemu_img


def test_a_snapshot_takes_as_long_as_its_metadata_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, image = slow_qemu_img(tmp_path, monkeypatch), tmp_path / "disk.qcow2"
    monkeypatch.setattr(images, "_TIMEOUT", SECONDS - 0.5)
    images.create_empty(image, 64)
    images.take_snapshot(image, "first")
    assert images.snapshots(image) == ["first"]
    images.apply_snapshot(image, "first")
    images.delete_snapshot(image, "first")
    assert images.snapshots(image) == []
    assert told.read_text().split() == ["-c", "-a", "-d"]

"""Which images can be adapted, and where their root file system is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentlab.errors import Invalid, NotFound, Unsupported
from agentlab.hypervisor.image import recipe
from agentlab.hypervisor.image.adapt import (
    Partition,
    _files,
    adapted_key,
    check_image,
    parse_partitions,
)
from agentlab.hypervisor.image.plan import plan_image

_ROOT = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
_ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"


def partitions(*found: tuple[int, int, str], sector: int = 512) -> str:
    rows = [{"start": start, "size": size, "type": kind} for start, size, kind in found]
    return json.dumps({"partitiontable": {"sectorsize": sector, "partitions": rows}})


def test_root_is_the_largest_linux_partition() -> None:
    table = partitions((2048, 100, "83"), (4096, 900, "83"), (8192, 9000, "82"))
    assert parse_partitions(table) == Partition(4096 * 512, 900 * 512)
    table = partitions((2048, 9000, _ESP), (262144, 900, _ROOT.lower()), sector=4096)
    assert parse_partitions(table) == Partition(262144 * 4096, 900 * 4096)


def test_a_disk_without_linux_is_refused() -> None:
    with pytest.raises(Unsupported, match="no Linux partition"):
        parse_partitions(partitions((2048, 9000, _ESP)))
    with pytest.raises(Invalid):
        parse_partitions("{}")


def test_an_image_that_names_other_files_is_refused() -> None:
    source = Path("/images/a.qcow2")
    assert check_image('{"format": "qcow2"}', source) == "qcow2"
    assert check_image('{"format": "raw"}', source) == "raw"
    outside = {"format": "qcow2", "format-specific": {"data": {"data-file": "/etc/shadow"}}}
    for info in ({"format": "qcow2", "backing-filename": "/etc/shadow"}, outside):
        with pytest.raises(Invalid, match="needs another file"):
            check_image(json.dumps(info), source)
    with pytest.raises(Unsupported, match="vmdk"):
        check_image('{"format": "vmdk"}', source)
    with pytest.raises(Invalid, match="not a disk image"):
        check_image("", source)


def test_an_adapted_image_mounts_its_workspace_at_boot_too() -> None:
    files = _files(b"runner")
    unit = files["etc/systemd/system/agentlab-work.service"].decode()
    assert "ExecStart=/usr/local/bin/agentlab guest work mount --boot --wait 0\n" in unit
    assert b"DefaultTimeoutStopSec=10s" in files["etc/systemd/system.conf.d/agentlab.conf"]
    for script in ("adapt.sh", "customise.sh"):
        assert b"agentlab-runner.service agentlab-work.service; do" in recipe.read(script)


def test_the_key_names_image_and_runner(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    image.write_bytes(b"one")
    key = adapted_key(image, b"runner")
    assert adapted_key(image, b"runner") == key
    assert adapted_key(image, b"other") != key
    image.write_bytes(b"two")
    assert adapted_key(image, b"runner") != key
    with pytest.raises(NotFound, match=r"cannot read .*none"):
        adapted_key(tmp_path / "none", b"runner")
    told: list[str] = []
    assert plan_image(tmp_path, b"runner", str(image), told.append).key != key
    assert told == ["reading a.qcow2"]
    assert plan_image(tmp_path, b"runner", "", told.append).key != key

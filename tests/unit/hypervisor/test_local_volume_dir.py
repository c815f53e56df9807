"""Names and records of the local hypervisor's volumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.errors import Invalid, NotFound, NotOurs, Unavailable
from agentlab.hypervisor.local.driver import LocalHypervisor
from agentlab.hypervisor.local.images import header_size
from agentlab.hypervisor.local.volume_dir import (
    VolumeDir,
    VolumeRecord,
    parse_record,
    parse_volid,
    render_record,
    volume_id,
)

_owners = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)


@given(st.integers(1, 999_999_999), _owners)
def test_a_name_is_read_as_it_was_written(number: int, owner: str) -> None:
    assert parse_volid(volume_id(number, owner)) == (number, owner)


@given(st.text(max_size=80))
def test_anything_else_is_a_strangers(text: str) -> None:
    number, owner = parse_volid(text)
    assert (number, owner) == (0, "") or volume_id(number, owner) == text


@pytest.mark.parametrize(
    "volid",
    ["", "local:vm-1-agentlab-", "local:vm-1-agentlab-a/b", "tank:vm-1-agentlab-a",
     "local:vm-01-agentlab-a", "local:vm-1-agentlab-..", "local:vm-1-agentlab-a\n", "../x"],
)  # fmt: skip
def test_a_name_that_is_none(volid: str) -> None:
    assert parse_volid(volid) == (0, "")


@pytest.mark.parametrize(("number", "owner"), [(0, "a"), (-1, "a"), (1, ""), (1, "a/b"), (1, "-a")])
def test_what_cannot_be_in_a_name(number: int, owner: str) -> None:
    with pytest.raises(Invalid):
        volume_id(number, owner)


@given(st.builds(VolumeRecord, st.integers(), st.text(max_size=20), st.text(max_size=20)))
def test_a_record_is_read_as_it_was_written(record: VolumeRecord) -> None:
    assert parse_record(render_record(record)) == record


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"owner": 5}, {"number": "5"}, {"rollback": None}, {"more": 1}]
)
def test_a_record_with_one_wrong_value_is_none(change: dict[str, object]) -> None:
    document = json.loads(render_record(VolumeRecord(5, "o")))
    with pytest.raises(ValueError):  # noqa: PT011 - json's own, or ours: both are meant
        parse_record(json.dumps({**document, **change}).encode())


def test_whose_it_is(tmp_path: Path) -> None:
    volume = VolumeDir(tmp_path / "5")
    with pytest.raises(NotFound):
        volume.owned("lab", "free")
    volume.path.mkdir()
    with pytest.raises(NotOurs, match="someone else"):
        volume.owned("lab", "free")
    volume.write(VolumeRecord(5, "other"))
    with pytest.raises(NotOurs, match="the installation other"):
        volume.owned("lab", "free")
    volume.write(VolumeRecord(6, "lab"))  # a copy of another's directory
    with pytest.raises(NotOurs):
        volume.owned("lab", "free")


def test_the_size_is_in_the_header(tmp_path: Path) -> None:
    image = tmp_path / "x"
    image.write_bytes(b"QFI\xfb" + bytes(20) + ((5 << 20) + 1).to_bytes(8, "big") + bytes(72))
    assert header_size(image) == 6
    image.write_bytes(b"QFI")
    with pytest.raises(Unavailable, match="no qcow2"):
        header_size(image)


def test_where_volumes_are(tmp_path: Path) -> None:
    root = tmp_path / "machines"
    root.mkdir()
    driver = LocalHypervisor(root, tmp_path, "0123", accelerator="tcg")
    assert driver.capabilities.volumes
    assert driver.volumes(owner="lab") == []
    assert not (tmp_path / "volumes").exists()  # the first one makes it
    named = LocalHypervisor(root, tmp_path, "0123", volume_dir=tmp_path / "mount")
    for attempt in (
        lambda: named.volumes(owner="lab"),
        lambda: named.allot(5, 1, owner="lab"),
        lambda: named.free(volume_id(5, "lab"), owner="lab"),
    ):
        with pytest.raises(Unavailable, match="mount"):
            attempt()

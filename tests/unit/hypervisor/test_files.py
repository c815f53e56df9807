"""Files that survive a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentlab.errors import Busy, NotFound
from agentlab.hypervisor.files import locked_directory, put_in_place, write_durable


def test_what_a_killed_writer_left_goes_with_a_later_writing(tmp_path: Path) -> None:
    for name in (".record.json.0a0b0c0d", ".record.json.now", ".other.json.0a0b0c0d"):
        (tmp_path / name).touch()
    for name in (".record.json.0a0b0c0d", ".other.json.0a0b0c0d"):
        os.utime(tmp_path / name, (1, 1))
    write_durable(tmp_path / "record.json", b"new")
    assert sorted(os.listdir(tmp_path)) == [
        ".other.json.0a0b0c0d",
        ".record.json.now",  # somebody may still be writing it
        "record.json",
    ]
    assert (tmp_path / "record.json").read_bytes() == b"new"


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    work, place = tmp_path / "work", tmp_path / "place"
    work.mkdir()
    assert put_in_place(work, place)
    work.mkdir()
    (place / "content").touch()
    assert not put_in_place(work, place)
    assert work.is_dir()
    assert os.listdir(place) == ["content"]


def test_a_directory_is_held_by_one(tmp_path: Path) -> None:
    with (
        locked_directory(tmp_path, timeout=1, verb="use", what="it"),
        pytest.raises(Busy, match="another operation holds it"),
        locked_directory(tmp_path, timeout=0, verb="use", what="it"),
    ):
        pass
    with (
        pytest.raises(NotFound, match="cannot use it: it is not there"),
        locked_directory(tmp_path / "gone", timeout=0, verb="use", what="it"),
    ):
        pass

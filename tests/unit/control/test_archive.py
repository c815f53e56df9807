"""The same documents are the same bytes, and no member is larger than it may be."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import time

import pytest

from agentlab.control.archive import MAX_MEMBER, fit, pack, render


def test_bytes_depend_on_the_documents_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    one = pack("f", {"b": b"2", "a": b"1"}, 1700000000.9)
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert pack("f", {"a": b"1", "b": b"2"}, 1700000000.1) == one
    assert pack("f", {"a": b"1", "b": b"3"}, 1700000000.1) != one
    assert one[3] == 0  # RFC 1952: neither a name nor a comment
    assert one[4:8] == b"\0\0\0\0"  # nor a time
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(one))) as archive:
        members = archive.getmembers()
    assert [each.name for each in members] == ["f/a", "f/b"]
    assert {(each.uid, each.gid, each.uname, each.gname, each.mtime) for each in members} == {
        (0, 0, "", "", 1700000000)
    }


def test_documents_are_ascii_in_one_order() -> None:
    assert render({"b": "\x1b[2J\u202e\ud800", "a": 1}) == (
        b'{\n "a": 1,\n "b": "\\u001b[2J\\u202e\\ud800"\n}\n'
    )
    assert len(render(["x" * (2 * MAX_MEMBER)])) < 100


@pytest.mark.parametrize("size", [1, 50, 5000, MAX_MEMBER // 4 - 100])
def test_a_list_keeps_its_newest_entries_and_says_so(size: int) -> None:
    """Filled to the brim: what `fit` leaves is never too much for `render`."""
    entries = [
        {"id": number, "text": "\n\x00é"[number % 3] * (size // 6), "list": [1, [2, {}]]}
        for number in range(2 * MAX_MEMBER // max(size // 2, 60))
    ]
    content = render(fit("events", entries))
    assert len(content) <= MAX_MEMBER
    found = json.loads(content)
    assert found["complete"] is False
    kept = [each["id"] for each in found["events"]]
    assert kept == list(range(len(entries)))[-len(kept) :]
    assert len(content) > MAX_MEMBER // 2


def test_a_short_list_is_whole_unless_some_were_missing_before() -> None:
    assert fit("jobs", [1, 2]) == {"complete": True, "jobs": [1, 2]}
    assert fit("jobs", [1, 2], whole=False)["complete"] is False
    assert fit("jobs", []) == {"complete": True, "jobs": []}


def test_one_huge_entry_does_not_push_the_others_out() -> None:
    huge = {"id": "big", "text": "x" * MAX_MEMBER}
    kept = fit("jobs", [{"id": "a"}, huge, {"id": "c"}])
    found = kept["jobs"]
    assert isinstance(found, list)
    assert (found[0], found[1]["id"], found[2]) == ({"id": "a"}, "big", {"id": "c"})
    assert "bytes" in found[1]["left_out"]

"""What Proxmox's words mean: one sample of every kind of error that its programs were heard to say.

`tests/data/proxmox/errors.jsonl` has a line for each: `said` with its `status` (0: a task's
exitstatus, or the words of a program) and `errors`, the pattern of TEXTS that decides (`row`, or
"" where the status does), the class that it `means`, and where it was heard (`source`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentlab.errors import Denied, Invalid, NotFound
from agentlab.hypervisor.proxmox import transport
from agentlab.hypervisor.proxmox.transport import (
    DONE_NOTHING,
    TEXTS,
    Locked,
    LockTimeout,
    NotReached,
    ReplyLost,
    classify,
)

_FILE = Path(__file__).parents[3] / "data" / "proxmox" / "errors.jsonl"
SAMPLES: list[dict[str, Any]] = [json.loads(line) for line in _FILE.read_text().splitlines()]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample['said'][:50]}")
def test_a_recorded_error_means_what_it_should(sample: dict[str, Any]) -> None:
    error = classify("cannot do it", sample["status"], sample["said"], sample["errors"])
    assert type(error).__name__ == sample["means"]
    assert error.message.startswith("cannot do it: ")
    assert error.message.isprintable()
    assert len(error.message) < 500
    assert error.details["status"] == sample["status"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.pattern)
def test_every_row_has_a_sample_and_decides_it(text: transport.Text) -> None:
    mine = [sample for sample in SAMPLES if sample["row"] == text.pattern]
    assert mine, "record one in tests/data/proxmox/errors.jsonl"
    for sample in mine:
        error = classify("x", sample["status"], sample["said"], sample["errors"])
        assert (type(error), error.hint) == (text.means, text.hint)


def test_every_sample_says_where_it_was_heard_and_names_a_row_that_exists() -> None:
    assert {sample["row"] for sample in SAMPLES} - {text.pattern for text in TEXTS} == {""}
    assert all(sample["source"] for sample in SAMPLES)


@pytest.mark.parametrize("status", [400, 401, 403, 500, 501, 502, 503, 504, 595, 596, 597, 599, 0])
def test_every_status_that_decides_by_itself_has_a_sample(status: int) -> None:
    assert [sample for sample in SAMPLES if sample["status"] == status and not sample["row"]]


@pytest.mark.parametrize(
    "words",
    [
        "Configuration file 'nodes/pve/qemu-server/100.conf' does not exist",
        "VM 100 is not running",
        "volume 'local:100/x' does not exist",
        "VM is locked (clone)",
        "got no worker upid",
        "no such task",
    ],
)
def test_a_guest_cannot_speak_for_proxmox(words: str) -> None:
    for said in (f"Agent error: {words}", f"VM 100 qmp command 'guest-info' failed - {words}"):
        error = classify("x", 500, said)
        assert not isinstance(error, NotFound)
        assert not isinstance(error, DONE_NOTHING)


def test_the_lock_is_named() -> None:
    error = classify("x", 0, "VM is locked (snapshot-delete)")
    assert isinstance(error, Locked)
    assert error.details["lock"] == "snapshot-delete"


def test_the_right_that_lacks_is_named() -> None:
    said = "Permission check failed (/storage/local, Datastore.Audit|Datastore.AllocateSpace)"
    for status in (403, 0):
        error = classify("x", status, said)
        assert isinstance(error, Denied)
        assert error.hint.startswith(
            "grant Datastore.Audit or Datastore.AllocateSpace on /storage/local"
        )


def test_a_long_command_does_not_hide_why_it_failed() -> None:
    said = f"start failed: command '/usr/bin/kvm {'-device x ' * 300}' failed: got timeout"
    error = classify("cannot start VM 100", 0, said)
    assert "overloaded" in error.hint
    assert error.message.startswith("cannot start VM 100: start failed: command '/usr/bin/kvm")
    assert error.message.endswith("failed: got timeout")
    assert len(error.message) < 500


def test_lines_become_one_sentence_without_places_in_proxmox_source() -> None:
    said = "trying to acquire lock...\ncan't lock file '/x' - got timeout"
    assert classify("x", 0, said).message == f"x: {said}".replace("\n", "; ")
    said = (
        "Only root can pass arbitrary filesystem paths. at /usr/share/perl5/PVE/Storage.pm line 5."
    )
    assert classify("x", 500, said).message == "x: Only root can pass arbitrary filesystem paths."
    assert classify("x", 500, "a\x1b[31mb").message == "x: a\\x1b[31mb"


def test_an_answer_without_words_names_its_status() -> None:
    assert classify("x", 599, "").message == "x: status 599"


def test_what_surely_did_nothing_is_told_from_what_may_have() -> None:
    assert isinstance(classify("x", 500, "can't lock file '/x' - got timeout"), LockTimeout)
    assert isinstance(classify("x", 595, "No route to host"), NotReached)
    lost = classify("x", 596, "Connection timed out")
    assert isinstance(lost, ReplyLost)
    assert not isinstance(lost, DONE_NOTHING)
    within = classify("x", 0, "clone failed: cfs-lock 'storage-nas' error: no quorum!")
    assert not isinstance(within, DONE_NOTHING)


def test_the_fields_of_a_400_are_the_sentence() -> None:
    errors = {"name": "invalid format - not a DNS name\n", "cores": "must be at least 1"}
    error = classify("POST /x", 400, "Parameter verification failed.", errors)
    assert (
        error.message == "POST /x: name: invalid format - not a DNS name; cores: must be at least 1"
    )
    assert not isinstance(error, Invalid)

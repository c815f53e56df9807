"""The API of sandboxes, as a client sees it: what it gives, and how it refuses."""

from __future__ import annotations

import sqlite3
import time

import pytest

from agentlab.store import events
from tests.unit.daemon.bench import Bench, Reply
from tests.waiting import PATIENCE


def _done(bench: Bench, reply: Reply) -> dict[str, object]:
    """The operation that a request began, when it has ended."""
    assert reply.status == 202, reply.document
    until = time.monotonic() + PATIENCE
    while True:
        found = bench.ask("GET", f"/v1/operations/{reply.document['id']}").document
        if found["final"]:
            return found
        assert time.monotonic() < until, found
        time.sleep(0.02)


def _new(bench: Bench, **asked: object) -> dict[str, object]:
    made = _done(bench, bench.ask("POST", "/v1/sandboxes", {"profile": "demo", **asked}))
    assert made["state"] == "done", made
    return bench.ask("GET", f"/v1/sandboxes/{made['vmid']}").document


def test_a_sandbox_from_its_plan_to_its_end(bench: Bench) -> None:
    plan = bench.ask("POST", "/v1/sandboxes/validate", {"profile": "demo", "ttl": "2h"})
    assert (plan.status, plan.document["ttl"]) == (200, 7200)
    assert bench.ask("GET", "/v1/sandboxes").document == {"sandboxes": []}
    box = _new(bench, name="lab", ttl="2h", labels={"who": "me"})
    assert (box["state"], box["name"], box["labels"], box["ttl"]) == (
        "READY", "lab", {"who": "me"}, 7200.0,
    )  # fmt: skip
    path = f"/v1/sandboxes/{box['vmid']}"
    assert bench.ask("GET", f"{path}/snapshots").document == {"snapshots": ["clean"]}
    refused = bench.ask("POST", f"{path}/lease/renew", {"ttl": "4h"})
    assert (refused.status, refused.document["code"]) == (409, "invalid_transition")
    assert "sandbox lease not renewable" in refused.error
    for verb, state in (("pause", "SUSPENDED"), ("resume", "READY"), ("stop", "STOPPED")):
        assert _done(bench, bench.ask("POST", f"{path}/{verb}", {}))["state"] == "done"
        assert bench.ask("GET", path).document["state"] == state
    assert _done(bench, bench.ask("POST", f"{path}/snapshots", {"name": "one"}))["state"] == "done"
    again = bench.ask("POST", f"{path}/snapshots", {"name": "one"})
    assert (again.status, again.document["code"]) == (409, "conflict")
    restored = bench.ask("POST", f"{path}/snapshots/one/restore", {"restart": True})
    assert _done(bench, restored)["state"] == "done"
    assert bench.ask("GET", path).document["state"] == "READY"
    assert _done(bench, bench.ask("POST", f"{path}/revert", {"restart": False}))["state"] == "done"
    assert _done(bench, bench.ask("POST", f"{path}/snapshots/one/delete", {}))["state"] == "done"
    updated = bench.ask("POST", f"{path}/update", {"cores": 3, "labels": {"who": None, "a": "b"}})
    assert (updated.document["cores"], updated.document["labels"]) == (3, {"a": "b"})
    assert _done(bench, bench.ask("POST", f"{path}/start", {}))["state"] == "done"
    assert _done(bench, bench.ask("POST", f"{path}/destroy", {}))["state"] == "done"
    assert bench.ask("GET", path).document["state"] == "DESTROYED"
    assert bench.hypervisor.machines == {}


def test_lists_are_narrowed_by_state_profile_and_label(bench: Bench) -> None:
    _new(bench, name="one", labels={"team": "a"})
    _new(bench, name="two", labels={"team": "b"}, keepalive=True)

    def names(query: str) -> list[object]:
        found = bench.ask("GET", f"/v1/sandboxes?{query}").document["sandboxes"]
        assert isinstance(found, list)
        return [each["name"] for each in found]

    assert names("state=running") == ["two"]
    assert names("label=team%3Da") == ["one"]
    assert names("label=team") == ["one", "two"]
    assert names("profile=other") == []
    assert names("profile=demo&state=READY") == ["one"]
    assert bench.ask("GET", "/v1/sandboxes?state=lost").status == 400
    _done(bench, bench.ask("POST", "/v1/sandboxes/one/destroy", {}))
    assert names("state=destroyed") == ["one"]
    assert names("state=DESTROYED&label=team%3Db") == []
    assert names("label=team") == ["two"]


def _events(bench: Bench) -> int:
    with bench.store.read() as tx:
        return events.last(tx)


BAD_REQUESTS = [
    ({"ttl": "0"}, "ttl"), ({"ttl": "-5m"}, "ttl"), ({"ttl": "9999d"}, "ttl"),
    ({"ttl": "soon"}, "ttl"), ({"name": "1003"}, "name of a sandbox"),
    ({"name": "x" * 64}, "name of a sandbox"), ({"name": "Big"}, "name of a sandbox"),
    ({"vmid": 1}, "VMID 1"), ({"vmid": -1}, "VMID -1"), ({"vmid": "1003"}, "vmid"),
    ({"labels": {"a b": "c"}}, "label"), ({"keepalive": "yes"}, "keepalive"), ({"size": 1}, "size"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "named"), BAD_REQUESTS, ids=[str(each[0]) for each in BAD_REQUESTS]
)
def test_a_bad_request_names_what_is_wrong_and_changes_nothing(
    bench: Bench, asked: dict[str, object], named: str
) -> None:
    before = _events(bench)
    for path in ("/v1/sandboxes", "/v1/sandboxes/validate"):
        reply = bench.ask("POST", path, {"profile": "demo", **asked})
        assert reply.status == 400
        assert named in reply.error
    assert _events(bench) == before
    assert bench.ask("GET", "/v1/sandboxes?all=1").document == {"sandboxes": []}


def test_what_is_not_there_is_404_with_a_near_name(bench: Bench) -> None:
    _new(bench, name="laboratory")
    for verb in ("start", "stop", "pause", "resume", "revert", "destroy", "lease/renew", "update"):
        reply = bench.ask("POST", f"/v1/sandboxes/laboratorx/{verb}", {})
        assert (reply.status, reply.document["hint"]) == (404, "did you mean laboratory?")
    assert bench.ask("POST", "/v1/sandboxes", {"profile": "demos"}).status == 404
    assert bench.ask("GET", "/v1/sandboxes/4711/snapshots").status == 404


def test_a_key_makes_one_operation_of_many_requests(bench: Bench) -> None:
    key = {"Idempotency-Key": "one"}
    asked = {"profile": "demo", "name": "lab"}
    first, again = (bench.ask("POST", "/v1/sandboxes", asked, headers=key) for _ in range(2))
    assert first.document["id"] == again.document["id"]
    other = bench.ask("POST", "/v1/sandboxes", {**asked, "name": "two"}, headers=key)
    assert (other.status, "Idempotency-Key" in other.error) == (409, True)
    _done(bench, first)
    stops = [bench.ask("POST", "/v1/sandboxes/lab/stop", {}, headers={"Idempotency-Key": "s"})
             for _ in range(2)]  # fmt: skip
    assert stops[0].document["id"] == stops[1].document["id"]
    assert _done(bench, stops[0])["state"] == "done"


def test_a_damaged_database_is_told_to_who_asks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged() -> sqlite3.Connection:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "_reader", damaged)
        reply = bench.ask("GET", "/v1/sandboxes")
    assert (reply.status, reply.document["code"]) == (503, "unavailable")
    assert "database disk image is malformed" in reply.error
    assert "PRAGMA integrity_check" in str(reply.document["hint"])

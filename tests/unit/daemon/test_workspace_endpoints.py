"""The API of workspaces and sessions, as a client sees it, on a hypervisor in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.errors import Conflict
from agentlab.store import events
from tests.fakes.work_hypervisor import WorkHypervisor
from tests.unit.daemon.bench import Bench, Reply, open_bench
from tests.waiting import PATIENCE


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path, hypervisor=WorkHypervisor()) as found:
        yield found


def _ended(bench: Bench, operation: object) -> dict[str, object]:
    assert isinstance(operation, dict), operation
    until = time.monotonic() + PATIENCE
    while True:
        found = bench.ask("GET", f"/v1/operations/{operation['id']}").document
        if found["final"]:
            return found
        assert time.monotonic() < until, found
        time.sleep(0.02)


def _done(bench: Bench, reply: Reply) -> dict[str, object]:
    assert reply.status == 202, reply.document
    found = reply.document
    ended = _ended(bench, found.get("operation", found))
    assert ended["state"] == "done", ended
    return ended


def _get(bench: Bench, path: str) -> dict[str, object]:
    reply = bench.ask("GET", path)
    assert reply.status == 200, reply.document
    return reply.document


def _post(bench: Bench, path: str, **asked: object) -> Reply:
    return bench.ask("POST", path, asked)


def _box(bench: Bench, **asked: object) -> int:
    made = _done(bench, _post(bench, "/v1/sandboxes", profile="demo", **asked))
    return int(str(made["vmid"]))


W = "/v1/workspaces/data"


def test_a_workspace_from_its_making_to_its_end(bench: Bench) -> None:
    _done(bench, _post(bench, "/v1/workspaces", name="data"))
    view = _get(bench, W)
    assert (view["state"], view["size"], view["sandbox"], view["formatted"]) == (
        "DETACHED", 20 << 10, "", False,
    )  # fmt: skip
    vmid = _box(bench, name="box")
    _done(bench, _post(bench, f"{W}/attach", sandbox="box"))
    view = _get(bench, W)
    assert (view["state"], view["sandbox"], view["vmid"]) == ("ATTACHED", "box", vmid)
    assert (view["formatted"], view["stale"]) == (True, False)
    assert _get(bench, "/v1/sandboxes/box")["workspace"] == "data"
    listed = _get(bench, "/v1/sandboxes")["sandboxes"]
    assert isinstance(listed, list)
    assert [each["workspace"] for each in listed] == ["data"]
    for path, asked in (
        ("snapshots", {"name": "one"}),
        ("snapshots/one/restore", {}),
        ("snapshots/one/delete", {}),
        ("fsck", {}),
        ("fork", {"name": "copy"}),
        ("resize", {"size": 30 << 10}),
        ("delete", {}),
    ):
        refused = _post(bench, f"{W}/{path}", **asked)
        assert (refused.status, refused.document["code"]) == (409, "conflict"), path
        assert f"it is attached to sandbox {vmid}" in refused.error
        hint = str(refused.document["hint"])
        assert "agentlab workspace detach data" in hint
    assert _get(bench, f"{W}/check") == {"name": "data", "findings": []}
    _done(bench, _post(bench, f"{W}/detach"))
    _done(bench, _post(bench, f"{W}/snapshots", name="one"))
    assert _get(bench, f"{W}/snapshots") == {"snapshots": ["one"]}
    _done(bench, _post(bench, f"{W}/fork", name="copy", snapshot="one"))
    assert _get(bench, "/v1/workspaces/copy")["origin"] == "data@one"
    _done(bench, _post(bench, f"{W}/resize", size=30 << 10))
    assert _get(bench, W)["size"] == 30 << 10
    _done(bench, _post(bench, f"{W}/snapshots/one/restore"))
    checked = _done(bench, _post(bench, f"{W}/fsck"))
    result = checked["result"]
    assert isinstance(result, dict)
    assert result["state"] == "clean"
    assert _post(bench, f"{W}/lease/clear").document["state"] == "DETACHED"
    _done(bench, _post(bench, f"{W}/snapshots/one/delete"))
    _done(bench, _post(bench, f"{W}/delete"))
    assert bench.ask("GET", W).status == 404
    found = _get(bench, "/v1/workspaces")["workspaces"]
    assert isinstance(found, list)
    assert [each["name"] for each in found] == ["copy"]


def test_a_damaged_file_system_is_told_and_mended(bench: Bench) -> None:
    _done(bench, _post(bench, "/v1/workspaces", name="data", size=1024))
    hypervisor = bench.hypervisor
    assert isinstance(hypervisor, WorkHypervisor)
    (volume,) = hypervisor.stored.values()
    volume.fs = "damaged"
    for repair, state in ((False, "NEEDS REPAIR"), (True, "repaired"), (False, "clean")):
        result = _done(bench, _post(bench, f"{W}/fsck", repair=repair))["result"]
        assert isinstance(result, dict)
        assert result["state"] == state


def test_rebind_moves_it_to_a_new_sandbox(bench: Bench) -> None:
    _done(bench, _post(bench, "/v1/workspaces", name="data", size=1024))
    old = _box(bench, workspace="data")
    assert _get(bench, W)["vmid"] == old
    _done(bench, _post(bench, f"{W}/rebind", name="second", ttl="2h"))
    view = _get(bench, W)
    assert (view["sandbox"], view["state"]) == ("second", "ATTACHED")
    assert view["vmid"] != old
    assert _get(bench, f"/v1/sandboxes/{old}")["state"] == "DESTROYED"


S = "/v1/sessions/fix"


def test_a_session_from_its_making_to_its_end(bench: Bench) -> None:
    made = _post(bench, "/v1/sessions", name="fix", profile="demo", size=1024)
    _done(bench, made)
    view = _get(bench, S)
    assert (view["state"], view["workspace"], view["profile"]) == ("STOPPED", "fix", "demo")
    assert _get(bench, "/v1/workspaces/fix")["session"] == "fix"
    stopped = _post(bench, f"{S}/stop")
    assert (stopped.status, stopped.document) == (202, {"name": "fix", "operation": None})
    resumed = _done(bench, _post(bench, f"{S}/resume", ttl="2h", keepalive=True))
    view = _get(bench, S)
    assert (view["state"], view["vmid"]) == ("RUNNING", resumed["vmid"])
    second = _post(bench, f"{S}/resume")
    assert (second.status, "it runs in sandbox" in second.error) == (409, True)
    assert _post(bench, f"{S}/delete").status == 409
    _done(bench, _post(bench, f"{S}/stop"))
    assert _get(bench, S)["state"] == "STOPPED"
    branched = _post(bench, f"{S}/branch", branch="feature/x")
    _done(bench, branched)
    again = _post(bench, f"{S}/branch", branch="feature/x").document
    assert again["operation"] is None
    (one, two) = (each["session"] for each in (branched.document, again))
    assert isinstance(one, dict)
    assert isinstance(two, dict)
    assert (one["name"], one["branch"], one["origin"]) == (two["name"], "feature/x", "fix")
    _done(bench, _post(bench, f"{S}/fork", name="other"))
    refused = _post(bench, "/v1/workspaces/fix/delete")
    assert "it belongs to session fix" in refused.error
    _done(bench, _post(bench, f"{S}/delete", with_workspace=True))
    assert bench.ask("GET", S).status == 404
    assert bench.ask("GET", "/v1/workspaces/fix").status == 404


@pytest.mark.parametrize(
    ("path", "asked", "fault", "name"),
    [
        ("/v1/sessions", {"name": "new", "profile": "demo", "size": 1024}, "allot", "new"),
        (f"{S}/fork", {"name": "copy"}, "clone_volume", "copy"),
        (f"{S}/branch", {"branch": "x"}, "clone_volume", "fix-x"),
    ],
)
def test_a_session_whose_making_failed_says_why_to_who_lost_the_reply(
    bench: Bench, path: str, asked: dict[str, object], fault: str, name: str
) -> None:
    _done(bench, _post(bench, "/v1/sessions", name="fix", profile="demo", size=1024))
    assert isinstance(bench.hypervisor, WorkHypervisor)
    bench.hypervisor.faults[fault] = [Conflict("storage local is full")]
    key = {"Idempotency-Key": "one"}
    first = bench.ask("POST", path, asked, headers=key)
    assert (first.status, first.document["name"]) == (202, name)
    assert _ended(bench, first.document["operation"])["state"] == "failed"
    again = bench.ask("POST", path, asked, headers=key)
    assert (again.status, again.document["name"], again.document["session"]) == (202, name, None)
    told = again.document["operation"]
    assert isinstance(told, dict)
    assert (told["state"], told["error"]) == ("failed", "storage local is full")


def test_a_job_tells_where_it_works(bench: Bench) -> None:
    _done(bench, _post(bench, "/v1/sessions", name="fix", profile="demo", size=1024))
    asked = bench.job_request(session="fix", profile="")
    plan = bench.ask("POST", "/v1/jobs/validate", asked)
    assert (plan.status, plan.document["workspace"], plan.document["session"]) == (
        200, "fix", "fix",
    )  # fmt: skip
    job = bench.ask("POST", "/v1/jobs", asked)
    assert (job.status, job.document["workspace"], job.document["session"]) == (202, "fix", "fix")
    made = bench.ask("POST", "/v1/jobs", bench.job_request(stateful=True)).document
    assert (made["workspace"], made["session"]) == ("x-head", "x-head")
    assert _get(bench, "/v1/sessions/x-head")["repo"] == "https://example.org/x.git"
    missing = bench.ask("POST", "/v1/jobs/validate", bench.job_request(session="fxi"))
    assert (missing.status, missing.document["hint"]) == (404, "did you mean fix?")


def test_a_sessions_repository_is_shown_without_credentials(bench: Bench) -> None:
    repo = {"url": "https://ghp_secret@example.org/x.git"}
    assert bench.ask("POST", "/v1/jobs", bench.job_request(stateful=True, repo=repo)).status == 202
    assert b"***@example.org" in bench.ask("GET", "/v1/sessions").body
    assert b"ghp_secret" not in bench.ask("GET", "/v1/sessions").body


@pytest.mark.parametrize(
    ("path", "asked", "named"),
    [
        ("workspaces", {"name": "Big"}, "name of a workspace"),
        ("workspaces", {"name": "a" * 64}, "name of a workspace"),
        ("workspaces", {"name": "1a"}, "name of a workspace"),
        ("workspaces", {"name": "../x"}, "name of a workspace"),
        ("workspaces", {"name": "data", "size": -1}, "size"),
        ("workspaces", {"name": "data", "size": 1}, "size"),
        ("workspaces", {"name": "data", "size": "20G"}, "size"),
        ("workspaces", {"name": "data", "size": 1 << 40}, "size"),
        ("workspaces", {"name": "data", "storage": "x" * 101}, "storage"),
        ("workspaces", {"name": "data", "disk": 1}, "disk"),
        ("sessions", {"name": "Big", "profile": "demo"}, "name of a session"),
        ("sessions", {"name": "fix", "profile": "demo", "size": -1}, "size"),
        ("sessions", {"name": "fix", "profile": "broken"}, "cores"),
        ("sessions", {"name": "fix"}, "profile"),
    ],
)
def test_a_bad_request_names_what_is_wrong_and_changes_nothing(
    bench: Bench, path: str, asked: dict[str, object], named: str
) -> None:
    with bench.store.read() as tx:
        before = events.last(tx)
    reply = bench.ask("POST", f"/v1/{path}", asked)
    assert (reply.status, named in reply.error) == (400, True), reply.document
    with bench.store.read() as tx:
        assert events.last(tx) == before
    assert _get(bench, "/v1/workspaces") == {"workspaces": []}
    assert _get(bench, "/v1/sessions") == {"sessions": []}


def test_what_is_not_there_is_404_with_a_near_name(bench: Bench) -> None:
    _done(bench, _post(bench, "/v1/sessions", name="laboratory", profile="demo", size=1024))
    for verb, asked in (
        ("attach", {"sandbox": "1000"}), ("detach", {}), ("fsck", {}), ("fork", {"name": "b"}),
        ("rebind", {}), ("resize", {"size": 4096}), ("delete", {}), ("lease/clear", {}),
        ("snapshots", {"name": "one"}), ("snapshots/one/restore", {}),
    ):  # fmt: skip
        reply = _post(bench, f"/v1/workspaces/laboratorx/{verb}", **asked)
        assert (reply.status, reply.document["hint"]) == (404, "did you mean laboratory?"), verb
    for verb, asked in (
        ("resume", {}), ("stop", {}), ("fork", {"name": "b"}), ("branch", {"branch": "b"}),
        ("delete", {}),
    ):  # fmt: skip
        reply = _post(bench, f"/v1/sessions/laboratorx/{verb}", **asked)
        assert (reply.status, reply.document["hint"]) == (404, "did you mean laboratory?"), verb


def test_a_key_makes_one_operation_of_many_requests(bench: Bench) -> None:
    key = {"Idempotency-Key": "one"}
    first, again = (
        bench.ask("POST", "/v1/workspaces", {"name": "data"}, headers=key) for _ in range(2)
    )
    assert first.document["id"] == again.document["id"]
    other = bench.ask("POST", "/v1/workspaces", {"name": "two"}, headers=key)
    assert (other.status, "Idempotency-Key" in other.error) == (409, True)
    _done(bench, first)

"""Each endpoint of the API, as a client sees it."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import pytest

from agentlab.daemon import server
from agentlab.daemon.exchange import Peer
from agentlab.daemon.handlers import templates
from agentlab.errors import Unavailable
from agentlab.hypervisor.base import Machine, Power
from agentlab.model.job import JobState
from tests.unit.daemon.bench import BUNDLE, Bench, request, sha256
from tests.waiting import until


def test_status(bench: Bench) -> None:
    found = bench.ask("GET", "/v1/status").document
    assert found["hypervisor"] == "local"
    assert found["jobs"] == {}
    assert isinstance(found["resident"], int)
    assert found["resident"] > 1 << 20
    bench.running()
    found = bench.ask("GET", "/v1/status").document
    assert (found["jobs"], found["sandboxes"]) == ({"RUNNING": 1}, {"RUNNING": 1})


def test_a_job_is_made_once_for_one_key(bench: Bench) -> None:
    key = {"Idempotency-Key": "one"}
    first = bench.ask("POST", "/v1/jobs", bench.job_request(), headers=key)
    again = bench.ask("POST", "/v1/jobs", bench.job_request(), headers=key)
    assert (first.status, again.status) == (202, 202)
    assert first.document["id"] == again.document["id"]
    other = bench.ask("POST", "/v1/jobs", bench.job_request(task="another"), headers=key)
    assert (other.status, other.document["code"]) == (409, "conflict")
    bad = bench.ask("POST", "/v1/jobs", bench.job_request(), headers={"Idempotency-Key": "a b"})
    assert bad.status == 400


def test_a_plan_changes_nothing(bench: Bench) -> None:
    reply = bench.ask("POST", "/v1/jobs/validate", bench.job_request(ttl="30m"))
    assert (reply.status, reply.document["ttl"]) == (200, 1800)
    assert bench.ask("GET", "/v1/jobs").document == {"jobs": []}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"repo": {}}, "repo"),
        ({"repo": {"url": "https://a/b", "bundle": "a" * 64}}, "repo"),
        ({"repo": {"url": "-u"}}, "repo.url"),
        ({"repo": {"url": "https://a/\nb"}}, "repo.url"),
        ({"repo": {"url": "ext::sh -c id"}}, "repo.url"),
        ({"repo": {"url": "file:///etc"}}, "repo.url"),
        ({"repo": {"url": "/srv/repo"}}, "repo.url"),
        ({"repo": {"url": "ssh://-oProxyCommand=id/x"}}, "repo.url"),
        ({"repo": {"url": "git@-oProxyCommand=id:x"}}, "repo.url"),
        ({"repo": {"bundle": "a" * 63}}, "repo.bundle"),
        ({"repo": {"bundle": "a" * 64}}, "repo.bundle"),
        ({"repo": {"url": "https://a/b", "ref": "--upload-pack=id"}}, "repo.ref"),
        ({"repo": {"url": "https://a/b", "ref": "a b"}}, "repo.ref"),
        ({"repo": {"url": "https://a/b", "depth": -1}}, "repo.depth"),
        ({"repo": {"url": "https://a/b", "depth": True}}, "repo.depth"),
        ({"task": " "}, "task"),
        ({"task": "x" * 70_000}, "task"),
        ({"ttl": "soon"}, "ttl"),
        ({"mode": "a b"}, "mode"),
        ({"env": {"A-B": "x"}}, "env"),
        ({"env": {"A": 1}}, "env.A"),
        ({"labels": {"": "x"}}, "labels"),
        ({"labels": {"a": "x" * 2000}}, "labels.a"),
        ({"labels": {str(n): "" for n in range(300)}}, "labels"),
    ],
)
def test_a_bad_job_is_told_where(bench: Bench, change: dict[str, object], path: str) -> None:
    for verb in ("/v1/jobs", "/v1/jobs/validate"):
        reply = bench.ask("POST", verb, bench.job_request(**change))
        assert reply.status == 400
        assert reply.document["details"] == {"path": path}


@pytest.mark.parametrize(
    "url", ["https://a/b.git", "http://u:p@a/b", "ssh://git@a:22/b", "git@a:b/c.git", "git://a/b"]
)
def test_good_urls(bench: Bench, url: str) -> None:
    reply = bench.ask("POST", "/v1/jobs", bench.job_request(repo={"url": url}))
    assert reply.status == 202
    assert ":p@" not in str(reply.document["repo"])


def test_an_unknown_profile_offers_a_near_one(bench: Bench) -> None:
    reply = bench.ask("POST", "/v1/jobs", bench.job_request(profile="dema"))
    assert (reply.status, reply.document["hint"]) == (404, "did you mean demo?")
    reply = bench.ask("POST", "/v1/jobs", bench.job_request(profile="broken"))
    assert (reply.status, "cores" in reply.error) == (400, True)


def test_jobs_are_listed_shown_and_cancelled(bench: Bench) -> None:
    guest = bench.running()
    shown = bench.ask("GET", f"/v1/jobs/{guest.job.id}").document
    assert (shown["state"], shown["address"]) == ("RUNNING", guest.address)
    (listed,) = bench.ask("GET", "/v1/jobs?state=running&limit=5").document["jobs"]  # type: ignore[misc]
    assert (listed["id"], listed["address"]) == (shown["id"], guest.address)
    assert bench.ask("GET", "/v1/jobs?state=queued").document == {"jobs": []}
    assert bench.ask("GET", "/v1/jobs?state=odd").status == 400
    other = "y" if guest.job.id.endswith("z") else "z"
    near = bench.ask("GET", f"/v1/jobs/{guest.job.id[:-1]}{other}")
    assert (near.status, near.document["hint"]) == (404, f"did you mean {guest.job.id}?")
    assert bench.ask("POST", f"/v1/jobs/{guest.job.id}/cancel").status == 202
    assert bench.until(guest.job, JobState.CANCELLED)
    assert bench.ask("POST", f"/v1/jobs/{guest.job.id}/cancel").document["state"] == "CANCELLED"
    assert bench.ask("POST", "/v1/jobs/nope/cancel").status == 404


def test_the_log_from_a_byte_on(bench: Bench) -> None:
    guest = bench.running().claimed()
    path = f"/v1/jobs/{guest.job.id}/log"
    empty = bench.ask("GET", path)
    assert (empty.status, empty.body, empty.headers["x-final"]) == (200, b"", "0")
    guest.log(0, b"one\n\x00\xff")
    assert bench.ask("GET", path).body == b"one\n\x00\xff"
    assert bench.ask("GET", f"{path}?offset=4").body == b"\x00\xff"
    assert bench.ask("GET", f"{path}?offset=7").status == 400
    assert bench.ask("GET", f"{path}?wait=61").status == 400
    guest.report()
    done = bench.ask("GET", f"{path}?offset=6&wait=20")
    assert (done.body, done.headers["x-final"]) == (b"", "1")


def test_a_long_poll_of_the_log_hears_of_a_new_piece(bench: Bench) -> None:
    guest = bench.running().claimed()
    wire, since = bench.wire(), time.monotonic()
    wire.send(request("GET", f"/v1/jobs/{guest.job.id}/log?wait=20"))
    timer = threading.Timer(0.2, lambda: guest.log(0, b"news"))
    timer.start()
    assert wire.reply().body == b"news"
    timer.join()
    assert time.monotonic() - since < 15


def test_artifacts(bench: Bench) -> None:
    guest = bench.running().claimed()
    content = bytes(range(256)) * 5000
    assert guest.put("files/a%20b/x.bin", content).status == 200
    (listed,) = bench.ask("GET", f"/v1/jobs/{guest.job.id}/artifacts").document["artifacts"]  # type: ignore[misc]  # a list of one
    assert (listed["name"], listed["size"]) == ("files/a b/x.bin", len(content))
    path = f"/v1/jobs/{guest.job.id}/artifacts/"
    got = bench.ask("GET", path + "files/a%20b/x.bin")
    assert (got.body, got.headers["x-content-sha256"]) == (content, sha256(content))
    (guest.folder / "secret").write_text("not handed back")
    for name in ("secret", "../../agentlab.db", "%2e%2e/%2e%2e/agentlab.db", "files", "files/a b"):
        assert bench.ask("GET", path + name.replace(" ", "%20")).status == 404, name
    assert bench.ask("GET", "/v1/jobs/none/artifacts").status == 404


def test_a_link_in_place_of_an_artifact_is_not_followed(bench: Bench) -> None:
    guest = bench.running().claimed()
    guest.put("a.txt", b"x")
    (guest.folder / "a.txt").unlink()
    (guest.folder / "a.txt").symlink_to("/etc/passwd")
    reply = bench.ask("GET", f"/v1/jobs/{guest.job.id}/artifacts/a.txt")
    assert reply.status == 409
    (guest.folder / "a.txt").unlink()
    assert bench.ask("GET", f"/v1/jobs/{guest.job.id}/artifacts/a.txt").status == 404


def test_a_bundle_is_kept_under_its_sum(bench: Bench) -> None:
    name = sha256(BUNDLE)
    for _ in range(2):
        reply = bench.ask("PUT", f"/v1/bundles/{name}", body=BUNDLE)
        assert (reply.status, reply.document) == (200, {"sha256": name, "size": len(BUNDLE)})
    folder = bench.world.config.bundle_dir
    assert [each.name for each in folder.iterdir()] == [f"{name}.bundle"]
    made = bench.ask("POST", "/v1/jobs", bench.job_request(repo={"bundle": name}))
    assert (made.status, made.document["repo"]) == (202, f"bundle {name[:12]}")


def test_a_bundle_that_is_none_leaves_nothing(bench: Bench) -> None:
    wrong = sha256(b"other")
    for name, body, words in (
        (wrong, BUNDLE, "sha256"),
        (sha256(b"tar"), b"tar", "not a git bundle"),
        (sha256(b""), b"", "not a git bundle"),
        ("../../x", BUNDLE, "there is nothing"),
        ("..%2f..%2fx", BUNDLE, "not a sha256"),
        (sha256(BUNDLE).upper(), BUNDLE, "not a sha256"),
    ):
        wire = bench.wire()
        reply = wire.send(request("PUT", f"/v1/bundles/{name}", body)).reply()
        assert (reply.status // 100, words in reply.error) == (4, True), reply
        assert wire.send(request("GET", "/v1/status")).reply().status == 200
    folder = bench.world.config.bundle_dir
    assert not folder.exists() or not list(folder.iterdir())


def test_a_bundle_that_breaks_off_leaves_nothing(bench: Bench) -> None:
    head = f"PUT /v1/bundles/{'a' * 64} HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n".encode()
    bench.wire().send(head + BUNDLE).close()
    folder = bench.world.config.bundle_dir
    until(lambda: folder.exists() and not list(folder.iterdir()))
    too_large = f"PUT /v1/bundles/{'a' * 64} HTTP/1.1\r\nContent-Length: {5 << 30}\r\n\r\n".encode()
    assert bench.wire().send(too_large).reply().status == 413


def test_events_by_filter_and_by_waiting(bench: Bench) -> None:
    guest = bench.running()
    path = f"/v1/events?job={guest.job.id}"
    found = bench.ask("GET", path).document
    seqs = [each["seq"] for each in found["events"]]  # type: ignore[attr-defined]  # a list
    assert seqs == sorted(seqs)
    assert found["last"] == seqs[-1]
    assert len(bench.ask("GET", f"{path}&limit=2").document["events"]) == 2  # type: ignore[arg-type]
    assert bench.ask("GET", "/v1/events?vmid=999").document["events"] == []
    bench.daemon.runner.stop(5)  # so that it adds no event of its own
    last = bench.ask("GET", path).document["last"]
    wire = bench.wire().send(request("GET", f"{path}&after={last}&wait=20"))
    timer = threading.Timer(0.2, guest.claim)
    timer.start()
    (event,) = wire.reply().document["events"]  # type: ignore[misc]
    timer.join()
    assert event["kind"] == "job.claimed"
    assert bench.ask("GET", "/v1/events?after=x").status == 400


def test_sandboxes_cost_one_inventory(bench: Bench) -> None:
    guests = [bench.running() for _ in range(3)]
    bench.hypervisor.calls.clear()
    listed = bench.ask("GET", "/v1/sandboxes").document["sandboxes"]
    assert bench.hypervisor.calls.count("inventory") == 1
    assert [each["power"] for each in listed] == ["running"] * 3  # type: ignore[attr-defined]
    vmid = guests[0].job.vmid
    name = f"job-{guests[0].job.id}"
    for reference in (vmid, name):
        assert bench.ask("GET", f"/v1/sandboxes/{reference}").document["vmid"] == vmid
    near = bench.ask("GET", f"/v1/sandboxes/{name[:-1]}")
    assert (near.status, "did you mean" in str(near.document["hint"])) == (404, True)
    bench.hypervisor.machines[vmid] = Machine(vmid, name, "lab", Power.PAUSED)
    assert bench.ask("GET", f"/v1/sandboxes/{vmid}").document["power"] == "paused"
    bench.hypervisor.faults["inventory"] = [Unavailable("cannot read it whole")]
    assert bench.ask("GET", f"/v1/sandboxes/{vmid}").document["power"] == "unknown"
    bench.hypervisor.unseen = True
    assert bench.ask("GET", f"/v1/sandboxes/{vmid}").document["power"] == "unknown"
    bench.hypervisor.unseen = False


def test_a_sandbox_is_destroyed(bench: Bench) -> None:
    guest = bench.running()
    path = f"/v1/sandboxes/{guest.job.vmid}"
    busy = bench.ask("POST", f"{path}/destroy", {})
    assert (busy.status, busy.document["code"]) == (409, "busy")
    reply = bench.ask("POST", f"{path}/destroy", {"force": True})
    assert reply.status == 202
    assert bench.until(guest.job, JobState.CANCELLED, JobState.FAILED)
    operation = f"/v1/operations/{reply.document['id']}"
    until(lambda: bench.ask("GET", operation).document["final"])
    assert bench.ask("GET", "/v1/sandboxes").document == {"sandboxes": []}
    (gone,) = bench.ask("GET", "/v1/sandboxes?all=1").document["sandboxes"]  # type: ignore[misc]
    assert (gone["state"], gone["power"], gone["allowed"]) == ("DESTROYED", "absent", [])
    assert bench.ask("GET", "/v1/sandboxes?all=maybe").status == 400
    assert bench.ask("POST", f"{path}/destroy", {"force": "yes"}).status == 400


def test_profiles_templates_and_operations(bench: Bench) -> None:
    broken, demo = bench.ask("GET", "/v1/profiles").document["profiles"]  # type: ignore[misc]
    assert (demo["name"], demo["problem"], demo["network"]) == ("demo", "", "off")
    assert (broken["name"], "cores" in broken["problem"]) == ("broken", True)
    (template,) = bench.ask("GET", "/v1/templates").document["templates"]  # type: ignore[misc]
    assert template == {"name": "debian-12", "ready": True, "detail": ""}
    reply = bench.ask("POST", "/v1/templates/build", {})
    assert (reply.status, reply.document["kind"]) == (202, "template.build")
    assert bench.ask("POST", "/v1/templates/build", {"name": "../x"}).status == 400
    assert bench.ask("GET", "/v1/operations/none").status == 404
    reply = bench.ask("GET", "/v1/templates/debian-12/check")
    assert (reply.status, reply.document["ready"], reply.document["findings"]) == (200, True, [])


def test_only_root_may_have_a_file_read_as_an_image(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"name": "mine", "image": "/var/lib/vz/images/100/vm-100-disk-0.qcow2"}
    with monkeypatch.context() as others:
        others.setattr(templates.os, "geteuid", lambda: 12345)
        others.setattr(server, "peer_of", lambda _: Peer(pid=1, uid=54321, gid=os.getgid()))
        others.setattr(server, "check_access", lambda *_: None)
        assert bench.ask("POST", "/v1/templates/build", asked).status == 403
    assert bench.ask("POST", "/v1/templates/build", {**asked, "image": "a.qcow2"}).status == 400
    assert bench.ask("POST", "/v1/templates/build", asked).status == 202


def test_a_large_bundle_passes_through(bench: Bench) -> None:
    content = BUNDLE + bytes(30 << 20)
    name = hashlib.sha256(content).hexdigest()
    assert bench.ask("PUT", f"/v1/bundles/{name}", body=content).status == 200
    kept = bench.world.config.bundle_dir / f"{name}.bundle"
    assert kept.stat().st_size == len(content)


def test_checks_are_told_by_their_names(bench: Bench) -> None:
    found = bench.ask("GET", "/v1/checks").document["checks"]
    assert isinstance(found, list)
    by_name = {each["name"]: each for each in found}
    bridge = bench.world.config.network.bridge
    assert [each["name"] for each in found] == [
        f"bridge_{bridge}", "ip_forward", "nftables", "proxmox_api", "token_privileges",
        "template", "profiles", "storage", "workspaces", "guest_listener", "kvm",
    ]  # fmt: skip
    assert by_name["guest_listener"]["status"] == "ok"
    assert by_name["template"]["status"] == "ok"
    assert by_name["proxmox_api"]["status"] == "skipped"
    assert (by_name["profiles"]["status"], "broken: " in by_name["profiles"]["detail"]) == (
        "error", True
    )  # fmt: skip

"""The guest listener against guests that keep the protocol, and those that do not."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest

from agentlab.daemon import job_files
from agentlab.daemon.handlers.status import resident
from agentlab.daemon.job_files import sweep_parts
from agentlab.model.job import JobSpec, JobState, Repo
from agentlab.store import jobs, tokens
from tests.unit.daemon.bench import BUNDLE, REPORT, Bench, open_bench, request, sha256
from tests.waiting import until

SMALL = "limits: {log: 1M, artifact: 2M, artifacts: 3M, artifact_count: 3}\n"


def test_a_claim_gives_the_job_and_again_to_the_same_session(bench: Bench) -> None:
    guest = bench.running()
    first, again = guest.claim(), guest.claim()
    assert (first.status, again.status) == (200, 200)
    assert (first.document["id"], first.document["task"]) == (guest.job.id, "do it")
    assert again.document["id"] == guest.job.id
    assert len(bench.events("job.claimed")) == 1


def test_a_token_replayed_is_refused_and_told_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    guest = bench.running().claimed()
    for _ in range(5):
        assert guest.claim(session="z" * 43).status == 403
    assert guest.claim().status == 200
    lines = [each for each in caplog.records if "refused" in each.getMessage()]
    assert len(lines) == 1
    (event,) = bench.events("guest.refused")
    assert (event.job, event.vmid) == (guest.job.id, guest.job.vmid)
    assert guest.token not in caplog.text


@pytest.mark.parametrize("session", ["", "short", "x" * 129, "ä" * 43, "a b" * 20])
def test_a_session_must_look_like_one(bench: Bench, session: str) -> None:
    guest = bench.running()
    document = {"token": guest.token, "session": session}
    assert guest.ask("POST", "/guest/v1/claim", document).status in (400, 403)
    assert guest.claim().status == 200


def test_a_claim_from_elsewhere_or_too_late(bench: Bench) -> None:
    guest = bench.running()
    assert guest.claim(address="127.0.9.9").status == 403
    assert guest.claim(token="t" * 43).status == 403
    with bench.store.write() as tx:
        tx.execute("UPDATE token SET expires = 1")
    assert guest.claim().status == 403
    with bench.store.read() as tx:
        assert not tokens.spent(tx, guest.job.id)


def test_a_session_serves_one_token(bench: Bench) -> None:
    one, other = bench.running().claimed(), bench.running()
    assert other.claim(session=one.session).status == 403


def test_another_jobs_id(bench: Bench) -> None:
    one, other = bench.running().claimed(), bench.running().claimed()
    assert one.ask("POST", "heartbeat", {"stage": "agent"}, job=other.job.id).status == 403
    assert one.ask("PUT", "log?offset=0", body=b"x", job=other.job.id).status == 403
    assert one.put("a", b"x", job=other.job.id).status == 403
    assert one.ask("POST", "report", REPORT, job=other.job.id).status == 403
    assert one.ask("POST", "heartbeat", {"stage": "agent"}, job="none").status == 403
    # the session alone is not enough: it counts from its own address
    assert one.ask("POST", "heartbeat", {"stage": "agent"}, address=other.address).status == 403
    assert not other.files()
    assert {event.job for event in bench.events("guest.refused")} == {one.job.id, other.job.id}


def test_without_a_session(bench: Bench) -> None:
    guest = bench.running()
    for word in ("", "Bearer ", "Bearer x", "Basic " + "a" * 43, "Bearer " + "a" * 43):
        reply = guest.ask("POST", "heartbeat", {"stage": "agent"}, headers={"Authorization": word})
        assert reply.status == 403, word


def test_heartbeats_tell_of_stages_once_and_of_cancelling(bench: Bench) -> None:
    guest = bench.running().claimed()
    for stage in ("checkout", "agent", "checkout", "agent", "bootstrap", "agent"):
        answer = guest.ask("POST", "heartbeat", {"stage": stage}).document
        assert answer["cancel"] is False
        # the profile's hour, less the two minutes for handing back
        assert 3400 < answer["time_left"] <= 3480
    told = [event.facts["stage"] for event in bench.events("job.stage")]
    assert told == ["checkout", "agent"]
    assert guest.ask("POST", "heartbeat", {"stage": "lunch"}).status == 400
    bench.ask("POST", f"/v1/jobs/{guest.job.id}/cancel")
    assert guest.ask("POST", "heartbeat", {"stage": "agent"}).document["cancel"] is True


def test_the_log_grows_at_its_end_only(bench: Bench) -> None:
    guest = bench.running().claimed()
    assert guest.log(0, b"abc").document == {"size": 3}
    lost = guest.log(0, b"abc")
    assert (lost.status, lost.document["details"]) == (409, {"size": 3})
    assert guest.log(9, b"x").document["details"] == {"size": 3}
    assert guest.log(3, b"\x00\n\xff").document == {"size": 6}
    assert (guest.folder / "agent.log").read_bytes() == b"abc\x00\n\xff"
    assert guest.ask("PUT", "log", body=b"x").status == 400
    assert guest.ask("PUT", "log?offset=-1", body=b"x").status == 400
    # a size that differs is the protocol at work, not a refusal
    assert len(bench.events("guest.refused")) == 1


def test_the_log_has_a_limit(tmp_path: Path) -> None:
    with open_bench(tmp_path, limits=SMALL) as bench:
        guest = bench.running().claimed()
        assert guest.log(0, bytes(1 << 20)).status == 200
        assert guest.log(1 << 20, b"x").status == 413
        assert guest.log(0, bytes((1 << 20) + 1)).status == 413
        assert (guest.folder / "agent.log").stat().st_size == 1 << 20


def test_the_log_does_not_follow_a_link(bench: Bench, tmp_path: Path) -> None:
    guest = bench.running().claimed()
    guest.folder.mkdir(parents=True)
    (guest.folder / "agent.log").symlink_to(tmp_path / "outside")
    assert guest.log(0, b"x").status == 409
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["a", "files/a b.txt", "files/.hidden/x", "files/ä\\ö", "a" * 255])
def test_good_names(bench: Bench, name: str) -> None:
    guest = bench.running().claimed()
    quoted = "".join(f"%{byte:02x}" if chr(byte) != "/" else "/" for byte in name.encode())
    assert guest.put(quoted, b"x").status == 200
    assert guest.files() == {name}


@pytest.mark.parametrize(
    "name",
    [
        "../../x", "%2e%2e/%2e%2e/x", "files/../../x", "..", ".", "a//b", "/etc/x", "a/", "",
        "a/./b", "a%2fb", "..%2f..%2fx", "%00", "a%00b", "a%0ab", "%ff%fe", "%", "%zz",
        ".incoming/x", ".incoming", ".x", "agent.log", "report.json", "agent.log/x", "report.json/x",
        "a" * 256, "a/" * 30 + "x",
        "%e2%80%ae", "%1b[31m", "/".join(["a" * 200] * 8),
    ],
)  # fmt: skip
def test_bad_names_write_nothing(bench: Bench, tmp_path: Path, name: str) -> None:
    guest = bench.running().claimed()
    before = {path for path in tmp_path.rglob("*") if path.name == "x"}
    reply = guest.put(name, b"x")
    assert reply.status in (400, 404), reply
    assert guest.files() == set()
    assert {path for path in tmp_path.rglob("*") if path.name == "x"} == before


def test_links_planted_in_the_job_directory_lead_nowhere(bench: Bench, tmp_path: Path) -> None:
    guest = bench.running().claimed()
    outside = tmp_path / "outside"
    outside.mkdir()
    guest.folder.mkdir(parents=True)
    (guest.folder / "files").symlink_to(outside)
    (guest.folder / "link").symlink_to(outside / "y")
    assert guest.put("files/x", b"x").status == 409
    assert guest.put("link", b"mine").status == 200  # takes the link's place
    assert (guest.folder / "link").read_bytes() == b"mine"
    (guest.folder / "folder").mkdir()
    assert guest.put("folder", b"x").status == 409
    (guest.folder / ".incoming").rmdir()
    (guest.folder / ".incoming").symlink_to(outside)
    assert guest.put("z", b"x").status == 409
    assert list(outside.iterdir()) == []


def test_the_same_artifact_again(bench: Bench) -> None:
    guest = bench.running().claimed()
    for _ in range(3):
        assert guest.put("a", b"one").status == 200
    assert guest.put("a", b"two").status == 200  # made anew since
    assert (guest.folder / "a").read_bytes() == b"two"
    assert len(bench.events("artifact.stored")) == 1
    with bench.store.read() as tx:
        (kept,) = jobs.artifacts(tx, guest.job.id)
    assert (kept.size, kept.sha256) == (3, sha256(b"two"))


def test_a_wrong_sum_leaves_nothing(bench: Bench) -> None:
    guest = bench.running().claimed()
    assert guest.put("a", b"one", digest=sha256(b"two")).status == 400
    assert guest.put("a", b"one", digest="nonsense").status == 400
    assert guest.ask("PUT", "artifacts/a", body=b"x").status == 400
    assert guest.files() == set()
    with bench.store.read() as tx:
        assert jobs.artifacts(tx, guest.job.id) == []


def test_an_upload_that_breaks_off_or_drips_leaves_nothing(bench: Bench) -> None:
    guest = bench.running().claimed()
    head = (
        f"PUT /guest/v1/jobs/{guest.job.id}/artifacts/a HTTP/1.1\r\nContent-Length: 100\r\n"
        f"X-Content-Sha256: {'a' * 64}\r\nAuthorization: Bearer {guest.session}\r\n\r\n"
    ).encode()
    bench.guest_wire(guest.address).send(head + b"half").close()
    assert bench.guest_wire(guest.address).send(head + b"half").reply().status == 408
    until(lambda: not guest.files())


def test_artifact_limits(tmp_path: Path) -> None:
    with open_bench(tmp_path, limits=SMALL) as bench:
        guest = bench.running().claimed()
        assert guest.put("big", bytes((2 << 20) + 1)).status == 413
        assert guest.put("a", bytes(2 << 20)).status == 200
        assert guest.put("b", bytes((1 << 20) + 1)).status == 413
        assert guest.put("b", bytes(1 << 20)).status == 200
        assert guest.put("c", b"").status == 200
        assert guest.put("d", b"").status == 413
        assert guest.put("a", bytes(2 << 20)).status == 200
        assert guest.files() == {"a", "b", "c"}


def test_a_full_disk_is_a_clean_no(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = bench.running().claimed()
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if "artifacts" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    for reply in (guest.put("a", b"x"), guest.log(0, b"x"), guest.report()):
        assert (reply.status, reply.document["code"]) == (507, "unavailable")
    monkeypatch.undo()
    assert guest.files() <= {"agent.log"}
    assert guest.put("a", b"x").status == 200
    assert guest.log(0, b"x").status == 200
    assert guest.report().status == 200


def test_what_is_sent_leaves_room_for_the_database(
    patient: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, name = patient.running().claimed(), sha256(BUNDLE)
    free = job_files.FLOOR + 9

    def nearly_full(_: object) -> os.statvfs_result:
        blocks = 1 << 30
        return os.statvfs_result((1, 1, blocks, blocks, free, 1, 1, 1, 0, 255))

    monkeypatch.setattr(os, "statvfs", nearly_full)
    assert guest.put("a", b"x" * 9).status == 200
    assert guest.log(0, b"x" * 9).status == 200
    for reply in (
        guest.put("b", b"x" * 10),
        guest.log(9, b"x" * 10),
        patient.ask("PUT", f"/v1/bundles/{name}", body=BUNDLE),
    ):
        assert (reply.status, reply.document["code"]) == (507, "unavailable")
        assert "nearly full" in reply.error
    assert guest.put("a", b"x" * 9).status == 200  # there already
    headers = {"Authorization": f"Bearer {guest.session}", "X-Content-Sha256": sha256(b"x" * 5)}
    path = f"/guest/v1/jobs/{guest.job.id}/artifacts/c"
    coming = patient.guest_wire(guest.address).send(request("PUT", path, b"x" * 5, headers)[:-1])
    until(lambda: patient.guests.site._uploads._coming)  # type: ignore[attr-defined]  # to begin second
    assert guest.put("d", b"x" * 5).status == 507  # what is on its way counts
    coming.close()
    until(lambda: ".incoming" not in str(guest.files()))
    assert guest.files() == {"a", "agent.log"}
    free = 0
    assert guest.report().status == 200  # the end of a job is always heard


def test_a_report_ends_what_a_guest_can_send(bench: Bench) -> None:
    guest = bench.running().claimed()
    guest.log(0, b"abc")
    assert guest.report().status == 200
    kept = json.loads((guest.folder / "report.json").read_text())
    assert kept["commit_after"] == "b" * 40
    assert bench.until(guest.job, JobState.COMPLETED).report == REPORT
    assert len(bench.events("job.report")) == 1


def test_after_a_report_all_else_is_refused(bench: Bench) -> None:
    guest = bench.running().claimed()
    bench.daemon.runner.stop(5)  # so that its session is still there
    assert guest.report().status == 200
    assert guest.report().status == 200
    for reply in (
        guest.report(status="failed"),
        guest.log(0, b"x"),
        guest.put("a", b"x"),
        guest.ask("POST", "heartbeat", {"stage": "agent"}),
        guest.claim(),
    ):
        assert reply.status == 409
    assert guest.files() == {"report.json"}


@pytest.mark.parametrize(
    "change",
    [
        {"status": "splendid"},
        {"status": None},
        {"stage": "x" * 65},
        {"message": "x" * 5000},
        {"exit_code": "0"},
        {"exit_code": True},
        {"exit_code": 1 << 60},
        {"started": float("nan")},
        {"ended": float("inf")},
        {"log_bytes": -(1 << 60)},
        {"commit_after": "c" * 65},
        {"artifacts": [{"size": 1}]},
        {"artifacts": [{"name": "a", "size": float("nan")}]},
        {"artifacts": {}},
        {"missing": [{"name": "a\x00"}]},
    ],
)
def test_a_bad_report_is_refused(bench: Bench, change: dict[str, object]) -> None:
    guest = bench.running().claimed()
    assert guest.report(**change).status == 400
    with bench.store.read() as tx:
        assert jobs.get(tx, guest.job.id).report is None


def test_a_report_of_a_thousand_files_is_taken(bench: Bench) -> None:
    guest = bench.running().claimed()
    files = [{"name": f"files/{n:0200}", "size": n, "sha256": "a" * 64} for n in range(1000)]
    assert guest.report(artifacts=files, something_newer=1).status == 200
    guest = bench.running().claimed()
    assert guest.report(message=" " * (2 << 20)).status == 413


def test_the_longest_honest_report_is_taken_and_longer_lists_are_not(bench: Bench) -> None:
    guest = bench.running().claimed()
    for name, most in (("artifacts", 10_000), ("missing", 1000)):
        reply = guest.report(**{name: [{"name": ""}] * (most + 1)})
        assert (reply.status, reply.error) == (400, f"{name}: has more than {most} entries")
    files = [{"name": f"files/{n}", "size": 9, "sha256": "a" * 64} for n in range(9000)]
    missing = [{"name": f"x{n}", "reason": "gone"} for n in range(201)]
    assert guest.report(artifacts=files, missing=missing).status == 200
    # lists of jobs do without; a job by itself has them
    (listed,) = bench.ask("GET", "/v1/jobs").document["jobs"]  # type: ignore[misc]  # a list of one
    assert listed["report"].keys() == REPORT.keys() - {"artifacts", "missing"}
    shown = bench.ask("GET", f"/v1/jobs/{guest.job.id}").document["report"]
    assert len(shown["artifacts"]) == 9000  # type: ignore[index]  # a report
    with bench.store.read() as tx:
        (job,) = jobs.newest(tx, state=jobs.get(tx, guest.job.id).state)
    assert job.report == listed["report"]


def test_one_report_of_a_job_at_a_time(patient: Bench) -> None:
    guest, other = patient.running().claimed(), patient.running().claimed()
    body = json.dumps(REPORT).encode()
    headers = {"Authorization": f"Bearer {guest.session}"}
    first = patient.guest_wire(guest.address)
    whole = request("POST", f"/guest/v1/jobs/{guest.job.id}/report", body, headers)
    first.send(whole[:-9])
    until(lambda: patient.guests.site._reports._at_work)  # type: ignore[attr-defined]  # to begin second
    assert guest.report().status == 429
    assert guest.report(message=" " * (2 << 20)).status == 413
    assert other.report().status == 200
    assert first.send(whole[-9:]).reply().status == 200
    assert guest.report().status in (200, 403)  # 403 once its session is over


def test_the_bundle_comes_back(bench: Bench) -> None:
    name = sha256(BUNDLE)
    bench.ask("PUT", f"/v1/bundles/{name}", body=BUNDLE)
    guest = bench.running(JobSpec(Repo(bundle=name), "do it", "demo")).claimed()
    assert guest.ask("GET", "repo.bundle").body == BUNDLE
    other = bench.running().claimed()
    assert other.ask("GET", "repo.bundle").status == 404


def test_when_the_daemon_has_closed_a_session(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    guest = bench.running().claimed()
    bench.daemon.runner.stop(5)
    with bench.store.write() as tx:
        tokens.revoke(tx, guest.job.id)
    for _ in range(2):
        assert guest.put("a", b"x").status == 403
    assert guest.files() == set()
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    assert len(bench.events("guest.refused")) == 1


def test_too_many_connections_of_one_guest(bench: Bench) -> None:
    kept = [bench.guest_wire("127.0.5.5") for _ in range(8)]
    assert bench.guest_wire("127.0.5.5").reply().status == 429
    reply = bench.guest_wire("127.0.5.6").send(request("GET", "/guest/v1/x")).reply()
    assert reply.status == 404
    assert len(kept) == 8


def test_a_flood_is_slowed_and_told_once(bench: Bench) -> None:
    wire = bench.guest_wire("127.0.6.6")
    statuses = [wire.send(request("GET", "/guest/v1/x")).reply().status for _ in range(400)]
    assert 429 in statuses
    assert statuses[:200] == [404] * 200
    assert len(bench.events("guest.refused")) == 2
    other = bench.guest_wire("127.0.6.7").send(request("GET", "/guest/v1/x")).reply()
    assert other.status == 404


def test_the_api_is_not_on_the_guest_listener(bench: Bench) -> None:
    guest = bench.running()
    assert guest.ask("GET", "/v1/status").status == 404
    assert guest.ask("GET", "/v1/jobs").status == 404
    assert guest.ask("POST", "heartbeat", {"stage": "agent"}, job="%2e%2e").status == 403


@pytest.mark.parametrize("nonsense", [b"\x00\xff\n\n", b"GET / HTTP/9.9\r\n\r\n", b"x" * 40_000])
def test_garbage_from_a_guest(
    bench: Bench, nonsense: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert bench.guest_wire().send(nonsense).reply().status >= 400
    assert len([each for each in caplog.records if each.levelno >= logging.WARNING]) == 1
    assert len(bench.events("guest.refused")) == 1


@pytest.mark.slow
def test_memory_stays_flat_under_a_large_upload(bench: Bench) -> None:
    guest = bench.running().claimed()
    guest.put("warm", bytes(4 << 20))
    size, piece = 200 << 20, bytes(1 << 20)
    digest = hashlib.sha256()
    for _ in range(size >> 20):
        digest.update(piece)
    wire = bench.guest_wire(guest.address).send(
        f"PUT /guest/v1/jobs/{guest.job.id}/artifacts/large HTTP/1.1\r\nContent-Length: {size}\r\n"
        f"X-Content-Sha256: {digest.hexdigest()}\r\nAuthorization: Bearer {guest.session}\r\n\r\n"
        .encode()
    )  # fmt: skip
    before, most = resident(), 0
    for _ in range(size >> 20):
        wire.send(piece)
        most = max(most, resident())
    assert wire.reply().status == 200
    assert most - before < 16 << 20
    down = bench.wire().send(request("GET", f"/v1/jobs/{guest.job.id}/artifacts/large"))
    got = 0
    while got < size:
        got += len(down.socket.recv(1 << 20))
        most = max(most, resident())
    assert most - before < 16 << 20


def test_half_received_files_of_an_earlier_process_are_swept_up(tmp_path: Path) -> None:
    for name in (".incoming-old-1", ".incoming-now-1", "kept"):
        (tmp_path / name).write_text("x")
    assert sweep_parts(tmp_path, "now") == 1
    assert {each.name for each in tmp_path.iterdir()} == {".incoming-now-1", "kept"}


def test_a_log_that_is_no_file_is_told_so(bench: Bench, tmp_path: Path) -> None:
    guest = bench.running().claimed()
    path = f"/v1/jobs/{guest.job.id}/log"
    (guest.folder / "agent.log").mkdir(parents=True)
    (guest.folder / "agent.log" / "x").touch()
    reply = bench.ask("GET", path)
    assert (reply.status, "cannot read the log" in reply.error) == (409, True)
    (guest.folder / "agent.log" / "x").unlink()
    (guest.folder / "agent.log").rmdir()
    (guest.folder / "agent.log").symlink_to(tmp_path / "config.yaml")
    assert bench.ask("GET", path).status == 409

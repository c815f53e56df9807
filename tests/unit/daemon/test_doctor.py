"""Doctor bundles over the API: what is in them, what never is, and what they are made of."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab import clock
from agentlab.cli.main import main
from agentlab.config_proxmox import Proxmox
from agentlab.control import doctor
from agentlab.control.archive import MAX_MEMBER
from agentlab.errors import Unavailable
from agentlab.model.job import Artifact, Job, JobSpec, JobState, Repo
from agentlab.model.sandbox import Sandbox, SandboxSpec, SandboxState
from agentlab.model.session import SessionSpec
from agentlab.operations import requests, sandbox_requests, session_requests
from agentlab.secret import Secret
from agentlab.store import events, jobs, operations, sandboxes, sessions, workspaces
from tests.fakes.work_hypervisor import WorkHypervisor
from tests.unit.daemon import bench as benches
from tests.unit.daemon.bench import Bench, Reply, open_bench
from tests.waiting import read_until

ENV, URL, PVE = "canary-of-the-env", "canary-of-the-url", "canary-0f-pve-0123456789"
GUEST = "canary-of-the-guest"
SPEC = JobSpec(
    Repo(url=f"https://me:{URL}@example.org/x.git"), f"use {ENV}, then rest", "demo",
    env={"API": ENV, "MODE": "on"}, labels={"team": "label-that-stays"}, session="lab",
)  # fmt: skip
NAMES = {
    "README.txt", "session.json", "workspace.json", "volume.json", "sandbox.json", "machine.json",
    "jobs.json", "operations.json", "events.json", "artifacts.json", "host.json",
}  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(benches, "FakeHypervisor", WorkHypervisor)
    with open_bench(tmp_path) as found:
        yield found


@pytest.fixture
def session(bench: Bench) -> str:
    """A session whose workspace was made."""
    _, operation = session_requests.create(
        bench.world, bench.daemon.runner, SessionSpec("lab", "demo", size=1024), ""
    )
    done(bench, operation)
    return "lab"


def done(bench: Bench, operation: str) -> None:
    found = read_until(
        bench.store, lambda tx: operations.get(tx, operation), lambda found: found.final
    )
    assert found.state == "done", found


def worked(bench: Bench) -> Job:
    """A job with the session's workspace, under way, that has said what it should not."""
    job = bench.until(
        requests.create_job(bench.world, bench.daemon.runner, SPEC, "canary-idempotency"),
        JobState.RUNNING,
    )
    bench.daemon.runner.stop(5)  # from here on all stays as it is
    token, key = bench.world.token(job.id), bench.world.key
    with bench.store.write() as tx:
        told = f"{token.reveal()}, {token.fingerprint}, {key.reveal()}"
        events.append(tx, "job.note", told + workspaces.get(tx, "lab").nonce, job=job.id)
        events.append(
            tx, "job.note", f"it said {ENV} \x1b[2J\u202e", job=job.id,
            facts={"password": GUEST, "deep": [{"env": {"A": GUEST}}], "at": f"ssh://x:{GUEST}@h/"},
        )  # fmt: skip
        jobs.set_report(tx, job.id, {"status": "completed", "message": ENV, "api_key": GUEST})
        jobs.put_artifact(tx, Artifact(job.id, "changes.patch", 12, "ab" * 32, 5.0))
    return job


def members(reply: Reply) -> dict[str, bytes]:
    assert reply.status == 200, reply.body
    return unpacked(reply.body)


def unpacked(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as archive:
        found = {}
        for each in archive.getmembers():
            file = archive.extractfile(each)
            assert file is not None
            found[each.name.partition("/")[2]] = file.read()
    assert set(found) == NAMES
    return found


def documents(reply: Reply) -> dict[str, dict[str, object]]:
    return {
        name.removesuffix(".json"): json.loads(content)
        for name, content in members(reply).items()
        if name.endswith(".json")
    }


def ids(document: dict[str, object], key: str) -> list[object]:
    entries = document[key]
    assert isinstance(entries, list)
    return [each.get("id") for each in entries]


def test_a_session_with_a_job_at_work(bench: Bench, session: str) -> None:
    job = worked(bench)
    found = documents(bench.ask("GET", "/v1/sessions/lab/doctor"))
    assert (found["session"]["name"], found["session"]["profile"]) == ("lab", "demo")
    workspace, sandbox = found["workspace"], found["sandbox"]
    assert (workspace["state"], workspace["vmid"], workspace["nonce"]) == (
        "ATTACHED", job.vmid, "***",
    )  # fmt: skip
    assert workspace["holder"] == sandbox["id"]
    assert found["volume"] == {
        "snapshots": [],
        "volume": {"attached": [job.vmid], "size": 1024, "volid": workspace["volid"]},
    }
    assert (sandbox["vmid"], sandbox["job"]) == (job.vmid, job.id)
    status = found["machine"]["status"]
    assert isinstance(status, dict)
    assert (status["power"], status["ours"], "cpu" in status) == ("running", True, False)
    assert found["machine"]["volumes"] == [workspace["volid"]]
    assert ids(found["jobs"], "jobs") == [job.id]
    assert job.operation in ids(found["operations"], "operations")
    assert found["artifacts"]["artifacts"] == [
        {"created": 5.0, "job": job.id, "name": "changes.patch", "sha256": "ab" * 32, "size": 12}
    ]
    text = json.dumps(found["events"])
    assert "session lab was created" in text
    assert "workspace lab is ATTACHED" in text
    assert f"job {job.id} is RUNNING" in text
    assert found["host"]["hypervisor"] == "local"
    assert str(bench.world.config.data_dir) not in json.dumps(found["host"])


def test_steps_are_told_with_their_operation(bench: Bench, session: str) -> None:
    found = documents(bench.ask("GET", "/v1/sessions/lab/doctor"))
    made = found["operations"]["operations"]
    assert isinstance(made, list)
    assert len(made) == 1
    assert made[0]["state"] == "done"
    assert [each["state"] for each in made[0]["steps"]] == ["done"] * len(made[0]["steps"])
    assert made[0]["steps"]
    assert not {"request_key", "request_hash"} & set(made[0])


@pytest.mark.parametrize("noun", ["session", "sandbox", "job"])
def test_no_secret_is_in_any_bundle(bench: Bench, session: str, noun: str) -> None:
    job = worked(bench)
    with bench.store.read() as tx:
        workspace = workspaces.get(tx, "lab")
    proxmox = Proxmox(
        "api", f"https://me:{URL}@pve:8006", Secret(f"root@pam!lab={PVE}"), None, "", False,
        "pve", "", "local", False, 9000, range(1, 2), 1, 1, 1,
    )  # fmt: skip
    world = dataclasses.replace(
        bench.world, config=dataclasses.replace(bench.world.config, proxmox=proxmox)
    )
    faults = [Unavailable(f"PVEAPIToken=root@pam!lab={PVE} is refused")]
    bench.hypervisor.faults["status"] = [*faults]
    name = {"session": "lab", "sandbox": str(job.vmid), "job": job.id}[noun]
    content = doctor.collect(world, noun, name).content
    plain = gzip.decompress(content)
    token = world.token(job.id)
    canaries = [
        ENV, URL, PVE, GUEST, workspace.nonce, world.key.reveal(), token.reveal(),
        token.fingerprint, "canary",
    ]  # fmt: skip
    assert [each for each in canaries if each.encode() in plain] == []
    found = unpacked(content)
    assert b"label-that-stays" in found["jobs.json"]
    assert b"then rest" in found["jobs.json"]
    assert b'"API": "***"' in found["jobs.json"]
    assert b"is refused" in found["machine.json"]
    assert b"\x1b" not in plain
    assert b"\\u001b[2J\\u202e" in found["events.json"]


@pytest.mark.parametrize("noun", ["session", "sandbox", "job"])
def test_the_same_state_is_the_same_bytes(
    bench: Bench, session: str, noun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = worked(bench)
    path = {"session": "sessions/lab", "sandbox": f"sandboxes/{job.vmid}", "job": f"jobs/{job.id}"}
    one = bench.ask("GET", f"/v1/{path[noun]}/doctor")
    machine = bench.hypervisor.machines[job.vmid]
    bench.hypervisor.machines[job.vmid] = dataclasses.replace(machine, cpu=0.7)  # no state
    monkeypatch.setattr(clock, "now", lambda: 5e9)
    assert bench.ask("GET", f"/v1/{path[noun]}/doctor").body == one.body
    assert one.headers["x-content-sha256"] == benches.sha256(one.body)
    with bench.store.write() as tx:
        events.append(tx, "job.note", "one more", job=job.id)
    assert bench.ask("GET", f"/v1/{path[noun]}/doctor").body != one.body


def test_a_hypervisor_that_cannot_be_read_is_an_error_inside(bench: Bench, session: str) -> None:
    job = worked(bench)
    hypervisor = bench.hypervisor
    hypervisor.faults["status"] = [Unavailable("the node is away", hint="wait")]
    hypervisor.faults["volumes"] = [ZeroDivisionError("a fault of ours")]
    found = documents(bench.ask("GET", f"/v1/jobs/{job.id}/doctor"))
    assert found["machine"]["status"] == {
        "error": "the node is away", "code": "unavailable", "hint": "wait",
    }  # fmt: skip
    assert found["machine"]["snapshots"] == ["clean"]
    assert found["volume"]["volume"] == {"error": "ZeroDivisionError: a fault of ours"}
    del hypervisor.machines[job.vmid]
    found = documents(bench.ask("GET", f"/v1/jobs/{job.id}/doctor"))
    assert found["machine"]["status"] == {"absent": "the hypervisor has no such machine"}
    assert "no machine" in json.dumps(found["machine"]["volumes"])


def test_a_machine_that_is_not_ours_is_told_to_be_another_ones(bench: Bench, session: str) -> None:
    job = worked(bench)
    machines = bench.hypervisor.machines
    machines[job.vmid] = dataclasses.replace(machines[job.vmid], owner="somebody")
    found = documents(bench.ask("GET", f"/v1/sandboxes/{job.vmid}/doctor"))
    status = found["machine"]["status"]
    assert isinstance(status, dict)
    assert status["ours"] is False
    assert "is not ours" in json.dumps(found["machine"]["volumes"])


def test_a_session_that_nothing_has(bench: Bench, session: str) -> None:
    found = documents(bench.ask("GET", "/v1/sessions/lab/doctor"))
    assert (found["workspace"]["state"], found["workspace"]["nonce"]) == ("DETACHED", "")
    assert "absent" in found["sandbox"]
    assert "absent" in found["machine"]
    assert found["jobs"] == {"complete": True, "jobs": []}


def test_a_sandbox_that_only_has_the_vmid_of_the_holder(bench: Bench, session: str) -> None:
    worked(bench)
    with bench.store.write() as tx:
        tx.execute("UPDATE workspace SET holder = 999 WHERE name = 'lab'")
    found = documents(bench.ask("GET", "/v1/sessions/lab/doctor"))
    assert found["workspace"]["holder"] == 999
    assert "absent" in found["sandbox"]


@pytest.mark.parametrize(
    "path", ["sessions/la", "sandboxes/1999", "sandboxes/nobody", "jobs/01none", "sessions/%00"]
)
def test_what_is_not_there(bench: Bench, session: str, path: str) -> None:
    reply = bench.ask("GET", f"/v1/{path}/doctor")
    assert (reply.status, reply.document["code"]) == (404, "not_found")


def test_another_sandbox_of_the_same_vmid_is_left_out(bench: Bench) -> None:
    """VMIDs come again: what is told of one begins with its record, and ends with the next one's."""

    def new(name: str) -> Sandbox:
        spec = SandboxSpec("demo", name=name, vmid=1003)
        done(bench, sandbox_requests.create(bench.world, bench.daemon.runner, spec, ""))
        with bench.store.read() as tx:
            return sandboxes.get_live(tx, name)

    first = new("first-box")
    done(bench, sandbox_requests.destroy(bench.world, bench.daemon.runner, "1003", "", force=True))
    with bench.store.write() as tx:
        events.append(tx, "test", "the last of the first", vmid=1003)
    time.sleep(0.01)
    second = new("second-box")
    assert first.vmid == second.vmid
    found = documents(bench.ask("GET", "/v1/sandboxes/1003/doctor"))
    assert found["sandbox"]["name"] == "second-box"
    assert "the last of the first" not in json.dumps(found["events"])
    assert "first-box" not in json.dumps(found["operations"])
    found = documents(bench.ask("GET", "/v1/sandboxes/first-box/doctor"))
    assert found["sandbox"]["state"] == SandboxState.DESTROYED
    assert "is another one" in str(found["machine"]["absent"])
    assert "the last of the first" in json.dumps(found["events"])
    assert "second-box" not in json.dumps(found["operations"])


def test_another_session_of_the_same_name_is_left_out(bench: Bench, session: str) -> None:
    operation = session_requests.delete(
        bench.world, bench.daemon.runner, "lab", "", with_workspace=True
    )
    done(bench, operation)
    with bench.store.read() as tx:
        before = events.last(tx)
    _, operation = session_requests.create(
        bench.world, bench.daemon.runner, SessionSpec("lab", "demo", size=2048), ""
    )
    done(bench, operation)
    found = documents(bench.ask("GET", "/v1/sessions/lab/doctor"))
    told = found["events"]["events"]
    assert isinstance(told, list)
    assert told
    assert all(each["seq"] > before for each in told)
    assert ids(found["operations"], "operations") == [operation]


def test_a_job_of_a_vmid_that_another_one_has_now(bench: Bench, session: str) -> None:
    job = worked(bench)
    with bench.store.write() as tx:
        tx.execute("UPDATE sandbox SET job = 'another' WHERE vmid = ?", (job.vmid,))
    found = documents(bench.ask("GET", f"/v1/jobs/{job.id}/doctor"))
    assert "absent" in found["sandbox"]
    assert "absent" in found["machine"]
    assert found["workspace"]["name"] == "lab"


def test_jobs_are_found_after_their_operations_are_forgotten(bench: Bench, session: str) -> None:
    job = worked(bench)
    with bench.store.write() as tx:
        tx.execute("DELETE FROM operation WHERE id = ?", (job.operation,))
        tx.execute(
            "UPDATE job SET spec = json_set(spec, '$.session', 'lab', '$.branch', '') WHERE id = ?",
            (job.id,),
        )
    found = documents(bench.ask("GET", "/v1/sessions/lab/doctor"))
    assert ids(found["jobs"], "jobs") == [job.id]
    with bench.store.write() as tx:  # of the session of a branch, which is another one
        tx.execute("UPDATE job SET spec = json_set(spec, '$.branch', 'b')")
    found = documents(bench.ask("GET", "/v1/sessions/lab/doctor"))
    assert ids(found["jobs"], "jobs") == []


def test_a_long_history_is_bounded_and_says_so(bench: Bench, session: str) -> None:
    with bench.store.read() as tx:
        record = sessions.get(tx, "lab")
        number = record.workspace
    now = clock.now()
    with bench.store.write() as tx:
        for at in range(600):
            events.append(tx, "test", "\x00" * 4000, facts={"session": "lab", "at": at})
        for at in range(250):
            operations.create(
                tx, f"op-{at:04}", "test", [f"test:{at}"], {"workspace": number}, in_turn=True
            )
        for at in range(120):
            spec = dataclasses.replace(SPEC, task="t" * 60_000)
            job = Job(
                f"job-{at:04}", JobState.COMPLETED, spec, 0, "", now + at, now, now, "", "", True,
                {"artifacts": [{"name": "x" * 200}] * 3000},
            )  # fmt: skip
            jobs.create(tx, job, request_key="", request_hash="")
            jobs.set_report(tx, job.id, job.report or {})
            for each in range(100):
                jobs.put_artifact(tx, Artifact(job.id, f"{'n' * 200}{each}", 1, "a" * 64, now))
    found = members(bench.ask("GET", "/v1/sessions/lab/doctor"))
    assert {name: len(each) for name, each in found.items() if len(each) > MAX_MEMBER} == {}
    listed = {name: json.loads(found[f"{name}.json"]) for name in doctor_lists()}
    assert [each["complete"] for each in listed.values()] == [False] * 4
    assert listed["events"]["events"][-1]["job"] == "job-0119"
    assert listed["operations"]["operations"][-1]["id"] == "op-0249"
    assert listed["jobs"]["jobs"][-1]["id"] == "job-0119"
    assert len(listed["operations"]["operations"]) == 200


def doctor_lists() -> list[str]:
    return ["jobs", "operations", "events", "artifacts"]


def test_nothing_is_changed(bench: Bench, session: str) -> None:
    job = worked(bench)
    with bench.store.read() as tx:
        before = events.last(tx)
    bench.hypervisor.touched.clear()
    commits = bench.store.commits
    for path in ("sessions/lab", f"sandboxes/{job.vmid}", f"jobs/{job.id}"):
        assert bench.ask("GET", f"/v1/{path}/doctor").status == 200
        assert bench.ask("POST", f"/v1/{path}/doctor", {}).status == 405
    with bench.store.read() as tx:
        assert events.last(tx) == before
    assert (bench.hypervisor.touched, bench.store.commits) == ([], commits)


def test_the_command_line_writes_what_the_daemon_sends(
    bench: Bench, session: str, tmp_path: Path
) -> None:
    line = ["--socket", str(bench.world.config.socket), "session", "doctor", "lab"]
    assert main([*line, "--out", f"{tmp_path}/out/"]) == 0
    content = (tmp_path / "out" / "agentlab-session-lab.tar.gz").read_bytes()
    assert content == bench.ask("GET", "/v1/sessions/lab/doctor").body
    assert set(unpacked(content)) == NAMES

"""Ten at once, restarts in the midst, cancelling, real git URLs, both ways of starting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Lab, git_repo, internet, laboratory
from tests.waiting import seen

pytestmark = [pytest.mark.vm, pytest.mark.slow]

GO = "/home/agent/go"
IDENTITY = (
    "hostname; cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub; "
    "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; "
    "cat /sys/class/net/eth0/address; ip -4 -o address show dev eth0 | tr -s ' ' | cut -d' ' -f4; "
    "date +%s; cat /proc/cmdline"
)


@pytest.fixture(scope="module")
def lab(program: Path) -> Iterator[Lab]:
    with laboratory([sys.executable, str(program)]) as made:
        made.profile("quick", "echo hello >> README; ip -4 -o address show dev eth0")
        made.profile("identity", IDENTITY)
        made.profile("forever", "echo begun; sleep 100000")
        made.profile("slow", f"echo begun; while ! test -e {GO}; do sleep 1; done; echo done")
        made.profile("net", "echo fetched; git log --format=%s | head -1", network="nat")
        made.profile("kept", "true", after="stop")
        git_repo(made.scratch / "repo")
        made.start()
        built = made.cli("template", "build", "debian-12", timeout=1800)
        assert built.returncode == 0, built.stderr
        yield made
        assert made.leftovers() == []
        assert made.stop() == 0


def _wait_begun(lab: Lab, job: str) -> None:
    """Waits until its agent has said something."""
    log = Path(str(lab.wait_running(job)["artifact_dir"])) / "agent.log"
    assert seen(lambda: log.exists() and log.read_text(), 200), lab.job(job)


def _log(job: dict[str, object]) -> list[str]:
    return (Path(str(job["artifact_dir"])) / "agent.log").read_text().splitlines()


def test_ten_jobs_at_once_share_nothing(lab: Lab) -> None:
    began = time.monotonic()
    asked = [lab.run_job("quick", f"task {n}", lab.scratch / "repo") for n in range(10)]
    ended = [lab.wait_final(str(job["id"]), 600) for job in asked]
    assert [job["state"] for job in ended] == ["COMPLETED"] * 10, [job["reason"] for job in ended]
    assert len({job["vmid"] for job in ended}) == 10
    addresses = {job["address"] for job in ended}
    assert len(addresses) == 10
    seen = {line for job in ended for line in _log(job) if "inet" in line}
    assert len(seen) == 10
    assert all(any(f"{address}/" in line for line in seen) for address in addresses)
    assert lab.leftovers() == []
    print(f"\n10 jobs at once: {time.monotonic() - began:.1f} s, {sorted(map(str, addresses))}")


def test_two_clones_of_one_snapshot_are_two_machines(lab: Lab) -> None:
    asked = [lab.run_job("identity", "who am I", lab.scratch / "repo") for _ in range(2)]
    ended = [lab.wait_final(str(job["id"])) for job in asked]
    assert [job["state"] for job in ended] == ["COMPLETED"] * 2, [job["reason"] for job in ended]
    one, two = (_log(job) for job in ended)
    names = ["hostname", "machine-id", "host key", "randomness", "MAC", "address"]
    same = [name for name, a, b in zip(names, one[:6], two[:6], strict=True) if a == b]
    assert len(one) == len(two) == 8
    assert same == []
    assert one[0] == f"job-{asked[0]['id']}"
    for log, job in ((one, ended[0]), (two, ended[1])):
        assert len(log[1]) == 32
        assert float(str(job["created"])) - 5 <= int(log[6]) <= float(str(job["changed"])) + 5
        assert "cloud-init=disabled" in log[7]  # the memory snapshot's boot


@pytest.mark.parametrize("ending", ["TERM", "KILL"])
def test_vms_run_on_while_the_daemon_is_away(lab: Lab, ending: str) -> None:
    job = str(lab.run_job("slow", "outlive the daemon", lab.scratch / "repo")["id"])
    vmid = str(lab.wait_running(job)["vmid"])
    running = lab.processes()
    assert lab.stop() == 0 if ending == "TERM" else lab.kill() == -signal.SIGKILL
    assert lab.processes() == running
    time.sleep(3)
    lab.start()
    assert lab.processes() == running
    assert lab.cli("sandbox", "exec", vmid, "--", "touch", GO).returncode == 0
    ended = lab.wait_final(job)
    assert ended["state"] == "COMPLETED", ended["reason"]
    assert _log(ended) == ["begun", "done"]
    assert lab.leftovers() == []


def test_a_cancelled_job_hands_back_and_is_gone(lab: Lab) -> None:
    job = str(lab.run_job("forever", "to be cancelled", lab.scratch / "repo")["id"])
    _wait_begun(lab, job)
    assert lab.cli("job", "cancel", job).returncode == 0
    ended = lab.wait_final(job)
    assert ended["state"] == "CANCELLED"
    assert _log(ended) == ["begun"]
    assert lab.leftovers() == []


def test_force_destroys_the_sandbox_of_a_running_job(lab: Lab) -> None:
    job = str(lab.run_job("forever", "to be destroyed", lab.scratch / "repo")["id"])
    vmid = str(lab.wait_running(job)["vmid"])
    refused = lab.cli("sandbox", "destroy", vmid, "--yes")
    assert refused.returncode == 1
    assert "failed to destroy sandbox" in refused.stderr
    assert lab.cli("sandbox", "destroy", "--force", vmid).returncode == 0
    assert lab.wait_final(job)["state"] == "CANCELLED"
    assert lab.leftovers() == []


def test_a_vm_that_is_shot_fails_its_job_at_once(lab: Lab) -> None:
    job = str(lab.run_job("forever", "to be shot", lab.scratch / "repo")["id"])
    lab.wait_running(job)
    for pid in lab.processes():
        os.kill(pid, signal.SIGKILL)
    ended = lab.wait_final(job)
    assert ended["state"] == "FAILED"
    assert "lost its power" in str(ended["reason"])
    assert lab.leftovers() == []


def test_a_kept_sandbox_is_stopped_and_can_be_destroyed(lab: Lab) -> None:
    job = lab.wait_final(str(lab.run_job("kept", "keep it", lab.scratch / "repo")["id"]))
    assert job["state"] == "COMPLETED", job["reason"]
    shown = lab.ask("sandbox", "show", str(job["vmid"]))
    assert (shown["state"], shown["power"]) == ("STOPPED", "stopped")
    done = lab.cli("sandbox", "destroy", "--yes", str(shown["name"]))
    assert done.returncode == 0, done.stderr
    assert lab.leftovers() == []


def test_git_urls_refs_and_what_cannot_be_cloned(lab: Lab) -> None:
    repos = lab.scratch / "served"
    git_repo(repos / "project")
    subprocess.run(["git", "branch", "topic"], cwd=repos / "project", check=True)
    with internet(lab, repos) as base:
        asked = {
            "head": (f"{base}/project", ()),
            "branch": (f"{base}/project", ("--ref", "topic")),
            "no ref": (f"{base}/project", ("--ref", "no-such-branch")),
            "no repo": (f"{base}/nothing", ()),
            "no host": ("git://203.0.113.77/x", ()),
        }
        jobs = {
            name: lab.ask("job", "run", "--repo", url, "--task", name, "--profile", "net",
                          "--no-wait", *more)
            for name, (url, more) in asked.items()
        }  # fmt: skip
        ended = {name: lab.wait_final(str(job["id"]), 400) for name, job in jobs.items()}
    for name in ("head", "branch"):
        assert ended[name]["state"] == "COMPLETED", ended[name]
        assert _log(ended[name])[-2:] == ["fetched", "first"]
    for name in ("no ref", "no repo", "no host"):
        assert ended[name]["state"] == "FAILED"
        report = ended[name]["report"]
        assert isinstance(report, dict)
        assert report["stage"] == "checkout", report
        assert ended[name]["reason"]
        print(f"\n{name}: {ended[name]['reason']}")
    assert "no-such-branch" in str(ended["no ref"]["reason"])


def test_a_job_with_cloud_init_boots_cold(lab: Lab) -> None:
    lab.stop()
    lab.configure(start="cold")
    lab.start()
    try:
        job = lab.wait_final(str(lab.run_job("identity", "cold", lab.scratch / "repo")["id"]), 400)
    finally:
        lab.stop()
        lab.configure()
        lab.start()
    assert job["state"] == "COMPLETED", job["reason"]
    log = _log(job)
    assert log[0] == f"job-{job['id']}"
    assert len(log[1]) == 32
    assert log[5] == f"{job['address']}/16"
    assert f"systemd.machine_id={log[1]}" in log[7]  # a boot of its own
    facts = lab.rows(
        "SELECT facts FROM event WHERE kind = 'step.done'"
        f" AND operation = '{job['operation']}' AND facts LIKE '%await_guest%'"
    )
    print(f"\ncold boot: ready after {json.loads(str(facts[0][0]))['seconds']} s")


def test_nothing_was_loud(lab: Lab) -> None:
    assert lab.warnings() == []


def test_rules_that_others_flush_are_put_back(lab: Lab) -> None:
    inside = ["ip", "netns", "exec", lab.namespace, "nft"]
    whole = subprocess.run([*inside, "list", "ruleset"], check=True, capture_output=True).stdout
    subprocess.run([*inside, "flush", "ruleset"], check=True)

    def now() -> bytes:
        return subprocess.run([*inside, "list", "ruleset"], check=True, capture_output=True).stdout

    assert seen(lambda: now() == whole, 150, pause=0.5), now()
    assert any("changed by others" in line for line in lab.warnings())

"""The main job through a lab node of Proxmox: its API and rules by a stand-in, its machines real.

The template is built as on a real node: the recipe's disk is imported by `qm disk import` and the
VM made a template by the API.  Then jobs run in clones of it, fenced by the real rules on the taps
that the node makes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Lab, git_repo
from tests.e2e.proxmox import Node, proxmox_laboratory

pytestmark = [pytest.mark.vm, pytest.mark.slow]

AGENT = r"""
set -e
echo changed >> README
git -c user.name=A -c user.email=a@example.org commit -qam "by the agent"
echo ran >> "$AGENTLAB_ARTIFACTS_DIR/mark"
ip -br -4 address show eth0 > "$AGENTLAB_ARTIFACTS_DIR/address"
python3 - <<'PY' > "$AGENTLAB_ARTIFACTS_DIR/reach"
import socket
for host, port in (("10.77.0.1", 8844), ("10.77.0.1", 8080), ("192.168.77.1", 8080)):
    s = socket.socket(); s.settimeout(60 if port == 8844 else 2)
    try:
        s.connect((host, port)); print(port, "open")
    except OSError:
        print(port, "closed")
PY
"""


@pytest.fixture(scope="module", params=["api", "shell"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Node]]:
    with proxmox_laboratory(request.param) as (lab, node):
        lab.profile("work", AGENT, memory=512)  # they boot from their disks
        git_repo(lab.scratch / "repo")
        lab.start()
        with doors(lab):
            built = lab.cli("template", "build", "debian-12")
            assert built.returncode == 0, built.stderr
            yield lab, node


@contextlib.contextmanager
def doors(lab: Lab) -> Iterator[None]:
    """A server on all addresses of the host, one of them of its LAN: only the fence is in the way."""
    words = ["ip", "-n", lab.namespace, "address", "add", "192.168.77.1/24", "dev", "lo"]
    subprocess.run(words, check=True)
    server = subprocess.Popen(
        ["ip", "netns", "exec", lab.namespace, sys.executable, "-m", "http.server", "8080"],
        cwd=lab.scratch / "repo", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for host in ("10.77.0.1", "192.168.77.1"):
            ask = ["ip", "netns", "exec", lab.namespace, "curl", "-sf", "--retry", "20",
                   "--retry-connrefused", "--retry-delay", "1", f"http://{host}:8080/README"]  # fmt: skip
            subprocess.run(ask, check=True, stdout=subprocess.DEVNULL)  # from the host it is open
        yield
    finally:
        server.terminate()
        server.wait()


def run(lab: Lab) -> str:
    return str(lab.run_job("work", "do it", lab.scratch / "repo")["id"])


def check(lab: Lab, node: Node, identity: str) -> dict[str, object]:
    job = lab.wait_final(identity, timeout=600)
    assert job["state"] == "COMPLETED", (job, lab.log.read_text()[-3000:])
    assert lab.leftovers() == []
    assert node.leftovers() == []
    return job


def test_the_template_is_as_it_should_be(place: tuple[Lab, Node]) -> None:
    lab, node = place
    report = lab.cli("template", "check", "debian-12")
    assert report.returncode == 0, report.stdout + report.stderr
    again = lab.cli("template", "build", "debian-12")
    assert again.returncode == 0
    assert len(list((node.directory / "storage/images").glob("9*/base-*"))) == 1


def test_the_host_is_ready(place: tuple[Lab, Node]) -> None:
    lab, _ = place
    found = lab.ask("init")
    checks = found["checks"]
    assert isinstance(checks, list)
    states = {each["name"]: each["status"] for each in checks}
    for name in (
        "proxmox_api",
        "token_privileges",
        "template",
        "storage",
        "bridge_lab0",
        "nftables",
    ):
        assert states[name] in ("ok", "skipped"), found


def test_the_whole_job(place: tuple[Lab, Node]) -> None:
    lab, node = place
    job = check(lab, node, run(lab))
    files = Path(str(job["artifact_dir"])) / "files"
    assert (files / "mark").read_text() == "ran\n"
    assert "10.77.0." in (files / "address").read_text()
    assert (files / "reach").read_text() == "8844 open\n8080 closed\n8080 closed\n"
    assert (files.parent / "repo.bundle").stat().st_size > 0
    assert "changed" in (files.parent / "changes.patch").read_text()
    with_secrets = [
        path for path in (lab.scratch / "data").rglob("stdout") if b"token" in path.read_bytes()
    ]
    assert with_secrets == []
    assert lab.warnings() == []


@pytest.mark.parametrize(
    ("place", "moment"),
    [
        pytest.param("api", "before:do:clone", marks=pytest.mark.soak),
        ("api", "after:do:start"),
        ("shell", "after:do:clone"),
    ],
    indirect=["place"],
)
def test_a_killed_daemon_goes_on(place: tuple[Lab, Node], moment: str) -> None:
    lab, node = place
    lab.stop()
    wrapper = [sys.executable, "tests/fakes/killing_daemon.py", "--kill", moment]
    identity = lab.across_death(lambda: run(lab), wrapper)
    job = check(lab, node, identity)
    files = Path(str(job["artifact_dir"])) / "files"
    assert (files / "mark").read_text() == "ran\n"
    events = json.loads(lab.cli("job", "show", identity, "--json").stdout)
    assert events["state"] == "COMPLETED"


@pytest.mark.soak  # five cold boots
@pytest.mark.parametrize("place", ["api"], indirect=True)
def test_a_workspace_outlives_its_sandboxes(place: tuple[Lab, Node]) -> None:
    """Attached before the first power-on, and to a guest that runs.

    That the lab node plugs disks in is QEMU's own work, as on a real node; that Proxmox's API does
    so is in the recorded transcripts, by which the stand-in answers.
    """
    lab, node = place
    lab.stop()
    lab.start()

    def say(box: str, script: str) -> str:
        done = lab.cli("sandbox", "exec", "--user", "agent", box, "--", "sh", "-ec", script)
        assert done.returncode == 0, done
        return done.stdout.strip()

    def ok(line: str) -> None:
        done = lab.cli(*line.split())
        assert done.returncode == 0, (line, done.stdout, done.stderr, lab.log.read_text()[-2000:])

    ok("session create --name fix --profile work --size 256M --storage local")
    ok("session resume fix")  # a sandbox that has it from the beginning
    box = str(lab.ask("session", "show", "fix")["sandbox"])
    digest = say(box, "head -c 16M /dev/urandom >/work/data; sync; sha256sum </work/data")
    ok("session stop fix")
    assert node.leftovers() == []
    ok("workspace snapshot create fix before")
    assert "clean" in lab.cli("workspace", "fsck", "fix").stdout
    ok("workspace resize fix --size 320M")

    ok("sandbox new --profile work --name other")
    ok("workspace attach fix other")  # while it runs
    assert say("other", "sha256sum </work/data") == digest
    say("other", "echo changed >/work/data; sync")
    ok("workspace detach fix")
    assert say("other", "mountpoint /work || true").endswith("is not a mountpoint")
    ok("workspace snapshot restore --yes fix before")
    ok("workspace attach fix other")
    assert say("other", "sha256sum </work/data") == digest

    # its root disk goes back and forth, and /work stays
    say("other", "echo gone >/home/agent/mark; sync")
    ok("sandbox revert --yes other")
    assert say("other", "test ! -e /home/agent/mark; sha256sum </work/data") == digest
    say("other", "echo kept >/home/agent/mark; echo later >/work/later; sync")
    ok("sandbox stop other")
    ok("sandbox snapshot save other marked")
    ok("sandbox revert --yes other")  # without power, as it was
    ok("sandbox snapshot restore --yes --restart other marked")
    assert (
        say("other", "cat /home/agent/mark /work/later; sha256sum </work/data")
        == f"kept\nlater\n{digest}"
    )

    ok("sandbox destroy --force other")
    shown = lab.ask("workspace", "show", "fix")
    assert shown["state"] == "DETACHED"
    assert len(list((node.directory / "storage/images").glob("99*/vm-*"))) == 1
    ok("session delete --yes --with-workspace fix")
    assert list((node.directory / "storage/images").glob("99*/vm-*")) == []
    assert lab.leftovers() == []
    assert node.leftovers() == []

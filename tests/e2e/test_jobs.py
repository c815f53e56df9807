"""The main job and everything that an agent can do wrong, in real VMs behind real rules.

All jobs of the table are asked for at once; each test looks at the end of one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.lab import Lab, git_repo, laboratory

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(1800)]

WORK = r"""
set -e
echo "task: $AGENTLAB_TASK"
test "$(cat "$AGENTLAB_TASK_FILE")" = "$AGENTLAB_TASK"
test "$PWD" = "$AGENTLAB_REPO_DIR"
test "$AGENTLAB_JOB_PROFILE" = work
id -un
echo changed >> README
echo new > committed
git add committed
git -c user.name=A -c user.email=a@example.org commit -qm "by the agent"
echo loose > loose.txt
mkdir -p "$AGENTLAB_ARTIFACTS_DIR/deep"
head -c 100000 /dev/urandom > "$AGENTLAB_ARTIFACTS_DIR/deep/random"
ln -s /etc/shadow "$AGENTLAB_ARTIFACTS_DIR/link"
"""
# Talks to the guest listener without a session, and to the host's other doors.
HOSTILE = r"""
python3 - <<'PY'
import socket, urllib.request, urllib.error, os, json
def ask(method, path, body=b"", **headers):
    request = urllib.request.Request("http://10.77.0.1:8844" + path, body or None, headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=120).status
    except urllib.error.HTTPError as error:
        return error.code
job = os.environ["AGENTLAB_JOB_ID"]
claim = json.dumps({"token": "0" * 64, "session": "s" * 43}).encode()
print("forged", ask("POST", "/guest/v1/claim", claim))
print("garbage", ask("POST", "/guest/v1/claim", b"\x00\xff{"))
print("nobody", ask("POST", f"/guest/v1/jobs/{job}/report", b"{}", Authorization="Bearer " + "x" * 43))
print("climb", ask("PUT", f"/guest/v1/jobs/{job}/artifacts/../../../x", b"x", Authorization="Bearer " + "x" * 43))
print("api", ask("GET", "/v1/jobs"))
def reach(host, port, patience=2):
    s = socket.socket(); s.settimeout(patience)
    try:
        s.connect((host, port)); return "open"
    except OSError as error:
        return "closed"
print("listener", reach("10.77.0.1", 8844, 60))
print("ssh", reach("10.77.0.1", 2222))
print("lan", reach("192.168.77.1", 80))
for path in ("/run/agentlab/identity.json", "/run/agentlab/bootstrap.json", "/run/agentlab"):
    try:
        print("secret", os.listdir(path) if os.path.isdir(path) else open(path).read())
    except OSError:
        print("secret kept")
PY
"""
# Room is taken first, and only what is left then is written.
FILL = r"""
fallocate -l "$(df --output=avail -B1 . | tail -1)" big 2>/dev/null
dd if=/dev/zero of=more bs=1M 2>/dev/null
echo full
echo kept > "$AGENTLAB_ARTIFACTS_DIR/kept"
exit 5
"""
SHORT = {"ttl": "5m", "handback": "2m"}
TABLE = {
    "work": (WORK, {}),
    "exits": ("echo partial > out.txt; echo bye; exit 3", {}),
    "missing": ("no-such-program --now", {}),
    "loud": ("yes 0123456789012345678901234567890123456789 | head -c 100000000; echo end", {}),
    "binary": ("head -c 300000 /dev/urandom; printf '\\0\\377\\033[2J'", {}),
    "forks": ("(setsid sleep 1000 >/dev/null 2>&1 &) ; setsid sleep 1000 & echo left", {}),
    "stubborn": (
        "trap '' TERM; echo begun > begun.txt; while :; do sleep 1; done",
        SHORT,
    ),
    "fills": (FILL, {}),
    "hostile": (HOSTILE, {}),
    "bomb": ("echo begun > begun.txt; f() { f & f & sleep 5; }; f", SHORT),
    "greedy": ("echo begun > begun.txt; python3 -c 'x = []\nwhile 1: x += [bytes(1 << 20)]'", SHORT),
}  # fmt: skip


@dataclass
class Ended:
    """A job at its end, and where its artifacts lie."""

    job: dict[str, object]
    files: Path

    @property
    def log(self) -> bytes:
        return (self.files / "agent.log").read_bytes()

    @property
    def report(self) -> dict[str, object]:
        return json.loads((self.files / "report.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def lab(program: Path) -> Iterator[Lab]:
    with laboratory([sys.executable, str(program)]) as made:
        for name, (command, settings) in TABLE.items():
            made.profile(name, command, **settings)
        git_repo(made.scratch / "repo")
        made.start()
        built = made.cli("template", "build", "debian-12", timeout=1800)
        assert built.returncode == 0, built.stderr
        yield made
        assert made.leftovers() == []
        assert made.stop() == 0


@pytest.fixture(scope="module")
def ended(lab: Lab) -> dict[str, Ended]:
    """All jobs of the table, asked for at once and waited for."""
    subprocess.run(
        ["ip", "-n", lab.namespace, "address", "add", "192.168.77.1/24", "dev", "lo"], check=True
    )
    code = (
        "import socket,time\n"
        "for a in (('0.0.0.0',2222),('192.168.77.1',80)):\n"
        "  s=socket.socket();s.bind(a);s.listen(5);globals()['s%d'%a[1]]=s\n"
        "for a in (('10.77.0.1',2222),('192.168.77.1',80)): socket.create_connection(a,60)\n"
        "print('open',flush=True);time.sleep(3600)\n"
    )
    doors = subprocess.Popen(
        ["ip", "netns", "exec", lab.namespace, "python3", "-c", code], stdout=subprocess.PIPE
    )
    try:
        assert doors.stdout is not None
        assert doors.stdout.readline() == b"open\n"  # the control: from the host both answer
        asked = {name: lab.run_job(name, f"do {name}", lab.scratch / "repo") for name in TABLE}
        found = {}
        for name, job in asked.items():
            final = lab.wait_final(str(job["id"]), 600)
            found[name] = Ended(final, Path(str(final["artifact_dir"])))
            took = float(str(final["changed"])) - float(str(final["created"]))
            print(f"{name}: {final['state']} after {took:.0f} s")
        return found
    finally:
        doors.kill()
        doors.wait()
        assert doors.stdout is not None
        doors.stdout.close()


def test_the_work_comes_back_whole(lab: Lab, ended: dict[str, Ended], tmp_path: Path) -> None:
    end = ended["work"]
    assert end.job["state"] == "COMPLETED", end.job
    assert b"task: do work\nagent\n" in end.log
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", lab.scratch / "repo", clone], check=True)
    subprocess.run(["git", "apply", "--index", end.files / "changes.patch"], cwd=clone, check=True)
    assert (clone / "README").read_text() == "hello\nchanged\n"
    assert (clone / "committed").read_text() == "new\n"
    subprocess.run(
        ["git", "bundle", "verify", "-q", end.files / "repo.bundle"], cwd=clone, check=True
    )
    heads = subprocess.run(
        ["git", "bundle", "list-heads", end.files / "repo.bundle"],
        cwd=clone, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert str(end.report["commit_after"]) in heads
    assert end.report["commit_before"] != end.report["commit_after"]
    with tarfile.open(end.files / "untracked.tar.gz") as tar:
        assert [name.removeprefix("./") for name in tar.getnames()] == ["loose.txt"]
    assert (end.files / "files/deep/random").stat().st_size == 100000


def test_a_symlink_is_named_as_missing_and_not_followed(ended: dict[str, Ended]) -> None:
    missing = ended["work"].report["missing"]
    assert isinstance(missing, list)
    assert [each["name"] for each in missing] == ["files/link"]
    assert not (ended["work"].files / "files/link").exists()


def test_artifacts_can_be_downloaded_and_are_what_was_reported(
    lab: Lab, ended: dict[str, Ended], tmp_path: Path
) -> None:
    job = str(ended["work"].job["id"])
    done = lab.cli("job", "artifacts", "download", job, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert {"agent.log", "report.json", "changes.patch", "repo.bundle"} <= names


@pytest.mark.parametrize(
    ("name", "state", "exit_code"),
    [("exits", "FAILED", 3), ("missing", "FAILED", 127), ("loud", "COMPLETED", 0),
     ("binary", "COMPLETED", 0), ("forks", "COMPLETED", 0), ("hostile", "COMPLETED", 0),
     ("fills", "FAILED", 5)],
)  # fmt: skip
def test_each_job_ends_in_the_right_state(
    ended: dict[str, Ended], name: str, state: str, exit_code: int
) -> None:
    end = ended[name]
    assert (end.job["state"], end.report["exit_code"]) == (state, exit_code), end.report


def test_what_was_made_before_a_failure_comes_back(ended: dict[str, Ended]) -> None:
    assert ended["exits"].log == b"bye\n"
    assert (ended["exits"].files / "untracked.tar.gz").exists()


def test_a_missing_command_is_named(ended: dict[str, Ended]) -> None:
    assert (
        "not found" in str(ended["missing"].job["reason"]) or b"not found" in ended["missing"].log
    )
    assert ended["missing"].report["stage"] == "agent"


def test_a_hundred_megabytes_of_log_are_cut_and_counted(ended: dict[str, Ended]) -> None:
    end = ended["loud"]
    assert end.report["log_bytes"] == 100_000_004
    assert end.report["log_truncated"] is True
    assert 15 << 20 < len(end.log) <= 16 << 20
    assert end.log.endswith(b"end\n")
    assert b"left out" in end.log


def test_binary_in_the_log_is_kept_as_it_is(ended: dict[str, Ended]) -> None:
    assert len(ended["binary"].log) == 300_006
    assert ended["binary"].log.endswith(b"\x00\xff\x1b[2J")


def test_an_agent_that_ignores_sigterm_times_out_with_its_work(ended: dict[str, Ended]) -> None:
    end = ended["stubborn"]
    assert end.job["state"] == "TIMEOUT"
    assert end.report["signal"] == 9
    assert (end.files / "untracked.tar.gz").exists()


@pytest.mark.parametrize("name", ["bomb", "greedy"])
def test_a_guest_without_processes_or_memory_still_hands_back(
    ended: dict[str, Ended], name: str
) -> None:
    assert ended[name].report["stage"] in {"agent", "done"}, ended[name].report
    assert (ended[name].files / "untracked.tar.gz").exists()


def test_a_full_disk_still_gives_a_report(ended: dict[str, Ended]) -> None:
    assert b"full" in ended["fills"].log


def test_a_hostile_guest_is_refused_and_reaches_nothing(lab: Lab, ended: dict[str, Ended]) -> None:
    said = dict(line.split(" ", 1) for line in ended["hostile"].log.decode().splitlines())
    assert said["listener"] == "open"
    assert (said["ssh"], said["lan"]) == ("closed", "closed")
    assert said["secret"] == "kept"
    for attack in ("forged", "garbage", "nobody", "climb", "api"):
        assert said[attack] in {"400", "401", "403", "404"}, (attack, said[attack])
    assert not list(lab.scratch.rglob("x"))


def test_refusals_are_logged_once(lab: Lab, ended: dict[str, Ended]) -> None:
    refused = [line for line in lab.warnings() if "refused" in line]
    assert refused
    assert len(refused) == len({line.split(" ", 1)[1] for line in refused})
    others = [line for line in lab.warnings() if "refused" not in line]
    assert others == []


def test_the_daemon_stays_small(lab: Lab, ended: dict[str, Ended]) -> None:
    resident = lab.ask("status")["resident"]
    assert isinstance(resident, int)
    print(f"\nresident after the table: {resident >> 20} MiB")
    assert resident < 100 << 20

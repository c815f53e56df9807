"""`sandbox exec` and `sandbox cp` as people use them: the real client, API and scripts.

Only the VM is missing: programs run on this machine.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pwd
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentlab.errors import Unavailable
from agentlab.model.sandbox import SandboxEvent, SandboxState
from agentlab.operations import use
from agentlab.store import operations, sandboxes
from tests.fakes.shell_guest import ShellGuest, has_ended
from tests.unit.daemon.bench import Bench, open_bench
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
ME = pwd.getpwuid(os.geteuid()).pw_name
ALL = bytes(range(256))
FILE = ALL * 1000
Cli = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    tmp_path.chmod(0o755)
    with open_bench(tmp_path) as made:
        made.hypervisor.shell = ShellGuest(tmp_path)
        yield made


@pytest.fixture
def vmid(bench: Bench) -> str:
    return str(bench.running().job.vmid)


@pytest.fixture
def box(bench: Bench, vmid: str) -> Iterator[str]:
    """A sandbox that runs; in the end nothing is left of the programs in it."""
    yield vmid
    shell = bench.hypervisor.shell
    assert shell is not None
    until(lambda: not shell.base.exists() or os.listdir(shell.base) == [])


def command(bench: Bench, *words: str) -> list[str]:
    socket = str(bench.world.config.socket)
    verb = list(words)
    if verb[0] in ("exec", "cp"):
        verb[1:1] = ["--user", ME]
        verb.insert(0, "sandbox")
    # who starts the tests in the background has them, and what they start, ignore SIGINT
    listens = ["env", "--default-signal=INT"]
    return [*listens, sys.executable, "-m", "agentlab", "--socket", socket, *verb]


@pytest.fixture
def cli(bench: Bench) -> Cli:
    def run(*words: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        stdin = {"input": given} if given is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            command(bench, *words), capture_output=True, check=False, cwd=ROOT, timeout=60, **stdin
        )  # type: ignore[call-overload]  # one of the two

    return run


def _set(bench: Bench, vmid: str, *steps: SandboxEvent) -> None:
    with bench.store.write() as tx:
        for each in steps:
            sandboxes.transition(tx, int(vmid), each)


def test_streams_and_status_are_the_programs_own(cli: Cli, box: str) -> None:
    done = cli("exec", box, "--", "sh", "-c", "printf 'a\\000\\377'; echo b >&2; exit 5")
    assert (done.stdout, done.stderr, done.returncode) == (b"a\0\xff", b"b\n", 5)
    done = cli("exec", box, "--", "no-such-program")
    assert (done.returncode, b"not found" in done.stderr) == (127, True)
    assert cli("exec", box, "cat", given=FILE).stdout == FILE
    done = cli("exec", "--env", "A=b c", "--workdir", "/usr", box, "--", "sh", "-c", "echo $A; pwd")
    assert done.stdout == b"b c\n/usr\n"
    words = ("--json", "--user", "--", "-x")
    done = cli("exec", box, "--", "printf", "%s|", *words)
    assert done.stdout == b"--json|--user|--|-x|"


def test_json_is_an_object_a_line(cli: Cli, box: str) -> None:
    done = cli("exec", "--json", box, "--", "sh", "-c", "printf '\\377'; exit 3")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"stdout": "/w=="}, {"exit": 3}
    ]  # fmt: skip
    assert done.returncode == 3
    done = cli("exec", "--json", "99999", "--", "true")
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, "not_found")


def test_what_never_started_has_our_own_status(cli: Cli, bench: Bench, vmid: str) -> None:
    assert cli("exec", vmid).returncode == 2
    done = cli("exec", "--user", "nobody-at-all", vmid, "--", "true")
    assert done.returncode == 2  # --user twice
    done = subprocess.run(
        [sys.executable, "-m", "agentlab", "--socket", "/no/such/socket", "sandbox", "exec", vmid,
         "--", "true"], capture_output=True, check=False, cwd=ROOT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, bench.hypervisor.calls.count("exec")) == (6, 0)


def test_what_a_state_needs_first(cli: Cli, bench: Bench, vmid: str) -> None:
    _set(bench, vmid, SandboxEvent.PAUSE)
    done = cli("exec", vmid, "--", "true")
    assert (done.returncode, done.stderr.decode()) == (1, (
        f"error: cannot run a program in sandbox {vmid}: it is SUSPENDED\n"
        f"hint: agentlab sandbox resume {vmid}\n"
    ))  # fmt: skip
    _set(bench, vmid, SandboxEvent.STOP)
    assert f"agentlab sandbox start {vmid}" in cli("exec", vmid, "--", "true").stderr.decode()
    assert b"sandbox list" in cli("exec", "no-such-box", "--", "true").stderr
    assert bench.events("exec.start") == []


def test_a_vm_without_power_is_told(cli: Cli, bench: Bench, vmid: str) -> None:
    def dead(_: str) -> None:
        raise Unavailable("the guest agent does not answer")

    assert bench.hypervisor.shell is not None
    bench.hypervisor.shell.before = dead
    bench.daemon.runner.stop(5)  # its job would see it, too
    bench.hypervisor.stop(int(vmid), owner="lab")
    assert b"its VM has no power" in cli("exec", vmid, "--", "true").stderr


def test_what_ran_is_written_down_without_what_it_was_given(
    cli: Cli, bench: Bench, box: str
) -> None:
    cli("exec", "--env", "SECRET=hidden", box, "--", "sh", "-c", "exit 4; hidden", given=b"hidden")
    (started,), (ended,) = bench.events("exec.start"), bench.events("exec.end")
    assert (started.text, started.vmid) == (f"{ME} runs sh", int(box))
    assert (ended.text, ended.facts["status"]) == ("the program ended with status 4", 4)
    assert "hidden" not in str(started) + str(ended)
    assert started.facts["program"] == ended.facts["program"]


def test_a_reply_lost_at_each_call_changes_nothing(
    cli: Cli, bench: Bench, box: str, tmp_path: Path
) -> None:
    """Each call is done, and its first answer lost on its way to us."""
    shell, seen = bench.hypervisor.shell, set[str]()
    assert shell is not None
    shell.twice = True

    def lose(what: str) -> None:
        if (what, len(shell.calls) % 3) not in seen and what != "start":
            seen.add((what, len(shell.calls) % 3))  # type: ignore[arg-type]
            raise Unavailable("the answer was lost")

    shell.before = lose
    script = f"echo ran >>{tmp_path}/log; cat; exit 9"
    done = cli("exec", box, "--", "sh", "-c", script, given=FILE)
    assert (done.stdout, done.returncode) == (FILE, 9)
    assert (tmp_path / "log").read_text() == "ran\n"
    assert len(bench.events("exec.start")) == len(bench.events("exec.end")) == 1
    shell.before = lambda _: None


def _gone(bench: Bench, box: str) -> bool:
    """That it was ended; who still listened may have heard of which signal."""
    (ended,) = bench.events("exec.end")
    return ended.vmid == int(box) and ended.facts["status"] in (None, 128 + signal.SIGTERM)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_program_too(
    bench: Bench, box: str, tmp_path: Path, number: int, status: int
) -> None:
    script = f"echo $$ >{tmp_path}/pid; echo up; sleep 66"
    client = subprocess.Popen(
        command(bench, "exec", box, "--", "sh", "-c", script),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    client.send_signal(number)
    _, said = client.communicate(timeout=30)
    assert (client.returncode, b"Traceback" in said) == (status, False)
    assert _gone(bench, box)
    until(lambda: has_ended(int((tmp_path / "pid").read_text())))


def test_a_reader_that_has_enough_ends_the_program_quietly(bench: Bench, box: str) -> None:
    for script in ("while :; do echo y; done", "echo y; sleep 66"):
        words = " ".join(
            f"'{word}'" for word in command(bench, "exec", box, "--", "sh", "-c", script)
        )
        done = subprocess.run(
            ["sh", "-c", f"{words} </dev/null | head -1"], capture_output=True, check=True, cwd=ROOT,
            timeout=30,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (b"y\n", b"")
    assert len(bench.events("exec.end")) == 2


def test_who_waits_no_longer_ends_the_program(cli: Cli, bench: Bench, box: str) -> None:
    done = cli("exec", "--timeout", "1s", box, "--", "sleep", "66")
    assert (done.returncode, done.stderr.decode()) == (
        3, "error: gave up waiting after 1s: the program in the sandbox was ended\n",
    )  # fmt: skip
    assert _gone(bench, box)


def test_a_program_that_could_not_be_ended_may_still_run(cli: Cli, bench: Bench, vmid: str) -> None:
    """Then nobody is told that it was ended."""
    assert bench.hypervisor.shell is not None

    def refuse(what: str) -> None:
        if what == "end":
            raise Unavailable("the guest agent does not answer")

    bench.hypervisor.shell.before = refuse
    done = cli("exec", "--timeout", "1s", vmid, "--", "sleep", "9")
    assert (done.returncode, done.stderr.decode()) == (3, (
        "error: gave up waiting after 1s: the program in the sandbox may still run: "
        "the guest agent does not answer\n"
        f"hint: see what runs there: agentlab sandbox exec --user root {vmid} -- ps -ef\n"
    ))  # fmt: skip


def test_the_first_use_of_a_sandbox_that_is_ready(bench: Bench, vmid: str) -> None:
    """By the job that holds it, not; afterwards by us, once."""

    def state() -> SandboxState:
        with bench.store.read() as tx:
            return sandboxes.get(tx, vmid).state

    with bench.store.write() as tx:
        tx.execute("UPDATE sandbox SET state = 'READY' WHERE vmid = ?", (vmid,))
    use.mark_used(bench.world, int(vmid))
    assert state() is SandboxState.READY
    with bench.store.write() as tx:
        holder = operations.holder_of(tx, f"sandbox:{vmid}")
        assert holder is not None
        operations.unlock(tx, holder.id, f"sandbox:{vmid}")
    before = len(bench.events("sandbox.state"))
    for _ in range(2):
        use.mark_used(bench.world, int(vmid))
        assert state() is SandboxState.RUNNING
    assert len(bench.events("sandbox.state")) == before + 1
    with bench.store.write() as tx:
        tx.execute("UPDATE sandbox SET state = 'STOPPED' WHERE vmid = ?", (vmid,))
    use.mark_used(bench.world, int(vmid))
    assert state() is SandboxState.STOPPED
    use.mark_used(bench.world, 77)


def _tree(top: Path) -> Path:
    (top / "sub/deep").mkdir(parents=True)
    (top / "all").write_bytes(FILE)
    (top / "empty").touch()
    (top / "sub/run").write_text("#!/bin/sh\n")
    (top / "sub/run").chmod(0o750)
    (top / "sub/deep/ö x").write_text("named")
    (top / "link").symlink_to("sub/run")
    (top / "sub/up").symlink_to("../all")
    return top


def _shape(top: Path) -> dict[str, object]:
    return {
        str(each.relative_to(top)): (
            str(each.readlink()) if each.is_symlink()
            else (each.stat().st_mode, each.read_bytes() if each.is_file() else None)
        )
        for each in top.rglob("*")
    }  # fmt: skip


def test_a_tree_goes_in_and_comes_out_as_it_was(cli: Cli, box: str, tmp_path: Path) -> None:
    tree, there = _tree(tmp_path / "tree"), tmp_path / "there"
    there.mkdir()
    done = cli("cp", str(tree), f"{box}:{there}")
    assert done.returncode == 0, done.stderr
    assert _shape(there / "tree") == _shape(tree)
    (there / "tree/all").write_text("changed")
    (there / "tree/more").write_text("stays")
    assert cli("cp", str(tree), f"{box}:{there}").returncode == 0
    assert (there / "tree/more").read_text() == "stays"
    (there / "tree/more").unlink()
    assert _shape(there / "tree") == _shape(tree)
    assert cli("cp", f"{box}:{there}/tree", str(tmp_path / "back")).returncode == 0
    assert _shape(tmp_path / "back") == _shape(tree)
    (tmp_path / "back/all").write_text("old")
    assert cli("cp", f"{box}:{there}/tree/.", str(tmp_path / "back")).returncode == 0
    assert _shape(tmp_path / "back") == _shape(tree)
    assert sorted(os.listdir(there)) == ["tree"]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".agentlab")]


def test_a_file_goes_in_and_comes_out(cli: Cli, box: str, tmp_path: Path) -> None:
    source, there = tmp_path / "s", tmp_path / "there"
    source.write_bytes(FILE)
    source.chmod(0o741)
    there.mkdir()
    for target, name in ((there, "s"), (there / "other", "other"), (there / "other", "other")):
        done = cli("cp", "--json", str(source), f"{box}:{target}")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["bytes"] == len(FILE)
        assert (there / name).read_bytes() == FILE
        assert (there / name).stat().st_mode & 0o777 == 0o741
    assert cli("cp", f"{box}:{there}/other", f"{tmp_path}/back").returncode == 0
    assert ((tmp_path / "back").read_bytes(), (tmp_path / "back").stat().st_mode & 0o777) == (
        FILE, 0o741,
    )  # fmt: skip
    assert cli("cp", "-", f"{box}:{there}/piped", given=FILE).returncode == 0
    assert (there / "piped").read_bytes() == FILE
    assert cli("cp", f"{box}:{there}/piped", "-").stdout == FILE
    assert sorted(os.listdir(there)) == ["other", "piped", "s"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("a", "b"), "neither side is in a sandbox"),
        (("1003:a", "1004:b"), "from one sandbox to another"),
        (("{tmp}/none", "{box}:x"), "there is no such file"),
        (("/dev/null", "{box}:x"), "neither a file nor a directory"),
        (("{tmp}/f", "{box}:{tmp}/none/x"), "there is no directory"),
        (("{tmp}/f", "{box}:{tmp}/none/"), "there is no directory"),
        (("{tmp}/d", "{box}:{tmp}/f"), "is not a directory"),
        (("-", "{box}:{tmp}/d"), "is a directory"),
        (("{box}:{tmp}/none", "{tmp}/x"), "there is no"),
        (("{box}:{tmp}/none", "-"), "there is no"),
        (("{box}:{tmp}/d", "-"), "is a directory"),
        (("{box}:/dev/null", "{tmp}/x"), "neither a file nor a directory"),
        (("{box}:{tmp}/f", "{tmp}/none/x"), "there is no directory"),
        (("{box}:{tmp}/d", "{tmp}/f"), "it is no directory"),
        (("{box}:..", "{tmp}"), "name the directory itself"),
    ],
)
def test_what_cannot_be_copied_says_why(
    cli: Cli, box: str, tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    (tmp_path / "f").write_text("f")
    (tmp_path / "d").mkdir()
    before = set(tmp_path.iterdir())
    done = cli("cp", *(word.format(tmp=tmp_path, box=box) for word in words), given=b"x")
    assert done.returncode in (1, 2)
    assert done.stderr.decode().startswith("error: cannot copy")
    assert why in done.stderr.decode()
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "programs"}


def test_a_copy_that_breaks_off_leaves_nothing(bench: Bench, box: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "old").write_text("old")
    client = subprocess.Popen(
        command(bench, "cp", "-", f"{box}:{there}/old"), stdin=subprocess.PIPE, cwd=ROOT,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert client.stdin is not None
    client.stdin.write(FILE)
    client.stdin.flush()
    until(lambda: len(os.listdir(there)) == 2)
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=30)
    assert client.returncode == 130
    assert os.listdir(there) == ["old"]
    assert (there / "old").read_text() == "old"


def test_an_archive_of_a_hostile_guest_leaves_nothing(cli: Cli, box: str, tmp_path: Path) -> None:
    """A guest whose tar is not tar: what it sends is written by a program before it in PATH."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb") as out,
        tarfile.open(fileobj=out, mode="w") as made,
    ):
        made.addfile(tarfile.TarInfo("fine"))
        made.addfile(tarfile.TarInfo("../outside"))
    (tmp_path / "evil.tgz").write_bytes(packed.getvalue())
    home = Path(pwd.getpwnam(ME).pw_dir) / ".local/bin"
    if home.joinpath("tar").exists():
        pytest.skip("somebody has a tar there")
    home.mkdir(parents=True, exist_ok=True)
    fake = home / "tar"
    fake.write_text(f"#!/bin/sh\ncat {tmp_path}/evil.tgz\n")
    fake.chmod(0o755)
    try:
        (tmp_path / "d").mkdir()
        done = cli("cp", f"{box}:{tmp_path}/d", f"{tmp_path}/copied")
    finally:
        fake.unlink()
    assert (done.returncode, b"no honest archive" in done.stderr) == (1, True)
    assert not (tmp_path / "copied").exists()
    assert not (tmp_path / "outside").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".agentlab")]

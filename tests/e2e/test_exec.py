"""Programs and copies in a real guest, through its agent; and a daemon that dies in the middle."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.hypervisor.program_scripts import PIECES
from tests.e2e.lab import ROOT, Lab, git_repo, laboratory
from tests.e2e.proxmox import proxmox_laboratory
from tests.waiting import seen

pytestmark = [pytest.mark.vm, pytest.mark.slow]

ALL = bytes(range(256))
BIG = int(os.environ.get("AGENTLAB_EXEC_MB", "1")) << 20
KIND: list[str] = []  # of laboratory, the present one last


# on a lab node it takes minutes; tests/contract/test_hypervisor.py has a guest's programs by REST
# and by pvesh, in real VMs too
@pytest.fixture(
    scope="module",
    params=["local", *(pytest.param(each, marks=pytest.mark.soak) for each in ("api", "shell"))],
)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with _laboratory(request.param) as made:
        KIND.append(request.param)
        made.profile("forever", "sleep 100000", memory=512)
        git_repo(made.scratch / "repo")
        made.start()
        built = made.cli("template", "build", "debian-12", timeout=1800)
        assert built.returncode == 0, built.stderr
        yield made
        assert made.leftovers() == []
        assert made.stop() == 0
        assert made.warnings() == []


@contextlib.contextmanager
def _laboratory(kind: str) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        if kind == "local":
            yield stack.enter_context(laboratory())
        else:
            yield stack.enter_context(proxmox_laboratory(kind))[0]


@pytest.fixture(scope="module")
def box(lab: Lab) -> Iterator[str]:
    """A sandbox in which a job sleeps."""
    job = str(lab.run_job("forever", "sleep", lab.scratch / "repo")["id"])
    yield str(lab.wait_running(job, 600)["vmid"])
    assert lab.cli("job", "cancel", job).returncode == 0
    lab.wait_final(job)


def _argv(lab: Lab, *words: str) -> list[str]:
    return [*lab.program, "--socket", str(lab.socket), "sandbox", *words]


def run(lab: Lab, *words: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    stdin = {"input": given} if given is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(
        _argv(lab, *words), cwd=ROOT, capture_output=True, timeout=600, check=False, **stdin
    )  # type: ignore[call-overload]  # one of the two


def test_streams_status_and_user(lab: Lab, box: str) -> None:
    done = run(lab, "exec", box, "--", "sh", "-c", "id -un; pwd; printf '\\000\\377' >&2; exit 5")
    assert done.stdout.splitlines()[0] == b"agent", done
    assert done.stdout.splitlines()[1] in (b"/work", b"/home/agent")
    assert (done.stderr, done.returncode) == (b"\0\xff", 5)
    done = run(lab, "exec", "--user", "root", box, "--", "sh", "-c", "id -un; kill -9 $$")
    assert (done.stdout, done.returncode) == (b"root\n", 137)
    assert run(lab, "exec", box, "--", "no-such-program").returncode == 127
    assert run(lab, "exec", "--user", "nosuch", box, "--", "true").returncode == 2
    assert run(lab, "exec", box, "--", "cat", given=ALL * 600).stdout == ALL * 600
    done = run(lab, "exec", box, "--", "head", "-c", "3", given=ALL * 2000)
    assert (done.stdout, done.returncode) == (b"\0\1\2", 0)


def test_how_long_it_takes(lab: Lab, box: str) -> None:
    took = []
    for _ in range(5):
        began = time.monotonic()
        assert run(lab, "exec", box, "--", "true").returncode == 0
        took.append(time.monotonic() - began)
    print(f"\n{KIND[-1]}: exec true: {min(took):.2f}/{sorted(took)[2]:.2f}/{max(took):.2f} s")


def test_output_takes_little_room_in_the_guest(lab: Lab, box: str) -> None:
    """Output in constant space, whatever its size."""
    room = "du -sk /run/agentlab/programs 2>/dev/null | cut -f1"
    script = f"head -c {BIG} /dev/zero | tr '\\0' x; {room} >&2"
    began = time.monotonic()
    done = run(lab, "exec", "--user", "root", box, "--", "sh", "-c", script)
    took = time.monotonic() - began
    assert (len(done.stdout), set(done.stdout)) == (BIG, {ord("x")})
    held = int(done.stderr) << 10
    print(f"\n{KIND[-1]}: {BIG >> 20} MB of output: {took:.1f} s, {held >> 10} KiB in the guest")
    assert 0 < held < (PIECES + 2) * 65536  # and not the output's size


def test_copies(lab: Lab, box: str) -> None:
    source, back = lab.scratch / "big", lab.scratch / "back"
    source.write_bytes(os.urandom(BIG))
    source.chmod(0o750)
    began = time.monotonic()
    done = run(lab, "cp", str(source), f"{box}:/home/agent/big")
    assert done.returncode == 0, done.stderr
    up = time.monotonic() - began
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    script = "sha256sum big; stat -c %a:%U big; ls -A | grep agentlab-"
    seen = run(lab, "exec", "--workdir", "/home/agent", box, "--", "sh", "-c", script).stdout
    assert seen.decode().split() == [digest, "big", "750:agent"]
    began = time.monotonic()
    done = run(lab, "cp", f"{box}:/home/agent/big", str(back))
    assert done.returncode == 0, done.stderr
    down = time.monotonic() - began
    assert back.read_bytes() == source.read_bytes()
    print(f"\n{KIND[-1]}: cp of {BIG >> 20} MB: up {up:.1f} s, down {down:.1f} s")


def test_a_tree_goes_in_and_out(lab: Lab, box: str) -> None:
    tree = lab.scratch / "tree"
    (tree / "sub").mkdir(parents=True)
    for n in range(50):
        (tree / f"sub/{n}").write_text(f"{n}\n" * n)
    (tree / "link").symlink_to("sub/7")
    assert run(lab, "cp", str(tree), f"{box}:/home/agent").returncode == 0
    assert run(lab, "cp", f"{box}:/home/agent/tree", f"{lab.scratch}/out").returncode == 0
    told = subprocess.run(
        ["diff", "-r", "--no-dereference", tree, lab.scratch / "out"],
        check=False,
        capture_output=True,
    )
    assert (told.returncode, told.stdout) == (0, b"")
    assert (lab.scratch / "out/link").readlink() == Path("sub/7")


def test_a_daemon_that_is_killed_loses_no_byte(lab: Lab, box: str) -> None:
    """Input and output go on after it, and what it had started has run once."""
    mark = f"/home/agent/ran-{time.time_ns()}"
    script = (
        f"echo ran >>{mark}; n=0; while [ $n -lt 40 ]; do n=$((n+1)); echo line $n; sleep 0.25; done;"
        " wc -c"
    )
    client = subprocess.Popen(
        _argv(lab, "exec", box, "--", "sh", "-c", script), cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(ALL * 1000)
    client.stdin.flush()
    first = client.stdout.readline()
    lab.kill()
    lab.start()
    out, err = client.communicate(ALL, timeout=400)
    want = b"".join(b"line %d\n" % n for n in range(1, 41)) + b"%d\n" % (256 * 1001)
    assert (first + out, client.returncode) == (want, 0), err
    assert run(lab, "exec", box, "--", "cat", mark).stdout == b"ran\n"


def kept(lab: Lab, box: str) -> set[bytes]:
    """The programs of which something is in the guest, this one among them."""
    done = run(lab, "exec", "--user", "root", box, "--", "ls", "/run/agentlab/programs")
    return set(done.stdout.split())


def test_an_interrupt_ends_it_in_the_guest(lab: Lab, box: str) -> None:
    before = kept(lab, box)  # with what a daemon that was killed has not cleared away
    # who starts the tests in the background has them ignore the signal
    listens = ["env", "--default-signal=INT"]
    client = subprocess.Popen(
        [*listens, *_argv(lab, "exec", box, "--", "sh", "-c", "echo up; sleep 7777")], cwd=ROOT,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    client.send_signal(2)
    client.communicate(timeout=200)
    assert client.returncode == 130
    left = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; echo; done | grep '^sleep 7777'"
    assert run(lab, "exec", box, "--", "sh", "-c", left).returncode == 1
    # its own, once those that ran before it have been forgotten
    assert seen(lambda: len(kept(lab, box) - before) == 1, 120, pause=3.0)

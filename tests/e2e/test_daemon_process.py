"""agentlabd as a process: it starts once, serves at once, and ends when told."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import seen

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace: needs root")

# The fence takes for ever: whatever is answered meanwhile was served before it.
SLOW_FENCE = """
import sys, threading
from agentlab.daemon.main import main
from agentlab.network.fence import Fence
Fence.ensure = lambda self: threading.Event().wait()
sys.exit(main(sys.argv[1:]))
"""

SOON = 30.0  # seconds, on a busy machine: nothing is waited for to its end


@dataclass
class Process:
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def socket(self) -> Path:
        return self.folder / "s.sock"

    def command(self, program: Sequence[str] = ("-m", "agentlab", "daemon")) -> list[str]:
        # a namespace of its own: its bridge and rules go with it
        return ["unshare", "-n", sys.executable, *program, "--config", str(self.config)]

    @contextlib.contextmanager
    def running(
        self, program: Sequence[str] = ("-m", "agentlab", "daemon"), **environment: str
    ) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            self.command(program), cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            text=True, env={**os.environ, **environment},
        ) as child:  # fmt: skip
            try:
                assert seen(lambda: self.answers() or child.poll() is not None), "no answer"
                assert child.poll() is None, child.stderr and child.stderr.read()
                yield child
            finally:
                if child.poll() is None:
                    child.kill()
                if child.stderr and not child.stderr.closed:
                    child.stderr.read()

    def answers(self) -> bool:
        try:
            return bool(self.ask("/v1/status"))
        except OSError:
            return False

    def ask(self, path: str) -> dict[str, object]:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            link.connect(str(self.socket))
            link.sendall(f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            with http.client.HTTPResponse(link) as answer:
                answer.begin()
                document = json.loads(answer.read())
        assert isinstance(document, dict)
        return document

    def ended(self, child: subprocess.Popen[str], number: int) -> tuple[float, str]:
        """Sends a signal; the seconds until the end, and the log.  The status must be 0."""
        since = time.monotonic()
        child.send_signal(number)
        _, log = child.communicate(timeout=120)
        assert child.returncode == 0, log
        return time.monotonic() - since, log


@pytest.fixture
def process(tmp_path: Path) -> Process:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "config.yaml").write_text(
        f"data_dir: {tmp_path}/data\nsocket: {tmp_path}/s.sock\nprofiles_dir: {tmp_path}/profiles\n"
        "network: {bridge: daemon0, dns: []}\nsocket_group: ''\n"
    )
    return Process(tmp_path)


def _unread(link: socket.socket) -> int:
    """What was sent and nobody has taken yet."""
    return int.from_bytes(fcntl.ioctl(link, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def warnings(log: str) -> list[str]:
    return [line for line in log.splitlines() if " info: " not in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_soon_and_quietly(process: Process, number: int) -> None:
    with (
        process.running() as child,
        socket.socket(socket.AF_UNIX) as idle,
        socket.socket(socket.AF_UNIX) as polling,
    ):
        idle.connect(str(process.socket))
        polling.connect(str(process.socket))
        polling.sendall(b"GET /v1/events?wait=50 HTTP/1.1\r\n\r\n")
        assert seen(lambda: _unread(polling) == 0)
        took, log = process.ended(child, number)
        assert b"200 OK" in polling.recv(4096)
    assert took < SOON
    assert warnings(log) == []
    assert not process.socket.exists()
    assert (process.folder / "data").stat().st_mode & 0o777 == 0o700


def test_a_second_instance_is_refused(process: Process) -> None:
    with process.running() as child:
        pid = process.ask("/v1/status")["pid"]
        second = subprocess.run(
            process.command(), cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
        )
        assert second.returncode == 1
        assert second.stderr.splitlines()[0] == (
            f"error: cannot start: another agentlabd (pid {pid}) works on {process.folder}/data"
        )
        assert process.answers()
        process.ended(child, signal.SIGTERM)


def test_after_a_kill_it_starts_again(process: Process) -> None:
    with process.running() as child:
        child.kill()
        child.wait()
        assert process.socket.exists()
    with process.running() as child:
        _, log = process.ended(child, signal.SIGTERM)
        assert warnings(log) == []


def test_a_hangup_is_no_end(process: Process) -> None:
    with process.running() as child:
        child.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.answers()
        _, log = process.ended(child, signal.SIGTERM)
        assert "nothing to reload" in log


def test_the_sockets_are_served_before_the_house_is_in_order(process: Process) -> None:
    with process.running(("-c", SLOW_FENCE)) as child:
        assert process.ask("/v1/jobs") == {"jobs": []}
        took, _ = process.ended(child, signal.SIGTERM)
        assert took < SOON


def test_the_service_manager_is_told(process: Process) -> None:
    path = process.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(20)
        with process.running(NOTIFY_SOCKET=str(path)) as child:
            assert listener.recv(200).splitlines()[0] == b"READY=1"
            assert listener.recv(200) == b"STATUS=ready"
            process.ended(child, signal.SIGTERM)
            assert listener.recv(200).splitlines()[0] == b"STOPPING=1"


def test_an_idle_daemon_is_small(process: Process) -> None:
    with process.running() as child:
        time.sleep(1)
        mib = int(str(process.ask("/v1/status")["resident"])) / (1 << 20)
        print(f"idle daemon: {mib:.1f} MiB resident")
        assert mib < 60
        process.ended(child, signal.SIGTERM)


def test_a_damaged_database_is_told_with_what_to_do(process: Process) -> None:
    path = process.folder / "data" / "agentlab.db"
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 1000)
    done = subprocess.run(
        process.command(), cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    error, hint = [line for line in done.stderr.splitlines() if " info: " not in line]
    assert done.returncode == 1
    assert error == f"error: cannot start: cannot open {path}: file is not a database"
    assert hint.startswith("hint: stop agentlabd and copy the file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour: red\n", "unknown key colour"),
        ("socket: /" + "x" * 200 + "\n", "invalid socket path"),
        ("data_dir: /proc/none\n", "/proc/none"),
    ],
)
def test_a_start_that_cannot_be(process: Process, text: str, words: str) -> None:
    given = process.config.read_text().splitlines(keepends=True)
    key = text.partition(":")[0]
    kept = [line for line in given if not line.startswith(key)]
    process.config.write_text("".join(kept) + text)
    done = subprocess.run(
        process.command(), cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr.count("Traceback")) == (1, 0)
    assert done.stderr.startswith("error: cannot start")
    assert words in done.stderr


def test_help_and_version() -> None:
    for option, words in (("--help", "--config PATH"), ("--version", "agentlab ")):
        done = subprocess.run(
            [sys.executable, "-m", "agentlab", "daemon", option], cwd=ROOT, capture_output=True,
            text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0
        assert words in done.stdout

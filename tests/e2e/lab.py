"""A laboratory: one network namespace as the host, one scratch directory, one agentlabd from source
or from the one file, and the means to look whether anything was left over."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.waiting import seen

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
# That something took longer than it was given, and is done again or another way: a busy machine's,
# and no fault.
_LATE = re.compile(
    r" warning: (cannot \S+ \S+ yet, trying again|machine \d+ cannot start from memory, boots"
    r"|there is no memory snapshot, machine \d+ boots|idle): "
    r".*(longer than|in time|too long|does not listen)"
)
PROFILE = """\
name: {name}
template: debian-12
cores: 1
memory: {memory}
network: {network}
ttl: {ttl}
handback: {handback}
after: {after}
agent:
  command: {command}
limits:
  log: {log}
"""


def template_dir() -> Path:
    """Where built templates are cached, between tests and between runs."""
    named = os.environ.get("AGENTLAB_TEMPLATE_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(cache) / "agentlab" / "templates"


@dataclass
class Lab:
    """One daemon in a namespace of its own; `program` is how agentlab is started."""

    scratch: Path
    namespace: str
    program: Sequence[str] = (sys.executable, "-m", "agentlab")
    daemon: subprocess.Popen[bytes] | None = None
    path: str = ""  # a directory whose programs the daemon finds before all others
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.scratch / "agentlabd.log"

    @property
    def socket(self) -> Path:
        return self.scratch / "agentlabd.sock"

    @property
    def database(self) -> Path:
        return self.scratch / "data" / "agentlab.db"

    def configure(self, *, start: str = "auto", workers: int = 16, extra: str = "") -> None:
        (self.scratch / "profiles").mkdir(exist_ok=True)
        (self.scratch / "config.yaml").write_text(
            f"data_dir: {self.scratch}/data\n"
            f"socket: {self.socket}\n"
            f"profiles_dir: {self.scratch}/profiles\n"
            f"workers: {workers}\n"
            "network: {bridge: lab0, subnet: 10.77.0.0/16, host: 10.77.0.1, dns: []}\n"
            f"local: {{template_dir: {template_dir()}, start: {start}}}\n{extra}"
        )

    def profile(
        self,
        name: str,
        command: str,
        *,
        network: str = "off",
        ttl: str = "30m",
        handback: str = "60s",
        after: str = "destroy",
        log: str = "16M",
        memory: int = 256,
    ) -> None:
        """Writes a profile whose agent is a shell command."""
        (self.scratch / "profiles" / f"{name}.yaml").write_text(
            PROFILE.format(
                name=name, command=json.dumps(command), network=network, ttl=ttl,
                handback=handback, after=after, log=log, memory=memory,
            )
        )  # fmt: skip

    def start(self, *, argv: Sequence[str] | None = None, wait: float = 60.0) -> None:
        """Starts the daemon (or `argv`, a program that wraps it) and waits until it answers."""
        words = [*(argv or [*self.program, "daemon"]), "--config", f"{self.scratch}/config.yaml"]
        path = f"{self.path}:{os.environ['PATH']}" if self.path else os.environ["PATH"]
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *words],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env={**os.environ, "PATH": path},
            )  # fmt: skip
        until = time.monotonic() + wait
        while time.monotonic() < until:
            if self.daemon.poll() is not None:
                return
            if self.socket.exists() and self.cli("status", "--json").returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError(f"the daemon does not answer:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL: the daemon has no time for anything."""
        return self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        assert self.daemon is not None
        if self.daemon.poll() is None:
            self.daemon.send_signal(number)
        status = self.daemon.wait(60)
        self.daemon = None
        return status

    def cli(self, *argv: str, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Runs the client."""
        return subprocess.run(
            [*self.program, "--socket", str(self.socket), *argv],
            cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip

    def ask(self, *argv: str, timeout: float = 600.0) -> dict[str, object]:
        """Runs the client with --json and reads what it prints."""
        done = self.cli(*argv, "--json", timeout=timeout)
        assert done.stdout.strip(), f"{argv}: status {done.returncode}: {done.stderr}"
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document

    def job(self, identity: str) -> dict[str, object]:
        return self.ask("job", "show", identity)

    def wait_running(self, identity: str, timeout: float = 300.0) -> dict[str, object]:
        """Waits until a job's task has been delivered; its runner asks for it a little later."""

        def look() -> dict[str, object]:
            shown = self.job(identity)
            assert shown["state"] == "RUNNING" or not shown["final"], shown
            return shown if shown["state"] == "RUNNING" else {}

        shown = seen(look, timeout, pause=0.2)
        assert shown, f"job {identity} does not run: {self.job(identity)}"
        return shown

    def wait_final(self, identity: str, timeout: float = 300.0) -> dict[str, object]:
        """Waits until a job has ended and its sandbox is gone, across restarts; the job as shown."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            done = self.cli("job", "show", identity, "--json")
            if done.returncode == 0 and json.loads(done.stdout)["settled"]:
                return json.loads(done.stdout)  # type: ignore[no-any-return]
            time.sleep(0.2)
        raise AssertionError(
            f"job {identity} does not end: {done.stdout}\n{self.log.read_text()[-3000:]}"
        )

    def across_death(
        self, ask: Callable[[], T], killer: Sequence[str], *, then: Sequence[str] | None = None
    ) -> T:
        """Asks a daemon that dies of it, and starts another (`then`).

        The reply may die with the daemon: the client asks until the next one gives it.
        """
        self.start(argv=killer)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask)
            self._await_death(asked)
            self.start(argv=then)
            return asked.result()

    def _await_death(self, asked: Future[T], timeout: float = 300.0) -> None:
        """Waits until the daemon has been killed; fails at once when all has ended before that."""
        assert self.daemon is not None
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert self.daemon.wait(0.5) == -signal.SIGKILL
                self.daemon = None
                return
            if asked.done():
                asked.result()
                under_way = self.rows("SELECT 1 FROM operation WHERE state IN ('doing', 'undoing')")
                assert under_way or self.daemon.poll() is not None, (
                    "it ended, and nothing was killed"
                )
        raise AssertionError(f"the daemon was not killed in time:\n{self.log.read_text()[-3000:]}")

    def run_job(self, profile: str, task: str, repo: Path, *more: str) -> dict[str, object]:
        """Asks for a job and gives its record at once."""
        done = self.cli(
            "job", "run", "--repo", str(repo), "--task", task, "--profile", profile,
            "--no-wait", "--json", *more,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """What the database says."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=10)) as connection:
            return connection.execute(sql).fetchall()

    def leftovers(self) -> list[str]:
        """Whatever a finished job must not leave: machines, processes, taps, rules, locks, tokens."""
        found = [f"machine {path.name}" for path in (self.scratch / "data/machines").glob("*")]
        found += [f"process {pid}" for pid in self.processes()]
        links = json.loads(self._in_namespace("ip", "-json", "link", "show") or "[]")
        found += [f"tap {each['ifname']}" for each in links if each["ifname"].startswith("tap")]
        rules = self._in_namespace("nft", "list", "ruleset")
        found += [f"rule for {tap}" for tap in re.findall(r"\btap\d+[xi]\w+", rules)]
        for table in ("subject", "token"):
            found += [f"{table} {row[0]}" for row in self.rows(f"SELECT * FROM {table}")]
        live = "SELECT vmid, state FROM sandbox WHERE state != 'DESTROYED'"
        found += [f"sandbox {row}" for row in self.rows(live)]
        unfinished = "SELECT kind, id FROM operation WHERE state IN ('doing', 'undoing')"
        found += [f"operation {row}" for row in self.rows(unfinished)]
        return found

    def processes(self) -> list[int]:
        """QEMU processes of this laboratory, by their working directory."""
        return [
            pid for pid, cwd, name in _processes() if "qemu" in name and str(self.scratch) in cwd
        ]

    def _in_namespace(self, *argv: str) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, *argv],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    def warnings(self) -> list[str]:
        """Lines of the daemon's log that are warnings or worse, but for what a busy machine brings."""
        loud = ("warning:", "error:", "critical:", "Traceback")
        lines = self.log.read_text().splitlines()
        return [each for each in lines if any(w in each for w in loud) and not _LATE.search(each)]


def _processes() -> Iterator[tuple[int, str, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                cwd = str((entry / "cwd").readlink())
                yield int(entry.name), cwd, (entry / "comm").read_text().strip()


@contextlib.contextmanager
def laboratory(program: Sequence[str] | None = None) -> Iterator[Lab]:
    """A laboratory that is taken down whole, whatever happened in it."""
    namespace = f"agentlab-test-{secrets.token_hex(3)}"
    scratch = Path(tempfile.mkdtemp(prefix="agentlab-lab-"))
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    subprocess.run(["ip", "-n", namespace, "link", "set", "lo", "up"], check=True)
    lab = Lab(scratch, namespace, program or (sys.executable, "-m", "agentlab"))
    try:
        lab.configure()
        yield lab
    finally:
        if lab.daemon is not None:
            lab.kill()
        for pid in lab.processes():
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", namespace], check=True)
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def internet(lab: Lab, repos: Path) -> Iterator[str]:
    """A namespace beyond the laboratory with a git server at a public address; gives its base URL."""
    outer = f"{lab.namespace}-out"
    for words in (
        f"ip netns add {outer}",
        f"ip link add up0 netns {lab.namespace} type veth peer name down0 netns {outer}",
        f"ip -n {lab.namespace} address add 203.0.113.2/24 dev up0",
        f"ip -n {lab.namespace} link set up0 up",
        f"ip -n {outer} address add 203.0.113.1/24 dev down0",
        f"ip -n {outer} link set down0 up",
        f"ip -n {lab.namespace} route add default via 203.0.113.1",
    ):
        subprocess.run(words.split(), check=True)
    server = subprocess.Popen(
        ["ip", "netns", "exec", outer, "git", "-c", "safe.directory=*", "daemon", "--export-all",
         f"--base-path={repos}", "--reuseaddr", "--listen=203.0.113.1"],
        start_new_session=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    listening = ["ip", "netns", "exec", outer, "ss", "-Hltn", "sport", "=", ":9418"]
    try:
        assert seen(lambda: subprocess.run(listening, check=True, capture_output=True).stdout)
        yield "git://203.0.113.1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        subprocess.run(["ip", "netns", "delete", outer], check=True)


def git_repo(path: Path) -> Path:
    """A small repository with one commit and a file to change."""
    path.mkdir(parents=True)
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for argv in (
        ["git", "init", "-q", "-b", "main", "."],
        ["git", "add", "."],
        ["git", *who, "commit", "-q", "-m", "first"],
    ):
        (path / "README").write_text("hello\n")
        subprocess.run(argv, cwd=path, check=True, env=env)
    return path

"""A machine for the runner: its own directories, a throw-away user, a daemon, and a remote."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentlab.guest import runner
from agentlab.guest.account import Account
from agentlab.guest.paths import Pace, Paths, Workplace
from agentlab.guest.runner import Guest
from tests.fakes.guest_daemon import JOB, GuestDaemon
from tests.waiting import until

# Numbers that no other process has: the runner kills whatever runs under one.
_UIDS = itertools.count(1_000_000_000 + os.getpid() % 1_000_000 * 1000)

PACE = Pace(
    idle=0.02, poll=0.05, grace=0.5, drain=1.0, log=0.05, retry=0.02, retry_most=0.2,
    claim=10, report=10, request=5,
)  # fmt: skip
_GIT = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_CONFIG_GLOBAL": "/dev/null",
}  # fmt: skip


def git(*words: str | Path) -> str:
    done = subprocess.run(
        ["git", *map(str, words)], check=True, capture_output=True, text=True,
        env={**os.environ, **_GIT, "GIT_CONFIG_GLOBAL": str(Path(__file__).with_name("gitconfig"))},
    )  # fmt: skip
    return done.stdout.strip()


def document(**changes: Any) -> dict[str, Any]:
    limits = {
        "log_bytes": 1 << 20, "artifact_bytes": 1 << 22, "artifact_total": 1 << 24,
        "artifact_count": 50,
    }  # fmt: skip
    return {
        "protocol": 1, "id": JOB, "profile": "yolo", "mode": "dangerous", "task": "mend it",
        "repo": {"kind": "git", "url": "", "ref": None, "depth": 1}, "command": "true",
        "bubblewrap": False, "env": dict(_GIT), "time_limit": 30, "handback_limit": 20,
        "heartbeat": 0.1, "limits": limits, **changes,
    }  # fmt: skip


@functools.cache
def _model() -> tuple[Path, str]:
    """A repository of three commits, made once; and the last commit."""
    path = Path(tempfile.mkdtemp(prefix="agentlab-guest-model-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    git("init", "-q", "-b", "main", path)
    git("-C", path, "config", "uploadpack.allowAnySHA1InWant", "true")
    for number in (1, 2, 3):
        (path / "file.txt").write_text(f"line {number}\n")
        git("-C", path, "add", ".")
        git("-C", path, "commit", "-q", "-m", f"commit {number}")
    return path, git("-C", path, "rev-parse", "HEAD")


class World:
    """One machine and one daemon; `run` does one job and gives its report."""

    def __init__(self, root: Path) -> None:
        self.root = root
        uid = next(_UIDS) if os.getuid() == 0 else os.getuid()
        gid = uid if os.getuid() == 0 else os.getgid()
        self.account = Account("agent", uid, gid, root / "home")
        self.account.make_directory(self.account.home)
        self.paths = Paths(
            run=root / "run", shared=root / "shared", spool=root / "spool",
            workspace=root / "none", etc=root / "etc", sys_net=root / "net",
            system_run=root / "sysrun",
        )  # fmt: skip
        self.paths.run.mkdir(mode=0o700)
        self.guest = Guest(self.paths, PACE, lambda: self.account)
        self.place = Workplace.of(self.paths, self.account.home)
        self.daemon = GuestDaemon(document())
        self.origin = root / "origin"
        self._make_origin()

    def _make_origin(self) -> None:
        model, self.head = _model()
        shutil.copytree(model, self.origin, symlinks=True)
        self.own_origin()

    def own_origin(self) -> None:
        """git refuses to read a repository of somebody else's."""
        if self.account.user is not None:
            for path in (self.origin, *self.origin.rglob("*")):
                os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)
        self.daemon.document["repo"]["url"] = f"file://{self.origin}"

    def commit_to_origin(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.origin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        git("-C", self.origin, "add", ".")
        git("-C", self.origin, "commit", "-q", "-m", name)
        self.head = git("-C", self.origin, "rev-parse", "HEAD")
        self.own_origin()

    def deliver(self) -> None:
        self.paths.bootstrap.write_text(json.dumps(self.daemon.bootstrap))

    def start(self) -> threading.Thread:
        self.deliver()
        thread = threading.Thread(target=lambda: runner.run(self.guest), daemon=True)
        thread.start()
        return thread

    def start_with(self, command: str) -> threading.Thread:
        self.daemon.document["command"] = command
        return self.start()

    def is_up(self) -> bool:
        """The agent has said so."""
        return b"up\n" in self.daemon.log

    @property
    def wait_for_go(self) -> str:
        """A command for the agent that ends with `go`."""
        return f"until [ -e {self.root}/go ]; do sleep 0.02; done"

    def go(self) -> None:
        (self.root / "go").touch()

    @staticmethod
    def when(true: Callable[[], object], act: Callable[[], object]) -> None:
        """Acts when it is true, while the test goes on."""

        def wait() -> None:
            until(true)
            act()

        threading.Thread(target=wait, daemon=True).start()

    def time_is_up(self) -> None:
        self.daemon.left = 0.0

    def run(self, command: str | None = None, **changes: Any) -> dict[str, Any]:
        if command is not None:
            changes["command"] = command
        self.daemon.document.update(changes)
        self.deliver()
        assert runner.run(self.guest) == 0
        assert self.daemon.report is not None
        return self.daemon.report

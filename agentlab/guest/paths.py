"""Where things are in the VM; every path can be replaced, so that tests need no VM."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The directories of the runner, of the job and of the system.

    `run` is the runner's own tmpfs directory (root only); the files from the host come there.
    `shared` is on tmpfs too; the agent can read it and not write it.  `spool` is on disk and
    root only.  `workspace` is where a workspace is mounted, when there is one.
    """

    run: Path = Path("/run/agentlab")
    shared: Path = Path("/run/agentlab-job")
    spool: Path = Path("/var/lib/agentlab-guest")
    workspace: Path = Path("/work")
    etc: Path = Path("/etc")
    sys_net: Path = Path("/sys/class/net")
    sys_block: Path = Path("/sys/block")
    sys_dev: Path = Path("/sys/dev/block")
    dev: Path = Path("/dev")
    proc: Path = Path("/proc")
    system_run: Path = Path("/run")

    @property
    def identity(self) -> Path:
        return self.run / "identity.json"

    @property
    def identity_done(self) -> Path:
        return self.run / "identity.done"

    @property
    def bootstrap(self) -> Path:
        return self.run / "bootstrap.json"

    @property
    def ready(self) -> Path:
        """Exists while the runner waits for an identity or a bootstrap."""
        return self.run / "ready"

    @property
    def marker(self) -> Path:
        """How far the job has got, and its session; for a runner that is started again."""
        return self.run / "session.json"

    @property
    def task(self) -> Path:
        return self.shared / "task.txt"

    @property
    def spools(self) -> tuple[Path, ...]:
        """Where big things are kept for a while, the second when the first is full."""
        return (self.spool, self.run)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the runner waits for things, in seconds."""

    idle: float = 0.2  # between two looks for a file from the host
    poll: float = 0.2  # between two looks at the agent
    grace: float = 8.0  # from SIGTERM to SIGKILL
    drain: float = 2.0  # for output that is still in the pipe when the agent has ended
    log: float = 0.3  # for more output before a piece of log is sent
    retry: float = 0.25  # before the first retry; doubled each time
    retry_most: float = 5.0
    claim: float = 900.0  # how long a claim is tried while the daemon is away
    report: float = 120.0  # how long a report is tried at least
    request: float = 30.0  # for one answer of the daemon


@dataclass(frozen=True, slots=True)
class Workplace:
    """The job's directories: in the workspace when one is mounted, else in the agent's home."""

    repo: Path
    artifacts: Path
    made: tuple[Path, ...] = field(default=())

    @classmethod
    def of(cls, paths: Paths, home: Path) -> Workplace:
        # Resolved once, before anything hostile runs; later no symlink is followed.
        job = Path(os.path.realpath(home)) / "job"
        mounted = paths.workspace.is_mount()
        repo = Path(os.path.realpath(paths.workspace)) / "repo" if mounted else job / "repo"
        return cls(repo, job / "artifacts", made=(job, job / "artifacts"))

"""Runs the agent as its user under a hard time limit, and leaves nothing of it running."""

from __future__ import annotations

import os
import select
import shutil
import signal
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentlab import clock, run
from agentlab.clock import Deadline, Timed
from agentlab.errors import Invalid, Unsupported
from agentlab.guest.account import Account, kill_all, limited
from agentlab.guest.command import PIPE, Process, wait_for_end
from agentlab.guest.job import Job
from agentlab.guest.paths import Pace, Workplace

SCRIPT = ".agentlab/run.sh"
_PIECE = 256 * 1024
# execve(2): one string of the environment may have 128 KiB; the file has the whole task.
_TASK_MOST = 120 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the agent ended.  `stopped` is "", `timeout`, `cancelled` or `shutdown`.

    `alive`: some of its processes cannot be ended.
    """

    exit_code: int | None
    signal: int | None
    stopped: str
    started: float
    alive: bool = False


def render_environment(job: Job, account: Account, place: Workplace, task: Path) -> dict[str, str]:
    """The agent's whole environment; the job's own may change PATH but not our names."""
    text = job.task.encode(errors="replace").replace(b"\0", b"")[:_TASK_MOST]
    given = {key: value for key, value in job.env.items() if key and "=" not in key}
    environment = {
        **account.environment,
        "TERM": "dumb",
        **given,
        "AGENTLAB_JOB_ID": job.id,
        "AGENTLAB_TASK": text.decode(errors="ignore"),
        "AGENTLAB_TASK_FILE": str(task),
        "AGENTLAB_REPO_DIR": str(place.repo),
        "AGENTLAB_ARTIFACTS_DIR": str(place.artifacts),
        "AGENTLAB_JOB_MODE": job.mode,
        "AGENTLAB_JOB_PROFILE": job.profile,
    }
    clean = {key: value.encode(errors="replace").decode() for key, value in environment.items()}
    return {key: value for key, value in clean.items() if "\0" not in key + value}


def plan_command(job: Job, repo: Path) -> list[str]:
    """The repo's own script, else the profile's command; raises Invalid when there is neither."""
    script = repo / SCRIPT
    try:
        mode = script.stat().st_mode
    except OSError:
        mode = 0
    if stat.S_ISREG(mode):
        # By way of sh, which also runs a script that has no "#!" line.
        return ["/bin/sh", "-c", 'exec "$0"', str(script)] if mode & 0o111 else [
            "/bin/sh", str(script)]  # fmt: skip
    if not job.command:
        raise Invalid(
            f"cannot run an agent: the profile has no command and the repo has no {SCRIPT}"
        )
    return ["/bin/sh", "-c", job.command]


def wrap(argv: list[str], account: Account, place: Workplace) -> list[str]:
    """The command inside bubblewrap: it can write in its home, its repo and /tmp, no more."""
    shared = ["/tmp", "/var/tmp"]  # noqa: S108
    writable = [str(account.home), str(place.repo), *shared]
    binds = [word for path in writable for word in ("--bind", path, path)]
    return ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--ro-bind", "/", "/",
            "--dev", "/dev", "--proc", "/proc", *binds,
            "--chdir", str(place.repo), "--", *argv]  # fmt: skip


class _Reader:
    """Passes the agent's output on from a thread of its own, until the pipe ends or it is told."""

    def __init__(self, fd: int, sink: Callable[[bytes], None]) -> None:
        self._fd, self._sink = fd, sink
        self._until: Deadline | None = None
        self._thread = threading.Thread(target=self._work, name="output", daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Takes what is still there; a process that keeps the pipe open is not waited for."""
        self._until = Deadline.after(seconds)
        self._thread.join()

    def _work(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        late = 0
        # Whoever was held up until then still takes what the pipe can hold.
        while late <= PIPE // _PIECE:
            until = self._until  # before the look: what comes after it is not all
            if poll.poll(100):
                data = os.read(self._fd, _PIECE)
                if not data:
                    return
                self._sink(data)
                late += until is not None and until.passed
            elif until is not None:
                return


@dataclass(frozen=True, slots=True)
class Agent:
    """One run of one agent; `reason()` is not empty when it is to be stopped, and says why."""

    account: Account
    place: Workplace
    job: Job
    pace: Pace
    task: Path
    reason: Callable[[], str]

    def run(self, deadline: Timed, sink: Callable[[bytes], None]) -> Outcome:
        """Runs to the end; nothing of the user runs any more when this returns, or it says so.

        Raises Invalid or Unsupported when there is nothing that could be started.
        """
        argv = plan_command(self.job, self.place.repo)
        if self.job.bubblewrap:
            if shutil.which("bwrap") is None:
                raise Unsupported(
                    "cannot run the agent in bubblewrap: bwrap is not installed in this template",
                    hint="install bubblewrap in the template, or switch it off in the profile",
                )
            argv = wrap(argv, self.account, self.place)
        read_end, write_end = os.pipe()
        started = clock.now()
        try:
            try:
                process = run.spawn(
                    limited(argv), stdout=write_end, stderr=write_end, cwd=self.place.repo,
                    env=render_environment(self.job, self.account, self.place, self.task),
                    user=self.account.user,
                )  # fmt: skip
            finally:
                os.close(write_end)
            reader = _Reader(read_end, sink)
            _offer_to_the_oom_killer(process.pid)
            try:
                stopped = self._watch(process, deadline)
            finally:
                try:
                    alive = not self._end(process)
                finally:
                    reader.finish(self.pace.drain)
        finally:
            os.close(read_end)
        status = process.wait()
        code, number = (status, None) if status >= 0 else (None, -status)
        return Outcome(code, number, stopped, started, alive)

    def _watch(self, process: Process, deadline: Timed) -> str:
        """Until the agent has ended by itself (""), or has been told to; then why."""
        while not wait_for_end(process, min(self.pace.poll, deadline.left)):
            stopped = self.reason() or ("timeout" if deadline.passed else "")
            if stopped:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGTERM)
                wait_for_end(process, self.pace.grace)
                return stopped
        return ""

    def _end(self, process: Process) -> bool:
        """Kills the group, and then all that has left it: nothing may go on while we hand back.

        False: something does.
        """
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            return kill_all(self.account)
        finally:
            process.wait()


def _offer_to_the_oom_killer(pid: int) -> None:
    """When memory runs out the agent goes, not the runner that has to hand its work back."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("500")

"""git as the agent's user, with the job's environment: without a prompt, a hook or a password shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentlab.clock import Timed
from agentlab.errors import AgentLabError
from agentlab.guest.account import Account
from agentlab.guest.command import Ended, run_as
from agentlab.guest.job import Job

_CREDENTIALS = re.compile(rb"(?<=://)[^/@\s]+@")


class CheckoutFailed(AgentLabError):
    """git could not fetch the repository; `said` is what it said, without credentials."""

    code = "checkout_failed"

    def __init__(self, message: str, said: bytes) -> None:
        super().__init__(message)
        self.said = said


def redact(said: bytes) -> bytes:
    """The text without the user and password that an address may carry."""
    return _CREDENTIALS.sub(b"***@", said)


@dataclass(frozen=True, slots=True)
class Git:
    """Runs git; `stop` is asked meanwhile.  Raises DeadlineExceeded, Stopped."""

    account: Account
    job: Job
    deadline: Timed
    stop: Callable[[], bool]

    def run(self, *words: str | Path) -> tuple[Ended, bytes]:
        """How it ended, and the first 64 KiB of what it printed."""
        out = bytearray()
        argv = ("git", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0",
                "-c", "advice.detachedHead=false", *words)  # fmt: skip
        ended = run_as(
            self.account, argv, deadline=self.deadline, env=self._environment(),
            sink=lambda data: out.extend(data[: 64 * 1024 - len(out)]), stop=self.stop,
        )  # fmt: skip
        return ended, bytes(out)

    def must(self, *words: str | Path) -> None:
        """Raises CheckoutFailed when it ends with another status than 0."""
        ended = self.run(*words)[0]
        if ended.status != 0:
            self.fail(ended)

    def fail(self, ended: Ended) -> None:
        said = redact(ended.said)
        lines = said.decode(errors="replace").strip().splitlines()
        raise CheckoutFailed(f"cannot check out the repo: {' / '.join(lines[-3:])}"[:1000], said)

    def said(self, *words: str | Path) -> str:
        """What it printed, or "" when it ended with another status than 0."""
        ended, out = self.run(*words)
        return out.decode(errors="replace").strip() if ended.status == 0 else ""

    def commit(self, repo: Path, name: str) -> str:
        """The commit that a name stands for, or ""."""
        return self.said("-C", repo, "rev-parse", "--verify", "-q", name + "^{commit}")

    def _environment(self) -> dict[str, str]:
        """The job's own environment too: it may carry what git needs to log in."""
        return {
            "GIT_ASKPASS": "/bin/false",
            "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new",
            **self.account.environment,
            **self.job.env,
            "GIT_TERMINAL_PROMPT": "0",
            "SSH_ASKPASS_REQUIRE": "never",
            "GCM_INTERACTIVE": "never",
            "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
            "LC_ALL": "C.UTF-8",
        }

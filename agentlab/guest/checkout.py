"""Fetches the repository as user `agent`, without ever a prompt, and finds its commit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentlab.clock import Timed
from agentlab.errors import AgentLabError, Invalid
from agentlab.guest.account import Account
from agentlab.guest.command import Ended, run_as
from agentlab.guest.daemon import Daemon
from agentlab.guest.job import Job
from agentlab.guest.paths import Workplace

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT_PART = re.compile(r"[0-9a-f]{4,64}")
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


def refuse_options(url: str, ref: str | None) -> None:
    """Raises Invalid for what git would take for an option, or for something to run."""
    for what, word in (("repo", url), ("ref", ref or "")):
        if word.startswith("-"):
            raise Invalid(f"cannot check out: the {what} begins with a dash")
        if not word.isprintable() or (what == "ref" and " " in word):
            raise Invalid(f"cannot check out: the {what} has characters that none can have")
    if re.match(r"\w[\w+.-]*::", url):
        raise Invalid("cannot check out: addresses with a remote helper (NAME::…) are refused")


@dataclass(frozen=True, slots=True)
class Checkout:
    """One checkout of one job into `place.repo`; `stop` is asked while git runs."""

    account: Account
    place: Workplace
    job: Job
    deadline: Timed
    stop: Callable[[], bool]

    def run(self, daemon: Daemon) -> str | None:
        """The commit that the work begins at; None for an empty repository.

        Raises CheckoutFailed, Invalid, DeadlineExceeded, Stopped.
        """
        repo = self.job.repo
        refuse_options(repo.url, repo.ref)
        for path in self.place.made:
            self.account.make_directory(path)
        self._own_workspace()
        if (self.place.repo / ".git").exists():
            self._go_on()
        elif repo.kind == "bundle":
            bundle = self._download(daemon)
            try:
                self._clone(str(bundle), repo.ref, 0)
            finally:
                bundle.unlink(missing_ok=True)
        else:
            self._clone(repo.url, repo.ref, repo.depth)
        head = self._git("-C", self.place.repo, "rev-parse", "--verify", "-q", "HEAD^{commit}")
        return head[1].decode().strip() or None if head[0].status == 0 else None

    def _own_workspace(self) -> None:
        """A workspace that was just made belongs to root; the agent has to write there."""
        parent = self.place.repo.parent
        if self.account.user is not None and parent.stat().st_uid == 0:
            os.chown(parent, self.account.uid, self.account.gid)

    def _go_on(self) -> None:
        """A workspace has a checkout already: its work stays; git refuses what would lose some."""
        repo, at = self.job.repo, ("-C", str(self.place.repo))
        if repo.kind == "bundle" or repo.ref is None:
            return
        url = self._git(*at, "config", "--get", "remote.origin.url")[1].decode().strip()
        if url != repo.url:
            raise CheckoutFailed("cannot check out: the workspace has another repo already", b"")
        self._must(*at, "fetch", "-q", "origin", repo.ref)
        self._must(*at, "checkout", "-q", "--detach", "FETCH_HEAD^{commit}", "--")

    def _download(self, daemon: Daemon) -> Path:
        path = self.place.made[0] / "repo.bundle"
        files: list[int] = []

        def begin() -> Callable[[bytes], object]:
            while files:
                os.close(files.pop())
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            files.append(fd)

            def write(data: bytes) -> None:
                try:
                    while data:
                        data = data[os.write(fd, data) :]
                except OSError as problem:
                    raise Invalid(f"cannot keep the bundle: {problem.strerror}") from problem

            return write

        try:
            daemon.get_bundle(begin, self.deadline)
        finally:
            while files:
                os.close(files.pop())
        return path

    def _clone(self, url: str, ref: str | None, depth: int) -> None:
        """By name when it is a branch or a tag, by commit id else; a server may refuse depth."""
        if ref is None or not _COMMIT.fullmatch(ref):
            branch = ["--branch", ref] if ref else []
            ended = self._try_clone(branch, url, depth)
            if ended.status == 0:
                return
            if ref is None or b"not found in upstream" not in ended.said:
                self._fail(ended)
        self._must("init", "-q", self.place.repo)
        self._must("-C", self.place.repo, "remote", "add", "origin", url)
        shallow = [f"--depth={depth}"] if depth else []
        fetch = ["-C", str(self.place.repo), "fetch", "-q", *shallow, "origin"]
        ended = self._git(*fetch, ref or "HEAD")[0]
        target = "FETCH_HEAD"
        if ended.status != 0:
            if not _COMMIT_PART.fullmatch(ref or ""):
                self._fail(ended)
            # Servers need not give a commit by its id: fetch everything and look for it.
            everything = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
            self._must("-C", self.place.repo, "fetch", "-q", "origin", *everything)
            target = ref or ""
        self._must("-C", self.place.repo, "checkout", "-q", "--detach", target + "^{commit}", "--")

    def _try_clone(self, branch: Sequence[str], url: str, depth: int) -> Ended:
        shallow = ["--depth", str(depth)] if depth else []
        ended = self._git("clone", "-q", *shallow, *branch, "--", url, self.place.repo)[0]
        if ended.status != 0 and depth and b"does not support shallow" in ended.said:
            ended = self._git("clone", "-q", *branch, "--", url, self.place.repo)[0]
        return ended

    def _must(self, *words: str | Path) -> None:
        ended = self._git(*words)[0]
        if ended.status != 0:
            self._fail(ended)

    def _fail(self, ended: Ended) -> None:
        said = redact(ended.said)
        lines = said.decode(errors="replace").strip().splitlines()
        raise CheckoutFailed(f"cannot check out the repo: {' / '.join(lines[-3:])}"[:1000], said)

    def _git(self, *words: str | Path) -> tuple[Ended, bytes]:
        out = bytearray()
        argv = ("git", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0",
                "-c", "advice.detachedHead=false", *words)  # fmt: skip
        ended = run_as(
            self.account, argv, deadline=self.deadline, env=self._environment(),
            sink=lambda data: out.extend(data[: 64 * 1024 - len(out)]), stop=self.stop,
        )  # fmt: skip
        return ended, bytes(out)

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

"""Fetches the repository as user `agent`, without ever a prompt, and finds its commit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentlab.clock import Timed
from agentlab.errors import Invalid
from agentlab.guest import earlier
from agentlab.guest.account import Account
from agentlab.guest.command import Ended
from agentlab.guest.daemon import Daemon
from agentlab.guest.earlier import Earlier
from agentlab.guest.git import Git
from agentlab.guest.job import Job
from agentlab.guest.paths import Workplace

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NEVER = frozenset(" :?*[\\^~")  # in the name of a ref, by git-check-ref-format(1)
_COMMIT_PART = re.compile(r"[0-9a-f]{4,64}")


def refuse_options(url: str, ref: str | None) -> None:
    """Raises Invalid for what git would take for an option, or for something to run."""
    for what, word in (("repo", url), ("ref", ref or "")):
        if word.startswith("-"):
            raise Invalid(f"cannot check out: the {what} begins with a dash")
        if not word.isprintable() or (what == "ref" and set(word) & _NEVER):
            raise Invalid(f"cannot check out: the {what} has characters that none can have")
    if re.match(r"\w[\w+.-]*::", url):
        raise Invalid("cannot check out: addresses with a remote helper (NAME::…) are refused")


@dataclass(frozen=True, slots=True)
class Begun:
    """Where the work begins: the repository, and its commit (None: it has none yet)."""

    place: Workplace
    commit: str | None


@dataclass(frozen=True, slots=True)
class Checkout:
    """One checkout of one job; `stop` is asked while git runs, `say` writes a line to the log."""

    account: Account
    place: Workplace
    job: Job
    deadline: Timed
    stop: Callable[[], bool]
    say: Callable[[str], None]

    def run(self, daemon: Daemon) -> Begun:
        """The repository at `place.repo`; in a workspace with another's, beside it by its name.

        What an earlier job left there stays: see earlier.py.
        Raises CheckoutFailed, Invalid, DeadlineExceeded, Stopped.
        """
        repo = self.job.repo
        refuse_options(repo.url, repo.ref)
        for path in self.place.made:
            self.account.make_directory(path)
        self._own_workspace()
        bundle = self._bundle
        url, name = (repo.url, earlier.repo_name(repo.url)) if not bundle else (str(bundle), "")
        try:
            if bundle:
                self._download(daemon, bundle)
            where, remote = earlier.choose(self._git, self.place.repo, url, name, bundle)
            at = replace(self, place=replace(self.place, repo=where))
            if remote:
                Earlier(self._git, where, remote, url, self.say, bool(bundle)).go_on(repo.ref)
            else:
                at._clone(url, repo.ref, 0 if bundle else repo.depth)
                earlier.remember(self._git, where)
        finally:
            if bundle:
                bundle.unlink(missing_ok=True)
        return Begun(at.place, self._git.commit(where, "HEAD") or None)

    @property
    def _git(self) -> Git:
        return Git(self.account, self.job, self.deadline, self.stop)

    @property
    def _bundle(self) -> Path | None:
        """The file that is the remote when the repository comes from the daemon."""
        return self.place.made[0] / "repo.bundle" if self.job.repo.kind == "bundle" else None

    def _own_workspace(self) -> None:
        """A workspace that was just made belongs to root; the agent has to write there."""
        parent = self.place.repo.parent
        if self.account.user is not None and parent.stat().st_uid == 0:
            os.chown(parent, self.account.uid, self.account.gid)

    def _download(self, daemon: Daemon, path: Path) -> None:
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

    def _clone(self, url: str, ref: str | None, depth: int) -> None:
        """By name when it is a branch or a tag, by commit id else; a server may refuse depth."""
        if ref is None or not _COMMIT.fullmatch(ref):
            branch = ["--branch", ref] if ref else []
            ended = self._try_clone(branch, url, depth)
            if ended.status == 0:
                return
            if ref is None or b"not found in upstream" not in ended.said:
                self._git.fail(ended)
        self._git.must("init", "-q", self.place.repo)
        self._git.must("-C", self.place.repo, "remote", "add", "origin", url)
        shallow = [f"--depth={depth}"] if depth else []
        fetch = ["-C", str(self.place.repo), "fetch", "-q", *shallow, "origin"]
        ended = self._git.run(*fetch, ref or "HEAD")[0]
        target = "FETCH_HEAD"
        if ended.status != 0:
            if not _COMMIT_PART.fullmatch(ref or ""):
                self._git.fail(ended)
            # Servers need not give a commit by its id: fetch everything and look for it.
            everything = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
            self._git.must("-C", self.place.repo, "fetch", "-q", "origin", *everything)
            target = ref or ""
        self._git.must(
            "-C", self.place.repo, "checkout", "-q", "--detach", target + "^{commit}", "--"
        )

    def _try_clone(self, branch: Sequence[str], url: str, depth: int) -> Ended:
        shallow = ["--depth", str(depth)] if depth else []
        ended = self._git.run("clone", "-q", *shallow, *branch, "--", url, self.place.repo)[0]
        if ended.status != 0 and depth and b"does not support shallow" in ended.said:
            ended = self._git.run("clone", "-q", *branch, "--", url, self.place.repo)[0]
        return ended

"""A checkout that an earlier job left in the workspace: what was done there stays.

The remote's new commits are fetched in any case, and a remote that is away fails the job.  Then, when there are local changes, untracked
files, or commits that the remote did not have, all stays as it is, the job goes on from there
whatever ref it asked for, and a line in its log says so.  When there are none:

- `ref` is a branch: that branch at the remote's commit, or at its own local commits if it has any;
- `ref` is a tag or a commit: HEAD is detached there;
- no `ref`: the branch that HEAD is on, at the remote's commit.  When the remote has no such branch,
  a bundle's HEAD is checked out, since it is what was sent; else all is left alone, and the line in
  the log says so.

Ignored files are never overwritten: then git refuses, and the job fails at the stage checkout.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentlab.guest.git import CheckoutFailed, Git, redact

# What was checked out last by us: without it, commits that were fetched by their id alone would
# look as if they had been made here.
_BASE = "refs/agentlab/base/last"
_KEPT = "refs/agentlab/kept/"
_COMMIT_PART = re.compile(r"[0-9a-f]{4,64}")


def same_address(one: str, other: str) -> bool:
    """Whether two addresses differ in their credentials at most, which may be renewed."""
    return redact(one.encode()) == redact(other.encode())


def is_free(path: Path) -> bool:
    """Whether a repository can be made here: nothing is there, or an empty directory."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            return False
        return not any(path.iterdir())
    except FileNotFoundError:
        return True


def find_remote(git: Git, path: Path, url: str) -> str:
    """The remote of the checkout at `path` that has this address, or "": then it is another's."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode) or not (path / ".git").exists():
            return ""
    except OSError:
        return ""
    listed = git.said("-C", path, "config", "--local", "-z", "--get-regexp", r"^remote\..*\.url$")
    found = []
    for entry in listed.split("\0"):
        key, _, address = entry.partition("\n")
        if address and same_address(address, url):
            found.append(key.removeprefix("remote.").removesuffix(".url"))
    return "origin" if "origin" in found else next(iter(found), "")


def shares_history(git: Git, path: Path, bundle: Path) -> bool:
    """Whether the bundle has a commit in common with the checkout at `path`.

    Every bundle has the same address, so that this tells two repositories apart.  One without a
    commit yet is a clone that was cut off.  The bundle's objects come along, under no name.
    """
    known = [name for name in ("HEAD", _BASE) if git.commit(path, name)]
    if not known:
        return True
    listed = [
        line.partition(" ")[2] for line in git.said("bundle", "list-heads", bundle).splitlines()
    ]
    name = min(listed, key=lambda name: (name != "HEAD", not name.startswith("refs/heads/")),
               default="HEAD")  # fmt: skip
    git.must("-C", path, "fetch", "-q", "--no-tags", bundle, name)
    return bool(git.said("-C", path, "merge-base", "FETCH_HEAD", *known))


def remember(git: Git, repo: Path) -> None:
    """Notes what has been checked out."""
    if git.commit(repo, "HEAD"):
        git.must("-C", repo, "update-ref", _BASE, "HEAD")


@dataclass(frozen=True, slots=True)
class Earlier:
    """The checkout at `repo`, whose `remote` has the address `url`; `say` writes to the log.

    `sent`: the remote is a bundle that was sent for this job.
    """

    git: Git
    repo: Path
    remote: str
    url: str
    say: Callable[[str], None]
    sent: bool = False

    def go_on(self, ref: str | None) -> None:
        """Raises CheckoutFailed, with all as it was."""
        if self._said("config", "--get", f"remote.{self.remote}.url") != self.url:
            self._must("remote", "set-url", self.remote, self.url)
        head, branch = self._commit("HEAD"), self._said("symbolic-ref", "-q", "--short", "HEAD")
        kept = self._kept(head)  # before the remote's refs are moved
        target, wanted = self._fetch(ref, branch, head)
        if kept:
            self._stay(kept, ref, head, target)
            return
        if target and (target != head or wanted not in ("", branch)):
            self._move(target, wanted, head, branch)
        remember(self.git, self.repo)
        now, why = self._commit("HEAD"), ""
        if not target:
            why = f": the remote has no branch {branch}" if branch else ": HEAD is on no branch"
        self.say(f"{self.repo} is there already, and goes on at {now[:12] or 'no commit'}{why}")

    def _kept(self, head: str) -> str:
        """What of earlier work is here and nowhere else, in words, or ""."""
        found = []
        if self._said("status", "--porcelain", "--untracked-files=normal"):
            found.append("changes that are not committed")
        if head and self._own_commits("HEAD"):
            found.append("commits that the remote did not have")
        return " and ".join(found)

    def _own_commits(self, name: str, *known: str) -> bool:
        without = ("--not", "--remotes", f"--glob={_BASE.rpartition('/')[0]}", *known)
        return bool(self._said("rev-list", "--max-count=1", name, *without))

    def _stay(self, kept: str, ref: str | None, head: str, target: str) -> None:
        said = f"{self.repo} has {kept}: the job goes on from them, at {head[:12] or 'no commit'}"
        if target and target != head:
            said += f"; {ref or 'the branch'} of the remote is at {target[:12]}, and is fetched"
        self.say(said)

    def _fetch(self, ref: str | None, branch: str, head: str) -> tuple[str, str]:
        """The commit that is asked for, and the branch when it is one; "" for each that is none."""
        name = (ref or branch).removeprefix("refs/heads/")
        if ref and len(ref) in (40, 64) and _COMMIT_PART.fullmatch(ref) and self._commit(ref):
            return self._commit(ref), ""
        tracking = f"refs/remotes/{self.remote}/{name}"
        if name:
            wanted = f"+refs/heads/{name}:{tracking}"
            ended = self.git.run("-C", self.repo, "fetch", "-q", self.remote, wanted)[0]
            if ended.status == 0:
                return self._commit(tracking), name
            if ref is None and b"couldn't find remote ref" not in ended.said:
                self.git.fail(ended)
        if ref is None and head and not self.sent:
            return "", ""
        ended = self.git.run("-C", self.repo, "fetch", "-q", self.remote, ref or "HEAD")[0]
        if ended.status == 0:
            return self._commit("FETCH_HEAD"), ""
        if ref is None:
            return "", ""  # of an empty repository
        if not _COMMIT_PART.fullmatch(ref):
            self.git.fail(ended)
        everything = f"+refs/heads/*:refs/remotes/{self.remote}/*"
        self._must("fetch", "-q", "--tags", self.remote, everything)
        found = self._commit(ref)
        if not found:
            self.git.fail(ended)
        return found, ""

    def _move(self, target: str, wanted: str, head: str, branch: str) -> None:
        """Nothing is here that is not elsewhere; what HEAD is at gets a name all the same."""
        if head and not self._is_ancestor(head, target):
            self._must("update-ref", f"{_KEPT}{head}", head)
        local = self._commit(f"refs/heads/{wanted}") if wanted else ""
        if local and wanted != branch and self._own_commits(f"refs/heads/{wanted}", target):
            self._checkout(wanted, "--")
            self.say(f"branch {wanted} has commits of its own: the job goes on from them")
        elif wanted:
            self._checkout("--no-track", "-B", wanted, target, "--")
            # --track wants the remote's branches to be fetched by default, which a shallow clone's
            # are not.
            self._must("config", f"branch.{wanted}.remote", self.remote)
            self._must("config", f"branch.{wanted}.merge", f"refs/heads/{wanted}")
        elif branch and not head:
            self._checkout("-B", branch, target, "--")
        else:
            self._checkout("--detach", target, "--")

    def _is_ancestor(self, one: str, other: str) -> bool:
        return self._try("merge-base", "--is-ancestor", one, other)

    def _checkout(self, *words: str) -> None:
        self._must("checkout", "-q", "--no-overwrite-ignore", *words)

    def _commit(self, name: str) -> str:
        return self.git.commit(self.repo, name)

    def _said(self, *words: str) -> str:
        return self.git.said("-C", self.repo, *words)

    def _try(self, *words: str) -> bool:
        return self.git.run("-C", self.repo, *words)[0].status == 0

    def _must(self, *words: str) -> None:
        self.git.must("-C", self.repo, *words)


def repo_name(url: str) -> str:
    """A directory's name for a repository: the last part of its address; "" when it is no name."""
    name = re.split(r"[/:]", url.rstrip("/"))[-1].removesuffix(".git")
    fits = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name)
    return name if fits and name not in ("repo", "lost+found") else ""


def choose(git: Git, first: Path, url: str, name: str, bundle: Path | None) -> tuple[Path, str]:
    """Where the repository is to be, and its remote there when it is there already, else "".

    At `first`; or beside it by its own name (a `bundle` has none) when another's work is there.
    Raises CheckoutFailed.
    """
    taken = []
    for path in (first, first.parent / name) if name else (first,):
        if is_free(path):
            return path, ""
        remote = find_remote(git, path, url)
        if remote and (bundle is None or shares_history(git, path, bundle)):
            return path, remote
        taken.append(str(path))
    raise CheckoutFailed(
        f"cannot check out: {' and '.join(taken)} hold{'s' * (len(taken) == 1)} something else "
        "already, which stays: move it away, or use another workspace", b"",
    )  # fmt: skip

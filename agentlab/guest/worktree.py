"""Reads the agent's repository with git, as the agent's user, when the repository is hostile.

git gets a directory of our own in place of `.git`: our configuration, and links to the
objects, refs and index of the agent's.  So nothing that the agent wrote into its configuration
(filters, textconv, external diffs, fsmonitor, hooks, ssh commands) is ever read.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Invalid
from agentlab.guest.account import SEARCH_PATH, Account
from agentlab.guest.command import Ended, Sink, run_as
from agentlab.guest.files import printable, read_small
from agentlab.guest.spool import Spool

_HEAD = re.compile(rb"(ref: refs/\S+|[0-9a-f]{40}|[0-9a-f]{64})\n?")
_SHA256 = "[extensions]\n\tobjectformat = sha256\n"
# The repository's own settings cannot come in; these are for git's defaults.
_SAFE = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false",
         "-c", "core.untrackedCache=false", "-c", "core.attributesFile=/dev/null",
         "-c", "core.excludesFile=/dev/null", "-c", "protocol.allow=never",
         "-c", "submodule.recurse=false", "--no-pager")  # fmt: skip
_ENVIRONMENT = {
    "PATH": SEARCH_PATH,
    "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_PAGER": "cat",
}


class GitFailed(AgentLabError):
    """git or tar could not read the repository that the agent left."""

    code = "git_failed"


@dataclass(frozen=True, slots=True)
class WorkTree:
    """The repository at `repo` as the agent left it; `base` is the commit that it began at.

    `scratch` is a directory that the agent can read and not write.  Every method raises
    AgentLabError (GitFailed, DeadlineExceeded) or whatever its sink raises.
    """

    repo: Path
    scratch: Path
    account: Account
    base: str | None
    deadline: Deadline

    def prepare(self) -> None:
        """Makes the directory that stands for `.git`.  Raises NotFound, Invalid."""
        head = read_small(self.repo / ".git/HEAD", self.account)
        if not _HEAD.fullmatch(head):
            raise Invalid("the repo's .git/HEAD is not one of git's")
        with suppress(FileNotFoundError):
            shutil.rmtree(self.scratch)
        self.scratch.mkdir(mode=0o755, parents=True)
        sha256 = len(self.base or "") == 64
        (self.scratch / "HEAD").write_bytes(head)
        (self.scratch / "config").write_text(
            f"[core]\n\trepositoryformatversion = {int(sha256)}\n\tbare = false\n"
            + (_SHA256 if sha256 else "")
        )
        (self.scratch / "info").mkdir()
        for name in ("objects", "refs", "packed-refs", "shallow", "info/exclude"):
            (self.scratch / name).symlink_to(self.repo / ".git" / name)

    def commit(self) -> str | None:
        """The commit that HEAD is at; None before the first one."""
        out = bytearray()
        ended = self._git(["rev-parse", "--verify", "-q", "HEAD^{commit}"], out.extend)
        return out.decode().strip() or None if ended.status == 0 else None

    def patch(self, sink: Sink) -> None:
        """`git diff --binary` from the base to the work tree; nothing when they are the same."""
        base = self.base or self._said("hash-object", "-t", "tree", "/dev/null")
        options = ("--binary", "--full-index", "--no-ext-diff", "--no-textconv", "--no-color",
                   "--no-renames", "--ignore-submodules=dirty")  # fmt: skip
        self._must(["diff", *options, base, "--"], sink)

    def bundle(self, sink: Sink) -> None:
        """The commits that were not there before, of HEAD and of every branch; or nothing."""
        wanted = ["--branches"] + (["HEAD"] if self.commit() else [])
        without = ["--not", self.base] if self.base and self._grew_from_base() else []
        if self._said("rev-list", "--max-count=1", *wanted, *without):
            self._must(["bundle", "create", "-q", "-", *wanted, *without], sink)

    def _grew_from_base(self) -> bool:
        """False when history was rewritten: then only a whole bundle is of use to anybody."""
        words = ["merge-base", "--is-ancestor", self.base or "", "HEAD"]
        return self._git(words, bytes.__len__).status == 0

    def untracked(self) -> list[bytes]:
        """The files that are neither tracked nor ignored; an inner repository ends with `/`."""
        out = bytearray()
        self._must(["ls-files", "--others", "--exclude-standard", "-z"], out.extend)
        return [name for name in bytes(out).split(b"\0") if name]

    def archive(self, names: Spool, sink: Sink) -> str:
        """A tar.gz of `names` (each ended by NUL); what tar complained about, or ""."""
        ended = run_as(
            self.account,
            ["tar", "-C", self.repo, "--create", "--null", "--files-from=-", "--sparse",
             "--ignore-failed-read", "--numeric-owner", "--use-compress-program=gzip -1"],
            deadline=self.deadline, env=_ENVIRONMENT, stdin=names.rewound(), sink=sink,
        )  # fmt: skip
        if ended.status not in (0, 1, 2):
            raise GitFailed(f"tar ended with status {ended.status}: {_last_line(ended)}")
        return _last_line(ended)

    def _git(self, words: Sequence[str], sink: Callable[[bytes], object]) -> Ended:
        environment = {
            **_ENVIRONMENT,
            "GIT_DIR": str(self.scratch),
            "GIT_WORK_TREE": str(self.repo),
            "GIT_INDEX_FILE": str(self.repo / ".git/index"),
        }
        argv = ["git", "-C", str(self.repo), *_SAFE, *words]
        return run_as(self.account, argv, deadline=self.deadline, env=environment, sink=sink)

    def _must(self, words: Sequence[str], sink: Callable[[bytes], object]) -> None:
        ended = self._git(words, sink)
        if ended.status != 0:
            raise GitFailed(f"git {words[0]} ended with status {ended.status}: {_last_line(ended)}")

    def _said(self, *words: str) -> str:
        out = bytearray()
        self._must(words, out.extend)
        return out.decode(errors="replace").strip()


def _last_line(ended: Ended) -> str:
    lines = ended.text.splitlines()
    return printable(lines[-1])[:300] if lines else ""

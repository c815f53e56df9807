"""Hands the work back, the most worthy first; what fails goes to `missing`, the rest goes on."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Invalid
from agentlab.guest.account import Account
from agentlab.guest.daemon import Daemon, Read
from agentlab.guest.files import Found, open_directory, printable, walk
from agentlab.guest.job import Limits
from agentlab.guest.paths import Paths, Workplace
from agentlab.guest.spool import Spool
from agentlab.guest.worktree import WorkTree

_PIECE = 256 * 1024
_MISSING_MOST = 200  # entries; a tree of a million sockets must not make a report of 100 MB


class _TooLarge(Invalid):
    """A part grew past its limit while it was made."""


@dataclass(slots=True)
class Handed:
    """What came through, and what did not, as the report lists them."""

    artifacts: list[dict[str, object]] = field(default_factory=list)
    missing: list[dict[str, object]] = field(default_factory=list)
    commit_after: str | None = None
    total: int = 0
    unlisted: int = 0

    def miss(self, name: str, reason: str) -> None:
        if len(self.missing) < _MISSING_MOST:
            self.missing.append({"name": name[:1000], "reason": reason[:1000]})
        else:
            self.unlisted += 1

    def close(self) -> None:
        if self.unlisted:
            self.missing.append({"name": "…", "reason": f"and {self.unlisted} more"})
            self.unlisted = 0


@dataclass(frozen=True, slots=True)
class HandBack:
    """One hand-back; `base` is the commit that the work began at."""

    account: Account
    paths: Paths
    place: Workplace
    daemon: Daemon
    limits: Limits
    base: str | None
    deadline: Deadline
    handed: Handed

    def run(self) -> None:
        """Fills `handed`; raises nothing that has to do with the agent's work."""
        tree = WorkTree(
            self.place.repo, self.paths.shared / "git", self.account, self.base, self.deadline
        )
        try:
            tree.prepare()
        except (AgentLabError, OSError) as problem:
            for name in ("changes.patch", "repo.bundle"):
                self.handed.miss(name, f"the repo cannot be read: {problem}")
            self._part("untracked.tar.gz", lambda sink: self._everything(tree, sink))
        else:
            self._guard("commit_after", lambda: self._look_at_head(tree))
            self._part("changes.patch", tree.patch)
            self._part("repo.bundle", tree.bundle)
            self._part("untracked.tar.gz", lambda sink: self._untracked(tree, sink))
        self._guard("files", self._files)
        self.handed.close()

    def _look_at_head(self, tree: WorkTree) -> None:
        self.handed.commit_after = tree.commit()

    def _guard(self, name: str, act: Callable[[], None]) -> None:
        """One part's failure is one line in `missing`."""
        if self.deadline.passed:
            self.handed.miss(name, "the time for handing back had passed")
            return
        try:
            act()
        except (AgentLabError, OSError) as problem:
            self.handed.miss(name, problem.message if isinstance(problem, AgentLabError)
                             else problem.strerror or str(problem))  # fmt: skip
        except Exception as fault:
            logging.exception("cannot hand back %s", name)
            self.handed.miss(name, f"internal error: {type(fault).__name__}: {fault}")

    def _part(self, name: str, make: Callable[[Callable[[bytes], None]], object]) -> None:
        """Makes a part into a spool (its size and sum go first), and hands it over."""

        def act() -> None:
            with Spool(self.paths.spools) as spool:
                digest = hashlib.sha256()

                def sink(data: bytes) -> None:
                    if spool.size + len(data) > self.limits.artifact_bytes:
                        raise _TooLarge(_over(self.limits.artifact_bytes))
                    spool.write(data)
                    digest.update(data)

                make(sink)
                if spool.size:
                    self._send(name, digest.hexdigest(), spool.size, spool.read)

        self._guard(name, act)

    def _send(self, name: str, sha256: str, size: int, read: Read) -> None:
        limits, handed = self.limits, self.handed
        if len(handed.artifacts) >= limits.artifact_count:
            raise Invalid(f"more than the limit of {limits.artifact_count} files")
        if handed.total + size > limits.artifact_total:
            raise Invalid(f"past the limit of {limits.artifact_total} bytes in sum")
        self.daemon.put_artifact(name, sha256, size, read, self.deadline)
        handed.artifacts.append({"name": name, "size": size, "sha256": sha256})
        handed.total += size

    def _everything(self, tree: WorkTree, sink: Callable[[bytes], None]) -> None:
        """The whole work tree, when git cannot tell what is new in it."""
        os.close(open_directory(self.place.repo))  # it may be gone, or a symlink by now
        self._archive(tree, [b"."], sink)

    def _untracked(self, tree: WorkTree, sink: Callable[[bytes], None]) -> None:
        """One huge file does not keep the others from coming back."""
        kept = []
        for name in tree.untracked():
            path = Path(os.fsdecode(name))
            try:
                size = (self.place.repo / path).lstat().st_blocks * 512
            except OSError:
                size = 0  # tar will say
            if size > self.limits.artifact_bytes:
                label = "untracked.tar.gz: " + printable(str(path))
                self.handed.miss(label, _over(self.limits.artifact_bytes))
            else:
                kept.append(name)
        if kept:
            self._archive(tree, kept, sink)

    def _archive(self, tree: WorkTree, names: list[bytes], sink: Callable[[bytes], None]) -> None:
        with Spool(self.paths.spools) as listed:
            listed.write(b"".join(name + b"\0" for name in names))
            if complaint := tree.archive(listed, sink):
                self.handed.miss("untracked.tar.gz", f"not all of it: {complaint}")

    def _files(self) -> None:
        for one in walk(self.place.artifacts, self.account):
            name = f"files/{one.name}".rstrip("/")
            if not isinstance(one, Found):
                self.handed.miss(name, one.reason)
                continue
            try:
                self._guard(name, lambda found=one, name=name: self._file(found, name))  # type: ignore[misc]  # bound early, in a loop
            finally:
                os.close(one.fd)

    def _file(self, found: Found, name: str) -> None:
        if found.size > self.limits.artifact_bytes:
            raise Invalid(_over(self.limits.artifact_bytes))
        if self.handed.total + found.size > self.limits.artifact_total:
            raise Invalid(f"past the limit of {self.limits.artifact_total} bytes in sum")
        digest, offset = hashlib.sha256(), 0
        while offset < found.size:
            piece = _read(found.fd, offset, min(_PIECE, found.size - offset))
            digest.update(piece)
            offset += len(piece)
        self._send(name, digest.hexdigest(), found.size,
                   lambda offset, most: _read(found.fd, offset, most))  # fmt: skip


def _read(fd: int, offset: int, most: int) -> bytes:
    """Raises Invalid, so that a bad disk is not taken for a bad network."""
    try:
        data = os.pread(fd, most, offset)
    except OSError as problem:
        raise Invalid(f"it cannot be read: {problem.strerror}") from problem
    if not data:
        raise Invalid("it became shorter while it was read")
    return data


def _over(limit: int) -> str:
    return f"larger than the limit of {limit} bytes"

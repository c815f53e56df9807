"""A repository of this machine as a git bundle, so that a job needs no git server."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentlab.errors import Invalid
from agentlab.run import CommandFailed, run

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SCP = re.compile(r"(?:[^/@:\s]+@)?[^/@:\s]+:.+")
_HELPER = re.compile(r"[A-Za-z0-9+.-]+::")
_SECONDS = 600.0  # for packing a large repository


@dataclass(frozen=True, slots=True)
class Packed:
    """A bundle in a temporary file; `ref` is what its HEAD is called, `dirty` what it leaves out."""

    path: Path
    size: int
    sha256: str
    commit: str
    ref: str
    dirty: int


def local_path(repo: str) -> Path | None:
    """The path when `repo` names a directory here, None for a git URL; Invalid for neither."""
    if repo.startswith("-"):
        raise Invalid(f"cannot use the repository {repo!r}: it begins with '-'")
    if _HELPER.match(repo):
        raise Invalid(
            f"cannot use the repository {repo!r}: remote helpers run programs",
            hint="use https://, ssh://, git:// or a local path",
        )
    path = Path(repo.removeprefix("file://")).expanduser()
    if repo and path.exists():
        return path
    if repo.startswith("file://") or not (_SCHEME.match(repo) or _SCP.fullmatch(repo)):
        raise Invalid(
            f"cannot use the repository {repo!r}: no such directory, and no git URL",
            hint="give a path to a git repository, or a URL like https://host/repo.git",
        )
    return None


def _git(path: Path, *words: str | Path, check: bool = True) -> str:
    done = run(["git", "-C", path, *words], timeout=_SECONDS, check=check)
    return done.text.strip() if done.status == 0 else ""


@contextlib.contextmanager
def packed(path: Path, ref: str) -> Iterator[Packed]:
    """The commit that `ref` ("" for HEAD) names, with all its history, as a bundle.

    It is packed through a scratch repository that borrows the objects: a bundle can only name
    refs, a commit id is none, and the user's repository is not to be touched.
    """
    if ref.startswith("-"):
        raise Invalid(f"cannot use the ref {ref!r}: it begins with '-'")
    with tempfile.TemporaryDirectory(prefix="agentlab-") as scratch:
        objects, commit, name, dirty = _look(path, ref)
        bare = Path(scratch, "repo")
        run(["git", "init", "--quiet", "--bare", "--template=", bare], timeout=60)
        (bare / "objects" / "info").mkdir(exist_ok=True)
        (bare / "objects" / "info" / "alternates").write_text(f"{objects}\n")
        _git(bare, "update-ref", f"refs/heads/{name}", commit)
        _git(bare, "symbolic-ref", "HEAD", f"refs/heads/{name}")
        file = Path(scratch, "repo.bundle")
        try:
            _git(bare, "bundle", "create", "--quiet", file, "HEAD", f"refs/heads/{name}")
        except CommandFailed as error:
            raise Invalid(f"cannot pack {path}: {error.message}") from error
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        yield Packed(file, file.stat().st_size, digest, commit, name, dirty)


def _look(path: Path, ref: str) -> tuple[Path, str, str, int]:
    """Where the objects are, the commit, a branch name for it, and how many files are changed."""
    try:
        objects = Path(_git(path, "rev-parse", "--git-path", "objects"))
    except CommandFailed as error:
        said = error.completed.stderr.decode(errors="replace").strip().splitlines()
        why = said[0].removeprefix("fatal: ") if said else "not a git repository"
        hint = "give a path to a git repository, or a git URL"
        if "dubious ownership" in why:
            hint = f"if you trust it: git config --global --add safe.directory {path.resolve()}"
        raise Invalid(f"cannot pack {path}: {why}", hint=hint) from error
    if _git(path, "rev-parse", "--is-shallow-repository") == "true":
        raise Invalid(
            f"cannot pack {path}: it is a shallow clone, and a bundle needs the whole history",
            hint="git fetch --unshallow, or give the repository's URL",
        )
    commit = _git(
        path, "rev-parse", "--verify", "--quiet", "--end-of-options",
        f"{ref or 'HEAD'}^{{commit}}", check=False,
    )  # fmt: skip
    if not commit:
        raise Invalid(
            f"cannot pack {path}: no commit {ref or 'HEAD'}",
            hint="see its branches and tags: git branch --all; git tag"
            if ref
            else "make a first commit",
        )
    full = _git(
        path, "rev-parse", "--verify", "--quiet", "--symbolic-full-name", "--end-of-options",
        ref or "HEAD", check=False,
    )  # fmt: skip
    name = full.removeprefix("refs/heads/") if full.startswith("refs/heads/") else "agentlab"
    dirty = 0
    if not ref and _git(path, "rev-parse", "--is-inside-work-tree") == "true":
        dirty = len(_git(path, "status", "--porcelain").splitlines())
    return (path / objects).resolve(), commit, name, dirty

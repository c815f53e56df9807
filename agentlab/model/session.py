"""Sessions: a workspace bound to a profile, so that work can be stopped, resumed and forked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from agentlab.errors import Invalid

# git-check-ref-format(1), as far as it matters here; git itself has the last word
_BRANCH = re.compile(r"(?!-)[^\s\x00-\x20\x7f~^:?*\[\\]{1,200}", re.ASCII)
_MOST_NAME, _MOST_BASE = 63, 40


class SessionState(StrEnum):
    """It has none of its own: a session is what its workspace is."""

    STOPPED = "STOPPED"
    RUNNING = "RUNNING"


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What somebody asked for: `workspace` names one that is there, else `size` (MiB) makes one.

    `repo` and `branch` say for what it is, "" for nothing in particular.
    """

    name: str
    profile: str
    workspace: str = ""
    size: int = 0
    storage: str = ""
    repo: str = ""
    branch: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """The record of a session.  `workspace` is the id of its workspace's record.

    `origin` is the name of the session that it was forked from, "" for none; `repo` and `branch`
    say for which branch it is.
    """

    name: str
    workspace: int
    profile: str
    created: float
    changed: float
    id: int = 0
    origin: str = ""
    repo: str = ""
    branch: str = ""


def parse_branch(text: str) -> str:
    """The same branch; Invalid for what git would not take as one."""
    wrong = not _BRANCH.fullmatch(text) or ".." in text or "@{" in text or "//" in text
    if wrong or text.startswith(("/", ".")) or text.endswith(("/", ".", ".lock")):
        raise Invalid(
            f"cannot use {text[:100]!r} as the name of a branch",
            hint="see: git help check-ref-format",
            details={"path": "branch"},
        )
    return text


def branch_session_name(base: str, branch: str, taken: frozenset[str] | set[str]) -> str:
    """A name for the session of a branch: BASE-BRANCH, as a host name, and one that is free."""
    slug = re.sub(r"[^a-z0-9]+", "-", branch.lower()).strip("-") or "branch"
    base = base[:_MOST_BASE].rstrip("-")
    for number in range(1, 1000):
        end = "" if number == 1 else f"-{number}"
        name = f"{base}-{slug[: _MOST_NAME - len(base) - 1 - len(end)].rstrip('-')}{end}"
        if name not in taken:
            return name
    raise Invalid(f"there are too many sessions of branch {branch}")


def repo_session_base(url: str) -> str:
    """What a session is called whose repository is at this URL: the repository's own name."""
    last = re.split(r"[/:]", url.rstrip("/"))[-1].removesuffix(".git").lower()
    slug = re.sub(r"[^a-z0-9]+", "-", last).strip("-").lstrip("0123456789-")
    return slug or "repo"

"""The job document: what the daemon answers to a claim, as a typed value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from agentlab.errors import Invalid

PROTOCOL = 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Repo:
    """Where the work comes from.  `ref` None: the remote's HEAD.  `depth` 0: whole history."""

    kind: str  # git or bundle
    url: str
    ref: str | None
    depth: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes, and a number of files."""

    log_bytes: int
    artifact_bytes: int
    artifact_total: int
    artifact_count: int


@dataclass(frozen=True, slots=True)
class Job:
    """One task for one agent; times in seconds, `time_limit` counts from the claim."""

    id: str
    profile: str
    mode: str
    task: str
    repo: Repo
    command: str
    bubblewrap: bool
    env: Mapping[str, str]
    time_limit: float
    handback_limit: float
    heartbeat: float
    limits: Limits


def _take(document: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = document.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Invalid(f"cannot read the job document: `{key}` is missing or of a wrong type")
    return value


def _seconds(document: Mapping[str, Any], key: str) -> float:
    value = document.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise Invalid(f"cannot read the job document: `{key}` must be a number above 0")
    return float(value)


def _repo(document: Mapping[str, Any]) -> Repo:
    kind = _take(document, "kind", str)
    if kind not in ("git", "bundle"):
        raise Invalid(f"cannot read the job document: no such kind of repo: {kind}")
    ref = document.get("ref")
    if ref is not None and not isinstance(ref, str):
        raise Invalid("cannot read the job document: `ref` is of a wrong type")
    url = _take(document, "url", str) if kind == "git" else ""
    depth = _take(document, "depth", int) if document.get("depth") is not None else 0
    return Repo(kind, url, ref or None, depth)


def parse_job(document: Mapping[str, Any]) -> Job:
    """Raises Invalid with the first thing that is not as the protocol says."""
    protocol = document.get("protocol")
    if protocol != PROTOCOL:
        raise Invalid(
            f"cannot work for this daemon: it speaks protocol {protocol}, the runner {PROTOCOL}",
            hint="build the template again with this version of agentlab",
        )
    limits: dict[str, Any] = _take(document, "limits", dict)
    env: dict[str, Any] = _take(document, "env", dict)
    if not all(isinstance(value, str) for value in env.values()):
        raise Invalid("cannot read the job document: `env` must hold strings")
    return Job(
        id=_take(document, "id", str),
        profile=_take(document, "profile", str),
        mode=_take(document, "mode", str),
        task=_take(document, "task", str),
        repo=_repo(_take(document, "repo", dict)),
        command=_take(document, "command", str),
        bubblewrap=_take(document, "bubblewrap", bool),
        env=env,
        time_limit=_seconds(document, "time_limit"),
        handback_limit=_seconds(document, "handback_limit"),
        heartbeat=_seconds(document, "heartbeat"),
        limits=Limits(
            *(
                max(0, _take(limits, key, int))
                for key in ("log_bytes", "artifact_bytes", "artifact_total", "artifact_count")
            )
        ),
    )

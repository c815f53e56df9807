"""From a job as it was asked for to one that can be planned; Invalid names the path."""

from __future__ import annotations

import re

from agentlab.api import messages as m
from agentlab.errors import Invalid
from agentlab.model.job import JobSpec, Repo
from agentlab.store import jobs
from agentlab.store.db import Store
from agentlab.units import parse_duration

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", re.ASCII)
_MODE = re.compile(r"[A-Za-z0-9._-]*", re.ASCII)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.ASCII | re.DOTALL)
_SCP = re.compile(r"(?:[^/@:\s]+@)?([^/@:\s]+):(.+)", re.DOTALL)
_HELPER = re.compile(r"[A-Za-z0-9+.-]+::", re.ASCII)
_PATH_HINT = "for a directory of your own: agentlab job run --repo PATH, which sends a git bundle"
_MAX_DEPTH = 1_000_000
_MAX_ENTRIES = 256
_MAX_LABEL = 1024
_ENV_HINT = "letters, digits and '_', no digit first"
_LABEL_HINT = "1 to 63 letters, digits, '.', '_', '/' and '-', a letter or digit first"


def _bad(path: str, why: str, hint: str = "") -> Invalid:
    return Invalid(f"{path}: {why}", hint=hint, details={"path": path})


def parse_spec(store: Store, request: m.JobRequest) -> JobSpec:
    """The spec of a request; a bundle that it names has been sent."""
    if not request.task.strip():
        raise _bad("task", "is empty", "say what is to be done: --task TEXT, or --task-file FILE")
    if not _MODE.fullmatch(request.mode):
        raise _bad("mode", "may have letters, digits, '.', '_' and '-' only")
    return JobSpec(
        repo=_repo(store, request.repo),
        task=request.task,
        profile=request.profile,
        mode=request.mode,
        ttl=parse_ttl(request.ttl),
        env=_env(request.env),
        labels=parse_labels(request.labels),
        workspace=request.workspace,
        session=request.session,
        stateful=request.stateful,
        branch=request.branch,
        workspace_wait=parse_ttl(request.workspace_wait, "workspace_wait"),
        queue=request.queue,
    )


def _repo(store: Store, repo: m.RepoRequest) -> Repo:
    if bool(repo.url) == bool(repo.bundle):
        raise _bad("repo", "must have either url or bundle")
    if repo.url:
        _check_url(repo.url)
    if repo.bundle:
        _check_bundle(store, repo.bundle)
    if repo.ref.startswith("-") or any(c.isspace() or not c.isprintable() for c in repo.ref):
        raise _bad("repo.ref", "must be a branch, tag or commit; no spaces, no '-' first")
    if not 0 <= repo.depth <= _MAX_DEPTH:
        raise _bad("repo.depth", f"must be from 0 (the whole history) to {_MAX_DEPTH}")
    return Repo(url=repo.url, bundle=repo.bundle, ref=repo.ref, depth=repo.depth)


def _check_url(url: str) -> None:
    where = "repo.url"
    if url.startswith("-") or not url.isprintable():
        raise _bad(where, "must be a git URL; no control characters, no '-' first")
    if _HELPER.match(url):
        raise _bad(where, "remote helpers run programs", "use https://, ssh:// or git://")
    scheme, scp = _SCHEME.fullmatch(url), _SCP.fullmatch(url)
    if scheme and scheme[1].lower() == "file":
        raise _bad(where, "the sandbox has no files of this host", _PATH_HINT)
    host = scheme[2] if scheme else scp[1] if scp else ""
    if not host:
        raise _bad(where, f"{url[:200]} is no git URL", _PATH_HINT)
    # git would hand it to ssh as an option
    if host.rpartition("@")[2].startswith("-") or host.startswith("-"):
        raise _bad(where, "its host begins with '-'")


def _check_bundle(store: Store, sha256: str) -> None:
    if not _SHA256.fullmatch(sha256):
        raise _bad("repo.bundle", "must be a sha256, 64 lower-case hex digits")
    with store.read() as tx:
        known = jobs.has_bundle(tx, sha256)
    if not known:
        raise _bad(
            "repo.bundle", f"no bundle {sha256} has been sent", "send it: PUT /v1/bundles/SHA256"
        )


def parse_ttl(text: str, path: str = "ttl") -> int:
    """Seconds, 0 for none; Invalid names the path."""
    try:
        return parse_duration(text) if text else 0
    except Invalid as error:
        raise _bad(path, error.message, error.hint) from error


def _env(env: dict[str, str]) -> dict[str, str]:
    if len(env) > _MAX_ENTRIES:
        raise _bad("env", f"has more than {_MAX_ENTRIES} names")
    for name in env:
        if not _ENV_NAME.fullmatch(name):
            raise _bad("env", f"{name[:100]!a} cannot be the name of a variable", _ENV_HINT)
    return env


def parse_labels(labels: dict[str, str]) -> dict[str, str]:
    """The same labels; Invalid for what cannot be one."""
    if len(labels) > _MAX_ENTRIES:
        raise _bad("labels", f"has more than {_MAX_ENTRIES} names")
    for name, value in labels.items():
        if not _LABEL_NAME.fullmatch(name):
            raise _bad("labels", f"{name[:100]!a} cannot be the name of a label", _LABEL_HINT)
        if len(value) > _MAX_LABEL:
            raise _bad(f"labels.{name}", f"is longer than {_MAX_LABEL} characters")
    return labels

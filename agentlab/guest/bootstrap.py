"""Waits for what the host writes into the VM: an identity, then the bootstrap of one job."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlab.errors import Invalid
from agentlab.guest.job import PROTOCOL
from agentlab.guest.paths import Pace, Paths
from agentlab.secret import Secret

_WHOLE = 10.0  # seconds that a file may take to become whole


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Where to fetch one job, and the token to do it with, once."""

    url: str
    job: str
    token: Secret


def parse_bootstrap(document: dict[str, Any]) -> Bootstrap:
    if document.get("protocol") != PROTOCOL:
        raise Invalid(
            f"cannot use the bootstrap: protocol {document.get('protocol')}, not {PROTOCOL}",
            hint="build the template again with this version of agentlab",
        )
    words = [document.get(key) for key in ("url", "job", "token")]
    if not all(isinstance(word, str) and word for word in words):
        raise Invalid("cannot use the bootstrap: url, job or token is missing")
    url, job, token = map(str, words)
    return Bootstrap(url, job, Secret(token))


def replace(path: Path, text: str, mode: int = 0o600) -> None:
    """Writes a file whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    fresh.replace(path)


def take(path: Path) -> dict[str, Any] | None:
    """The file's object, and the file is gone; None when there is none, or not whole yet."""
    try:
        raw = path.read_bytes()
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        document = json.loads(raw)
    except ValueError as problem:
        # Whoever wrote it without a rename may still be writing.
        if 0 <= age < _WHOLE:
            return None
        path.unlink(missing_ok=True)
        raise Invalid(f"cannot read {path.name}: not JSON") from problem
    path.unlink(missing_ok=True)
    if not isinstance(document, dict):
        raise Invalid(f"cannot read {path.name}: not an object")
    return document


def wait(paths: Paths, pace: Pace, adopt: Callable[[dict[str, Any]], None]) -> Bootstrap:
    """Waits as cheaply as can be; `adopt` gets each identity that comes before the bootstrap."""
    paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.run.chmod(0o700)
    paths.ready.touch()
    logging.info("ready, waiting for a job")
    while True:
        if (identity := take(paths.identity)) is not None:
            adopt(identity)
        if (document := take(paths.bootstrap)) is not None:
            paths.ready.unlink(missing_ok=True)
            return parse_bootstrap(document)
        time.sleep(pace.idle)

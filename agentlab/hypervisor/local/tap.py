"""A tap of our own, for as long as a memory snapshot is made; it is attached to nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from agentlab import run
from agentlab.errors import Unavailable

_TIMEOUT = 20.0


def exists(name: str) -> bool:
    """Whether there is an interface of this name in our network namespace."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def temporary_tap(lock: Path) -> Iterator[str]:
    """Makes a tap and removes it.  The caller holds `lock`, whose path is in the tap's name.

    So those that a killed holder left are told from those of others, and removed first.
    """
    prefix = "alm" + hashlib.sha256(str(lock.resolve()).encode()).hexdigest()[:5]
    for stale in _names(prefix):
        _delete(stale, check=False)
    name = prefix + secrets.token_hex(3)
    run.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"], timeout=_TIMEOUT)
    try:
        yield name
    finally:
        _delete(name, check=False)


def _delete(name: str, *, check: bool) -> None:
    """The kernel refuses while a process has it open."""
    argv = ["ip", "tuntap", "del", "dev", name, "mode", "tap"]
    run.run(argv, timeout=_TIMEOUT, check=check)


def _names(prefix: str) -> list[str]:
    shown = run.run(["ip", "-json", "link", "show"], timeout=_TIMEOUT).stdout
    try:
        links = json.loads(shown or b"[]")
        names = [str(link["ifname"]) for link in links]
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable("cannot list interfaces: ip said what we do not understand") from error
    return [name for name in names if name.startswith(prefix)]

"""Git bundles that clients send for their jobs."""

from __future__ import annotations

import re
from pathlib import Path

from agentlab.api import messages as m
from agentlab.api.table import MAX_BUNDLE, Raw
from agentlab.daemon.context import Daemon
from agentlab.daemon.exchange import Body
from agentlab.daemon.job_files import Part, check_room, disk_errors, open_dir
from agentlab.daemon.router import Request
from agentlab.errors import Invalid, TooLarge
from agentlab.store import jobs
from agentlab.store.db import Store

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FORMAT = re.compile(rb"# v[23] git bundle\n")  # gitformat-bundle(5)


def put(daemon: Daemon, request: Request[Raw]) -> m.BundleView:
    """Keeps a bundle under its sha256.  One that is there already is not written again."""
    sha256, body = request.values["sha256"], request.body
    if not _SHA256.fullmatch(sha256):
        raise Invalid("cannot take the bundle: its name is not a sha256, 64 lower-case hex digits")
    if body.size > MAX_BUNDLE:
        raise TooLarge(
            f"cannot take the bundle: {body.size} bytes, and at most {MAX_BUNDLE} are taken"
        )
    folder, store = daemon.world.config.bundle_dir, daemon.world.store
    path = folder / f"{sha256}.bundle"
    size = _used_again(store, path, sha256)
    if size is not None:
        for _ in body.blocks():
            pass
        return m.BundleView(sha256, size)
    check_room(folder, body.size, "the bundle")
    with disk_errors("the bundle"), open_dir(folder) as fd, Part(fd, daemon.boot) as part:
        _receive(part, body, sha256)
        with store.write() as tx:
            part.keep(fd, path.name)
            jobs.put_bundle(tx, sha256, body.size)
    return m.BundleView(sha256, body.size)


def _used_again(store: Store, path: Path, sha256: str) -> int | None:
    """The size of a bundle that is there, and is now kept for as long as a new one; else None."""
    with store.write() as tx:  # in one transaction: retention removes it in one, too
        if not jobs.has_bundle(tx, sha256) or not path.is_file():
            return None
        size = path.stat().st_size
        jobs.put_bundle(tx, sha256, size)
        return size


def _receive(part: Part, body: Body, sha256: str) -> None:
    start = b""
    for block in body.blocks():
        if len(start) < 32:
            start += block[:32]
            if len(start) >= 16 and not _FORMAT.match(start):
                raise Invalid("cannot take the bundle: it is not a git bundle")
        part.write(block)
    if not _FORMAT.match(start):
        raise Invalid("cannot take the bundle: it is not a git bundle")
    part.check(sha256, "the bundle")

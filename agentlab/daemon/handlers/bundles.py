"""Git bundles that clients send for their jobs."""

from __future__ import annotations

import re

from agentlab.api import messages as m
from agentlab.api.table import MAX_BUNDLE, Raw
from agentlab.daemon.context import Daemon
from agentlab.daemon.exchange import Body
from agentlab.daemon.job_files import Part, disk_errors, open_dir
from agentlab.daemon.router import Request
from agentlab.errors import Invalid, TooLarge
from agentlab.store import jobs

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
    with store.read() as tx:
        known = jobs.has_bundle(tx, sha256)
    if known and path.is_file():
        size = path.stat().st_size
        for _ in body.blocks():
            pass
        with store.write() as tx:  # used again: kept for as long as a new one
            jobs.put_bundle(tx, sha256, size)
        return m.BundleView(sha256, size)
    with disk_errors("the bundle"), open_dir(folder) as fd, Part(fd, daemon.boot) as part:
        _receive(part, body, sha256)
        with store.write() as tx:
            part.keep(fd, path.name)
            jobs.put_bundle(tx, sha256, body.size)
    return m.BundleView(sha256, body.size)


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

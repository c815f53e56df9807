"""What a guest sends while it works: its log, piece by piece, and its artifacts, file by file."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterator

from agentlab import clock
from agentlab.daemon.context import Daemon
from agentlab.daemon.exchange import Body
from agentlab.daemon.guest_session import Session, still_open
from agentlab.daemon.job_files import (
    INCOMING,
    LOG,
    RESERVED,
    Part,
    append,
    check_name,
    check_room,
    disk_errors,
    open_job_dir,
    open_parent,
)
from agentlab.errors import Conflict, Invalid, TooLarge
from agentlab.model.job import Artifact
from agentlab.store import events, jobs

MAX_CHUNK = 1 << 20  # bytes of log in one request
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Elsewhere(Conflict):
    """The log has another size than the guest thought: it goes on from `details["size"]`."""

    code = "log_offset"


def append_log(daemon: Daemon, session: Session, body: Body, offset: int) -> dict[str, object]:
    """Appends what comes at the log's end; gives its size then."""
    if body.size > MAX_CHUNK:
        raise TooLarge(f"cannot take the log: more than {MAX_CHUNK} bytes at once")
    content, most = body.whole(MAX_CHUNK), session.limits.log
    if offset + len(content) > most:
        raise TooLarge(f"cannot take the log: past its limit of {most} bytes")
    artifact_dir = daemon.world.config.artifact_dir
    check_room(artifact_dir, len(content), "the log")
    with (
        disk_errors("the log"),
        open_job_dir(artifact_dir, session.job.id) as folder,
        # a transaction, though it writes no row: one piece at a time, none after the job's end,
        # and readers who wait for news hear of it
        daemon.world.store.write() as tx,
    ):
        still_open(tx, session)
        size = append(folder, LOG, offset, content)
    if size != offset:
        raise Elsewhere(
            f"the log has {size} bytes, and a piece came for byte {offset}", details={"size": size}
        )
    return {"size": size + len(content)}


class Uploads:
    """Takes artifacts; counts what is on its way, so that many at once do not pass the limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._coming: Counter[str] = Counter()  # bytes, by job

    def take(
        self, daemon: Daemon, session: Session, body: Body, name: str, sha256: str
    ) -> dict[str, object]:
        """Keeps a file that is what its sha256 says; the same one again is not written."""
        if not _SHA256.fullmatch(sha256):
            raise Invalid("cannot take the file: X-Content-Sha256 must be 64 lower-case hex digits")
        found = Artifact(session.job.id, check_name(name), body.size, sha256, clock.now())
        with self._room(daemon, session, found) as known:
            if known:
                for _ in body.blocks():
                    pass
            else:
                _receive(daemon, session, body, found)
        return {"name": name, "size": body.size, "sha256": sha256}

    @contextlib.contextmanager
    def _room(self, daemon: Daemon, session: Session, new: Artifact) -> Iterator[bool]:
        """Holds room for a file while it comes; True when it is there already."""
        limits, job = session.limits, new.job
        if new.size > limits.artifact:
            raise TooLarge(
                f"cannot take the file: larger than the limit of {limits.artifact} bytes"
            )
        with self._lock:
            with daemon.world.store.read() as tx:
                kept = {a.name: a for a in jobs.artifacts(tx, job) if a.name not in RESERVED}
            old = kept.get(new.name)
            known = old is not None and (old.size, old.sha256) == (new.size, new.sha256)
            if old is None and len(kept) >= limits.artifact_count:
                raise TooLarge(f"cannot take the file: there are {limits.artifact_count} already")
            total = sum(each.size for each in kept.values()) + self._coming[job]
            coming = 0 if known else new.size
            if total + coming > limits.artifacts:
                raise TooLarge(
                    f"cannot take the file: past the limit of {limits.artifacts} bytes in sum"
                )
            if coming:  # all that is promised already counts, as if none of it had come
                room = self._coming.total() + coming
                check_room(daemon.world.config.artifact_dir, room, "the file")
            self._coming[job] += coming
        try:
            yield known
        finally:
            with self._lock:
                self._coming[job] -= coming
                if not self._coming[job]:
                    del self._coming[job]


def _receive(daemon: Daemon, session: Session, body: Body, new: Artifact) -> None:
    artifact_dir = daemon.world.config.artifact_dir
    with (
        disk_errors("the file"),
        open_job_dir(artifact_dir, new.job) as folder,
        open_parent(folder, f"{INCOMING}/part", create=True) as (incoming, _),
        Part(incoming, daemon.boot) as part,
    ):
        for block in body.blocks():
            part.write(block)
        part.check(new.sha256, "the file")
        with daemon.world.store.write() as tx:
            job = still_open(tx, session)
            first = all(each.name != new.name for each in jobs.artifacts(tx, new.job))
            part.keep(folder, new.name)
            jobs.put_artifact(tx, new)
            if first:  # a name has one event, however often its file is sent
                events.append(
                    tx, "artifact.stored", f"job {job.id} handed back {new.name}", job=job.id,
                    vmid=job.vmid, operation=job.operation,
                    facts={"name": new.name, "size": new.size, "sha256": new.sha256},
                )  # fmt: skip

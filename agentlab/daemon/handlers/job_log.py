"""A job's log, from a byte on."""

from __future__ import annotations

import os

from agentlab.api import messages as m
from agentlab.api.table import MAX_WAIT
from agentlab.clock import Deadline
from agentlab.daemon.context import Daemon
from agentlab.daemon.exchange import Answer, raw
from agentlab.daemon.router import Request
from agentlab.errors import Conflict, Invalid
from agentlab.model.job import JOB
from agentlab.store import jobs

_MOST = 1 << 20  # bytes of one answer


def read(daemon: Daemon, request: Request[m.Nothing]) -> Answer:
    """What there is from `offset` on; waits for a byte, or for the end of the log."""
    store, offset = daemon.world.store, request.number("offset", 0)
    until = Deadline.after(request.seconds("wait", most=MAX_WAIT))
    while True:
        seen = store.commits
        with store.read() as tx:
            job = jobs.get(tx, request.values["id"])
        # asked before the file is read: what is in it then is all that there will be
        closed = JOB.final(job.state) or job.report is not None
        content, size = _content(daemon, job.id, offset)
        final = closed and offset + len(content) == size
        if content or final or until.passed or daemon.stopping.is_set():
            return raw(content, {"X-Final": "1" if final else "0", "X-Size": str(size)})
        store.wait(seen, until.left)


def _content(daemon: Daemon, job: str, offset: int) -> tuple[bytes, int]:
    path = daemon.world.job_dir(job) / "agent.log"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        size, content = 0, b""
    except OSError as error:
        raise Conflict(f"cannot read the log of job {job}: {error.strerror}") from error
    else:
        try:
            size = os.fstat(fd).st_size
            content = os.pread(fd, min(_MOST, max(0, size - offset)), offset)
        except OSError as error:
            raise Conflict(f"cannot read the log of job {job}: {error.strerror}") from error
        finally:
            os.close(fd)
    if offset > size:
        raise Invalid(
            f"the log has {size} bytes, and byte {offset} was asked for", details={"size": size}
        )
    return content, size

"""Who a guest is: a token that is spent once, then a session bound to one job and one address."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentlab import clock
from agentlab.daemon.context import Daemon
from agentlab.errors import Conflict, Denied
from agentlab.model.job import JOB, Job
from agentlab.model.profile import Limits
from agentlab.operations import requests
from agentlab.secret import fingerprint
from agentlab.store import events, jobs, operations, sandboxes, tokens
from agentlab.store.db import Tx

_SESSION = re.compile(r"[A-Za-z0-9_-]{43,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Session:
    """A guest that has shown whose it is.  `limits` are those of its job's beginning.

    `time_left`: seconds that its agent still has before it must hand back.
    """

    fingerprint: str
    address: str
    job: Job
    limits: Limits
    cancel: bool
    time_left: int


class Ended(Conflict):
    """The job takes nothing more from its guest."""

    code = "job_ended"


def claim(daemon: Daemon, address: str, token: str, session: str) -> dict[str, object]:
    """Spends a token, and gives the job document; again for the same token, session and address."""
    if not _SESSION.fullmatch(session):
        raise Denied("cannot claim: a session is 43 to 128 URL-safe characters")
    spent, wanted = fingerprint(token), fingerprint(session)
    with daemon.world.store.write() as tx:
        job = _spend(tx, address, spent, wanted)
    # the job's operation looks for a claim, so let it look now
    daemon.runner.wake(job.operation)
    return requests.guest_document(daemon.world, job)


def _spend(tx: Tx, address: str, spent: str, wanted: str) -> Job:
    token = tokens.find(tx, spent)
    if token is None:
        raise Denied("cannot claim: there is no such token")
    if token.address != address:
        raise Denied("cannot claim: the token belongs to another address")
    job = jobs.get(tx, token.job)
    if token.session and token.session != wanted:
        raise Denied("cannot claim: the token has been spent")
    if job.report is not None or JOB.final(job.state):
        raise Ended(f"cannot claim: job {job.id} has ended")
    if not token.session:
        if token.expires < clock.now():
            raise Denied("cannot claim: the token has expired")
        if tokens.by_session(tx, wanted) is not None:
            raise Denied("cannot claim: the session belongs to another token")
        tokens.spend(tx, spent, wanted)
        events.append(
            tx, "job.claimed", f"job {job.id} was fetched by its sandbox", job=job.id,
            vmid=job.vmid, operation=job.operation,
        )  # fmt: skip
    return job


def authorize(daemon: Daemon, address: str, authorization: str, job_id: str) -> Session:
    """The session that a request shows; Denied when it is not this job's at this address."""
    scheme, _, word = authorization.partition(" ")
    if scheme.lower() != "bearer" or not _SESSION.fullmatch(word):
        raise Denied("cannot tell who asks: no session was shown")
    shown = fingerprint(word)
    with daemon.world.store.read() as tx:
        token = tokens.by_session(tx, shown)
        if token is None:
            raise _no_session(tx, address, job_id)
        if token.address != address:
            raise Denied("the session belongs to another address")
        if token.job != job_id:
            raise OtherJob("the session belongs to another job", token.job)
        job = jobs.get(tx, token.job)
        operation = operations.find(tx, job.operation)
        if operation is None:
            raise Denied("the job's operation is gone")
        left = requests.agent_time_left(sandboxes.get(tx, job.vmid), operation)
    limits = operation.input["limits"]
    if not isinstance(limits, dict):
        raise TypeError("an operation without limits")
    return Session(
        fingerprint=shown,
        address=address,
        job=job,
        limits=Limits(**limits),
        cancel=operation.cancel,
        time_left=left,
    )


def _no_session(tx: Tx, address: str, job_id: str) -> Denied:
    mine = any(str(s.address) == address and s.job == job_id for s in sandboxes.live(tx))
    if mine and not tokens.spent(tx, job_id):
        return Closed("the session has been closed, or was never opened")
    return Denied("there is no such session")


class Closed(Denied):
    """The daemon has stopped listening to this job's guest: its time was up, or it has ended."""


class OtherJob(Denied):
    """A guest that asks for a job that is not its own; `own` is its own."""

    def __init__(self, message: str, own: str) -> None:
        super().__init__(message)
        self.own = own


def current_job(tx: Tx, session: Session) -> Job:
    """The job as it is in this transaction; Closed when its session has ended meanwhile."""
    if tokens.by_session(tx, session.fingerprint) is None:
        raise Closed("the session has been closed")
    return jobs.get(tx, session.job.id)


def still_open(tx: Tx, session: Session) -> Job:
    """The job, which can still take something from its guest; Ended or Closed otherwise."""
    job = current_job(tx, session)
    if job.report is not None:
        raise Ended(f"job {job.id} has reported its end, and takes nothing more")
    return job

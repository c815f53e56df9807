"""What a guest may ask.  The contract is docs/explanation/guest-protocol.md, part 3."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agentlab.api.codec import limit, render_document
from agentlab.api.messages import Nothing
from agentlab.api.table import Endpoint, Raw
from agentlab.daemon import guest_report, guest_session
from agentlab.daemon.context import Daemon
from agentlab.daemon.exchange import Answer, FileContent, Incoming, Peer, raw
from agentlab.daemon.guest_session import Closed, Ended, OtherJob, Session
from agentlab.daemon.guest_uploads import Elsewhere, Uploads, append_log
from agentlab.daemon.rate import Rate
from agentlab.daemon.refusals import Refusals
from agentlab.daemon.router import Match, Request, Router, read_request
from agentlab.errors import AgentLabError, Invalid, NotFound, TooMany
from agentlab.model.job import JOB
from agentlab.store import events

_MAX_DOCUMENT = 64 * 1024  # bytes
_RATE, _BURST = 50.0, 200.0  # requests a second of one address
_MAX_STAGES = 4096


class Stage(StrEnum):
    """How far the runner says that it is."""

    BOOTSTRAP = "bootstrap"
    CHECKOUT = "checkout"
    AGENT = "agent"
    HANDBACK = "handback"


@dataclass(frozen=True, slots=True)
class Claim:
    token: str = limit(256)
    session: str = limit(128)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    stage: Stage


_JOB = "/guest/v1/jobs/{id}"
ENDPOINTS: tuple[Endpoint[Any, Any], ...] = (
    Endpoint("claim", "POST", "/guest/v1/claim", Claim, Raw, "spend the token"),
    Endpoint("bundle", "GET", f"{_JOB}/repo.bundle", Nothing, Raw, "the repository"),
    Endpoint("heartbeat", "POST", f"{_JOB}/heartbeat", Heartbeat, Raw, "still alive"),
    Endpoint("log", "PUT", f"{_JOB}/log", Raw, Raw, "a piece of log", ("offset",)),
    Endpoint("artifact", "PUT", f"{_JOB}/artifacts/{{name...}}", Raw, Raw, "a file"),
    Endpoint("report", "POST", f"{_JOB}/report", guest_report.Report, Raw, "the end"),
)


class Stages:
    """The stage that each job's guest is in.  A guest only gets on, so each has its event once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, int] = OrderedDict()

    def advance(self, job: str, stage: Stage) -> bool:
        """True when the job has got further."""
        at = list(Stage).index(stage)
        with self._lock:
            before = self._seen.get(job, -1)
            self._seen[job] = max(at, before)
            if len(self._seen) > _MAX_STAGES:
                self._seen.popitem(last=False)
        return at > before


class GuestSite:
    """The guest endpoints.  Everything that comes is hostile."""

    def __init__(self, daemon: Daemon, rate: float = _RATE, burst: float = _BURST) -> None:
        self._daemon = daemon
        self._router = Router(ENDPOINTS)
        self._rate = Rate(rate, burst)
        self._refusals = Refusals(daemon.world.store)
        self._stages = Stages()
        self._uploads = Uploads()
        self._reports = guest_report.Turns()
        self._handlers: Mapping[str, Callable[[Session, Request[Any]], object]] = {
            "bundle": self._bundle,
            "heartbeat": self._heartbeat,
            "log": self._log,
            "artifact": self._artifact,
            "report": self._report,
        }

    def answer(self, incoming: Incoming) -> Answer:
        address = incoming.peer.address
        job = ""
        try:
            if not self._rate.take(address):
                raise TooMany(f"more than {_RATE:g} requests a second")
            match = self._router.find(incoming.method, incoming.path)
            if match.endpoint.name == "claim":
                request = read_request(match, incoming, _MAX_DOCUMENT, strict=False)
                return self._claim(address, request.document)
            word = incoming.headers.get("authorization", "")
            session = guest_session.authorize(self._daemon, address, word, match.values["id"])
            job = session.job.id
            if session.job.report is not None and match.endpoint.name != "report":
                raise Ended(f"job {job} has reported its end, and takes nothing more")
            found = self._answer(session, match, incoming)
        except Elsewhere:
            raise
        except AgentLabError as error:
            self._note(address, error, job)
            raise
        return found if isinstance(found, Answer) else Answer(200, render_document(found))

    def _answer(self, session: Session, match: Match, incoming: Incoming) -> object:
        handler = self._handlers[match.endpoint.name]
        if match.endpoint.name != "report":
            return handler(session, read_request(match, incoming, _MAX_DOCUMENT, strict=False))
        most = guest_report.MAX_REPORT
        incoming.body.check_size(most)
        with self._reports.one(session.job.id):
            return handler(session, read_request(match, incoming, most, strict=False))

    def refused(self, peer: Peer, error: AgentLabError) -> None:
        self._note(peer.address, error, "")

    def _note(self, address: str, error: AgentLabError, job: str) -> None:
        if isinstance(error, OtherJob):
            job = error.own
        # the daemon closed first: a guest that was still at it did nothing wrong
        late = isinstance(error, (Ended, Closed))
        level = logging.INFO if late else logging.WARNING
        self._refusals.note(address, error, job=job, level=level)

    def _claim(self, address: str, claim: Claim) -> Answer:
        document = guest_session.claim(self._daemon, address, claim.token, claim.session)
        return Answer(200, render_document(document))

    def _bundle(self, session: Session, _: Request[Nothing]) -> Answer:
        sha256 = session.job.spec.repo.bundle
        path = self._daemon.world.config.bundle_dir / f"{sha256}.bundle"
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise NotFound("there is no bundle for this job") from error
        return raw(FileContent(file, os.fstat(file.fileno()).st_size))

    def _heartbeat(self, session: Session, request: Request[Heartbeat]) -> object:
        job, stage = session.job, request.document.stage
        if self._stages.advance(job.id, stage) and not JOB.final(job.state):
            with self._daemon.world.store.write() as tx:
                events.append(
                    tx, "job.stage", f"job {job.id}: {stage}", job=job.id, vmid=job.vmid,
                    operation=job.operation, facts={"stage": stage.value},
                )  # fmt: skip
        return {"cancel": session.cancel, "time_left": session.time_left}

    def _log(self, session: Session, request: Request[Raw]) -> object:
        if "offset" not in request.query:
            raise Invalid("cannot take the log: the parameter offset is missing")
        offset = request.number("offset", 0)
        return append_log(self._daemon, session, request.body, offset)

    def _artifact(self, session: Session, request: Request[Raw]) -> object:
        name, sha256 = request.values["name"], request.headers.get("x-content-sha256", "")
        return self._uploads.take(self._daemon, session, request.body, name, sha256)

    def _report(self, session: Session, request: Request[guest_report.Report]) -> object:
        return guest_report.take(self._daemon, session, request.document)

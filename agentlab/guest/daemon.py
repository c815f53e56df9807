"""The daemon as the runner sees it: HTTP requests with retries, as the protocol says."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from agentlab.clock import Deadline, Timed
from agentlab.errors import BY_CODE, AgentLabError, Conflict, Denied, Invalid, Unavailable
from agentlab.guest.paths import Pace
from agentlab.secret import Secret

_PIECE = 256 * 1024
_ANSWER_MOST = 16 * 1024 * 1024  # bytes of a JSON answer

# A body is read by offset, so that it can be sent again: (offset, most) -> bytes.
Read = Callable[[int, int], bytes]
# Gives a new sink for bytes, when an answer begins.
Begin = Callable[[], Callable[[bytes], object]]


class _Retry(Unavailable):
    """A failure after which the same request is sent again; `reached`: the daemon was there."""

    reached = False


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent: `size` bytes, given out by `read`."""

    size: int
    read: Read
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, document: Mapping[str, object]) -> Body:
        return cls.of_bytes(json.dumps(document).encode(), {"Content-Type": "application/json"})

    @classmethod
    def of_bytes(cls, data: bytes, headers: Mapping[str, str] | None = None) -> Body:
        return cls(len(data), lambda offset, most: data[offset : offset + most], headers or {})


def _error(status: int, raw: bytes) -> AgentLabError:
    """The error that the daemon's answer stands for."""
    try:
        document = json.loads(raw)
        message = str(document.get("error") or f"HTTP status {status}")
        details = document.get("details") or {}
        code = document.get("code")
    except (ValueError, AttributeError):
        message, details, code = f"HTTP status {status}", {}, None
    if status == 429 or status >= 500:
        retry = _Retry(message)
        retry.reached = True
        return retry
    kind = {401: Denied, 403: Denied, 409: Conflict}.get(status, BY_CODE.get(str(code), Invalid))
    return kind(message, details=details if isinstance(details, dict) else {})


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat: whether the job was cancelled, and what the agent still has.

    `time_left` is in seconds; None from a daemon that does not say.
    """

    cancel: bool
    time_left: float | None


class Daemon:
    """One daemon, one job, one session.  Safe for several threads: a connection a request."""

    def __init__(self, url: str, job: str, session: Secret, pace: Pace) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise Invalid(f"cannot use the daemon's address {url}: not http://HOST:PORT")
        self._host, self._port = parts.hostname, parts.port or 80
        self._base = f"/guest/v1/jobs/{quote(job, safe='')}/"
        self._session = session
        self._pace = pace

    def claim(self, token: Secret, deadline: Deadline) -> dict[str, Any]:
        """The job document.  Raises Denied when the token is spent; repeatable while we live."""
        body = Body.of_json({"token": token.reveal(), "session": self._session.reveal()})
        return self._insist("POST", "/guest/v1/claim", body, deadline, bearer=False)

    def heartbeat(self, stage: str) -> Beat:
        """One try; what the daemon has to say."""
        answer = self._once("POST", self._base + "heartbeat", Body.of_json({"stage": stage}), 10.0)
        left = answer.get("time_left")
        if not isinstance(left, int | float) or isinstance(left, bool) or left < 0:
            left = None
        return Beat(answer.get("cancel") is True, left)

    def put_log(self, offset: int, data: bytes) -> int:
        """One try; the log's size at the daemon's, from where to go on (also when it was not N)."""
        try:
            path = f"{self._base}log?offset={offset}"
            answer = self._once("PUT", path, Body.of_bytes(data), self._pace.request)
        except Conflict as elsewhere:
            answer = elsewhere.details
            if "size" not in answer:
                raise
        size = answer.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise Invalid("cannot send the log: the daemon's answer has no size")
        return size

    def put_artifact(self, name: str, sha256: str, size: int, read: Read, until: Deadline) -> None:
        """A file whole; raises AgentLabError when the daemon refuses it or time is up."""
        path = self._base + "artifacts/" + quote(name, safe="/")
        body = Body(size, read, {"X-Content-Sha256": sha256})
        self._insist("PUT", path, body, until, tries=6)

    def get_bundle(self, begin: Begin, until: Timed) -> None:
        """The repository of a job that came from a local path; a retry begins a new sink."""
        self._insist("GET", self._base + "repo.bundle", None, until, begin=begin)

    def report(self, document: Mapping[str, object], until: Deadline) -> None:
        self._insist("POST", self._base + "report", Body.of_json(document), until)

    def _insist(
        self,
        method: str,
        path: str,
        body: Body | None,
        deadline: Timed,
        *,
        bearer: bool = True,
        tries: int | None = None,
        begin: Begin | None = None,
    ) -> dict[str, Any]:
        """Sends until answered, with backoff; `tries`: how often a daemon that is there may fail."""
        pause, failed = self._pace.retry, 0
        while True:
            try:
                timeout = min(self._pace.request, max(1.0, deadline.left))
                return self._once(method, path, body, timeout, bearer=bearer, begin=begin)
            except _Retry as problem:
                failed += problem.reached
                # Jitter, so that fifty guests do not come back at the same moment.
                wait = pause * (0.75 + secrets.randbelow(500) / 1000)
                if deadline.left <= wait or (tries is not None and failed >= tries):
                    raise
                logging.info("will ask the daemon again in %.1f s: %s", wait, problem.message)
                time.sleep(wait)
                pause = min(2 * pause, self._pace.retry_most)

    def _once(
        self,
        method: str,
        path: str,
        body: Body | None,
        timeout: float,
        *,
        bearer: bool = True,
        begin: Begin | None = None,
    ) -> dict[str, Any]:
        headers = dict(body.headers) if body else {}
        headers["Content-Length"] = str(body.size if body else 0)
        headers["Connection"] = "close"
        if bearer:
            headers["Authorization"] = f"Bearer {self._session.reveal()}"
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        connected = False
        try:
            connection.connect()
            connected = True
            answer = _exchange(connection, method, path, headers, body)
            if answer.status >= 300:
                raise _error(answer.status, answer.read(_ANSWER_MOST))
            return _taken(answer, begin)
        except (OSError, http.client.HTTPException) as problem:
            text = str(problem) or type(problem).__name__
            retry = _Retry(f"cannot reach the daemon: {text}")
            retry.reached = connected
            raise retry from problem
        finally:
            connection.close()


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: Body | None,
) -> http.client.HTTPResponse:
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    # A daemon that refuses says so at once and stops reading: its answer is what counts.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sent = 0
        while body and sent < body.size:
            piece = body.read(sent, min(_PIECE, body.size - sent))
            if not piece:
                raise Invalid("cannot send a file: it became shorter while it was read")
            connection.send(piece)
            sent += len(piece)
    return connection.getresponse()


def _taken(answer: http.client.HTTPResponse, begin: Begin | None) -> dict[str, Any]:
    """The answer's JSON object; or, with `begin`, its bytes are passed on."""
    expected = answer.length
    sink = begin() if begin else None
    got, raw = 0, b""
    while piece := answer.read(_PIECE):
        got += len(piece)
        if sink:
            sink(piece)
        elif got > _ANSWER_MOST:
            raise Invalid("cannot understand the daemon: its answer is too long")
        else:
            raw += piece
    # http.client gives a short answer without a word when it is read in pieces.
    if expected is None or got != expected:
        raise http.client.IncompleteRead(raw, (expected or got) - got)
    if sink:
        return {}
    try:
        document = json.loads(raw)
    except ValueError as problem:
        raise Invalid("cannot understand the daemon: its answer is not JSON") from problem
    if not isinstance(document, dict):
        raise Invalid("cannot understand the daemon: its answer is no object")
    return document

"""A small real daemon for the runner: real HTTP, strict about every word of the protocol.

Whatever the guest does that the protocol does not allow is noted in `violations`; a test that
uses it asserts that there are none.  `down()` and `up()` stop and start it on the same port.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

JOB = "job-1"
TOKEN = "token-that-may-be-spent-once"
_REPORT = {
    "status", "stage", "message", "exit_code", "signal", "started", "ended", "commit_before",
    "commit_after", "log_bytes", "log_truncated", "artifacts", "missing",
}  # fmt: skip
_STAGES = ("bootstrap", "checkout", "agent", "handback")


@dataclass
class Refusal(Exception):
    status: int
    message: str
    details: dict[str, Any] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    fake: GuestDaemon

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a guest that hangs up is nothing to print


class GuestDaemon:
    """The daemon's side of one job; `document` is what a claim is answered with."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.bundle = b""
        self.session: str | None = None
        self.claims = 0
        self.heartbeats: list[str] = []
        self.left: float | None = None  # what heartbeats are told of the time limit
        self.cancel = False
        self.log = bytearray()
        self.log_times: list[tuple[float, int]] = []  # (monotonic, size after)
        self.artifacts: dict[str, bytes] = {}
        self.report: dict[str, Any] | None = None
        self.reported = threading.Event()
        self.violations: list[str] = []
        self.lose_replies: dict[str, int] = {}  # kind → how many replies to lose, effect done
        self.fail: dict[str, int] = {}  # kind → how many requests to answer with 503
        self.refuse: dict[str, int] = {}  # kind → a 4xx for every such request
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bootstrap(self) -> dict[str, Any]:
        return {"protocol": 1, "url": self.url, "job": JOB, "token": TOKEN}

    def up(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.fake = self
        self.port = self._server.server_address[1]
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        thread.start()

    def down(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def handle(self, request: _Handler, body: bytes) -> dict[str, Any] | bytes:
        url = urlsplit(request.path)
        kind = self._kind(request.command, url.path)
        with self._lock:
            if self.fail.get(kind, 0):
                self.fail[kind] -= 1
                raise Refusal(503, "not now")
            if kind in self.refuse:
                raise Refusal(self.refuse[kind], "no")
            if kind == "claim":
                return self._claim(request, body)
            if request.headers.get("Authorization") != f"Bearer {self.session}":
                self._violate(f"{kind} without the session")
                raise Refusal(403, "not your job")
            if self.report is not None and kind != "report":
                self._violate(f"{kind} after the report")
                raise Refusal(409, "the report was taken")
            answer: dict[str, Any] | bytes = getattr(self, "_handle_" + kind)(request, body, url)
            return answer

    def lose(self, request: _Handler) -> bool:
        kind = self._kind(request.command, urlsplit(request.path).path)
        with self._lock:
            if self.lose_replies.get(kind, 0):
                self.lose_replies[kind] -= 1
                return True
        return False

    def _kind(self, method: str, path: str) -> str:
        base = f"/guest/v1/jobs/{JOB}/"
        known = {
            ("POST", "/guest/v1/claim"): "claim",
            ("GET", base + "repo.bundle"): "repo_bundle",
            ("POST", base + "heartbeat"): "heartbeat",
            ("PUT", base + "log"): "log",
            ("POST", base + "report"): "report",
        }
        if method == "PUT" and path.startswith(base + "artifacts/"):
            return "artifact"
        kind = known.get((method, path))
        if kind is None:
            self._violate(f"no such request: {method} {path}")
            raise Refusal(404, "no such request")
        return kind

    def _violate(self, what: str) -> None:
        self.violations.append(what)

    def _claim(self, request: _Handler, body: bytes) -> dict[str, Any]:
        self.claims += 1
        document = json.loads(body)
        if set(document) != {"token", "session"} or request.headers.get("Authorization"):
            self._violate("malformed claim")
        if not re.fullmatch(r"[A-Za-z0-9_-]{43,}", document["session"]):
            self._violate("malformed session")
        if document["token"] != TOKEN or self.session not in (None, document["session"]):
            raise Refusal(403, "the token is spent")
        self.session = document["session"]
        return self.document

    def _handle_repo_bundle(self, request: _Handler, body: bytes, url: Any) -> bytes:
        return self.bundle

    def _handle_heartbeat(self, request: _Handler, body: bytes, url: Any) -> dict[str, Any]:
        stage = json.loads(body)["stage"]
        if stage not in _STAGES:
            self._violate(f"no such stage: {stage}")
        elif self.heartbeats and _STAGES.index(stage) < _STAGES.index(self.heartbeats[-1]):
            self._violate(f"back from {self.heartbeats[-1]} to {stage}")
        self.heartbeats.append(stage)
        return {"cancel": self.cancel, **({} if self.left is None else {"time_left": self.left})}

    def _handle_log(self, request: _Handler, body: bytes, url: Any) -> dict[str, Any]:
        offset = int(parse_qs(url.query, strict_parsing=True)["offset"][0])
        if len(body) > 1024 * 1024 or not body:
            self._violate(f"a piece of log of {len(body)} bytes")
        if offset != len(self.log):
            raise Refusal(409, "not there", {"size": len(self.log)})
        self.log += body
        if len(self.log) > self.document["limits"]["log_bytes"]:
            self._violate("the log is longer than log_bytes")
        self.log_times.append((time.monotonic(), len(self.log)))
        return {"size": len(self.log)}

    def _handle_artifact(self, request: _Handler, body: bytes, url: Any) -> dict[str, Any]:
        name = unquote(url.path.split("/artifacts/", 1)[1], errors="strict")
        if any(part in ("", ".", "..") for part in name.split("/")):
            self._violate(f"not a plain name: {name}")
        if hashlib.sha256(body).hexdigest() != request.headers.get("X-Content-Sha256"):
            self._violate(f"wrong sha256 for {name}")
            raise Refusal(400, "wrong sha256")
        if self.artifacts.get(name, body) != body:
            self._violate(f"{name} twice, and different")
        limits = self.document["limits"]
        if len(body) > limits["artifact_bytes"]:
            raise Refusal(413, "too large")
        self.artifacts[name] = body
        if len(self.artifacts) > limits["artifact_count"]:
            self._violate("too many artifacts")
        return {}

    def _handle_report(self, request: _Handler, body: bytes, url: Any) -> dict[str, Any]:
        document = json.loads(body)
        if set(document) != _REPORT:
            self._violate(f"the report has other keys: {set(document) ^ _REPORT}")
        if document["status"] not in ("completed", "failed", "timeout", "cancelled"):
            self._violate(f"no such status: {document['status']}")
        if document["stage"] not in (*_STAGES, "done"):
            self._violate(f"no such stage: {document['stage']}")
        said = {one["name"]: (one["size"], one["sha256"]) for one in document["artifacts"]}
        have = {
            name: (len(data), hashlib.sha256(data).hexdigest())
            for name, data in self.artifacts.items()
        }
        if said != have:
            self._violate(f"the report lists {sorted(said)}, there are {sorted(have)}")
        if self.report is not None and self.report != document:
            raise Refusal(409, "another report was taken")
        self.report = document
        self.reported.set()
        return {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _serve(self) -> None:
        fake = self.server.fake
        length = self.headers.get("Content-Length")
        if length is None or self.headers.get("Transfer-Encoding"):
            fake.violations.append("a request without Content-Length")
        body = self.rfile.read(int(length or 0))
        try:
            answer, status = fake.handle(self, body), 200
        except Refusal as refusal:
            status = refusal.status
            answer = {"error": refusal.message, "code": "x", "details": refusal.details}
        if fake.lose(self):
            self.close_connection = True
            return
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_PUT = do_POST = _serve  # noqa: N815: the names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002: its name there
        pass

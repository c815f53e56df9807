"""One connection: requests are read, answered and, where HTTP allows, followed by the next."""

from __future__ import annotations

import io
import logging
import socket
from http.server import BaseHTTPRequestHandler
from typing import Protocol

from agentlab.daemon.exchange import (
    Answer,
    Body,
    Incoming,
    Peer,
    Site,
    TooSlow,
    error_answer,
)
from agentlab.daemon.head import Head, parse_head
from agentlab.daemon.wire import Pace, Wire
from agentlab.errors import AgentLabError, Internal, Invalid

_log = logging.getLogger(__name__)
_DRAIN = 4 << 20  # bytes of an unwanted body that are taken in to keep the connection


class Serving(Protocol):
    """What a connection asks of its listener."""

    site: Site
    pace: Pace

    @property
    def stopping(self) -> bool: ...


class Connection(BaseHTTPRequestHandler):
    """Reads with our own strict head and deadlines; http.server writes the answer's head."""

    protocol_version = "HTTP/1.1"
    server_version = "agentlabd"
    idle = True  # between two requests: a stop may cut it off here

    def __init__(self, request: socket.socket, peer: Peer, listener: Serving) -> None:
        self._listener = listener
        self._peer = peer
        self._wire = Wire(request, listener.pace)
        # http.server's own constructor would serve at once, with no handle for a stop
        self.connection = self.request = request
        self.wfile = self._head = io.BytesIO()
        self.client_address = (str(peer), 0)
        self.request_version = self.protocol_version
        self.requestline = ""
        self.command = ""

    def handle(self) -> None:
        """Serves until one side has enough.  A peer that leaves is no event worth a line."""
        try:
            while not self._listener.stopping and self._serve_one():
                self.idle = True
        except (ConnectionError, TimeoutError) as left:
            _log.debug("%s left: %s", self._peer, left or type(left).__name__)
        except OSError as error:
            _log.debug("the connection of %s broke: %s", self._peer, error)

    def cut(self, how: int) -> None:
        """Ends the connection from another thread."""
        try:
            self.connection.shutdown(how)
        except OSError:
            _log.debug("a connection was gone before it could be ended")

    def _serve_one(self) -> bool:
        try:
            lines = self._wire.head()
            if not lines:
                return False
            self.idle = False
            head = parse_head(lines)
        except AgentLabError as error:
            self._listener.site.refused(self._peer, error)
            self._send(error_answer(error), keep=False, with_body=True)
            self._wire.linger()
            return False
        self.command, self.requestline = head.method, f"{head.method} {head.target}"
        self.request_version = f"HTTP/1.{head.minor}"
        body = Body(self._wire, head.length)
        self._wire.begin_body(head.length, proceed=head.expects_continue and head.length > 0)
        answer = self._answer(head, body)
        keep = self._settled(body) and head.keep_alive and not self._listener.stopping
        self._send(answer, keep=keep, with_body=head.method != "HEAD")
        if not keep:
            self._wire.linger()
        return keep

    def _answer(self, head: Head, body: Body) -> Answer:
        path, _, query = head.target.partition("?")
        try:
            if not path.startswith("/"):
                raise Invalid("cannot read the request: its target is not a path")
            incoming = Incoming(head.method, path, query, head.headers, body, self._peer)
            return self._listener.site.answer(incoming)
        except AgentLabError as error:
            return error_answer(error)
        except (ConnectionError, TimeoutError):
            raise
        except Exception:  # noqa: BLE001  # logged here, and told without its insides
            _log.exception("%s %s failed", head.method, path)
            return error_answer(
                Internal("something went wrong inside the daemon", hint="its log says more")
            )

    def _settled(self, body: Body) -> bool:
        """Takes in what is left of a body; False when that is too much, and we must close."""
        if not body.left:
            return True
        if self._wire.held_back or body.left > _DRAIN:
            return False
        self._wire.hurry()
        try:
            for _ in body.blocks():
                pass
        except (Invalid, TooSlow):
            return False
        return True

    def _send(self, answer: Answer, *, keep: bool, with_body: bool) -> None:
        content = answer.content
        if isinstance(content, bytes):
            head = self._render_head(answer, len(content), keep=keep)
            self._wire.send(head + content if with_body else head)
            return
        with content.file:
            self._wire.send(self._render_head(answer, content.size, keep=keep))
            if with_body:
                self._wire.send_file(content)

    def _render_head(self, answer: Answer, size: int, *, keep: bool) -> bytes:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.media)
        self.send_header("Content-Length", str(size))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not keep:
            self.send_header("Connection", "close")
        elif self.request_version == "HTTP/1.0":
            self.send_header("Connection", "keep-alive")
        self.end_headers()
        head = self._head.getvalue()
        self._head.seek(0)
        self._head.truncate()
        return head

    def version_string(self) -> str:
        return self.server_version

    def log_message(self, format: str, *args: object) -> None:  # http.server's name
        """Sites log what is worth it."""

"""Listening sockets: a thread from a bounded pool for each connection, and an orderly end."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import socketserver
import threading
import time
from pathlib import Path

from agentlab.clock import Deadline
from agentlab.daemon.connection import Connection
from agentlab.daemon.exchange import Peer, Site, error_document
from agentlab.daemon.pool import Pool
from agentlab.daemon.wire import Pace
from agentlab.errors import AgentLabError, Conflict, Invalid, Unavailable

_log = logging.getLogger(__name__)
_PAUSE = 0.5  # seconds after an accept that failed
_MAX_PATH = 107  # bytes: unix(7), sun_path less its NUL


class Listener(socketserver.TCPServer):
    """Serves a site on a socket that listens already when this is made."""

    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, name: str, address: object, site: Site, pace: Pace, most: int) -> None:
        self.name = name
        self.site = site
        self.pace = pace
        self._most = most
        self._pool = Pool(name, most)
        self._lock = threading.Lock()
        self._open: set[Connection] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._accept, name=f"{name}-accept", daemon=True)
        super().__init__(address, Connection)  # type: ignore[arg-type]  # a path for AF_UNIX

    @property
    def stopping(self) -> bool:
        return self._stopping

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Takes no more connections; those at work have `grace` seconds, the others end at once."""
        self._stopping = True
        until = Deadline.after(grace)
        if self._thread.is_alive():
            # unlike close, this ends an accept that another thread waits in
            self.socket.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self.server_close()
        for each in self._connections():
            if each.idle:
                each.cut(socket.SHUT_RD)
        if not self._pool.wait_idle(until.left):
            for each in self._connections():
                each.cut(socket.SHUT_RDWR)
            self._pool.wait_idle(0.5)

    def _accept(self) -> None:
        """Not serve_forever: that looks up twice a second, and spins when files run out."""
        while not self._stopping:
            try:
                connection, address = self.get_request()
            except OSError as error:
                if not self._stopping:
                    _log.error("cannot accept a connection: %s", error)
                    time.sleep(_PAUSE)
                continue
            try:
                self.process_request(connection, address)
            except Exception:  # noqa: BLE001  # one connection is lost, the next is served
                _log.exception("cannot serve a connection of %s", self.name)
                connection.close()

    def _connections(self) -> list[Connection]:
        with self._lock:
            return list(self._open)

    def peer_of(self, connection: socket.socket) -> Peer:
        """Who has connected."""
        return Peer(address=connection.getpeername()[0])

    def admit(self, peer: Peer) -> None:
        """Raises what a new connection of this peer is to be told instead."""

    def left(self, peer: Peer) -> None:
        """A connection that was admitted has ended."""

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]  # noqa: ARG002  # TCP alone
        """Has a connection served by a thread of the pool, or tells it why not."""
        try:
            peer = self.peer_of(request)
        except OSError:
            request.close()
            return
        try:
            self.admit(peer)
        except AgentLabError as error:
            self._refuse(request, peer, error)
            return
        try:
            if not self._pool.submit(lambda: self._serve(request, peer)):
                text = f"cannot take another connection: {self._most} are open"
                raise Unavailable(text, hint="try again in a moment")
        except AgentLabError as error:
            self.left(peer)
            self._refuse(request, peer, error)

    def _serve(self, request: socket.socket, peer: Peer) -> None:
        if request.family == socket.AF_INET:
            request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(request, peer, self)
        with self._lock:
            self._open.add(connection)
        try:
            connection.handle()
        finally:
            with self._lock:
                self._open.discard(connection)
            request.close()
            self.left(peer)

    def _refuse(self, request: socket.socket, peer: Peer, error: AgentLabError) -> None:
        self.site.refused(peer, error)
        content = error_document(error)
        head = (
            f"HTTP/1.1 {error.http_status} Refused\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
        )
        # a fresh socket's buffer takes this whole, so the accepting thread is not held up
        with contextlib.suppress(OSError):
            request.settimeout(0.1)
            request.sendall(head.encode() + content)
            request.shutdown(socket.SHUT_WR)
        request.close()


def cannot_listen(where: str, error: OSError) -> AgentLabError:
    """The sentence for a socket that cannot be had."""
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            f"cannot listen on {where}: another program does",
            hint="find it with: ss -ltnp, or set another port or socket in config.yaml",
        )
    return Unavailable(f"cannot listen on {where}: {error.strerror or error}")


def check_socket_path(path: Path) -> None:
    """Invalid for a path that no Unix socket can have."""
    length = len(bytes(path))
    if length > _MAX_PATH:
        raise Invalid(
            f"invalid socket path: {path} has {length} bytes, and a socket's at most {_MAX_PATH}",
            hint="set a shorter path for `socket` in config.yaml",
        )

"""The API on its Unix socket."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import time
from pathlib import Path

from agentlab.api import table
from agentlab.api.codec import render_document
from agentlab.daemon.access import check_access, group_id, peer_of
from agentlab.daemon.context import Daemon
from agentlab.daemon.exchange import Answer, Incoming, Peer
from agentlab.daemon.handlers import HANDLERS
from agentlab.daemon.listener import Listener, cannot_listen, check_socket_path
from agentlab.daemon.router import Router, read_request
from agentlab.daemon.wire import Pace
from agentlab.errors import AgentLabError, Conflict

_log = logging.getLogger(__name__)
_CONNECTIONS = 256  # a follower holds two
_PACE = Pace()


class ApiSite:
    """The endpoints of `agentlab.api.table`, for those who may use them."""

    def __init__(self, daemon: Daemon, group: int | None) -> None:
        self._daemon = daemon
        self._group = group
        self._router = Router(table.ENDPOINTS)

    def answer(self, incoming: Incoming) -> Answer:
        since = time.monotonic()
        status = 500
        try:
            answer = self._answer(incoming)
            status = answer.status
        except AgentLabError as error:
            status = error.http_status
            raise
        finally:
            if incoming.method not in ("GET", "HEAD") and not _one_of_many(incoming, status):
                took = (time.monotonic() - since) * 1000
                what = f"{incoming.method} {incoming.path[:200]}"
                _log.info("%s by %s: %d in %.0f ms", what, incoming.peer, status, took)
        return answer

    def _answer(self, incoming: Incoming) -> Answer:
        check_access(incoming.peer, self._group)
        match = self._router.find(incoming.method, incoming.path)
        request = read_request(match, incoming, table.MAX_BODY)
        found = HANDLERS[match.endpoint.name](self._daemon, request)
        if isinstance(found, Answer):
            return found
        return Answer(match.endpoint.status, render_document(found))

    def refused(self, peer: Peer, error: AgentLabError) -> None:
        _log.info("refused a request of %s: %s", peer, error)


def _one_of_many(incoming: Incoming, status: int) -> bool:
    """A part of a program's input that was taken: a copy of a gigabyte has thousands."""
    return incoming.path.endswith("/stdin") and status == 200


class UnixListener(Listener):
    """The API's socket: mode 0660, and peers with their credentials."""

    address_family = socket.AF_UNIX

    def __init__(self, daemon: Daemon, pace: Pace = _PACE, most: int = _CONNECTIONS) -> None:
        config = daemon.world.config
        self._path = config.socket
        self._group = group_id(config.socket_group)
        self._inode = 0
        super().__init__("api", str(config.socket), ApiSite(daemon, self._group), pace, most)

    def server_bind(self) -> None:
        """Binds where no other daemon listens; only the right ones can ever connect."""
        check_socket_path(self._path)
        _make_way(self._path.parent)
        _remove_stale(self._path)
        mask = os.umask(0o177)
        try:
            self.socket.bind(str(self._path))
        except OSError as error:
            raise cannot_listen(str(self._path), error) from error
        finally:
            os.umask(mask)
        if self._group is not None and os.geteuid() == 0:
            os.chown(self._path, -1, self._group)
        self._path.chmod(0o660)
        self._inode = self._path.stat().st_ino
        self.server_address = str(self._path)  # type: ignore[assignment]  # not a TCP address

    def server_close(self) -> None:
        """Closes, and takes the file away when it is still ours."""
        super().server_close()
        with contextlib.suppress(OSError):
            if self._inode and self._path.lstat().st_ino == self._inode:
                self._path.unlink()

    def get_request(self) -> tuple[socket.socket, str]:
        """A connection; on AF_UNIX its address is empty, and says nothing."""
        connection, _ = self.socket.accept()
        return connection, str(self._path)

    def peer_of(self, connection: socket.socket) -> Peer:
        return peer_of(connection)


def _make_way(folder: Path) -> None:
    """A directory that the socket's group can come through, whatever our umask is."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        each.chmod(0o755)


def _remove_stale(path: Path) -> None:
    """Removes a socket that nobody listens on.  We hold the lock of our own data directory."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Conflict(
            f"cannot listen on {path}: there is a file that is not a socket",
            hint="move it away, or set another `socket` in config.yaml",
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise cannot_listen(str(path), error) from error
    raise Conflict(
        f"cannot listen on {path}: another daemon answers there",
        hint="stop it, or set another `socket` in config.yaml",
    )

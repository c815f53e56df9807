"""The guest listener: TCP on the bridge's address, for sandboxes alone."""

from __future__ import annotations

import socket
import threading
from collections import Counter

from agentlab.daemon.context import Daemon
from agentlab.daemon.exchange import Peer
from agentlab.daemon.guest_api import GuestSite
from agentlab.daemon.listener import Listener, cannot_listen
from agentlab.daemon.wire import Pace
from agentlab.errors import TooMany

_IP_FREEBIND = 15  # ip(7); the socket module does not name it
_CONNECTIONS = 512
_OF_ONE = 8  # connections of one address
_PACE = Pace(silence=10.0, head=10.0, idle=30.0, send=30.0, drain=5.0, linger=1.0)


class GuestListener(Listener):
    """The address may be bound before the bridge has it, so that nobody has to wait for that."""

    def __init__(self, daemon: Daemon, pace: Pace = _PACE, most: int = _CONNECTIONS) -> None:
        config = daemon.world.config
        self._counting = threading.Lock()
        self._connected: Counter[str] = Counter()
        address = (str(config.network.host), config.guest_port)
        super().__init__("guests", address, GuestSite(daemon), pace, most)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        try:
            super().server_bind()
        except OSError as error:
            host, port = self.server_address[:2]
            raise cannot_listen(f"{host!s}:{port}", error) from error

    def admit(self, peer: Peer) -> None:
        """One guest never takes the connections of all."""
        with self._counting:
            if self._connected[peer.address] >= _OF_ONE:
                raise TooMany(f"more than {_OF_ONE} connections at the same time")
            self._connected[peer.address] += 1

    def left(self, peer: Peer) -> None:
        with self._counting:
            self._connected[peer.address] -= 1
            if not self._connected[peer.address]:
                del self._connected[peer.address]

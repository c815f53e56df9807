"""Who may use the socket.  Its file mode guards it already; this says the same again."""

from __future__ import annotations

import array
import grp
import logging
import os
import socket
import struct

from agentlab.daemon.exchange import Peer
from agentlab.errors import Denied

_log = logging.getLogger(__name__)
_SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module does not name it
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)
_MAX_GROUPS = 65536  # NGROUPS_MAX


def peer_of(connection: socket.socket) -> Peer:
    """The process at the other end of a Unix socket, as the kernel noted when it connected."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(credentials)
    return Peer(pid=pid, uid=uid, gid=gid, groups=_groups_of(connection))


def _groups_of(connection: socket.socket) -> frozenset[int]:
    groups = array.array("I")
    for count in (64, _MAX_GROUPS):
        try:
            size = count * groups.itemsize
            groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, size))
            break
        except OSError:  # ERANGE: they are more
            continue
    return frozenset(groups)


def group_id(name: str) -> int | None:
    """The number of the socket's group; None, and a line in the log, when there is none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name:
            _log.info("there is no group %s: only root and our own user may use the socket", name)
        return None


def check_access(peer: Peer, group: int | None) -> None:
    """Root, our own user and the members of the socket's group; Denied for all others."""
    if peer.uid in (0, os.geteuid()):
        return
    if group is not None and (peer.gid == group or group in peer.groups):
        return
    raise Denied(
        f"uid {peer.uid} may not use agentlabd",
        hint="become root, or a member of the socket's group: usermod -aG agentlab USER",
    )

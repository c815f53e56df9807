"""Lines of JSON over a Unix socket, with deadlines and bounds; what comes in is not trusted."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentlab.clock import Deadline
from agentlab.errors import DeadlineExceeded, Unavailable

LIMIT = 4 << 20  # bytes of one line


@contextlib.contextmanager
def connect(directory: Path, name: str, timeout: float) -> Iterator[socket.socket]:
    """Connects to a socket in a directory whose path may be longer than a socket's may be.

    sun_path holds 107 bytes, so the way goes through the descriptor of the directory.
    Raises Unavailable when nobody listens.
    """
    try:
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise Unavailable(f"cannot connect to {name} in {directory}: {error.strerror}") from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(f"/proc/self/fd/{descriptor}/{name}")
        except OSError as error:
            raise Unavailable(f"cannot connect to {name} in {directory}: {error}") from error
        finally:
            os.close(descriptor)
        yield connection


@dataclass(slots=True)
class Channel:
    """One connection: whole lines out, whole lines in."""

    connection: socket.socket
    peer: str  # for messages: "the guest agent of 1012"
    limit: int = LIMIT
    _buffer: bytearray = field(default_factory=bytearray)

    def send(self, content: bytes, deadline: Deadline, lent: Sequence[int] = ()) -> None:
        """Sends all of it; open files in `lent` go along with its first byte."""
        self.connection.settimeout(max(deadline.left, 0.001))
        try:
            sent = socket.send_fds(self.connection, [content], lent) if lent else 0
            self.connection.sendall(content[sent:])
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self.peer} took no request in time") from error
        except OSError as error:
            raise Unavailable(f"{self.peer} is gone: {error}") from error

    def receive(self, deadline: Deadline) -> bytes:
        """The next line, without its end; who never falls silent has no more time than others."""
        searched = 0
        if deadline.passed:
            raise DeadlineExceeded(f"{self.peer} did not answer in time")
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > self.limit:
                raise Unavailable(f"{self.peer} said more than {self.limit} bytes in one line")
            if deadline.passed:
                raise DeadlineExceeded(f"{self.peer} did not answer in time")
            self.connection.settimeout(max(deadline.left, 0.001))
            try:
                chunk = self.connection.recv(1 << 16)
            except TimeoutError as error:
                raise DeadlineExceeded(f"{self.peer} did not answer in time") from error
            except OSError as error:
                raise Unavailable(f"{self.peer} is gone: {error}") from error
            if not chunk:
                raise Unavailable(f"{self.peer} closed the connection")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def encode(command: str, arguments: Mapping[str, object]) -> bytes:
    """A request as QMP and the guest agent take it."""
    request: dict[str, object] = {"execute": command}
    if arguments:
        request["arguments"] = dict(arguments)
    return json.dumps(request).encode() + b"\n"


def decode(line: bytes, peer: str) -> dict[str, object]:
    """A line as a JSON object, or Unavailable."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"{peer} said what is not JSON") from error
    if not isinstance(value, dict):
        raise Unavailable(f"{peer} said what is not a JSON object")
    return value

"""The bytes of a connection, with a deadline for everything that comes or goes."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass

from agentlab.clock import Deadline
from agentlab.daemon.exchange import BLOCK, FileContent, HeadTooLarge, TooSlow
from agentlab.daemon.head import MAX_HEAD, MAX_LINES
from agentlab.errors import Invalid

_PIECE = 16 * 1024  # bytes read at once while looking for the end of a line


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a peer may take, in seconds; a body must also come at `rate` bytes a second."""

    silence: float = 60.0  # between two requests of one connection
    head: float = 10.0  # from a request's first byte to the end of its headers
    idle: float = 30.0  # between two pieces of a body
    rate: float = 32 * 1024
    send: float = 60.0  # until a piece of an answer is taken
    drain: float = 5.0  # for a body that nobody wants
    linger: float = 1.0  # for a peer that goes on sending after its last answer


class Wire:
    """One connection.  A silence raises TimeoutError, TooSlow in a body."""

    def __init__(self, connection: socket.socket, pace: Pace) -> None:
        self._socket = connection
        self._pace = pace
        self._buffer = b""
        self._deadline = Deadline.after(pace.silence)
        self._proceed = False

    def head(self) -> list[bytes]:
        """The lines of a request's head without their ends; none when the peer has left.

        TimeoutError when it was silent before the first byte, TooSlow behind that.
        """
        self._deadline = Deadline.after(self._pace.silence)
        if not self._buffer and not self._fill(_PIECE):
            return []
        self._deadline = Deadline.after(self._pace.head)
        lines: list[bytes] = []
        size = 0
        try:
            while len(lines) <= MAX_LINES + 1:
                line = self._line(MAX_HEAD - size)
                size += len(line) + 1
                if line.endswith(b"\r"):
                    line = line[:-1]
                if line:
                    lines.append(line)
                elif lines or size > 4:  # RFC 9112 2.2: one empty line may come before
                    break
        except TimeoutError as error:
            raise TooSlow("cannot read the request: its headers took too long") from error
        return lines

    def _line(self, most: int) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > most:
                raise HeadTooLarge(f"cannot read the request: its head is over {MAX_HEAD} bytes")
            if not self._fill(_PIECE):
                raise ConnectionAbortedError("the peer left in the middle of a request")
        line, _, rest = self._buffer.partition(b"\n")
        if len(line) > most:
            raise HeadTooLarge(f"cannot read the request: its head is over {MAX_HEAD} bytes")
        self._buffer = rest
        return line

    def begin_body(self, size: int, *, proceed: bool) -> None:
        """Sets the time for a body; with `proceed` the peer is told to send it when it is read."""
        self._deadline = Deadline.after(self._pace.idle + size / self._pace.rate)
        self._proceed = proceed

    @property
    def held_back(self) -> bool:
        """The peer waits to be told before it sends its body, and has not been told."""
        return self._proceed

    def receive(self, most: int) -> bytes:
        """At least one byte of the body; Invalid when it ends early, TooSlow when it is late."""
        if self._proceed:
            self._proceed = False
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            if not self._buffer and not self._fill(min(most, BLOCK), idle=self._pace.idle):
                raise Invalid("cannot read the request: it ended before its Content-Length")
        except TimeoutError as error:
            raise TooSlow("cannot read the request: its body took too long") from error
        piece, self._buffer = self._buffer[:most], self._buffer[most:]
        return piece

    def hurry(self) -> None:
        """What is still to come of a body is not wanted: little time is left for it."""
        self._deadline = Deadline.after(self._pace.drain)

    def _fill(self, most: int, *, idle: float | None = None) -> bool:
        left = self._deadline.left if idle is None else min(idle, self._deadline.left)
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        piece = self._socket.recv(most)
        self._buffer += piece
        return bool(piece)

    def send(self, content: bytes) -> None:
        """Sends in pieces, so that the time counts for each of them."""
        view = memoryview(content)
        while view:
            self._socket.settimeout(self._pace.send)
            view = view[self._socket.send(view[:BLOCK]) :]

    def send_file(self, content: FileContent) -> None:
        """Sends a file without taking it into memory; OSError when it has become shorter."""
        left, at = content.size, content.file.tell()
        while left:
            self._socket.settimeout(self._pace.send)
            sent = self._socket.sendfile(content.file, at, min(left, 16 * BLOCK))
            if not sent:
                raise OSError("the file became shorter while it was sent")
            left, at = left - sent, at + sent

    def linger(self) -> None:
        """Ends our side, and takes in for a moment what the peer still sends.

        Closing with unread bytes resets a TCP connection, and the answer may be lost with it.
        """
        until = time.monotonic() + self._pace.linger
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while (left := until - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv(BLOCK):
                    break

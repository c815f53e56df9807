"""HTTP/1.1 over a Unix socket, as much of it as the daemon speaks.

Why not `http.client`: measured on Debian's Python 3.11 (bare start 9 ms), it brings `email` and
`ssl` along and adds 16 ms to every command, more than all the rest of `status`.  The daemon
sends Content-Length or closes the connection, never chunks, so one connection per request, a
bounded header and a bounded body are all there is to it.
"""

from __future__ import annotations

import socket
import time

from agentlab.errors import BY_CODE, AgentLabError, Invalid, Unavailable, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:  # the names below cost more to import than this module
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

MAX_HEAD = 32 * 1024  # bytes of a status line and its headers
MAX_DOCUMENT = 64 << 20  # bytes of a JSON answer
BLOCK = 256 * 1024  # bytes read or sent at once
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Lost(Unreachable):
    """The request went out and no whole reply came back: it may have been done or not."""


def quote(text: str, safe: str = "") -> str:
    """Percent-quoting for one path segment or query value (`urllib.parse` costs 4 ms)."""
    keep = _PLAIN | frozenset(safe.encode())
    return "".join(chr(each) if each in keep else f"%{each:02X}" for each in text.encode())


class Reply:
    """A reply whose head has been read; the body is read once, by `document` or `blocks`."""

    def __init__(self, link: _Link, status: int, headers: dict[str, str], start: bytes) -> None:
        self._link = link
        self._start = start
        self.status = status
        self.headers = headers
        self.length = _length(headers, link.socket_path)

    def blocks(self) -> Iterator[bytes]:
        """The body in pieces; Lost when it ends before its Content-Length."""
        left = self.length
        piece = self._start
        try:
            while left is None or left > 0:
                if piece:
                    piece = piece if left is None else piece[:left]
                    left = None if left is None else left - len(piece)
                    yield piece
                    if left == 0:
                        break
                piece = self._link.receive()
                if not piece:
                    if left is None:
                        break
                    raise self._link.lost("the reply broke off")
        finally:
            self.close()

    def body(self, most: int = MAX_DOCUMENT) -> bytes:
        """The whole body; Unavailable when it is larger than `most`."""
        found = bytearray()
        for piece in self.blocks():
            found += piece
            if len(found) > most:
                raise Unavailable(f"cannot read the daemon's answer: longer than {most} bytes")
        return bytes(found)

    def close(self) -> None:
        self._link.close()

    def failure(self) -> AgentLabError:
        """The error that this reply carries, as the class of its code."""
        import json

        try:
            document = json.loads(self.body(1 << 20))
        except (ValueError, RecursionError):
            document = None
        found = document if isinstance(document, dict) else {}
        text, code, hint = (found.get(key) for key in ("error", "code", "hint"))
        details = found.get("details")
        kind = BY_CODE.get(code) if isinstance(code, str) else None
        error = (kind or _by_status(self.status))(
            text if isinstance(text, str) and text else f"the daemon answered {self.status}",
            hint=hint if isinstance(hint, str) else "",
            details=details if isinstance(details, dict) else None,
        )
        if kind is None and isinstance(code, str):
            error.code = code[:64]
        return error


def _by_status(status: int) -> type[AgentLabError]:
    for kind in BY_CODE.values():
        if kind.http_status == status:
            return kind
    return Invalid if 400 <= status < 500 else Unavailable


def _length(headers: Mapping[str, str], socket_path: str) -> int | None:
    if "transfer-encoding" in headers:
        raise _strange(socket_path, "a transfer encoding")
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise _strange(socket_path, "a bad Content-Length")
    return int(text)


def _strange(socket_path: str, what: str) -> Unreachable:
    return Unreachable(
        f"cannot reach the daemon at {socket_path}: the answer has {what}",
        hint="is it really agentlabd that listens there?",
    )


class _Link:
    """One connection for one request."""

    def __init__(self, socket_path: str, timeout: float) -> None:
        self.socket_path = socket_path
        self.timeout = timeout
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(socket_path)
        except (OSError, ValueError) as error:
            self.close()
            raise _unreachable(socket_path, error) from error

    def lost(self, why: str) -> Lost:
        return Lost(
            f"cannot reach the daemon at {self.socket_path}: {why}",
            hint="see what it does: journalctl -u agentlabd -f",
        )

    def receive(self) -> bytes:
        try:
            return self.socket.recv(BLOCK)
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise self.lost(error.strerror or str(error)) from error

    def _late(self) -> Lost:
        late = self.lost("timeout waiting for daemon response")
        late.hint = "see what it does: journalctl -u agentlabd -f; wait longer: --timeout 5m"
        return late

    def send(self, head: bytes, body: bytes | BinaryIO | None) -> None:
        """Sends all, or what is taken: a daemon that refuses a body early has answered already."""
        try:
            self.socket.sendall(head + body if isinstance(body, bytes) else head)
            if body is not None and not isinstance(body, bytes):
                while block := body.read(BLOCK):
                    self.socket.sendall(block)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise self.lost(error.strerror or str(error)) from error

    def head(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, and what came of the body; bounded in size and time."""
        found = b""
        until = time.monotonic() + self.timeout
        while b"\r\n\r\n" not in found:
            left = until - time.monotonic()
            if left <= 0:
                raise self._late()
            self.socket.settimeout(left)
            piece = self.receive()
            if not piece:
                raise self.lost("it closed the connection without an answer")
            found += piece
            if len(found) > MAX_HEAD + BLOCK:
                raise _strange(self.socket_path, "endless headers")
        self.socket.settimeout(self.timeout)
        head, _, rest = found.partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD:
            raise _strange(self.socket_path, "endless headers")
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if not words[0].startswith("HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            raise _strange(self.socket_path, "no HTTP status")
        pairs = (line.partition(":") for line in lines)
        return (
            int(words[1]),
            {name.strip().lower(): value.strip() for name, _, value in pairs},
            rest,
        )

    def close(self) -> None:
        self.socket.close()


def _unreachable(socket_path: str, error: OSError | ValueError) -> Unreachable:
    why, hint = str(error), "is agentlabd running? see: systemctl status agentlabd"
    if isinstance(error, TimeoutError):
        why = "timeout waiting for daemon response"
    elif isinstance(error, ConnectionRefusedError):
        why = "invalid socket path: nobody listens there"
    elif isinstance(error, FileNotFoundError):
        why = "invalid socket path: there is no such file"
    elif isinstance(error, PermissionError):
        why = "permission denied"
        hint = "become root, or a member of the group agentlab: usermod -aG agentlab USER"
    elif "too long" in why or "null" in why:
        why, hint = f"invalid socket path: {why}", "a socket path has at most 107 bytes"
    elif isinstance(error, OSError):
        why = error.strerror or why
    return Unreachable(
        f"cannot reach the daemon at {socket_path}: {why}",
        hint=hint,
        details={"socket": socket_path},
    )


def request(
    socket_path: str,
    method: str,
    target: str,
    *,
    timeout: float,
    body: bytes | BinaryIO | None = None,
    length: int = 0,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Sends one request and reads the head of its reply, whatever its status.

    `target` is quoted already; `length` is the size of a body that is a file; `timeout` in
    seconds bounds the connection, the head, and each silence in the body.  Raises Unreachable
    when nothing was sent, Lost when it may have been.
    """
    fields = {"Host": "agentlabd", "Connection": "close", "Accept": "*/*", **(headers or {})}
    if body is not None:
        fields["Content-Length"] = str(len(body) if isinstance(body, bytes) else length)
    elif method != "GET":
        fields["Content-Length"] = "0"
    lines = [f"{method} {target} HTTP/1.1", *(f"{key}: {value}" for key, value in fields.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise Invalid("cannot send the request: a header with a line break")
    link = _Link(socket_path, timeout)
    try:
        link.send("\r\n".join([*lines, "", ""]).encode("latin-1"), body)
        status, found, rest = link.head()
        return Reply(link, status, found, rest)
    except BaseException:
        link.close()
        raise


def document(socket_path: str, target: str, *, timeout: float) -> object:
    """A GET of a JSON document, unread by the codec: for `status`, which must start fast."""
    import json

    reply = request(socket_path, "GET", target, timeout=timeout)
    if reply.status != 200:
        raise reply.failure()
    try:
        return json.loads(reply.body())
    except (ValueError, RecursionError) as error:
        raise _strange(socket_path, "no JSON") from error

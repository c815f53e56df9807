"""One HTTP exchange as the rest of the daemon sees it: what came, and what goes back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from agentlab.errors import AgentLabError, Invalid, TooLarge, TooMany, Unavailable

BLOCK = 256 * 1024  # bytes that are held in memory of a large body
_MAX_MESSAGE = 2000


class LengthRequired(Invalid):
    """A body came without its length."""

    http_status = 411


class HeadTooLarge(TooLarge):
    """The request line or the headers are longer than we take."""

    http_status = 431


class TooSlow(Invalid):
    """The request did not arrive in the time that it had."""

    http_status = 408


class NotSpoken(Invalid):
    """A part of HTTP that this server does not have."""

    http_status = 501


class MethodNotAllowed(Invalid):
    """The path exists, and has other methods: `allowed`."""

    code = "method_not_allowed"
    http_status = 405

    def __init__(self, method: str, path: str, allowed: list[str]) -> None:
        words = ", ".join(allowed)
        super().__init__(
            f"{path} has no {method}", hint=f"it has {words}", details={"allowed": allowed}
        )
        self.allowed = allowed


class StorageFull(Unavailable):
    """No room for what was sent."""

    http_status = 507


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: an IPv4 address, or a process of this host as the kernel says."""

    address: str = ""
    pid: int = 0
    uid: int = -1
    gid: int = -1
    groups: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return self.address or f"pid {self.pid} uid {self.uid} gid {self.gid}"


class Source(Protocol):
    """Where the bytes of a body come from."""

    def receive(self, most: int) -> bytes:
        """At least one byte; Invalid when they end early, TooSlow when they do not come."""
        ...


class Body:
    """The body of a request: `size` bytes, of which `left` have not been read."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self.size = size
        self.left = size

    def whole(self, most: int) -> bytes:
        """All of it; TooLarge, and nothing read, when that is more than `most` bytes."""
        self.check_size(most)
        return b"".join(self.blocks())

    def check_size(self, most: int) -> None:
        """TooLarge when it is more than `most` bytes; none of it needs to have come."""
        if self.size > most:
            raise TooLarge(
                f"the document is too large: {self.size} bytes, and at most {most} are taken",
                details={"size": self.size, "most": most},
            )

    def blocks(self) -> Iterator[bytes]:
        """What is left of it, in pieces of at most BLOCK bytes."""
        while self.left:
            piece = self._source.receive(min(self.left, BLOCK))
            self.left -= len(piece)
            yield piece


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as it came: `path` and `query` still quoted, header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Body
    peer: Peer


@dataclass(frozen=True, slots=True)
class FileContent:
    """The next `size` bytes of an open file, which is closed when they are sent."""

    file: BinaryIO
    size: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int
    content: bytes | FileContent = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    media: str = "application/json"


def raw(content: bytes | FileContent, headers: Mapping[str, str] | None = None) -> Answer:
    """Bytes that are no document."""
    return Answer(200, content, headers or {}, "application/octet-stream")


def error_answer(error: AgentLabError) -> Answer:
    """An error as it goes back."""
    headers = {}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, TooMany):
        headers["Retry-After"] = "1"
    return Answer(error.http_status, error_document(error), headers)


def error_document(error: AgentLabError) -> bytes:
    """The error body.  In ASCII, because the text may quote any nonsense that was sent."""
    details = {
        key: value[:_MAX_MESSAGE] if isinstance(value, str) else value
        for key, value in error.details.items()
    }
    document = {
        "error": error.message[:_MAX_MESSAGE],
        "code": error.code,
        "hint": error.hint[:_MAX_MESSAGE],
        "details": details,
    }
    return json.dumps(document, default=str).encode() + b"\n"


class Site(Protocol):
    """What a listener serves."""

    def answer(self, incoming: Incoming) -> Answer:
        """The answer to a request; AgentLabError becomes an error body."""
        ...

    def refused(self, peer: Peer, error: AgentLabError) -> None:
        """Told of what never became a request: broken HTTP, or one connection too many."""
        ...

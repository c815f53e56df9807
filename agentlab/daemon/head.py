"""The head of an HTTP request: strict, so that nothing behind it has to wonder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from agentlab.daemon.exchange import HeadTooLarge, LengthRequired, NotSpoken
from agentlab.errors import Invalid

MAX_HEAD = 32 * 1024  # bytes
MAX_LINES = 100
_REQUEST = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]{1,16384}) HTTP/1\.([01])")
_OTHER_VERSION = re.compile(rb"[A-Z]{1,16} [\x21-\x7e]+ HTTP/\d(\.\d)?")
# RFC 9110 5.1 and 5.5; a line that begins with a space (folding) does not match
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_ONCE = ("content-length", "host", "authorization", "expect", "idempotency-key")
_LENGTH = re.compile(r"\d{1,15}", re.ASCII)
_BODIES = ("POST", "PUT", "PATCH")


class VersionNotSpoken(Invalid):
    """Not HTTP/1.0 or 1.1."""

    http_status = 505


@dataclass(frozen=True, slots=True)
class Head:
    """Method, target and headers; `length` is the body's, `minor` the version 1.`minor`."""

    method: str
    target: str
    minor: int
    headers: Mapping[str, str]
    length: int

    @property
    def keep_alive(self) -> bool:
        words = {word.strip() for word in self.headers.get("connection", "").lower().split(",")}
        return "close" not in words and (self.minor == 1 or "keep-alive" in words)

    @property
    def expects_continue(self) -> bool:
        return self.minor == 1 and self.headers.get("expect", "").lower() == "100-continue"


def parse_head(lines: list[bytes]) -> Head:
    """A head from its lines without their ends; Invalid for all that is not plainly right."""
    match = _REQUEST.fullmatch(lines[0])
    if not match:
        if _OTHER_VERSION.fullmatch(lines[0]):
            raise VersionNotSpoken("cannot read the request: only HTTP/1.0 and HTTP/1.1 are spoken")
        raise Invalid("cannot read the request: its first line is not that of an HTTP request")
    if len(lines) > MAX_LINES:
        raise HeadTooLarge(f"cannot read the request: more than {MAX_LINES} headers")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        found = _HEADER.fullmatch(line)
        if not found:
            raise Invalid("cannot read the request: a line of its headers is none")
        name, value = found[1].decode().lower(), found[2].decode("latin-1")
        if name in headers and name in _ONCE:
            raise Invalid(f"cannot read the request: the header {name} came twice")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    method = match[1].decode()
    return Head(method, match[2].decode(), int(match[3]), headers, _length(method, headers))


def _length(method: str, headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise NotSpoken(
            "cannot take a body with a transfer encoding", hint="send it with a Content-Length"
        )
    text = headers.get("content-length")
    if text is None:
        if method in _BODIES:
            raise LengthRequired(f"cannot take a {method} without a Content-Length")
        return 0
    if not _LENGTH.fullmatch(text):
        raise Invalid("cannot read the request: its Content-Length is not a number of bytes")
    return int(text)

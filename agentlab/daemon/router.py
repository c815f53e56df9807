"""From a method and a path to an endpoint, and from bytes to what its handler is given."""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

from agentlab.api import messages as m
from agentlab.api.codec import from_plain, parse_document
from agentlab.api.table import Endpoint, Raw
from agentlab.daemon.exchange import Body, Incoming, MethodNotAllowed, Peer
from agentlab.errors import Invalid, NotFound

Req = TypeVar("Req")
_BROKEN = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_KEY = re.compile(r"[\x21-\x7e]{0,128}")
_MAX_PARAMETERS = 20
# A document of nothing but `{},` takes thirty times its size while it is read: one at a time.
_LARGE = 64 * 1024  # bytes
_one_large = threading.Lock()


@dataclass(frozen=True, slots=True)
class Match:
    """An endpoint, and the values of the names in its path."""

    endpoint: Endpoint[Any, Any]
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Request(Generic[Req]):
    """What a handler is given: checked, apart from the body of an endpoint that takes bytes."""

    document: Req
    values: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Body
    peer: Peer

    @property
    def key(self) -> str:
        """The Idempotency-Key, "" for none; Invalid for one that cannot be."""
        key = self.headers.get("idempotency-key", "")
        if not _KEY.fullmatch(key):
            raise Invalid("Idempotency-Key must be 1 to 128 visible ASCII characters")
        return key

    def number(self, name: str, default: int, *, most: int = 1 << 53) -> int:
        """A whole number from the query, 0 to `most`."""
        text = self.query.get(name)
        if text is None:
            return default
        if not _NUMBER.fullmatch(text) or int(text) > most:
            raise _bad_parameter(name, f"must be a whole number from 0 to {most}")
        return int(text)

    def seconds(self, name: str, *, most: float) -> float:
        """Seconds from the query, 0 when it does not say."""
        text = self.query.get(name, "0")
        if not _SECONDS.fullmatch(text) or float(text) > most:
            raise _bad_parameter(name, f"must be seconds from 0 to {most:g}")
        return float(text)

    def flag(self, name: str) -> bool:
        text = self.query.get(name, "0")
        if text not in ("0", "1", "true", "false"):
            raise _bad_parameter(name, "must be 1 or 0")
        return text in ("1", "true")


def _bad_parameter(name: str, why: str) -> Invalid:
    return Invalid(f"the parameter {name} {why}", details={"path": f"?{name}"})


class Router:
    """Finds the endpoint for a path; a literal word goes before a name."""

    def __init__(self, endpoints: Sequence[Endpoint[Any, Any]]) -> None:
        self._routes = sorted(
            ((endpoint, endpoint.path.split("/")[1:]) for endpoint in endpoints),
            key=lambda route: sum(word.startswith("{") for word in route[1]),
        )

    def find(self, method: str, path: str) -> Match:
        """NotFound for an unknown path, MethodNotAllowed for an unknown method of a known one."""
        words = [_unquoted(word) for word in path.split("/")[1:]]
        allowed = []
        for endpoint, template in self._routes:
            values = _values(template, words)
            if values is not None:
                if endpoint.method == method:
                    return Match(endpoint, values)
                allowed.append(endpoint.method)
        if allowed:
            raise MethodNotAllowed(method, path[:200], sorted(set(allowed)))
        known = sorted({endpoint.path for endpoint, _ in self._routes})
        near = difflib.get_close_matches(path[:200], known, n=1)
        hint = f"did you mean {near[0]}?" if near else "see docs/api.md"
        raise NotFound(f"there is nothing at {path[:200]}", hint=hint)


def _unquoted(word: str) -> str:
    if _BROKEN.search(word):
        raise Invalid("cannot read the path: a % is not followed by two hex digits")
    try:
        return unquote_to_bytes(word).decode()
    except UnicodeDecodeError as error:
        raise Invalid("cannot read the path: it is not UTF-8") from error


def _values(template: Sequence[str], words: Sequence[str]) -> dict[str, str] | None:
    values: dict[str, str] = {}
    for at, part in enumerate(template):
        name = part.strip("{}")
        if part.endswith("...}") and len(words) > at:
            rest = words[at:]
            if any("/" in word for word in rest):
                raise Invalid("cannot read the path: a name in it has a quoted slash")
            return {**values, name.removesuffix("..."): "/".join(rest)}
        if at >= len(words) or (part != words[at] and not (part.startswith("{") and words[at])):
            return None
        if part.startswith("{"):
            values[name] = words[at]
    return values if len(words) == len(template) else None


def read_request(
    match: Match, incoming: Incoming, most: int, *, strict: bool = True
) -> Request[Any]:
    """The request as its endpoint has it: query and document checked, raw bodies left alone.

    `strict` refuses keys that are not known.
    """
    query = _query(incoming.query, match.endpoint.query)
    document: object = Raw()
    if match.endpoint.request is not Raw:
        document = _document(match.endpoint.request, incoming.body, most, strict)
    return Request(document, match.values, query, incoming.headers, incoming.body, incoming.peer)


def _query(text: str, known: Sequence[str]) -> dict[str, str]:
    if _BROKEN.search(text):
        raise Invalid("cannot read the query: a % is not followed by two hex digits")
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS
        )
    except ValueError as error:
        raise Invalid("cannot read the query: not UTF-8, or too many parameters") from error
    query: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            near = difflib.get_close_matches(name[:100], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
            raise Invalid(f"unknown parameter {name[:100]}", hint=hint)
        if name in query:
            raise _bad_parameter(name, "came twice")
        query[name] = value
    return query


def _document(kind: type[Req], body: Body, most: int, strict: bool) -> Req:
    content = body.whole(most)
    if not content and kind is m.Nothing:
        return kind()
    if len(content) <= _LARGE:
        return from_plain(kind, parse_document(content), strict=strict)
    with _one_large:
        return from_plain(kind, parse_document(content), strict=strict)

"""Typed calls from the endpoint table; errors come back as the classes they left as."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, TypeVar

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.api.codec import from_plain, parse_document, render_document
from agentlab.api.table import Endpoint, Raw
from agentlab.client.unix import Lost, Reply, quote, request
from agentlab.errors import AgentLabError, Invalid, Unavailable, Unreachable

Req = TypeVar("Req")
Resp = TypeVar("Resp")
T = TypeVar("T")
Query = Mapping[str, str | int | float]

PATIENCE = 60.0  # seconds that a restart of the daemon may take
_PAUSE_MOST = 2.0  # seconds between two tries


class Client:
    """One daemon.  `timeout` is what it may take to answer, in seconds; long polls come on top."""

    def __init__(self, socket_path: str, *, timeout: float = 30.0) -> None:
        self.socket_path = socket_path
        self.timeout = timeout

    def call(
        self,
        endpoint: Endpoint[Req, Resp],
        request_value: Req | None = None,
        *,
        path: Mapping[str, str] | None = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Resp:
        """One request and its answer.  A GET whose reply was lost is sent once more."""
        body = None
        if endpoint.method != "GET":
            body = render_document(m.Nothing() if request_value is None else request_value)

        def once() -> Resp:
            reply = self._send(endpoint, body, path=path, query=query, headers=headers)
            return self._read(endpoint, reply)

        try:
            return once()
        except Lost:
            if endpoint.method != "GET":
                raise
            return once()

    def act(
        self,
        endpoint: Endpoint[Req, Resp],
        request_value: Req | None = None,
        *,
        path: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> Resp:
        """Asks for something to be done, once: every try carries the same key.

        For endpoints that look at the key, and for those whose effect is the same the second time.
        """
        import secrets

        key = {"Idempotency-Key": secrets.token_urlsafe(24)}

        def once() -> Resp:
            return self.call(endpoint, request_value, path=path, headers=key)

        try:
            return once()
        except Lost:  # from here on it may be done, so that a refused connection is a restart
            try:
                return patiently(once, patience=patience)
            except Unreachable as error:
                error.hint = f"it may be done: look before you ask again; {error.hint}"
                raise

    def create_job(self, job: m.JobRequest, *, patience: float = PATIENCE) -> m.JobView:
        """Runs a job once, however often the reply is lost."""
        return self.act(table.JOB_CREATE, job, patience=patience)

    def put_bundle(self, file: BinaryIO, sha256: str, size: int) -> m.BundleView:
        """Sends a git bundle; again is the same, so a lost reply is no trouble."""
        if size > table.MAX_BUNDLE:
            raise Invalid(f"cannot send the bundle: longer than {table.MAX_BUNDLE >> 30} GiB")

        def once() -> m.BundleView:
            file.seek(0)
            reply = self._send(
                table.BUNDLE_PUT, file, length=size, path={"sha256": sha256},
                headers={"Content-Type": "application/octet-stream"},
            )  # fmt: skip
            return self._read(table.BUNDLE_PUT, reply)

        try:
            return once()
        except Lost:
            return patiently(once)

    def put(
        self,
        endpoint: Endpoint[Raw, Resp],
        content: bytes,
        *,
        path: Mapping[str, str],
        query: Query,
    ) -> Resp:
        """Sends a few bytes; once, since only the caller knows whether they may come again."""
        headers = {"Content-Type": "application/octet-stream"}
        reply = self._send(endpoint, content, path=path, query=query, headers=headers)
        return self._read(endpoint, reply)

    def stream(
        self,
        endpoint: Endpoint[m.Nothing, Raw],
        *,
        path: Mapping[str, str] | None = None,
        query: Query | None = None,
    ) -> Reply:
        """A GET whose body is bytes: `headers`, then `blocks()`."""
        reply = self._send(endpoint, None, path=path, query=query)
        return self._checked(endpoint, reply)

    def artifact(self, job: str, name: str) -> Iterator[bytes]:
        """One artifact's bytes, in pieces."""
        return self.stream(table.JOB_ARTIFACT, path={"id": job, "name": name}).blocks()

    def _send(
        self,
        endpoint: Endpoint[Req, Resp],
        body: bytes | BinaryIO | None,
        *,
        length: int = 0,
        path: Mapping[str, str] | None = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        kind = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
        return request(
            self.socket_path,
            endpoint.method,
            target(endpoint, path or {}, query or {}),
            timeout=self.timeout + float((query or {}).get("wait", 0)),
            body=body,
            length=length,
            headers={**kind, **(headers or {})},
        )

    def _checked(self, endpoint: Endpoint[Req, Resp], reply: Reply) -> Reply:
        if reply.status >= 400:
            raise reply.failure()
        if reply.status not in (endpoint.status, 200):
            reply.close()
            raise Unavailable(f"cannot understand the daemon: it answered {reply.status}")
        return reply

    def _read(self, endpoint: Endpoint[Req, Resp], reply: Reply) -> Resp:
        body = self._checked(endpoint, reply).body()
        try:
            return from_plain(endpoint.response, parse_document(body), strict=False)
        except Invalid as error:  # not the user's fault: exit 1, not 2
            raise Unavailable(
                f"cannot understand the daemon's answer: {error.message}",
                hint="client and daemon may differ in version: agentlab status",
            ) from error


def target(endpoint: Endpoint[Req, Resp], path: Mapping[str, str], query: Query) -> str:
    """The request target, quoted; Invalid for an empty path argument or an unknown parameter."""
    words = []
    for word in endpoint.path.split("/"):
        if word.startswith("{"):
            name = word.strip("{}")
            value = path[name.removesuffix("...")]
            if not value:
                raise Invalid(f"cannot ask for {endpoint.summary}: {name} is empty")
            words.append(quote(value, "/" if name.endswith("...") else ""))
        else:
            words.append(word)
    for name in query:
        if name not in endpoint.query:
            raise Invalid(f"cannot ask for {endpoint.summary}: unknown parameter {name}")
    pairs = "&".join(f"{name}={quote(_number(value))}" for name, value in query.items())
    return "/".join(words) + ("?" + pairs if pairs else "")


def _number(value: str | float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def patiently(
    act: Callable[[], T],
    *,
    patience: float = PATIENCE,
    on_trouble: Callable[[AgentLabError], None] | None = None,
) -> T:
    """Does an idempotent act again while the daemon is away, for at most `patience` seconds.

    `on_trouble` hears of the first failure only.
    """
    until = time.monotonic() + patience
    pause = 0.1
    while True:
        try:
            return act()
        except (Unreachable, Unavailable) as error:
            if time.monotonic() + pause >= until:
                raise
            if on_trouble is not None:
                on_trouble(error)
                on_trouble = None
        time.sleep(pause)
        pause = min(_PAUSE_MOST, pause * 2)

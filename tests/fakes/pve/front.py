"""How requests come in: who may, how many at once, what goes wrong on the way, and the side door
that the stand-ins of `pvesh` and `qm` use.

The ids in brackets name recordings of Proxmox's own programs (tests/data/proxmox/).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from aiohttp import web
from fakepve import schema as pve_schema
from fakepve.model import FakeVm, PveError
from fakepve.server import API, error

from tests.fakes.pve.tasks import RECORD, SPOKEN, STARTED

FOREGROUND = "X-Foreground"
SIDE_DOOR = "/stand-in"
NO_WORKER = "got no worker upid - start worker failed"
_BIGGEST = 512 * 1024  # bytes of a request that pveproxy takes
_WRITING = ("POST", "PUT", "DELETE")


@dataclass
class LoadModel:
    """A busy node; all times are PVE seconds.

    At most `workers` changing requests are handled at once, each for `request_secs`; the others
    queue.  A clone holds its template's lock for `clone_lock_secs`, and fails when it does not get
    it within `lock_wait` (the whole clone takes `clone_secs`).
    """

    workers: int = 3
    request_secs: float = 0.05
    clone_secs: float = 0.46
    clone_lock_secs: float = 0.1
    lock_wait: float = 1.0


@dataclass
class Fault:
    """`method` and `template` ("POST", "/nodes/{node}/qemu/{vmid}/clone") say which requests;
    `only`, given the path's and the request's own parameters, narrows that."""

    kind: Literal["lose the reply", "hang up", "no worker", "answer", "delay"]
    method: str
    template: str
    times: int = 1
    status: int = 500
    reason: str = ""
    secs: float = 0.0
    only: Callable[[dict[str, str]], bool] | None = None

    def takes(self, method: str, template: str, values: dict[str, str]) -> bool:
        if self.times <= 0 or method != self.method or template != self.template:
            return False
        if self.only is not None and not self.only(values):
            return False
        self.times -= 1
        return True


class Front:
    """Part of ProxmoxNode: the way in."""

    def __init__(self, *args: Any, load: LoadModel | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.load = load
        self.faults: list[Fault] = []
        self.hidden: set[int] = set()  # VMIDs that tokens may not audit
        self.counts: Counter[tuple[str, str]] = Counter()
        self.busiest = 0  # the most changing requests that were handled at once
        self.pvesh_secs = 0.5  # what Perl takes to load, before a command line does anything
        self.kill_secs = 3.0  # a worker notices so late that its pvesh is dead
        self._busy = 0
        self._workers: asyncio.Semaphore | None = None

    # ------------------------------------------------------------------------- faults

    def lose_reply(self, method: str, template: str, times: int = 1, **more: Any) -> Fault:
        """The next matching requests are carried out, and their connection is cut instead of a
        reply.  `only=` narrows."""
        return self._add(Fault("lose the reply", method, template, times, **more))

    def hang_up(self, method: str, template: str, times: int = 1, **more: Any) -> Fault:
        """The next matching requests do nothing: their connection is cut instead."""
        return self._add(Fault("hang up", method, template, times, **more))

    def refuse_worker(self, method: str, template: str, times: int = 1, **more: Any) -> Fault:
        """The next matching requests do nothing: 500 "got no worker upid"."""
        return self._add(Fault("no worker", method, template, times, **more))

    def answer_with(
        self, method: str, template: str, status: int, reason: str, times: int = 1, **more: Any
    ) -> Fault:
        """The next matching requests do nothing and get this answer (596, "Broken pipe", …)."""
        more = {"status": status, "reason": reason, **more}
        return self._add(Fault("answer", method, template, times, **more))

    def delay(self, method: str, template: str, secs: float, times: int = 1, **more: Any) -> Fault:
        """The next matching requests are carried out and answered `secs` PVE seconds later."""
        return self._add(Fault("delay", method, template, times, secs=secs, **more))

    def _add(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def hide(self, *vmids: int) -> None:
        """Tokens have no VM.Audit on these: they are missing from lists."""
        self.hidden.update(vmids)

    def allowed(self, user: str, path: str, priv: str) -> bool:
        if priv == "VM.Audit" and "!" in (user or ""):
            found = re.fullmatch(r"/vms/(\d+)", path)
            if found and int(found[1]) in self.hidden:
                return False
        return super().allowed(user, path, priv)

    # ------------------------------------------------------------------------- load

    @asynccontextmanager
    async def _worker(self, request: web.Request) -> AsyncIterator[None]:
        busy = request.method in _WRITING and FOREGROUND not in request.headers
        if self.load is None or not busy:
            yield
            return
        if self._workers is None:
            self._workers = asyncio.Semaphore(self.load.workers)
        async with self._workers:
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            try:
                await self.pause(self.load.request_secs)
                yield
            finally:
                self._busy -= 1

    def clone_seconds(self, full: bool) -> float:
        if self.load is not None and not full:
            return self.load.clone_secs
        return self.seconds["qmclone full" if full else "qmclone"]

    @asynccontextmanager
    async def clone_lock(self, source: FakeVm) -> AsyncIterator[None]:
        """The source's lock, shared by clones unless there is a load model; 1 s of patience (487)."""
        record = RECORD.get()
        holder = f"clone {record['upid'] if record else ''}"
        await self.acquire(source, holder, wait=self.load.lock_wait if self.load else 1.0)
        if self.load is None:
            self.release(source, holder)
            yield
            return

        async def let_go() -> None:
            await self.pause(self.load.clone_lock_secs)
            self.release(source, holder)

        later = asyncio.ensure_future(let_go())
        try:
            yield
        finally:
            if not self.time_scale:
                await later
            later.cancel()
            self.release(source, holder)

    # ------------------------------------------------------------------------- the way in

    def _build_app(self) -> web.Application:
        app = super()._build_app()
        app.middlewares.insert(0, self._front)
        return app

    async def start(self, certfile: str, keyfile: str) -> None:
        """As pveproxy: idle connections are closed after 5 s."""
        import ssl

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certfile, keyfile)
        self.runner = web.AppRunner(
            self._build_app(), keepalive_timeout=5, access_log=None, shutdown_timeout=0.5
        )
        await self.runner.setup()
        site = web.TCPSite(self.runner, self.host, self.port, ssl_context=context)
        await site.start()
        self.port = self.port or self.runner.addresses[0][1]

    @web.middleware
    async def _front(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path.startswith(SIDE_DOOR):
            return await self._side_door(request)
        if FOREGROUND in request.headers:
            return await self._in_foreground(request, handler)
        return await self._pass(request, handler)

    async def _pass(self, request: web.Request, handler: Any) -> web.Response:
        match = self.resolve(request, API)
        template = match.template if match else request.path
        self.counts[(request.method, template)] += 1
        refused = self._refused(request)
        if refused is not None:
            return self._as_proxmox(refused)
        fault = await self._fault_for(request, match)
        if fault is not None and fault.kind == "no worker":
            return self._as_proxmox(error(500, NO_WORKER))
        if fault is not None and fault.kind == "answer":
            return self._as_proxmox(error(fault.status, fault.reason))
        if fault is not None and fault.kind == "hang up":
            self._cut(request)
        async with self._worker(request):
            try:
                response = await handler(request)
            except web.HTTPNotFound:
                path = request.path.removeprefix(API)
                response = error(501, f"Method '{request.method} {path}' not implemented")
        if fault is not None and fault.kind == "delay":
            await self.pause(fault.secs)
        if fault is not None and fault.kind == "lose the reply":
            self._cut(request)
        if response.status == 401:
            await self.pause(3)
        return self._as_proxmox(response)

    @staticmethod
    def _cut(request: web.Request) -> NoReturn:
        if request.transport is not None:
            request.transport.close()
        raise ConnectionResetError("the connection is cut, as told")

    async def _fault_for(self, request: web.Request, match: Any) -> Fault | None:
        if match is None or not self.faults:
            return None
        values = {**match.params, **dict(request.query)}
        if request.content_type == "application/x-www-form-urlencoded":
            values.update({k: str(v) for k, v in (await request.post()).items()})
        found = (f for f in self.faults if f.takes(request.method, match.template, values))
        return next(found, None)

    @staticmethod
    def _refused(request: web.Request) -> web.Response | None:
        """What pveproxy does not take: a body with DELETE, chunks, more than 512 KiB."""
        if request.headers.get("Transfer-Encoding"):
            return error(501, "chunked transfer encoding not supported")
        length = request.content_length or 0
        if request.method == "DELETE" and length:
            return error(501, "Unexpected content for method 'DELETE'")
        if length > _BIGGEST and not request.path.endswith("/upload"):
            return error(501, "for data too large")
        return None

    @staticmethod
    def _as_proxmox(response: web.Response) -> web.Response:
        """The message stands in the reason only, a 401 or a 596 has no body (001, 329), and the connection is
        closed after an error."""
        if response.status < 400 or response.content_type != "application/json":
            return response
        body = json.loads(response.text or "{}")
        body.pop("message", None)
        plain: web.Response
        if response.status in (401, 595, 596, 599):
            plain = web.Response(status=response.status, reason=response.reason)
        else:
            plain = web.json_response(body, status=response.status, reason=response.reason)
        plain.force_close()
        return plain

    async def _answer(
        self, request: web.Request, handler: Any, generic: Any, path_node: str | None
    ) -> web.Response:
        """An unknown node is a 500 about its name, whatever is asked (060 to 062)."""
        if path_node is not None and path_node not in self.nodes:
            return error(
                500,
                f"hostname lookup '{path_node}' failed - failed to get address info for: "
                f"{path_node}: Name or service not known",
            )
        return await super()._answer(request, handler, generic, path_node)

    async def answer(
        self, request: web.Request, match: Any, values: Any, user: str, call: Any = None
    ) -> Any:
        """An unknown path or method is a 501 (059, 063 to 066, 903)."""
        if match is None or request.method not in match.methods:
            path = request.path.removeprefix(API)
            raise PveError(501, f"Method '{request.method} {path}' not implemented")
        return await super().answer(request, match, values, user, call)

    def _authenticate(self, request: web.Request) -> str | None:
        """001 to 006."""
        given = request.headers.get("Authorization", "")
        if given.startswith("PVEAPIToken="):
            token, _, secret = given.removeprefix("PVEAPIToken=").partition("=")
            user, _, name = token.partition("!")
            if not re.fullmatch(r"[A-Za-z][\w.-]+", name) or "@" not in user:
                raise PveError(
                    401,
                    f"'{token}' is not a valid token ID - not able to split into user and token "
                    "parts",
                )
            if token not in self.apitokens:
                raise PveError(401, f"no such token '{name}' for user '{user}'")
            if self.apitokens[token] != secret:
                raise PveError(401, "invalid token value!")
            return token
        if not request.path.endswith("/access/ticket") and not request.cookies.get("PVEAuthCookie"):
            raise PveError(401, "No ticket")
        return super()._authenticate(request)

    # ------------------------------------------------------------------------- command lines

    def in_foreground(self) -> bool:
        """Whether this is done for a stand-in of a command line."""
        return SPOKEN.get() is not None

    async def _in_foreground(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """The stand-ins' way: lines of JSON.  First the answer, then what the worker says, then how
        it ended.  Who hangs up has died, and its tasks die a little later."""
        spoken: list[tuple[str, str]] = []
        started: list[str] = []
        SPOKEN.set(spoken)
        STARTED.set(started)
        if request.headers[FOREGROUND] == "new":
            await self.pause(self.pvesh_secs)
        answer = await self._pass(request, handler)
        told = json.loads(answer.text) if answer.text else {}
        stream = web.StreamResponse()
        await stream.prepare(request)

        async def tell(line: dict[str, Any]) -> None:
            with contextlib.suppress(ConnectionError):
                await stream.write(json.dumps(line).encode() + b"\n")

        for channel, text in spoken:
            await tell({channel: text})
        told = {**told, "status": answer.status, "reason": answer.reason}
        for upid in started if answer.status == 200 else ():
            await self._follow(request, upid, tell)
        await tell({"answer": told})
        with contextlib.suppress(ConnectionError):
            await stream.write_eof()
        stream.force_close()
        return stream

    async def _follow(self, request: web.Request, upid: str, tell: Any) -> None:
        record, shown = self.tasks[upid], 0
        while True:
            over = record["status"] == "stopped"
            for text in record["log"][shown:]:
                shown += 1
                if text != "TASK OK":
                    error_text = text.startswith("TASK ERROR: ")
                    line = text.removeprefix("TASK ERROR: ")
                    await tell({"err" if error_text else "out": line})
            if over:
                return
            if request.transport is None or request.transport.is_closing():
                await self.pause(self.kill_secs)
                self.kill_task(upid)
                return
            await asyncio.sleep(0.01)

    async def _side_door(self, request: web.Request) -> web.Response:
        """`pvesh ls`: the children of a path, and what one may do with each."""
        if request.cookies.get("PVEAuthCookie") not in self.tickets:
            return web.Response(status=401)
        tree = pve_schema.load()
        asked = request.query.get("path", "/")
        match = tree.match(asked)
        if match is None and asked != "/":
            return web.json_response({"lines": None})
        parent = (match.template if match else "").rstrip("/")
        lines = []
        for name in tree.children(parent):
            path = f"{parent}/{name}"
            methods = tree.paths.get(path, {})
            flags = "D" if any(other.startswith(path + "/") for other in tree.paths) else "-"
            for flag, method in (("r", "GET"), ("w", "PUT"), ("c", "POST"), ("d", "DELETE")):
                flags += flag if method in methods else "-"
            lines.append(f"{flags}        {name}")
        return web.json_response({"lines": lines})

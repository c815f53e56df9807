"""Serves a ProxmoxNode over TLS, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakepve.certs import make_cert
from fakepve.server import settle

from tests.fakes.pve.node import TOKEN, ProxmoxNode

_PATIENCE = 30.0


@dataclass
class Served:
    """A node that is being served.  `call` and `paused` are the safe ways to touch it."""

    node: ProxmoxNode
    url: str  # https://127.0.0.1:port
    ca: Path
    loop: asyncio.AbstractEventLoop = field(repr=False)
    ticket: str = field(repr=False)  # root's own, for the stand-ins of command lines
    csrf: str = field(repr=False)

    @property
    def token(self) -> str:
        """As settings have it: root@pam!bench=<uuid>."""
        return "=".join(TOKEN)

    @property
    def host(self) -> str:
        return self.url.removeprefix("https://")

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs a function, or a coroutine function, on the node's loop; what it gives."""

        async def run() -> Any:
            given = function(*args)
            return await given if isinstance(given, Awaitable) else given

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(_PATIENCE)

    @contextmanager
    def paused(self) -> Iterator[ProxmoxNode]:
        """Nothing happens on the node while the body looks at it or changes it."""
        stopped, go = threading.Event(), threading.Event()

        def hold() -> None:
            stopped.set()
            go.wait(_PATIENCE)

        self.loop.call_soon_threadsafe(hold)
        if not stopped.wait(_PATIENCE):
            raise TimeoutError("the fake node's loop is stuck")
        try:
            yield self.node
        finally:
            go.set()


@contextmanager
def serve(node: ProxmoxNode, directory: Path) -> Iterator[Served]:
    """Serves `node` on a free port of 127.0.0.1; the certificate is kept in `directory`.

    Tasks of it that ended by a mistake of the stand-in's own fail the test in the end.
    """
    certificate, key = str(directory / "pve.crt"), str(directory / "pve.key")
    if not Path(key).exists():
        make_cert(str(directory), name="pve", hosts=("127.0.0.1",))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_run, args=(loop,), name="fake pve", daemon=True)
    thread.start()

    def on_loop(awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, loop).result(_PATIENCE)

    try:
        on_loop(node.start(certificate, key))
        ticket, csrf = node.issue_ticket("root@pam")
        yield Served(node, node.url, Path(certificate), loop, ticket, csrf)
    finally:
        try:
            on_loop(settle())
            on_loop(_cut(node))
            on_loop(node.stop())
            on_loop(_end_all())
            on_loop(_close_all())
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_PATIENCE)
            if not thread.is_alive():
                loop.close()
    assert node.mistakes == [], "the stand-in's own, not Proxmox's"


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


async def _cut(node: ProxmoxNode) -> None:
    """Ends connections without TLS's farewell, for which the loop would not live long enough, and
    waits until they have closed."""
    server = node.runner.server if node.runner else None
    if server is None:
        return
    for connection in list(server.connections):
        if connection.transport is not None:
            connection.transport.abort()
    for _ in range(125):
        if not server.connections:
            return
        await asyncio.sleep(0.002)


async def _end_all() -> None:
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest, timeout=2)


async def _close_all() -> None:
    """A connection that was still shaking hands is in no server's list, only in the loop's own."""
    transports = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]
    for _ in range(5):
        for each in list(transports.values()):
            each.abort()
        await settle()

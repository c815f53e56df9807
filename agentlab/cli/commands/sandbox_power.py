"""Power of sandboxes: start, stop, pause, resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.api.table import Endpoint
from agentlab.cli import watch
from agentlab.cli.command import Answer, Context, GaveUp, Interrupted, Usage
from agentlab.cli.text import safe
from agentlab.client.client import Client
from agentlab.errors import AgentLabError, Unreachable

_POWERLESS = ("stopped", "absent")
_DOING = {"start": "starting", "stop": "stopping", "pause": "pausing", "resume": "resuming"}


def start(ctx: Context) -> Answer:
    request = m.StartRequest(queue=not ctx.args.flag("--no-queue"))
    return acted(
        ctx, "start", lambda client, path: client.act(api.SANDBOX_START, request, path=path)
    )


def pause(ctx: Context) -> Answer:
    return acted(ctx, "pause", _asking(api.SANDBOX_PAUSE))


def resume(ctx: Context) -> Answer:
    return acted(ctx, "resume", _asking(api.SANDBOX_RESUME))


def stop(ctx: Context) -> Answer:
    """One, like the others; several or --all: each is tried, whatever becomes of the rest."""
    named, everyone = ctx.args.many("SANDBOX"), ctx.args.flag("--all")
    if bool(named) == everyone:
        raise Usage("cannot stop sandboxes: name them, or say --all, not both",
                    hint="see: agentlab sandbox stop --help")  # fmt: skip
    if len(named) == 1:
        return acted(ctx, "stop", _asking(api.SANDBOX_STOP))
    return _Stops(ctx).run(named)


_Ask = Callable[[Client, dict[str, str]], m.OperationView]


def _asking(endpoint: Endpoint[m.Nothing, m.OperationView]) -> _Ask:
    return lambda client, path: client.act(endpoint, path=path)


def acted(ctx: Context, verb: str, ask: _Ask) -> Answer:
    """Asks for an operation, waits for its end unless told not to, and says what state it led to."""
    wait = not ctx.args.flag("--no-wait")
    client = ctx.client(waits=wait)
    operation = ask(client, {"vmid": ctx.args.text("SANDBOX")})
    if not wait:
        return Answer(operation, [f"operation {safe(operation.id)}"])
    name = f"sandbox {operation.vmid}"
    last = watch.done(ctx, client, operation, f"{verb} {name}", f"{_DOING[verb]} {name}")
    return Answer(last, [became(client, last)])


def became(client: Client, operation: m.OperationView) -> str:
    """What an operation has led to."""
    each = client.call(api.SANDBOX_SHOW, path={"vmid": str(operation.vmid)})
    return f"sandbox {each.vmid} is {safe(each.state)}"


class _Stops:
    """Several stops at once; what is said of each is collected."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._wait = not ctx.args.flag("--no-wait")
        self._client = ctx.client(waits=self._wait)
        self._lines: list[str] = []
        self._operations: list[m.OperationView] = []
        self._left: list[dict[str, object]] = []
        self._failed: list[dict[str, object]] = []

    def run(self, named: Sequence[str]) -> Answer:
        begun = [operation for each in named or self._all() for operation in self._ask(each)]
        for operation in begun:
            self._end(operation)
        document = {"operations": self._operations, "left": self._left, "failed": self._failed}
        lines = self._lines or [
            "no sandbox was stopped" if self._failed else "no sandbox has power"
        ]
        return Answer(document, lines, status=1 if self._failed else 0)

    def _all(self) -> list[str]:
        """Those that have power; a job's is its own affair."""
        found = []
        for each in self._client.call(api.SANDBOX_LIST).sandboxes:
            if each.power in _POWERLESS:
                continue
            if each.operation.startswith("job."):
                self._left.append({"vmid": each.vmid, "job": each.job})
                self._lines.append(f"sandbox {each.vmid} left: job {safe(each.job)} runs in it")
            else:
                found.append(str(each.vmid))
        return found

    def _ask(self, reference: str) -> list[m.OperationView]:
        try:
            return [self._client.act(api.SANDBOX_STOP, path={"vmid": reference})]
        except AgentLabError as error:
            self._fail(reference, error)
            return []

    def _end(self, operation: m.OperationView) -> None:
        name = f"sandbox {operation.vmid}"
        if not self._wait:
            self._operations.append(operation)
            self._lines.append(f"{name}: operation {safe(operation.id)}")
            return
        try:
            last = watch.done(
                self._ctx, self._client, operation, f"stop {name}", f"stopping {name}"
            )
            self._operations.append(last)
            self._lines.append(became(self._client, last))
        except (GaveUp, Interrupted):
            raise
        except AgentLabError as error:
            self._fail(str(operation.vmid), error)

    def _fail(self, reference: str, error: AgentLabError) -> None:
        """Written down; a daemon that cannot be reached ends it all."""
        if isinstance(error, Unreachable):
            raise error
        self._failed.append(
            {"sandbox": reference, "error": error.message, "code": error.code, "hint": error.hint}
        )
        if not self._ctx.out.json:
            self._ctx.out.error(error, error.message)

"""Programs in sandboxes: started, heard, fed and ended, each call as often as it may come."""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agentlab.api import messages as m
from agentlab.api.table import MAX_WAIT, Raw
from agentlab.clock import Deadline
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request
from agentlab.errors import AgentLabError, Conflict, Unavailable
from agentlab.hypervisor.base import Power
from agentlab.hypervisor.programs import MAX_INPUT, Heard, Order, Programs, render_program
from agentlab.log import one_line
from agentlab.model.sandbox import Sandbox, SandboxState
from agentlab.operations import use
from agentlab.store import sandboxes

_log = logging.getLogger(__name__)
_FIRST_LOOK, _LONGEST_LOOK = 1.0, 8.0  # seconds that one question to a guest waits for news
_MOST_START = 5.0
_MOST_FEED = 20.0
_TRIES = (0.0, 1.0, 10.0)  # seconds before each try to clean up behind a program that has ended

# What is missing in a state before a program can run there; the other states have power.
_REMEDY = {
    SandboxState.REQUESTED: "wait until it is READY: agentlab sandbox show {}",
    SandboxState.PROVISIONING: "wait until it is READY: agentlab sandbox show {}",
    SandboxState.BOOTING: "wait until it is READY: agentlab sandbox show {}",
    SandboxState.SUSPENDED: "agentlab sandbox resume {}",
    SandboxState.STOPPED: "agentlab sandbox start {}",
    SandboxState.DESTROYED: "see those that live: agentlab sandbox list",
}


def start(daemon: Daemon, request: Request[m.ExecRequest]) -> m.ExecOutput:
    asked = request.document
    wait = request.seconds("wait", most=_MOST_START)
    order = Order(asked.argv, asked.user, asked.workdir, asked.env, asked.input)
    render_program(order)  # what cannot be is told before anything is noted
    sandbox = _usable(daemon, request)
    programs = _programs(daemon, sandbox)
    programs.check(asked.id)
    name = one_line(asked.argv[0])[:200]
    use.note_program_start(daemon.world, sandbox, asked.id, name, asked.user)
    with _power_of(daemon, sandbox):
        heard = programs.start(asked.id, order, wait=wait)
    use.mark_used(daemon.world, sandbox.vmid)
    return _told(daemon, sandbox, asked.id, heard)


def output(daemon: Daemon, request: Request[m.Nothing]) -> m.ExecOutput:
    """What there is from two pieces on; asks the guest again until there is something."""
    name = request.values["id"]
    next_out, next_err = request.number("out", 0), request.number("err", 0)
    until = Deadline.after(request.seconds("wait", most=MAX_WAIT))
    look = _FIRST_LOOK
    while True:
        sandbox = _usable(daemon, request)
        with _power_of(daemon, sandbox):
            heard = _programs(daemon, sandbox).hear(
                name, next_out, next_err, wait=min(look, max(until.left, 0.0))
            )
        if heard.news or until.passed or daemon.stopping.is_set():
            return _told(daemon, sandbox, name, heard)
        look = min(look * 2, _LONGEST_LOOK)


def take(daemon: Daemon, request: Request[Raw]) -> m.ExecInput:
    offset, last = request.number("offset", 0), request.flag("last")
    wait = request.seconds("wait", most=_MOST_FEED)
    content = request.body.whole(MAX_INPUT)
    sandbox = _usable(daemon, request)
    with _power_of(daemon, sandbox):
        programs = _programs(daemon, sandbox)
        return m.ExecInput(
            programs.feed(request.values["id"], offset, content, last=last, wait=wait)
        )


def end(daemon: Daemon, request: Request[m.Nothing]) -> m.ExecEnd:
    """A sandbox that has no power, or is gone, has no programs: then all is as asked."""
    name = request.values["id"]
    with daemon.world.store.read() as tx:
        sandbox = sandboxes.get(tx, request.values["vmid"])
    programs = _programs(daemon, sandbox)
    programs.check(name)
    if request.flag("ended"):
        threading.Thread(target=_forget, args=(programs, name), daemon=True).start()
        return m.ExecEnd(None)
    status = None
    if sandbox.state not in _REMEDY:
        with _power_of(daemon, sandbox):
            status = programs.end(name)
    use.note_program_end(daemon.world, sandbox, name, status)
    return m.ExecEnd(status)


def _forget(programs: Programs, name: str) -> None:
    """What stays behind is a few files in the guest's memory; a later program clears them away."""
    for pause in _TRIES:
        time.sleep(pause)
        try:
            programs.end(name)
            return
        except AgentLabError as error:
            _log.info("left a program's files in sandbox %d: %s", programs.vmid, error)


def _programs(daemon: Daemon, sandbox: Sandbox) -> Programs:
    world = daemon.world
    most = world.hypervisor.capabilities.exec_stdin
    return Programs(world.hypervisor, sandbox.vmid, world.installation, most)


def _usable(daemon: Daemon, request: Request[Any]) -> Sandbox:
    with daemon.world.store.read() as tx:
        sandbox = sandboxes.get(tx, request.values["vmid"])
    if sandbox.state in _REMEDY:
        raise _not_now(sandbox, f"it is {sandbox.state}", _REMEDY[sandbox.state])
    return sandbox


def _not_now(sandbox: Sandbox, why: str, hint: str) -> Conflict:
    return Conflict(
        f"cannot run a program in sandbox {sandbox.vmid}: {why}",
        hint=hint.format(sandbox.vmid),
        details={"state": sandbox.state.value},
    )


@contextmanager
def _power_of(daemon: Daemon, sandbox: Sandbox) -> Iterator[None]:
    """A guest that does not answer may have no power, whatever its record says: then says so."""
    try:
        yield
    except (Conflict, Unavailable) as error:
        machine = daemon.world.hypervisor.status(sandbox.vmid)
        if machine is not None and machine.power is Power.STOPPED:
            hint = "see what happened: agentlab logs {}"
            raise _not_now(sandbox, "its VM has no power", hint) from error
        if machine is not None and machine.power is Power.PAUSED:
            raise _not_now(sandbox, "its VM is paused", "agentlab sandbox resume {}") from error
        raise


def _told(daemon: Daemon, sandbox: Sandbox, name: str, heard: Heard) -> m.ExecOutput:
    if heard.status is not None or heard.lost:
        use.note_program_end(daemon.world, sandbox, name, heard.status)
    return m.ExecOutput(
        next_out=heard.next_out,
        next_err=heard.next_err,
        status=heard.status,
        cut=heard.cut,
        broken=heard.broken,
        lost=heard.lost,
        stdout=base64.b64encode(heard.out).decode(),
        stderr=base64.b64encode(heard.err).decode(),
    )

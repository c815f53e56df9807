"""Sessions: made, listed, resumed, stopped, forked, deleted."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.handlers.operations import shown
from agentlab.daemon.job_spec import parse_ttl
from agentlab.daemon.router import Request
from agentlab.daemon.views import masked
from agentlab.daemon.views_work import session_view
from agentlab.model.session import Session, SessionSpec
from agentlab.operations import session_requests
from agentlab.store import sessions
from agentlab.store.db import Tx


def create(daemon: Daemon, request: Request[m.SessionRequest]) -> m.SessionMade:
    asked = request.document
    spec = SessionSpec(
        name=asked.name,
        profile=asked.profile,
        workspace=asked.workspace,
        size=asked.size,
        storage=asked.storage,
    )
    return _made(daemon, *session_requests.create(daemon.world, daemon.runner, spec, request.key))


def all_known(daemon: Daemon, _: Request[m.Nothing]) -> m.SessionList:
    with daemon.world.store.read() as tx:
        return m.SessionList([_view(tx, each) for each in sessions.everyone(tx)])


def show(daemon: Daemon, request: Request[m.Nothing]) -> m.SessionView:
    with daemon.world.store.read() as tx:
        return _view(tx, sessions.get(tx, request.values["name"]))


def resume(daemon: Daemon, request: Request[m.ResumeRequest]) -> m.OperationView:
    asked = request.document
    identity = session_requests.resume(
        daemon.world, daemon.runner, request.values["name"], request.key,
        ttl=parse_ttl(asked.ttl), keepalive=asked.keepalive, queue=asked.queue,
    )  # fmt: skip
    return shown(daemon, identity)


def stop(daemon: Daemon, request: Request[m.SessionStopRequest]) -> m.SessionEnded:
    name = request.values["name"]
    return _ended(
        daemon,
        name,
        session_requests.stop(
            daemon.world, daemon.runner, name, request.key, force=request.document.force
        ),
    )


def fork(daemon: Daemon, request: Request[m.ForkRequest]) -> m.SessionMade:
    asked = request.document
    made = session_requests.fork(
        daemon.world, daemon.runner, request.values["name"], request.key,
        new=asked.name, snapshot=asked.snapshot,
    )  # fmt: skip
    return _made(daemon, *made)


def branch(daemon: Daemon, request: Request[m.BranchRequest]) -> m.SessionMade:
    asked = request.document
    found = session_requests.branch(
        daemon.world, daemon.runner, request.values["name"], asked.branch, request.key,
        snapshot=asked.snapshot,
    )  # fmt: skip
    return _made(daemon, *found)


def delete(daemon: Daemon, request: Request[m.SessionDeleteRequest]) -> m.SessionEnded:
    name = request.values["name"]
    return _ended(
        daemon,
        name,
        session_requests.delete(
            daemon.world, daemon.runner, name, request.key,
            with_workspace=request.document.with_workspace,
        ),
    )  # fmt: skip


def _view(tx: Tx, session: Session) -> m.SessionView:
    return session_view(tx, session, masked(session.repo))


def _made(daemon: Daemon, name: str, operation: str) -> m.SessionMade:
    with daemon.world.store.read() as tx:
        # one whose operation has failed is gone: that one says why
        found = sessions.find(tx, name) if operation else sessions.get(tx, name)
        view = _view(tx, found) if found else None
    return m.SessionMade(name, view, shown(daemon, operation) if operation else None)


def _ended(daemon: Daemon, name: str, operation: str) -> m.SessionEnded:
    return m.SessionEnded(name, shown(daemon, operation) if operation else None)

"""The event stream, by long poll."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.api.table import MAX_WAIT
from agentlab.clock import Deadline
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request
from agentlab.daemon.views import event_view
from agentlab.store import events

_MOST = 1000


def after(daemon: Daemon, request: Request[m.Nothing]) -> m.EventList:
    """Events after a number.  `last` goes past those that the filters leave out."""
    store, since = daemon.world.store, request.number("after", 0)
    vmid = request.number("vmid", 0)
    limit = request.number("limit", 500, most=_MOST) or 1
    until = Deadline.after(request.seconds("wait", most=MAX_WAIT))
    job, operation = request.query.get("job", ""), request.query.get("operation", "")
    while True:
        seen = store.commits
        with store.read() as tx:
            found = events.after(tx, since, job=job, vmid=vmid, operation=operation, limit=limit)
            last = found[-1].seq if len(found) == limit else events.last(tx)
        if found or until.passed or daemon.stopping.is_set():
            return m.EventList([event_view(each) for each in found], last)
        since = max(since, last)
        store.wait(seen, until.left)

"""Jobs: made, planned, shown, cancelled."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.job_spec import parse_spec
from agentlab.daemon.router import Request
from agentlab.daemon.views import job_view, plan_view
from agentlab.daemon.views_work import work_of_plan
from agentlab.errors import Invalid
from agentlab.model.job import JOB
from agentlab.operations import requests
from agentlab.store import jobs

_MAX_LIST = 1000


def create(daemon: Daemon, request: Request[m.JobRequest]) -> m.JobView:
    spec = parse_spec(daemon.world.store, request.document)
    job = requests.create_job(daemon.world, daemon.runner, spec, request.key)
    with daemon.world.store.read() as tx:
        return job_view(daemon, tx, jobs.get(tx, job.id))


def validate(daemon: Daemon, request: Request[m.JobRequest]) -> m.PlanView:
    spec = parse_spec(daemon.world.store, request.document)
    planned = requests.plan_job(daemon.world, spec)
    with daemon.world.store.read() as tx:
        workspace, session = work_of_plan(tx, spec)
    return plan_view(planned, workspace=workspace, session=session)


def newest(daemon: Daemon, request: Request[m.Nothing]) -> m.JobList:
    state = request.query.get("state", "").upper()
    if state and state not in list(JOB.states):
        raise Invalid(f"the parameter state must be one of {', '.join(JOB.states)}")
    limit = request.number("limit", 100, most=_MAX_LIST)
    with daemon.world.store.read() as tx:
        found = jobs.newest(tx, state=state, limit=limit)
        return m.JobList([job_view(daemon, tx, job) for job in found])


def show(daemon: Daemon, request: Request[m.Nothing]) -> m.JobView:
    with daemon.world.store.read() as tx:
        return job_view(daemon, tx, jobs.get(tx, request.values["id"]))


def cancel(daemon: Daemon, request: Request[m.Nothing]) -> m.JobView:
    requests.cancel_job(daemon.world, daemon.runner, request.values["id"])
    return show(daemon, request)

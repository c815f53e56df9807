"""Records as the API shows them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.views_work import work_of_job
from agentlab.errors import AgentLabError
from agentlab.hypervisor.base import Machine
from agentlab.model.drift import Place
from agentlab.model.event import Event
from agentlab.model.job import JOB, Job
from agentlab.model.plan import Plan
from agentlab.model.sandbox import SANDBOX, Sandbox
from agentlab.store import operations, sandboxes
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

_log = logging.getLogger(__name__)
_CREDENTIALS = re.compile(r"(?<=://)[^/]*@")  # a token may stand in a user's place


def job_view(daemon: Daemon, tx: Tx, job: Job) -> m.JobView:
    repo = job.spec.repo
    workspace, session = work_of_job(tx, job)
    return m.JobView(
        id=job.id,
        state=job.state.value,
        final=JOB.final(job.state),
        settled=JOB.final(job.state) and job.settled,
        profile=job.spec.profile,
        task=job.spec.task,
        repo=masked(repo.url) or f"bundle {repo.bundle[:12]}",
        ref=repo.ref,
        vmid=job.vmid,
        address=_address(tx, job),
        operation=job.operation,
        created=job.created,
        changed=job.changed,
        deadline=job.deadline,
        reason=job.reason,
        waits_for=job.waits_for,
        artifact_dir=str(daemon.world.job_dir(job.id)),
        labels=job.spec.labels,
        report=job.report,
        workspace=workspace,
        session=session,
    )


def masked(url: str) -> str:
    """A repository's URL without the credentials that may be in it."""
    return _CREDENTIALS.sub("***@", url)


def plan_view(plan: Plan, *, workspace: str = "", session: str = "") -> m.PlanView:
    return m.PlanView(
        profile=plan.profile,
        template=plan.template,
        cores=plan.cores,
        memory=plan.memory,
        disk=plan.disk,
        network=str(plan.network),
        ttl=plan.ttl,
        time_limit=plan.time_limit,
        after=str(plan.after),
        command=plan.command,
        workspace=workspace,
        session=session,
    )


def _address(tx: Tx, job: Job) -> str:
    sandbox = sandboxes.find(tx, job.vmid) if job.vmid else None
    # a VMID that came back may be another job's by now
    return str(sandbox.address) if sandbox and sandbox.job == job.id else ""


def power_of_all(daemon: Daemon) -> Mapping[int, str] | None:
    """The power of every machine, from one inventory; None when that cannot be read."""
    try:
        return {each.vmid: each.power.value for each in daemon.world.hypervisor.inventory()}
    except AgentLabError as error:
        _log.info("showing sandboxes without their power: %s", error)
        return None


def holders(tx: Tx, found: Sequence[Sandbox]) -> Mapping[int, OperationRow]:
    """What is being done with each of these sandboxes, by their ids."""
    held = {}
    for one in found:
        holder = operations.holder_of(tx, f"sandbox:{one.vmid}")
        if holder is not None and not SANDBOX.final(one.state):
            held[one.id] = holder
    return held


def sandbox_view(
    sandbox: Sandbox,
    power: Mapping[int, str] | None,
    holder: OperationRow | None = None,
    workspace: str = "",
) -> m.SandboxView:
    """A sandbox; its power is "absent" without a machine, "unknown" without an inventory.

    `holder` is what is being done with it, `workspace` the name of the one that it has.
    """
    shown = "unknown" if power is None else power.get(sandbox.vmid, "absent")
    if SANDBOX.final(sandbox.state):
        shown = "absent"  # a machine of this VMID is another one
    return m.SandboxView(
        vmid=sandbox.vmid,
        name=sandbox.name,
        state=sandbox.state.value,
        profile=sandbox.profile,
        address=str(sandbox.address),
        mac=sandbox.mac,
        network=sandbox.network,
        job=sandbox.job,
        power=shown,
        created=sandbox.created,
        changed=sandbox.changed,
        lease_until=sandbox.lease_until,
        reason=sandbox.reason,
        allowed=[each.value for each in SANDBOX.allowed(sandbox.state)],
        template=sandbox.template,
        cores=sandbox.cores,
        memory=sandbox.memory,
        disk=sandbox.disk,
        labels=sandbox.labels,
        ttl=sandbox.ttl,
        keepalive=sandbox.keepalive,
        idle_stop=sandbox.idle_stop,
        operation=f"{holder.kind} {holder.id}" if holder else "",
        waits_for=holder.waits_for if holder else "",
        workspace=workspace,
    )


def machine_view(machine: Machine, record: Sandbox | None, place: Place) -> m.MachineView:
    """A machine of the inventory; the record of its VMID is about it only when it is ours."""
    ours = machine.owner == place.installation
    whose = "other installation" if machine.owner else "stranger"
    if machine.template:
        whose = "template"
    elif ours:
        whose = "ours"
    return m.MachineView(
        vmid=machine.vmid,
        name=machine.name,
        power=machine.power.value,
        node=machine.node,
        whose=whose,
        sandbox=record.state.value if record is not None and ours else "",
        in_range=machine.vmid in place.vmids,
        lock=machine.lock,
    )


def event_view(event: Event) -> m.EventView:
    return m.EventView(
        seq=event.seq,
        at=event.at,
        kind=event.kind,
        text=event.text,
        job=event.job,
        vmid=event.vmid,
        operation=event.operation,
        facts=event.facts,
    )


def operation_view(tx: Tx, operation: OperationRow) -> m.OperationView:
    """An operation; `step` is the one under way, or the last one begun."""
    steps = sorted(operations.steps(tx, operation.id).values(), key=lambda each: each.started)
    at_work = [each.name for each in steps if each.state in operations.UNFINISHED]
    results = [each.output.get("result") for each in steps]
    return m.OperationView(
        id=operation.id,
        kind=operation.kind,
        subject=operation.subject,
        state=operation.state,
        step=(at_work or [each.name for each in steps] or [""])[-1],
        final=operation.final,
        error=operation.error,
        hint=operation.hint,
        waits_for=operation.waits_for,
        vmid=operation.vmid,
        result=next((each for each in results if isinstance(each, dict)), {}),
    )

"""What people ask for of jobs and templates: checked, planned, and written down as operations."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from agentlab import clock
from agentlab.engine.runner import Runner
from agentlab.errors import Conflict, Invalid
from agentlab.model import plan
from agentlab.model.ids import new_id
from agentlab.model.job import JOB, Job, JobSpec
from agentlab.model.plan import Plan
from agentlab.model.sandbox import Sandbox
from agentlab.operations import admit, job_run, job_workspace, template_build
from agentlab.operations.context import World
from agentlab.store import events, jobs, operations, sandboxes
from agentlab.store.operations import OperationRow

_PROVISIONING = 7200.0  # seconds: more than the steps up to the delivery may take in sum
_HEARTBEAT = 2


def plan_job(world: World, spec: JobSpec) -> Plan:
    """What a job would get; NotFound for its profile, Invalid for what it asks."""
    spec = job_workspace.checked(world, spec)
    planned = plan.plan_job(world.profile(spec.profile), spec)
    admit.refuse_never(world.config.limits, planned.cores, planned.memory)
    return planned


def create_job(world: World, runner: Runner, spec: JobSpec, request_key: str) -> Job:
    """Writes a job and its operation down; the same key with the same spec gives the same job."""
    planned = plan_job(world, spec)
    asked = hashlib.sha256(json.dumps(dataclasses.asdict(spec), sort_keys=True).encode())
    spec = job_workspace.checked(world, spec)
    profile = world.profile(spec.profile)
    job_id, operation, now = new_id(), new_id(), clock.now()
    job = Job(
        id=job_id, state=JOB.initial, spec=spec, vmid=0, operation=operation, created=now,
        changed=now, deadline=now + _PROVISIONING + spec.workspace_wait + planned.ttl, reason="",
        waits_for="", settled=False, report=None,
    )  # fmt: skip
    arguments = {
        "name": f"job-{job_id}",
        "plan": dataclasses.asdict(planned),
        "handback": profile.handback,
        "agent": {
            "env": {**profile.env, **spec.env},
            "bubblewrap": profile.bubblewrap,
            "mode": spec.mode or profile.mode,
        },
        "limits": dataclasses.asdict(profile.limits),
        "workspace_wait": spec.workspace_wait,
        "queue": spec.queue,
    }
    with world.store.write() as tx:
        earlier = jobs.by_request(tx, request_key) if request_key else None
        if earlier is not None:
            if earlier[1] != asked.hexdigest():
                raise Conflict("cannot use this Idempotency-Key: it made a different job before")
            return earlier[0]
        if spec.repo.bundle and not jobs.has_bundle(tx, spec.repo.bundle):
            raise Invalid(
                f"repo.bundle: no bundle {spec.repo.bundle} has been sent",
                hint="send it first: PUT /v1/bundles/SHA256",
                details={"path": "repo.bundle"},
            )
        if not spec.queue:
            limits = world.config.limits
            admit.refuse_now(tx, limits, planned.cores, planned.memory, new=True)
        workspace, session = job_workspace.taken_up(world, runner, tx, spec)
        if workspace:
            arguments["workspace"] = workspace
        if session:
            arguments["labels"] = {"session": session}
        jobs.create(tx, job, request_key=request_key, request_hash=asked.hexdigest())
        runner.submit(
            tx, job_run.KIND, [f"job:{job_id}"], arguments, job=job_id, operation=operation
        )
    return job


def cancel_job(world: World, runner: Runner, job_id: str) -> Job:
    """Asks a job to end; one that is final already is left as it is."""
    with world.store.write() as tx:
        job = jobs.get(tx, job_id)
        if not JOB.final(job.state):
            events.append(
                tx, "job.cancel", f"job {job.id}: cancelling was asked for", job=job.id,
                vmid=job.vmid, operation=job.operation,
            )  # fmt: skip
            runner.cancel(tx, job.operation)
    return job


def build_template(
    world: World, runner: Runner, name: str, *, image: str = "", storage: str = ""
) -> str:
    """The operation that builds a template; the one under way when there is one."""
    subject = f"template:{name}"
    with world.store.write() as tx:
        holder = operations.holder_of(tx, subject)
        if holder is not None:
            return holder.id
        given = {"template": name, "image": image, "storage": storage}
        return runner.submit(tx, template_build.KIND, [subject], given)


def guest_document(world: World, job: Job) -> dict[str, object]:
    """The job as the runner in the guest gets it, once it has shown its token."""
    with world.store.read() as tx:
        operation = operations.get(tx, job.operation)
        sandbox = sandboxes.get(tx, job.vmid)
    arguments = operation.input
    planned, agent, limits = (_mapping(arguments[key]) for key in ("plan", "agent", "limits"))
    repo = job.spec.repo
    source: dict[str, object] = {"kind": "bundle", "ref": repo.ref or None}
    if not repo.bundle:
        source = {"kind": "git", "url": repo.url, "ref": repo.ref or None, "depth": repo.depth}
    return {
        "protocol": job_run.PROTOCOL,
        "id": job.id,
        "profile": job.spec.profile,
        "mode": agent["mode"],
        "task": job.spec.task,
        "repo": source,
        "command": planned["command"],
        "bubblewrap": agent["bubblewrap"],
        "env": agent["env"],
        "time_limit": max(1, agent_time_left(sandbox, operation)),
        "handback_limit": int(str(arguments["handback"])),
        "heartbeat": _HEARTBEAT,
        "limits": {
            "log_bytes": limits["log"],
            "artifact_bytes": limits["artifact"],
            "artifact_total": limits["artifacts"],
            "artifact_count": limits["artifact_count"],
        },
    }


def agent_time_left(sandbox: Sandbox, operation: OperationRow) -> int:
    """Seconds that a job's agent has from now on: it is stopped early enough to hand back.

    One clock for it and for the lease, so that a renewed lease gives the agent more.
    """
    if not sandbox.lease_until:  # it has asked before the daemon has noted that it was delivered
        return int(str(_mapping(operation.input["plan"])["time_limit"]))
    handback = int(str(operation.input["handback"]))
    return max(0, int(sandbox.lease_until - clock.now()) - handback)


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError("an operation's input is not what it was when it was written")
    return value

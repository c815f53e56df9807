"""Doctor bundles: all that is known of a session, sandbox or job, for whoever looks for a fault.

Nothing is changed.  The same state gives the same bytes, and no secret is among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agentlab.control import archive
from agentlab.control.doctor_host import host, machine_of, volume_of
from agentlab.control.redact import Redactor, secrets_in
from agentlab.model.event import Event
from agentlab.model.job import Artifact
from agentlab.model.sandbox import Sandbox
from agentlab.model.session import Session
from agentlab.model.workspace import Workspace
from agentlab.operations.context import World
from agentlab.store import about, jobs, operations, sandboxes, sessions, workspaces
from agentlab.store.about import About
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow, StepRow

MAX_EVENTS, MAX_OPERATIONS, MAX_JOBS = 500, 200, 100

README = """\
Doctor bundle of {noun} {name}, made by AgentLab.

session.json     the record of the session
workspace.json   the record of the workspace, and the lease by which a sandbox has it
volume.json      its volume and snapshots, as the hypervisor tells
sandbox.json     the record of the sandbox
machine.json     its machine, as the hypervisor tells: power, snapshots, volumes
jobs.json        jobs, with task, report and names of variables
operations.json  what was done, with the steps of each
events.json      what happened, the last 500 events
artifacts.json   names, sizes and sha256 of what jobs handed back; not the files
host.json        versions, hypervisor and settings of the daemon

Where there is nothing to tell, a file says why ("absent"), or what could not be
read ("error").  "complete": false: earlier entries are left out.  Times are
seconds since the epoch, sizes of disks and memory MiB.

Tokens, keys, passwords, values of variables and credentials in URLs are left
out: *** stands for each.  Texts of tasks, events and reports are as they were
written, by people and in virtual machines: read them before you pass them on.
"""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A tar.gz, and the name that its folder has: agentlab-NOUN-NAME."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Case:
    """What a bundle is about: `about` says whose operations and events are in it."""

    name: str
    about: About
    session: Session | None = None
    workspace: Workspace | None = None
    sandbox: Sandbox | None = None
    more_jobs: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """What is written down about a case, from one view of the database."""

    operations: list[OperationRow]
    steps: Mapping[str, list[StepRow]]
    events: list[Event]
    artifacts: list[Artifact]
    more_operations: bool = field(default=False)
    more_events: bool = field(default=False)


def session_case(tx: Tx, name: str) -> Case:
    """With its workspace, the sandbox that has it now, and the jobs that ran with it."""
    session = sessions.get(tx, name)
    workspace = workspaces.by_id(tx, session.workspace)
    sandbox, ran = None, []
    if workspace is not None:
        sandbox = sandboxes.find(tx, workspace.vmid) if workspace.holder else None
        if sandbox is not None and sandbox.id != workspace.holder:
            sandbox = None
        ran = about.jobs_of(tx, workspace, session, MAX_JOBS + 1)
    kept = tuple(ran[-MAX_JOBS:])
    return Case(
        session.name, About(session, workspace, sandbox, kept), session, workspace, sandbox,
        more_jobs=len(ran) > len(kept),
    )  # fmt: skip


def sandbox_case(tx: Tx, name: str) -> Case:
    """By VMID or name, with its job and with the workspace that it has now."""
    sandbox = sandboxes.get_live(tx, name)
    workspace = workspaces.held_by(tx, sandbox.id)
    session = sessions.of_workspace(tx, workspace.id) if workspace else None
    job = jobs.find(tx, sandbox.job) if sandbox.job else None
    return Case(
        str(sandbox.vmid), About(sandbox=sandbox, jobs=(job,) if job else ()),
        session, workspace, sandbox,
    )  # fmt: skip


def job_case(tx: Tx, name: str) -> Case:
    """With its sandbox, as long as nobody else has the VMID, and the workspace that it ran with."""
    job = jobs.get(tx, name)
    sandbox = sandboxes.find(tx, job.vmid) if job.vmid else None
    if sandbox is not None and sandbox.job != job.id:
        sandbox = None
    operation = operations.find(tx, job.operation)
    identity = operation.input.get("workspace") if operation else None
    workspace = workspaces.by_id(tx, identity) if isinstance(identity, int) else None
    session = sessions.of_workspace(tx, workspace.id) if workspace else None
    return Case(job.id, About(sandbox=sandbox, jobs=(job,)), session, workspace, sandbox)


CASES: Mapping[str, Callable[[Tx, str], Case]] = {
    "session": session_case,
    "sandbox": sandbox_case,
    "job": job_case,
}


def collect(world: World, noun: str, name: str, *, commit: str = "") -> Bundle:
    """The bundle of a session, sandbox or job; NotFound for one that there is not.

    What the hypervisor does not tell is an error inside of the bundle.
    """
    with world.store.read() as tx:
        case = CASES[noun](tx, name)
        history = _history(tx, case)
    redactor = Redactor(_known(world, case, history))
    machine = machine_of(world, case.sandbox)
    documents = {
        "session": case.session or _absent("no session has to do with it"),
        "workspace": case.workspace or _absent("no workspace has to do with it"),
        "volume": volume_of(world, case.workspace),
        "sandbox": case.sandbox or _absent("no sandbox has it now"),
        "machine": machine,
        "host": host(world, commit),
    }
    members = {
        f"{key}.json": archive.render(redactor.document(each)) for key, each in documents.items()
    }
    for key, (entries, whole) in _lists(case, history).items():
        document = archive.fit(key, entries, redactor.document, whole=whole)
        members[f"{key}.json"] = archive.render(document)
    members["README.txt"] = README.format(noun=noun, name=case.name).encode()
    folder = f"agentlab-{noun}-{case.name}"
    return Bundle(folder, archive.pack(folder, members, _newest(case, history)))


def _absent(why: str) -> dict[str, str]:
    return {"absent": why}


def _history(tx: Tx, case: Case) -> History:
    found = about.operations_of(tx, case.about, MAX_OPERATIONS + 1)
    events = about.events_of(tx, case.about, found, MAX_EVENTS + 1)
    kept = found[-MAX_OPERATIONS:]
    return History(
        operations=kept,
        steps={
            each.id: sorted(
                operations.steps(tx, each.id).values(), key=lambda step: (step.started, step.name)
            )
            for each in kept
        },
        events=events[-MAX_EVENTS:],
        artifacts=[one for job in case.about.jobs for one in jobs.artifacts(tx, job.id)],
        more_operations=len(found) > len(kept),
        more_events=len(events) > MAX_EVENTS,
    )


def _lists(case: Case, history: History) -> dict[str, tuple[list[object], bool]]:
    """Entries, oldest first, and whether they are all."""
    return {
        "jobs": ([*case.about.jobs], not case.more_jobs),
        "operations": (
            [_operation(each, history.steps[each.id]) for each in history.operations],
            not history.more_operations,
        ),
        "events": ([*history.events], not history.more_events),
        "artifacts": ([*history.artifacts], not case.more_jobs),
    }


def _operation(row: OperationRow, steps: list[StepRow]) -> dict[str, object]:
    """Without what tells requests apart: a hash of few possible values tells the value."""
    fields = {each.name: getattr(row, each.name) for each in dataclasses.fields(row)}
    del fields["request_key"], fields["request_hash"]
    return {**fields, "steps": steps}


def _known(world: World, case: Case, history: History) -> set[str]:
    """The secrets that we know of: hidden also where nobody would look for one."""
    found = {world.key.reveal(), *secrets_in(world.config), *secrets_in(case.workspace)}
    found.update(secrets_in(case.session))
    for job in case.about.jobs:
        token = world.token(job.id)
        found |= {token.reveal(), token.fingerprint, *secrets_in(job.spec)}
    for row in history.operations:
        found |= {row.request_key or "", *secrets_in(row.input)}
        found.update(secrets_in([step.output for step in history.steps[row.id]]))
    for entry in world.profiles():
        found.update(secrets_in(entry.profile))
    return found


def _newest(case: Case, history: History) -> float:
    """When something of this was changed last: the time of all files, since now is no fact of it."""
    records = (case.session, case.workspace, case.sandbox, *case.about.jobs)
    return max(
        [each.changed for each in records if each is not None]
        + [each.at for each in history.events[-1:]],
        default=0.0,
    )

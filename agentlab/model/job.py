"""Jobs: one task for an agent."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agentlab.model.machine import StateMachine, edges


class JobState(StrEnum):
    QUEUED = "QUEUED"
    PROVISIONING = "PROVISIONING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"


class JobEvent(StrEnum):
    PROVISION = "provision"
    RUN = "run"
    COMPLETE = "complete"
    FAIL = "fail"
    EXPIRE = "expire"
    CANCEL = "cancel"


_S = JobState
_E = JobEvent
_LIVE = [_S.QUEUED, _S.PROVISIONING, _S.RUNNING]

JOB = StateMachine[JobState, JobEvent](
    noun="job",
    initial=_S.QUEUED,
    edges=(
        *edges([_S.QUEUED], _E.PROVISION, _S.PROVISIONING),
        *edges([_S.PROVISIONING], _E.RUN, _S.RUNNING),
        *edges([_S.RUNNING], _E.COMPLETE, _S.COMPLETED),
        *edges(_LIVE, _E.FAIL, _S.FAILED),
        *edges(_LIVE, _E.EXPIRE, _S.TIMEOUT),
        *edges(_LIVE, _E.CANCEL, _S.CANCELLED),
    ),
    meaning={
        _S.QUEUED: "accepted; waits for its turn",
        _S.PROVISIONING: "its sandbox is being made and booted",
        _S.RUNNING: "its task has been delivered; the agent works or hands back",
        _S.COMPLETED: "the agent ended with status 0 and its work has been handed back",
        _S.FAILED: "it could not start, or the agent failed; `reason` says which",
        _S.TIMEOUT: "its time was up; what was made until then has been handed back",
        _S.CANCELLED: "somebody cancelled it",
    },
)


@dataclass(frozen=True, slots=True)
class Repo:
    """Where the work comes from: a git URL, or a bundle (its sha256) that the client sent.

    `ref` is "" for the remote's HEAD; `depth` 0 means the whole history.
    """

    url: str = ""
    bundle: str = ""
    ref: str = ""
    depth: int = 1


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What somebody asked for.  `ttl` in seconds, 0 for the profile's.

    `workspace` and `session` are names, "" for none; with `branch` it is the session of that branch,
    made when there is none.  `stateful`: the session of this repository (and branch), made when there
    is none.  `workspace_wait` is for how many seconds a workspace that another has is waited for.
    `queue` False: refused when this host has no room, instead of waiting for it.
    """

    repo: Repo
    task: str
    profile: str
    mode: str = ""
    ttl: int = 0
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    workspace: str = ""
    session: str = ""
    stateful: bool = False
    branch: str = ""
    workspace_wait: int = 0
    queue: bool = True


@dataclass(frozen=True, slots=True)
class Job:
    """The record of a job; `vmid` is 0 before a sandbox is reserved and stays after it has gone.

    `settled`: its operation has ended, and nothing more happens to its sandbox.
    """

    id: str
    state: JobState
    spec: JobSpec
    vmid: int
    operation: str
    created: float
    changed: float
    deadline: float
    reason: str
    waits_for: str
    settled: bool
    report: dict[str, object] | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a job handed back, kept as `name` under the job's own directory."""

    job: str
    name: str
    size: int
    sha256: str
    created: float

"""Jobs, what they would get, and what they hand back."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlab.api.codec import limit


@dataclass(frozen=True, slots=True)
class RepoRequest:
    """A git URL, or the sha256 of a bundle sent before; `depth` 0 is the whole history."""

    url: str = limit(4096, default="")
    bundle: str = limit(64, default="")
    ref: str = limit(1024, default="")
    depth: int = 1


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job as asked for.  `ttl` is a duration like `30m`, "" for the profile's.

    `workspace` names one that it is to have, `session` one that it is to work in, with `branch` that
    session's one for a branch; `stateful`: the repository's own one, made when there is none.
    `profile` may be "" for a session, which has one.  `workspace_wait` is a duration, for how long a
    workspace that another sandbox has is waited for, "" for not at all.  `queue` false: refused when
    this host has no room now.
    """

    repo: RepoRequest
    task: str
    profile: str = limit(64, default="")
    mode: str = limit(64, default="")
    ttl: str = limit(32, default="")
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    workspace: str = limit(64, default="")
    session: str = limit(64, default="")
    stateful: bool = False
    branch: str = limit(256, default="")
    workspace_wait: str = limit(32, default="")
    queue: bool = True


@dataclass(frozen=True, slots=True)
class PlanView:
    """What would be done for a job, without doing it; sizes in MiB, times in seconds.

    `workspace` and `session` are those that are there for it already, "" for none.
    """

    profile: str
    template: str
    cores: int
    memory: int
    disk: int
    network: str
    ttl: int
    time_limit: int
    after: str
    command: str
    workspace: str = ""
    session: str = ""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as shown.  `report` is what the guest said about it, null before.

    `workspace` and `session` are the names of those that it works in, "" for none.

    `final`: the state will not change.  `settled`: its operation has ended as well, so that its
    sandbox is gone, or kept if the profile says so.
    """

    id: str
    state: str
    final: bool
    settled: bool
    profile: str
    task: str
    repo: str
    ref: str
    vmid: int
    address: str
    operation: str
    created: float
    changed: float
    deadline: float
    reason: str
    waits_for: str
    artifact_dir: str
    labels: dict[str, str]
    report: dict[str, object] | None
    workspace: str = ""
    session: str = ""


@dataclass(frozen=True, slots=True)
class JobList:
    jobs: list[JobView]


@dataclass(frozen=True, slots=True)
class ArtifactView:
    """A file that was handed back; `path` is where it lies on the daemon's host."""

    name: str
    size: int
    sha256: str
    created: float
    path: str


@dataclass(frozen=True, slots=True)
class ArtifactList:
    artifacts: list[ArtifactView]


@dataclass(frozen=True, slots=True)
class BundleView:
    sha256: str
    size: int

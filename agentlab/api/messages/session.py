"""Sessions: made, resumed, stopped, forked."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.api.codec import limit
from agentlab.api.messages.common import OperationView


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """A session as asked for: of the workspace that is named, else of a new one of `size` MiB.

    `size` 0 is the daemon's default, `storage` "" its choice.
    """

    name: str = limit(64)
    profile: str = limit(64)
    workspace: str = limit(64, default="")
    size: int = 0
    storage: str = limit(100, default="")


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as shown.

    `state` is RUNNING while a sandbox has its workspace, CREATING while that is being made, GONE
    when it is deleted, else STOPPED.  `vmid` and `sandbox` name that sandbox, `job` the job that it
    is for, 0 and "" for none.  `origin` is the session that it was forked from, `repo` and `branch`
    say for which branch it is.  `operation` is what is being done with it as `KIND ID`, "" for
    nothing, and `waits_for` for what that waits.
    """

    name: str
    state: str
    workspace: str
    profile: str
    origin: str
    repo: str
    branch: str
    vmid: int
    sandbox: str
    job: str
    created: float
    changed: float
    operation: str = ""
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class SessionList:
    sessions: list[SessionView]


@dataclass(frozen=True, slots=True)
class SessionMade:
    """A session that is there now; `operation` makes its workspace, null when that is there too.

    `session` is null when the operation has failed by now, which the same request is told again.
    """

    name: str
    session: SessionView | None
    operation: OperationView | None


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """`operation` ends it, null when there was nothing to end."""

    name: str
    operation: OperationView | None


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """`ttl` is a duration like `4h`, "" for the profile's.  `keepalive`: its lease renews itself.

    `queue` false: refused when this host has no room now.
    """

    ttl: str = limit(32, default="")
    keepalive: bool = False
    queue: bool = True


@dataclass(frozen=True, slots=True)
class SessionStopRequest:
    """`force`: a job in it is cancelled first."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class BranchRequest:
    """A git branch; its session is found, or forked."""

    branch: str = limit(256)
    snapshot: str = limit(64, default="")


@dataclass(frozen=True, slots=True)
class SessionDeleteRequest:
    """`with_workspace`: its workspace goes too, with all that is in it."""

    with_workspace: bool = False

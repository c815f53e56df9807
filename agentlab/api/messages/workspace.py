"""Workspaces, their snapshots and leases."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.api.codec import limit


@dataclass(frozen=True, slots=True)
class WorkspaceRequest:
    """A workspace as asked for.  `size` in MiB, 0 for the daemon's default; `storage` "": its choice."""

    name: str = limit(64)
    size: int = 0
    storage: str = limit(100, default="")


@dataclass(frozen=True, slots=True)
class WorkspaceView:
    """A workspace as shown; size in MiB.

    `sandbox` is the name and `vmid` the VMID of the sandbox that has it, "" and 0 for none;
    `lease_until` is until when that one's hold is good, and `stale` that it was not renewed in
    time.  `session` is the one that it belongs to, `origin` what it is a fork of, "" for none.
    `formatted`: a guest has mounted it once.  `operation` is what is being done with it as
    `KIND ID`, "" for nothing, and `waits_for` for what that waits.
    """

    name: str
    state: str
    size: int
    storage: str
    volid: str
    number: int
    formatted: bool
    origin: str
    vmid: int
    sandbox: str
    session: str
    lease_until: float
    stale: bool
    created: float
    changed: float
    operation: str = ""
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class WorkspaceList:
    workspaces: list[WorkspaceView]


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """`sandbox` is a VMID or a name."""

    sandbox: str = limit(64)


@dataclass(frozen=True, slots=True)
class DetachRequest:
    """`force`: programs that use it are ended."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class FsckRequest:
    """`repair` false: it is looked at, and nothing is written."""

    repair: bool = False


@dataclass(frozen=True, slots=True)
class ResizeRequest:
    """`size` in MiB, not less than it has."""

    size: int


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """`name` of the new one; `snapshot` "" is as it is now."""

    name: str = limit(64)
    snapshot: str = limit(64, default="")


@dataclass(frozen=True, slots=True)
class RebindRequest:
    """The new sandbox; `profile` "" is the old one's, `ttl` "" the profile's, `name` "" a made one.

    `keep_old`: the old sandbox is not destroyed afterwards.  `force`: what uses /work in it is
    ended.
    """

    profile: str = limit(64, default="")
    name: str = limit(64, default="")
    ttl: str = limit(32, default="")
    keep_old: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class LeaseClearRequest:
    """`force`: also a lease that somebody renews."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class WorkspaceFindingView:
    """Something that is not as it should be with a workspace; `remedy` is a command."""

    name: str
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class WorkspaceCheckView:
    """A workspace that was looked at; no findings: all is well."""

    name: str
    findings: list[WorkspaceFindingView]

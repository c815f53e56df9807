"""Sandboxes, their snapshots and leases."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlab.api.codec import limit


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """A sandbox as asked for.  `ttl` is a duration like `4h`, "" for the profile's; `vmid` 0: any.

    `keepalive`: its lease renews itself.  `queue` false: refused when this host has no room now.
    `workspace` is the name of the one that it is to have, "" for none.
    """

    profile: str = limit(64)
    name: str = limit(64, default="")
    ttl: str = limit(32, default="")
    keepalive: bool = False
    vmid: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    queue: bool = True
    workspace: str = limit(64, default="")


@dataclass(frozen=True, slots=True)
class SandboxView:
    """A sandbox as shown; `allowed` are the events that its state table has now.

    Sizes are MiB.  `ttl` is the length of its lease in seconds; `idle_stop` after how many seconds
    without activity it is stopped, 0 for never.  `operation` is what is being done with it, "" for
    nothing, and `waits_for` for what that waits.  `workspace` is the name of the one that it has, ""
    for none.
    """

    vmid: int
    name: str
    state: str
    profile: str
    address: str
    mac: str
    network: str
    job: str
    power: str
    created: float
    changed: float
    lease_until: float
    reason: str
    allowed: list[str]
    template: str = ""
    cores: int = 0
    memory: int = 0
    disk: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    ttl: float = 0.0
    keepalive: bool = False
    idle_stop: float = 0.0
    operation: str = ""
    waits_for: str = ""
    workspace: str = ""


@dataclass(frozen=True, slots=True)
class SandboxList:
    sandboxes: list[SandboxView]


@dataclass(frozen=True, slots=True)
class DestroyRequest:
    force: bool = False


@dataclass(frozen=True, slots=True)
class StartRequest:
    """`queue` false: refused when this host has no room now, instead of waiting for it."""

    queue: bool = True


@dataclass(frozen=True, slots=True)
class RevertRequest:
    """`force`: also from under a job, which is cancelled and hands back first, and past snapshots
    that stand in the way, which are deleted.  `restart` null: when it had power."""

    force: bool = False
    restart: bool | None = None


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """What is to change: 0 leaves cores or memory (MiB) as they are, a label that is null goes."""

    cores: int = 0
    memory: int = 0
    labels: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """`ttl` is a duration like `4h` from now on, "" for as long as before."""

    ttl: str = limit(32, default="")


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    name: str = limit(64)


@dataclass(frozen=True, slots=True)
class SnapshotList:
    """Names, oldest first."""

    snapshots: list[str]


@dataclass(frozen=True, slots=True)
class PruneView:
    """TIMEOUT entries that were removed; `kept` are those whose VM is, or may be, still there."""

    removed: list[SandboxView]
    kept: list[int]

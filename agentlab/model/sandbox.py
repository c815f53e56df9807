"""Sandboxes: one VM with a state and a lease."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address

from agentlab.errors import Invalid
from agentlab.model.machine import StateMachine, edges

CLEAN = "clean"  # the snapshot of each sandbox from before its first power-on
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
# PVE::JSONSchema: pve-snapshot-name (pve-configid, 2 to 40 characters)
_SNAPSHOT = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}", re.ASCII)


class SandboxState(StrEnum):
    REQUESTED = "REQUESTED"
    PROVISIONING = "PROVISIONING"
    BOOTING = "BOOTING"
    READY = "READY"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    STOPPED = "STOPPED"
    DESTROYED = "DESTROYED"


class SandboxEvent(StrEnum):
    PROVISION = "provision"
    BOOT = "boot"
    BECOME_READY = "become ready"
    RUN = "run"
    PAUSE = "pause"
    RESUME = "resume"
    RESUME_RUNNING = "resume running"
    COMPLETE = "complete"
    FAIL = "fail"
    EXPIRE = "expire"
    STOP = "stop"
    START = "start"
    DESTROY = "destroy"
    FORCE_DESTROY = "force destroy"


_S = SandboxState
_E = SandboxEvent

SANDBOX = StateMachine[SandboxState, SandboxEvent](
    noun="sandbox",
    initial=_S.REQUESTED,
    edges=(
        *edges([_S.REQUESTED], _E.PROVISION, _S.PROVISIONING),
        *edges([_S.PROVISIONING], _E.BOOT, _S.BOOTING),
        *edges([_S.BOOTING], _E.BECOME_READY, _S.READY),
        *edges([_S.READY], _E.RUN, _S.RUNNING),
        *edges([_S.READY, _S.RUNNING], _E.PAUSE, _S.SUSPENDED),
        *edges([_S.SUSPENDED], _E.RESUME, _S.READY),
        *edges([_S.SUSPENDED], _E.RESUME_RUNNING, _S.RUNNING),
        *edges([_S.RUNNING], _E.COMPLETE, _S.COMPLETED),
        *edges(
            [_S.REQUESTED, _S.PROVISIONING, _S.BOOTING, _S.READY, _S.RUNNING, _S.SUSPENDED],
            _E.FAIL,
            _S.FAILED,
        ),
        *edges([_S.READY, _S.RUNNING, _S.SUSPENDED], _E.EXPIRE, _S.TIMEOUT),
        *edges(
            [_S.READY, _S.RUNNING, _S.SUSPENDED, _S.COMPLETED, _S.FAILED, _S.TIMEOUT],
            _E.STOP,
            _S.STOPPED,
        ),
        *edges([_S.STOPPED], _E.START, _S.BOOTING),
        *edges([_S.READY, _S.COMPLETED, _S.FAILED, _S.STOPPED], _E.DESTROY, _S.DESTROYED),
        *edges([s for s in _S if s != _S.DESTROYED], _E.FORCE_DESTROY, _S.DESTROYED),
    ),
    meaning={
        _S.REQUESTED: "asked for: it has a VMID and an address, and waits for room on this host",
        _S.PROVISIONING: "the VM is being cloned, configured and fenced",
        _S.BOOTING: "the VM has power; its guest does not answer yet",
        _S.READY: "the guest answers, with an identity and an address of its own; nobody uses it",
        _S.RUNNING: "in use: its job's task has been delivered, or somebody has been in it"
        " (the first exec or cp, an ssh connection that the daemon has seen, or a lease that is"
        " kept alive)",
        _S.SUSPENDED: "paused; its virtual CPUs stand still",
        _S.COMPLETED: "its task has ended well; the VM is about to be stopped or destroyed",
        _S.FAILED: "something went wrong; the VM, if there is one, is to be destroyed",
        _S.TIMEOUT: "its lease has ended; the VM is to be destroyed",
        _S.STOPPED: "the VM has no power; it can be started again",
        _S.DESTROYED: "the VM is gone; the record is kept for a while",
    },
)


# States whose machine may have power, and so takes cores and memory of this host.
POWERED = frozenset(_S) - {_S.REQUESTED, _S.STOPPED, _S.DESTROYED}
# States that a lease ends; a stopped sandbox costs nothing but its disk, and waits for its owner.
LEASED = POWERED - {_S.PROVISIONING, _S.BOOTING}


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What somebody asked for.  `ttl` in seconds, 0 for the profile's; `vmid` 0 for any.

    `queue` False: refused when this host has no room, instead of waiting for it.  `workspace` is
    the name of the one that it is to have, "" for none.
    """

    profile: str
    name: str = ""
    ttl: int = 0
    keepalive: bool = False
    vmid: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    queue: bool = True
    workspace: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The record of a sandbox; times are seconds since the epoch, `lease_until` 0 for none yet.

    `id` tells it from others that had its VMID before or have it after.  Sizes are MiB.  `ttl` is
    the length of its lease; `keepalive`: the lease renews itself; `idle_stop` is after how many
    seconds without activity it is stopped, 0 for never.  `held`: its job's end leaves it alone.
    `used`: somebody has been in it since its last start.
    """

    vmid: int
    name: str
    profile: str
    state: SandboxState
    address: IPv4Address
    mac: str
    tap: str
    network: str
    job: str
    created: float
    changed: float
    lease_until: float
    reason: str
    id: int = 0
    template: str = ""
    cores: int = 1
    memory: int = 512
    disk: int = 1024
    labels: dict[str, str] = field(default_factory=dict)
    ttl: float = 0.0
    keepalive: bool = False
    idle_stop: float = 0.0
    held: bool = False
    used: bool = False


def parse_sandbox_name(text: str) -> str:
    """A sandbox's name, which is its host name too; never only digits, since that is a VMID."""
    if not _NAME.fullmatch(text):
        raise Invalid(
            f"cannot use {text[:100]!r} as the name of a sandbox",
            hint="use 1 to 63 lower-case letters, digits and '-': a letter first, no '-' last",
            details={"path": "name"},
        )
    return text


def parse_snapshot_name(text: str) -> str:
    """The name of a snapshot that somebody may take, restore or delete; by Proxmox's rule."""
    if not _SNAPSHOT.fullmatch(text) or text.lower() in ("current", "pending"):
        raise Invalid(
            f"cannot use {text[:100]!r} as the name of a snapshot",
            hint="use 2 to 40 letters, digits, '-' and '_', a letter first; not `current` or `pending`",
            details={"path": "name"},
        )
    return text

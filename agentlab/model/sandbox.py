"""Sandboxes: one VM with a state and a lease."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address

from agentlab.model.machine import StateMachine, edges


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
        *edges(
            [_S.READY, _S.COMPLETED, _S.FAILED, _S.TIMEOUT, _S.STOPPED], _E.DESTROY, _S.DESTROYED
        ),
        *edges([s for s in _S if s != _S.DESTROYED], _E.FORCE_DESTROY, _S.DESTROYED),
    ),
    meaning={
        _S.REQUESTED: "asked for; nothing exists yet but the record, its VMID and its address",
        _S.PROVISIONING: "the VM is being cloned, configured and fenced",
        _S.BOOTING: "the VM has power; its guest does not answer yet",
        _S.READY: "the guest answers, with an identity and an address of its own",
        _S.RUNNING: "in use: its task has been delivered",
        _S.SUSPENDED: "paused; its virtual CPUs stand still",
        _S.COMPLETED: "its task has ended well; the VM is about to be stopped or destroyed",
        _S.FAILED: "something went wrong; the VM, if there is one, is to be destroyed",
        _S.TIMEOUT: "its lease has ended; the VM is to be destroyed",
        _S.STOPPED: "the VM has no power; it can be started again",
        _S.DESTROYED: "the VM is gone; the record is kept for a while",
    },
)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The record of a sandbox; times are seconds since the epoch, `lease_until` 0 for none yet."""

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

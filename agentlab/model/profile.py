"""Profiles: what kind of sandbox a job gets, and how its agent is started."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NetworkMode(StrEnum):
    """What a sandbox may reach beyond the guest listener."""

    NAT = "nat"
    ALLOWLIST = "allowlist"
    OFF = "off"


class After(StrEnum):
    """What becomes of the sandbox when its job has ended."""

    DESTROY = "destroy"
    STOP = "stop"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job may hand back, in bytes."""

    log: int
    artifact: int
    artifacts: int
    artifact_count: int


@dataclass(frozen=True, slots=True)
class Profile:
    """One profile.  Sizes are MiB, times seconds; `command` is for `/bin/sh -c`, "" for none.

    `idle_stop` 0: a sandbox that nobody uses is not stopped for that.
    """

    name: str
    template: str
    cores: int
    memory: int
    disk: int
    network: NetworkMode
    ttl: int
    handback: int
    after: After
    command: str
    mode: str
    bubblewrap: bool
    env: dict[str, str]
    limits: Limits
    idle_stop: int = 0

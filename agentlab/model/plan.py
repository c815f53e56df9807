"""What a job will get, decided before anything is done."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.errors import Invalid, Unsupported
from agentlab.model.ids import render_duration
from agentlab.model.job import JobSpec
from agentlab.model.profile import NetworkMode, Profile

_LEAST_WORK = 10  # seconds that an agent must at least have


@dataclass(frozen=True, slots=True)
class Plan:
    """The sandbox and the times of a job; sizes in MiB, times in seconds."""

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


def plan_job(profile: Profile, spec: JobSpec) -> Plan:
    """One clock for both: the agent is stopped early enough to hand back before the lease ends."""
    ttl = spec.ttl or profile.ttl
    time_limit = ttl - profile.handback
    if time_limit < _LEAST_WORK:
        raise Invalid(
            f"ttl: {render_duration(ttl)} leaves no time for the agent",
            hint=f"the hand-back alone takes {render_duration(profile.handback)} of it"
            f" (profile {profile.name}, handback)",
            details={"path": "ttl"},
        )
    if profile.network is NetworkMode.ALLOWLIST:
        raise Unsupported(
            f"cannot use profile {profile.name}: network mode allowlist is not built yet",
            hint="use network: nat or network: off",
        )
    return Plan(
        profile=profile.name,
        template=profile.template,
        cores=profile.cores,
        memory=profile.memory,
        disk=profile.disk,
        network=profile.network,
        ttl=ttl,
        time_limit=time_limit,
        after=profile.after,
        command=profile.command,
    )

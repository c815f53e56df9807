"""What a job will get, decided before anything is done."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentlab.errors import Invalid, Unsupported
from agentlab.model.job import JobSpec
from agentlab.model.profile import NetworkMode, Profile
from agentlab.model.sandbox import SandboxSpec
from agentlab.units import render_duration

_LEAST_WORK = 10  # seconds that an agent must at least have


@dataclass(frozen=True, slots=True)
class Plan:
    """A sandbox and its times; sizes in MiB, times in seconds.

    `time_limit`, `after` and `command` are for jobs.  `idle_stop` 0: never.
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
    idle_stop: int = 0


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
    return _plan(profile, ttl, time_limit)


def plan_sandbox(profile: Profile, spec: SandboxSpec) -> Plan:
    """A sandbox that is made by hand: nothing is run in it, and nothing follows its end."""
    ttl = spec.ttl or profile.ttl
    return replace(_plan(profile, ttl, ttl), after="", command="")


def _plan(profile: Profile, ttl: int, time_limit: int) -> Plan:
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
        idle_stop=profile.idle_stop,
    )

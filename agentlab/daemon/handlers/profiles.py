"""Profiles, as their files are now."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request
from agentlab.operations.context import ProfileEntry


def all_known(daemon: Daemon, _: Request[m.Nothing]) -> m.ProfileList:
    return m.ProfileList([_view(entry) for entry in daemon.world.profiles()])


def _view(entry: ProfileEntry) -> m.ProfileView:
    profile = entry.profile
    if profile is None:
        return m.ProfileView(entry.name, str(entry.path), entry.problem)
    return m.ProfileView(
        name=entry.name,
        path=str(entry.path),
        problem="",
        template=profile.template,
        cores=profile.cores,
        memory=profile.memory,
        disk=profile.disk,
        network=profile.network.value,
        ttl=profile.ttl,
        after=profile.after.value,
        command=profile.command,
    )

"""What operations work on: the one object that has store, drivers and settings together."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agentlab.config import Config
from agentlab.errors import AgentLabError, Invalid
from agentlab.hypervisor.base import Checks, Hypervisor, TemplateOrder, TemplateReport, Volume
from agentlab.model.ids import unknown
from agentlab.model.profile import NetworkMode, Profile
from agentlab.model.profile_file import parse_profile
from agentlab.network.fence import Fence
from agentlab.network.settings import Member
from agentlab.operations.glance import Glance
from agentlab.secret import Secret
from agentlab.store import sandboxes
from agentlab.store.db import Store

_MAX_PROFILE = 1 << 20


class TemplateBuilder(Protocol):
    """Builds a template, or returns at once when it is there; tells its steps."""

    def __call__(self, order: TemplateOrder, on_step: Callable[[str], None]) -> None: ...


class TemplateChecker(Protocol):
    """Looks at a template, or at a machine that is to be one; NotFound."""

    def __call__(self, name: str) -> TemplateReport: ...


def no_checker(name: str) -> TemplateReport:
    """For hypervisors whose templates nobody but us makes."""
    return TemplateReport(name, "")


@dataclass(frozen=True, slots=True)
class ProfileEntry:
    """A profile's file: the profile, or why it cannot be used."""

    name: str
    path: Path
    profile: Profile | None
    problem: str


@dataclass(frozen=True, slots=True)
class World:
    """One installation.  `installation` is the owner mark; `key` makes its one-shot tokens.

    `checks` are those that only this hypervisor has, for `agentlab init`.
    """

    config: Config
    store: Store
    hypervisor: Hypervisor
    fence: Fence
    build_template: TemplateBuilder
    installation: str
    key: Secret
    checks: Checks = field(default_factory=dict)
    check_template: TemplateChecker = no_checker
    glance: Glance = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "glance", Glance(self.hypervisor))  # the class is frozen

    def profile(self, name: str) -> Profile:
        """A usable profile; NotFound with a near name, or Invalid saying what is wrong with it."""
        for entry in self.profiles():
            if entry.name == name:
                if entry.profile is None:
                    raise Invalid(
                        f"cannot use profile {name}: {entry.problem}",
                        hint="mend the file, and see: agentlab profile list",
                    )
                return entry.profile
        raise unknown("profile", name, [entry.name for entry in self.profiles()])

    def profiles(self) -> Sequence[ProfileEntry]:
        """All files of `profiles_dir`, by name; read anew each time."""
        return [_read(path) for path in sorted(self.config.profiles_dir.glob("*.yaml"))]

    def job_dir(self, job: str) -> Path:
        """Where the artifacts of a job lie."""
        return self.config.artifact_dir / job

    def token(self, job: str) -> Secret:
        """The job's one-shot token: the same each time, so that delivering twice is harmless."""
        digest = hmac.new(self.key.reveal().encode(), f"token {job}".encode(), hashlib.sha256)
        return Secret(digest.hexdigest())

    def volume(self, volid: str) -> Volume | None:
        """A volume of ours as the hypervisor has it now; None when its storage has none like it."""
        found = self.hypervisor.volumes(
            owner=self.installation, storage=self.hypervisor.storage_of(volid)
        )
        return next((each for each in found if each.volid == volid), None)

    def sync_fence(self) -> None:
        """Puts taps and rules for exactly the sandboxes that are fenced in the database."""
        self.fence.sync(self._members)

    def check_port(self, tap: str) -> None:
        """Conflict unless the rules see this tap, which the hypervisor has made, on this host."""
        self.fence.check_port(tap)

    def _members(self) -> Sequence[Member]:
        with self.store.read() as tx:
            return [
                Member(one.vmid, one.tap, one.mac, one.address, NetworkMode(one.network))
                for one in sandboxes.fenced(tx)
            ]


def _read(path: Path) -> ProfileEntry:
    try:
        if path.stat().st_size > _MAX_PROFILE:
            raise Invalid(f"{path}: larger than 1 MiB")
        return ProfileEntry(path.stem, path, parse_profile(path.read_text("utf-8"), path), "")
    except AgentLabError as error:
        return ProfileEntry(path.stem, path, None, error.message)
    except (OSError, UnicodeDecodeError) as error:
        return ProfileEntry(path.stem, path, None, str(error))

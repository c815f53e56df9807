"""What the hypervisor has: machines, drift, profiles, templates."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.api.codec import limit


@dataclass(frozen=True, slots=True)
class MachineView:
    """A machine of the hypervisor: `whose` is ours, template, other installation or stranger.

    `sandbox` is the state of the record that is about it, "" for none; `in_range`: its VMID is one
    that sandboxes may have.  `lock` is the hypervisor's own word, "" for none.
    """

    vmid: int
    name: str
    power: str
    node: str
    whose: str
    sandbox: str
    in_range: bool
    lock: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    machines: list[MachineView]


@dataclass(frozen=True, slots=True)
class DriftView:
    """Where record and hypervisor differ.  `mend` is what applying does about it, "" when that is
    for a person, whom `remedy` tells how.  After applying, `operation` is the one that goes on with
    it, "" for none, and `mended` says that it has been done; `detail` says what was in the way."""

    kind: str
    vmid: int
    name: str
    detail: str
    mend: str
    remedy: str
    operation: str = ""
    mended: bool = False


@dataclass(frozen=True, slots=True)
class DriftList:
    """`complete` false: the inventory could not be read whole, nothing is known or done, and
    `problem` says why.  A `problem` of a complete one is a reason to look twice before applying."""

    drifts: list[DriftView]
    complete: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ProfileView:
    """A profile as read, or why it cannot be (`problem`); sizes in MiB, times in seconds."""

    name: str
    path: str
    problem: str
    template: str = ""
    cores: int = 0
    memory: int = 0
    disk: int = 0
    network: str = ""
    ttl: int = 0
    after: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class ProfileList:
    profiles: list[ProfileView]


@dataclass(frozen=True, slots=True)
class TemplateBuildRequest:
    """`image`: absolute path of a cloud image on the daemon's host, "" for the recipe; root's own.

    `storage` is of the hypervisor, "" for its choice.
    """

    name: str = limit(64, default="debian-12")
    image: str = limit(4096, default="")
    storage: str = limit(100, default="")


@dataclass(frozen=True, slots=True)
class FindingView:
    """Something that a template lacks; `remedy` is for root's shell on the node.

    What is not `needed` depends on the guest inside, or is only slow.
    """

    name: str
    problem: str
    remedy: str
    needed: bool


@dataclass(frozen=True, slots=True)
class TemplateCheckView:
    """A template that was looked at; `ready` when nothing that is needed lacks."""

    name: str
    detail: str
    ready: bool
    findings: list[FindingView]


@dataclass(frozen=True, slots=True)
class TemplateView:
    name: str
    ready: bool
    detail: str


@dataclass(frozen=True, slots=True)
class TemplateList:
    templates: list[TemplateView]

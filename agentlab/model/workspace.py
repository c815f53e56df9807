"""Workspaces: volumes that outlive sandboxes, each attached to at most one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from agentlab.errors import Invalid
from agentlab.model.machine import StateMachine, edges

_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
LEAST_SIZE, MOST_SIZE = 64, 64 << 20  # MiB


class WorkspaceState(StrEnum):
    CREATING = "CREATING"
    DETACHED = "DETACHED"
    ATTACHED = "ATTACHED"
    DELETED = "DELETED"


class WorkspaceEvent(StrEnum):
    MADE = "made"
    ATTACH = "attach"
    DETACH = "detach"
    DELETE = "delete"
    GIVE_UP = "give up"


_S = WorkspaceState
_E = WorkspaceEvent

WORKSPACE = StateMachine[WorkspaceState, WorkspaceEvent](
    noun="workspace",
    initial=_S.CREATING,
    edges=(
        *edges([_S.CREATING], _E.MADE, _S.DETACHED),
        *edges([_S.DETACHED], _E.ATTACH, _S.ATTACHED),
        *edges([_S.ATTACHED], _E.DETACH, _S.DETACHED),
        *edges([_S.DETACHED], _E.DELETE, _S.DELETED),
        *edges([_S.CREATING], _E.GIVE_UP, _S.DELETED),
    ),
    meaning={
        _S.CREATING: "its volume is being made, or copied from another one",
        _S.DETACHED: "no sandbox has it: it can be attached, checked, copied, restored",
        _S.ATTACHED: "a sandbox has it, or is about to: its lease names the sandbox",
        _S.DELETED: "its volume is gone; the record is kept for a while",
    },
)


@dataclass(frozen=True, slots=True)
class WorkspaceSpec:
    """What somebody asked for.  `size` in MiB; `storage` "" for the hypervisor's choice."""

    name: str
    size: int
    storage: str = ""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The record of a workspace; size in MiB, times in seconds since the epoch.

    `id` tells it from others that had its name before.  `number` and `volid` name its volume, to us
    and to the hypervisor.  `formatted`: a guest has mounted it once.  `origin` says what it is a
    fork of, "" for nothing, and `reason` why it could not be made.

    The lease: `holder` is the id of the sandbox's record that has it, 0 for none, and `vmid` that
    sandbox's VMID; `nonce` tells this holding from any other, before or after; past `lease_until`
    nobody has renewed it, so that it may be cleared by hand.
    """

    name: str
    state: WorkspaceState
    number: int
    volid: str
    storage: str
    size: int
    created: float
    changed: float
    id: int = 0
    formatted: bool = False
    origin: str = ""
    holder: int = 0
    vmid: int = 0
    nonce: str = ""
    lease_until: float = 0.0
    reason: str = ""

    def stale(self, now: float) -> bool:
        """Whether somebody has it of whom nothing was heard for too long."""
        return bool(self.nonce) and self.lease_until < now


def parse_workspace_name(text: str, noun: str = "workspace") -> str:
    """The name of a workspace or session: as a host name, a letter first."""
    if not _NAME.fullmatch(text):
        raise Invalid(
            f"cannot use {text[:100]!r} as the name of a {noun}",
            hint="use 1 to 63 lower-case letters, digits and '-': a letter first, no '-' last",
            details={"path": "name"},
        )
    return text


def check_size(size: int) -> int:
    """The same size in MiB; Invalid for one that no file system fits on, or no storage."""
    if not LEAST_SIZE <= size <= MOST_SIZE:
        raise Invalid(
            f"size: must be from {LEAST_SIZE}M to {MOST_SIZE >> 20}T",
            hint="a bare number is GiB: --size 20",
            details={"path": "size"},
        )
    return size

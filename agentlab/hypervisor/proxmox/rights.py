"""Which privileges the API token needs, where, and what for; and which of them it lacks.

The table is the one source: the check of `agentlab init` and the test of docs/how-to/proxmox.md
read it.  By the backend `shell` we are root, and need none.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from agentlab.errors import Unavailable
from agentlab.hypervisor.proxmox.transport import Parameter, Transport

Granted = Mapping[str, Mapping[str, int]]  # by path: privilege, and 1 when it holds below as well

ROLE = "AgentLab"  # the one that we ask for; the others come with Proxmox


class Place(StrEnum):
    """A kind of path that rights are given on."""

    SANDBOXES = "sandboxes"
    TEMPLATE = "template"
    STORAGE = "storage"
    BRIDGE = "bridge"


@dataclass(frozen=True, slots=True)
class Right:
    """A privilege that is needed; `majors` are the versions of Proxmox VE that have it."""

    privilege: str
    place: Place
    why: str
    majors: tuple[int, ...] = (8, 9)


RIGHTS: tuple[Right, ...] = (
    Right("VM.Allocate", Place.SANDBOXES, "make and destroy them"),
    Right("VM.Audit", Place.SANDBOXES, "see them: a list without it is short, not refused"),
    Right("VM.Config.CPU", Place.SANDBOXES, "cores"),
    Right("VM.Config.Cloudinit", Place.SANDBOXES, "address and resolvers"),
    Right("VM.Config.Disk", Place.SANDBOXES, "a larger disk than the template's"),
    Right("VM.Config.HWType", Place.SANDBOXES, "build a template: its console and controller"),
    Right("VM.Config.Memory", Place.SANDBOXES, "memory"),
    Right("VM.Config.Network", Place.SANDBOXES, "MAC and bridge"),
    Right("VM.Config.Options", Place.SANDBOXES, "name, tags and the mark of their owner"),
    Right("VM.PowerMgmt", Place.SANDBOXES, "start and stop"),
    Right("VM.Snapshot", Place.SANDBOXES, "take snapshots, and roll back to them"),
    Right("VM.Monitor", Place.SANDBOXES, "the guest agent", (8,)),
    Right("VM.GuestAgent.Unrestricted", Place.SANDBOXES, "the guest agent", (9,)),
    Right("VM.Audit", Place.TEMPLATE, "read what it is made of"),
    Right("VM.Clone", Place.TEMPLATE, "clone it"),
    Right("Datastore.AllocateSpace", Place.STORAGE, "the disks of clones"),
    Right("Datastore.Audit", Place.STORAGE, "see what is free, and what is left of others"),
    Right("SDN.Use", Place.BRIDGE, "put sandboxes on it"),
)

# The roles that come with Proxmox and give the rights of a place.  A role on a deeper path takes
# the place of those from above.
_ROLES: Mapping[Place, str] = {
    Place.TEMPLATE: "PVETemplateUser",
    Place.STORAGE: "PVEDatastoreUser",
    Place.BRIDGE: "PVESDNUser",
}


@dataclass(frozen=True, slots=True)
class Scope:
    """Where this installation works.

    `templates`: those that are there; one that we build is beside the sandboxes.  `storages`:
    those of the templates, and the one of the settings.
    """

    vmid: int  # any VMID of a sandbox
    bridge: str
    templates: tuple[int, ...] = ()
    storages: tuple[str, ...] = ()
    pool: str = ""

    @property
    def top(self) -> str:
        """The path that our own role is given on."""
        return f"/pool/{self.pool}" if self.pool else "/vms"

    def paths(self, place: Place) -> tuple[str, ...]:
        """The paths that rights of this place are given on; each of them needs all."""
        match place:
            case Place.SANDBOXES:
                return (self.top,)
            case Place.TEMPLATE:
                return tuple(f"/vms/{vmid}" for vmid in self.templates) or (self.top,)
            case Place.STORAGE:
                return tuple(f"/storage/{name}" for name in self.storages)
            case Place.BRIDGE:
                return (f"/sdn/zones/localnetwork/{self.bridge}",)

    def asked(self, path: str) -> tuple[str, ...]:
        """The paths of which any one will do for what is given on `path`."""
        below = f"/vms/{self.vmid}"
        if path == self.top:
            return (path, below) if self.pool else (below,)
        return (path,)

    def role(self, place: Place, path: str) -> str:
        """The role that gives the rights of this place on one of its paths."""
        return ROLE if path == self.top else _ROLES[place]


@dataclass(frozen=True, slots=True)
class MissingRight:
    """A privilege that the token lacks, and the path on which to give it."""

    privilege: str
    path: str
    role: str
    why: str


def needed(major: int) -> Sequence[Right]:
    """The rows of the table for a version; one that is newer than all is taken for the newest."""
    newest = max(max(right.majors) for right in RIGHTS)
    return [right for right in RIGHTS if min(max(major, 8), newest) in right.majors]


def holds(granted: Granted, path: str, privilege: str) -> bool:
    """Whether a privilege is held on a path.

    Proxmox lists a path with all that is held there, what comes from above too; so the path
    itself decides when it is listed, and else the nearest one above, by what it passes on.
    """
    if path in granted:
        return privilege in granted[path]
    parent = path
    while parent != "/":
        parent = parent.rpartition("/")[0] or "/"
        if parent in granted:
            return bool(granted[parent].get(privilege))
    return False


def missing_rights(granted: Granted, major: int, scope: Scope) -> list[MissingRight]:
    """All that is lacking, in the order of the table."""
    return [
        MissingRight(right.privilege, path, scope.role(right.place, path), right.why)
        for right in needed(major)
        for path in scope.paths(right.place)
        if not any(holds(granted, each, right.privilege) for each in scope.asked(path))
    ]


def render_missing(missing: Sequence[MissingRight]) -> str:
    """In words: all privileges of a path, and then the next."""
    by_path: dict[str, list[str]] = {}
    for each in missing:
        by_path.setdefault(each.path, []).append(each.privilege)
    return "; ".join(f"{', '.join(names)} on {path}" for path, names in by_path.items())


def render_remedy(
    missing: Sequence[MissingRight], token_id: str, have: set[str] | None
) -> list[str]:
    """The commands, for root on a node, that give what is missing.

    `have` is what our role has so far, None when there is no such role.

    The user of a token must have the rights too, and a token with privilege separation for itself
    as well: each line names both.
    """
    user = token_id.partition("!")[0]
    lines = []
    own = {each.privilege for each in missing if each.role == ROLE}
    lacking = " ".join(sorted(own - (have or set())))
    if lacking:
        verb = ["add", ROLE] if have is None else ["modify", ROLE, "--append", "1"]
        lines.append(shlex.join(["pveum", "role", *verb, "--privs", lacking]))
    for path, role in dict.fromkeys((each.path, each.role) for each in missing):
        words = ["pveum", "acl", "modify", path, "--users", user]
        lines.append(shlex.join([*words, "--tokens", token_id, "--roles", role]))
    return lines


def role_privileges(major: int) -> set[str]:
    """What our own role has: all for sandboxes, and for the templates that we build."""
    places = (Place.SANDBOXES, Place.TEMPLATE)
    return {right.privilege for right in needed(major) if right.place in places}


def parse_permissions(data: object) -> dict[str, dict[str, int]]:
    """`GET /access/permissions`; Unavailable when it is not what it should be."""
    if not isinstance(data, Mapping) or not all(
        isinstance(each, Mapping) for each in data.values()
    ):
        raise Unavailable("Proxmox told rights that cannot be read")
    return {
        str(path): {
            str(name): int(str(below) not in ("0", "False")) for name, below in held.items()
        }
        for path, held in data.items()
    }


def read_permissions(transport: Transport, major: int, scope: Scope) -> Granted:
    """What the token holds: on the whole, and asked for each path that matters.

    Only the question for a path tells of a pool that it is in, and of a role there that gives
    nothing.
    """

    def read(**params: Parameter) -> dict[str, dict[str, int]]:
        return parse_permissions(transport.call("GET", "/access/permissions", params))

    granted = read()
    places = dict.fromkeys(right.place for right in needed(major))
    asked = dict.fromkeys(
        each for place in places for path in scope.paths(place) for each in scope.asked(path)
    )
    for path in asked:
        granted.update(read(path=path))
    return granted


def read_role(transport: Transport) -> set[str] | None:
    """What our role has; None when there is none.  Every user may read this."""
    found = transport.call("GET", "/access/roles")
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise Unavailable("Proxmox gave a list of roles that cannot be read")
    for role in found:
        if role.get("roleid") == ROLE:
            return {name for name in re.split(r"[,; ]+", str(role.get("privs") or "")) if name}
    return None


def parse_major(data: object) -> int:
    """The first number of `GET /version`; Unavailable when there is none."""
    text = str(data.get("version", "")) if isinstance(data, Mapping) else ""
    major = text.partition(".")[0]
    if not (major.isascii() and major.isdigit()):
        raise Unavailable(f"Proxmox gave no version that can be read: {text[:40]!r}")
    return int(major)

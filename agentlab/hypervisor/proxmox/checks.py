"""Checks of Proxmox and of our rights there, for `agentlab init`.  They look and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from agentlab.errors import Denied, NotFound, Unavailable
from agentlab.hypervisor.base import CheckResult, Checks, CheckStatus
from agentlab.hypervisor.proxmox.inventory import Resources, parse_resources
from agentlab.hypervisor.proxmox.names import parse_drives
from agentlab.hypervisor.proxmox.rights import (
    Scope,
    missing_rights,
    parse_major,
    read_permissions,
    read_role,
    render_missing,
    render_remedy,
)
from agentlab.hypervisor.proxmox.template import TAG
from agentlab.hypervisor.proxmox.transport import Exists, Transport

OLDEST, NEWEST = 8, 9  # major versions that we know


@dataclass(frozen=True, slots=True)
class ProxmoxChecks:
    """`token_id` is "" where we come as root, by pvesh.  `storage` may be ""."""

    transport: Transport
    node: str
    scope: Scope  # without templates and storages: those are looked up
    template: int  # the VMID that a template has first
    storage: str
    token_id: str

    def table(self) -> Checks:
        """All checks by their names."""
        table: Mapping[str, Callable[[], CheckResult]] = {
            "proxmox_api": self.api,
            "token_privileges": self.privileges,
            "storage": self.storages,
        }
        return table

    def api(self) -> CheckResult:
        """Whether Proxmox answers, is of a version that we know, and has our node."""
        version = self.transport.call("GET", "/version")
        major = parse_major(version)
        text = str(version.get("version")) if isinstance(version, Mapping) else ""
        resources = self._resources()
        if self.node not in resources.nodes:
            return CheckResult(
                CheckStatus.ERROR,
                f"Proxmox VE {text} answers, and knows no node {self.node}",
                f"set proxmox.node to one of: {', '.join(sorted(resources.nodes)) or 'none'}",
            )
        if not OLDEST <= major <= NEWEST:
            return CheckResult(
                CheckStatus.ERROR,
                f"Proxmox VE {text} is not one that AgentLab knows ({OLDEST} and {NEWEST})",
                "things may work all the same; jobs show it",
            )
        way = "token " + self.token_id if self.token_id else "pvesh"
        return CheckResult(CheckStatus.OK, f"Proxmox VE {text}, node {self.node}, by {way}")

    def privileges(self) -> CheckResult:
        """Each privilege that is missing, with its path, and the commands that give it."""
        if not self.token_id:
            return CheckResult(CheckStatus.SKIPPED, "root needs no token: proxmox_backend is shell")
        major = parse_major(self.transport.call("GET", "/version"))
        scope = self._scope()
        missing = missing_rights(read_permissions(self.transport, major, scope), major, scope)
        if not missing:
            where = f"pool {scope.pool}" if scope.pool else "all VMs"
            return CheckResult(
                CheckStatus.OK, f"{self.token_id} has all that is needed, on {where}"
            )
        return CheckResult(
            CheckStatus.MISSING,
            f"{self.token_id} lacks {render_missing(missing)}",
            "\n".join(render_remedy(missing, self.token_id, read_role(self.transport))),
        )

    def storages(self) -> CheckResult:
        """Whether the storages of clones are there, available, and take disk images."""
        names = self._scope().storages
        if not names:
            return CheckResult(
                CheckStatus.SKIPPED,
                "not known before there is a template: clones lie on its storage",
            )
        resources = self._resources()
        for name in names:
            found = resources.storages.get((self.node, name))
            if found is None:
                return CheckResult(
                    CheckStatus.MISSING,
                    f"node {self.node} has no storage {name} that can be seen",
                    f"see `pvesm status`; seeing it takes Datastore.Audit on /storage/{name}",
                )
            if not found.available:
                return CheckResult(
                    CheckStatus.ERROR, f"storage {name} is not available", "see `pvesm status`"
                )
            if "images" not in found.content:
                content = ",".join(sorted({*found.content, "images"} - {""}))
                return CheckResult(
                    CheckStatus.MISSING,
                    f"storage {name} takes no disk images",
                    f"pvesm set {name} --content {content}",
                )
        return CheckResult(CheckStatus.OK, f"{', '.join(names)} on node {self.node}")

    def _resources(self) -> Resources:
        return parse_resources(self.transport.call("GET", "/cluster/resources"))

    def _scope(self) -> Scope:
        """With the templates that are there, their storages, and the one of the settings."""
        guests = self._resources().guests.values()
        nodes = {
            guest.vmid: guest.node
            for guest in guests
            if guest.template and (guest.vmid == self.template or TAG in guest.tags.split(";"))
        }
        if not nodes and self._taken(self.template):
            nodes[self.template] = self.node  # there, and we may not see it
        names = dict.fromkeys([self.storage] if self.storage else [])
        for vmid, node in nodes.items():
            try:
                names.update(dict.fromkeys(self._storages_of(node, vmid)))
            except (NotFound, Denied):
                pass  # the checks of the template and of the rights on it say so
        return replace(self.scope, templates=tuple(nodes), storages=tuple(names))

    def _taken(self, vmid: int) -> bool:
        """Asked of the cluster's own list, which does not depend on our rights."""
        try:
            self.transport.call("GET", "/cluster/nextid", {"vmid": vmid})
        except Exists:
            return True
        return False

    def _storages_of(self, node: str, vmid: int) -> list[str]:
        config = self.transport.call("GET", f"/nodes/{node}/qemu/{vmid}/config")
        if not isinstance(config, Mapping):
            raise Unavailable(f"Proxmox gave no configuration of template {vmid}")
        return sorted({drive.storage for drive in parse_drives(config)} - {""})

"""What the parts of the driver have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from agentlab.hypervisor.load import Resource
from agentlab.hypervisor.proxmox.inventory import Found, Inventory
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.placement import Placement
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.hypervisor.proxmox.tasks import Api, settled

T = TypeVar("T")


class Part:
    """What each part of the driver works with."""

    def __init__(self, api: Api, settings: Settings, tools: NodeTools) -> None:
        self._api = api
        self._settings = settings
        self._tools = tools
        self._inventory = Inventory(api, settings)
        self._placement = Placement(api, self._inventory, settings)

    def _settled(self, attempt: Callable[[], T]) -> T:
        return settled(attempt, patience=self._settings.patience)

    def _turn(self, node: str) -> list[Resource]:
        return [Resource("node", node)]

    def _nodes_online(self) -> list[str]:
        nodes = self._inventory.resources().nodes.values()
        allowed = self._settings.allowed
        near = [
            node.name for node in nodes if node.online and (not allowed or node.name in allowed)
        ]
        return near or [node.name for node in nodes if node.online]


def as_read(found: Found) -> dict[str, str]:
    """Has Proxmox refuse the change when the configuration is no longer the one that we read."""
    return {"digest": str(found.config["digest"])} if "digest" in found.config else {}

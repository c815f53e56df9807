"""What root sees on the storages of this node, where an API token sees what it has rights for."""

from __future__ import annotations

import json
from typing import Any

from agentlab.errors import Unavailable
from agentlab.hypervisor.proxmox import tool
from agentlab.hypervisor.proxmox.names import parse_disks


def image_storages(node: str) -> list[str]:
    """The storages for disk images that are active here."""
    listed = _get(f"/nodes/{node}/storage", "--content", "images", "--enabled", "1")
    return [str(each["storage"]) for each in listed if str(each.get("active", 1)) == "1"]


def disks_of(vmid: int, node: str, storage: str) -> list[str]:
    """The disk images on a storage that carry this VMID."""
    path = f"/nodes/{node}/storage/{storage}/content"
    return parse_disks(_get(path, "--vmid", str(vmid), "--content", "images"), vmid)


def _get(path: str, *options: str) -> list[dict[str, Any]]:
    what = f"cannot read {path}"
    said = tool.do(["pvesh", "get", path, *options, "--output-format", "json"], what)
    try:
        answer = json.loads(said)
    except ValueError as error:
        raise Unavailable(f"{what}: pvesh said what is not JSON") from error
    if not isinstance(answer, list) or not all(isinstance(each, dict) for each in answer):
        raise Unavailable(f"{what}: pvesh gave no list")
    return answer

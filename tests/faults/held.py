"""What must be true of workspaces when nothing is under way: records, leases, volumes, machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentlab.hypervisor.local.images import header_size
from agentlab.hypervisor.proxmox.names import volume_owner

if TYPE_CHECKING:
    from tests.faults.bench import Bench, Node


def look_at_workspaces(
    bench: Bench, node: Node, sure: Mapping[int, int], *, all_seen: bool
) -> list[str]:
    """What is wrong, in sentences.

    `sure` are the sandboxes that live and that nobody else has done anything to, VMID by record.
    `all_seen`: no machine was touched by anybody else; else what a record says may not be so yet.
    """
    found, known = [], set()
    for row in bench.rows("SELECT * FROM workspace WHERE state != 'DELETED'"):
        known.add(row["volid"])
        found += _wrong_with(bench, node, row, sure, all_seen=all_seen)
    node._scan()
    ours = {
        f"local:{name}"
        for name in node.storages["local"]["volumes"]
        if volume_owner(f"local:{name}")[1] == bench.owner
    }
    found += [f"volume {each} has no VM and no record" for each in ours - known]
    assert node.shelf is not None
    left = [each for each in node.shelf.glob("*/*") if not each.name.endswith(".qcow2")]
    found += [f"file {each.name} has no VM and no record" for each in left]
    sessions = bench.rows(
        "SELECT session.name FROM session LEFT JOIN workspace ON workspace.id = session.workspace"
        " WHERE coalesce(workspace.state, 'DELETED') = 'DELETED'"
    )
    return found + [f"session {row['name']} has no workspace" for row in sessions]


def _wrong_with(
    bench: Bench, node: Node, row: Mapping[str, Any], sure: Mapping[int, int], *, all_seen: bool
) -> list[str]:
    who, state, volid = f"workspace {row['name']} is {row['state']}", row["state"], row["volid"]
    if state == "CREATING":
        return [f"{who}, and nothing is under way"]
    path = node.file_of(volid)
    if not path.is_file():
        return [f"{who}, and its volume is gone"]
    found, holders = [], bench.holders(node, volid)
    if header_size(path) != row["size"]:
        found.append(f"{who} with {row['size']} MiB, its volume has {header_size(path)}")
    leased = bool(row["nonce"]) and bool(row["holder"]) and bool(row["vmid"])
    if leased != (state == "ATTACHED"):
        found.append(f"{who}, and its lease is {row['nonce']!r} of {row['holder']}")
    if state == "DETACHED" and holders:
        found.append(f"{who}, and VM {holders} has it")
    if state == "ATTACHED" and row["holder"] in sure:
        if sure[row["holder"]] != row["vmid"] or holders != [row["vmid"]]:
            found.append(f"{who} to {row['vmid']}, and VM {holders} has it")
    elif state == "ATTACHED" and all_seen:
        found.append(f"{who} to {row['vmid']}, which does not live")
    return found

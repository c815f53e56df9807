"""What a doctor bundle tells of the world outside of the database.  Nothing here ever fails."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable

import agentlab
from agentlab.errors import AgentLabError
from agentlab.hypervisor.base import Machine
from agentlab.model.sandbox import SANDBOX, Sandbox
from agentlab.model.workspace import Workspace
from agentlab.operations.context import World

_log = logging.getLogger(__name__)


def machine_of(world: World, sandbox: Sandbox | None) -> dict[str, object]:
    """The machine of a sandbox; each question is answered by itself, or by an error."""
    if sandbox is None:
        return {"absent": "there is no sandbox"}
    if SANDBOX.final(sandbox.state):
        return {"absent": f"the sandbox is {sandbox.state}: a machine of this VMID is another one"}
    hypervisor, vmid = world.hypervisor, sandbox.vmid
    volumes: object = {"absent": "this hypervisor has none"}
    if hypervisor.capabilities.volumes:
        volumes = _asked(lambda: [*hypervisor.attached(vmid, owner=world.installation)])
    return {
        "status": _asked(lambda: _status(world, hypervisor.status(vmid))),
        "snapshots": _asked(lambda: [*hypervisor.snapshots(vmid)]),
        "volumes": volumes,
    }


def _status(world: World, machine: Machine | None) -> object:
    if machine is None:
        return {"absent": "the hypervisor has no such machine"}
    fields = dataclasses.asdict(machine)
    del fields["cpu"]  # a measure, another one at each look
    return {**fields, "ours": machine.owner == world.installation}


def volume_of(world: World, workspace: Workspace | None) -> object:
    """A workspace's volume: its size, which machines have it, its snapshots."""
    if workspace is None:
        return {"absent": "there is no workspace"}
    if not workspace.volid:
        return {"absent": "it has not been made"}
    if not world.hypervisor.capabilities.volumes:
        return {"absent": "this hypervisor has none"}
    hypervisor, volid, owner = world.hypervisor, workspace.volid, world.installation

    def listed() -> object:
        found = world.volume(volid)
        return found or {"absent": f"the hypervisor has no volume {volid} of ours"}

    return {
        "volume": _asked(listed),
        "snapshots": _asked(lambda: [*hypervisor.volume_snapshots(volid, owner=owner)]),
    }


def host(world: World, commit: str) -> dict[str, object]:
    """Versions and settings; no paths, which tell users' names."""
    capabilities = world.hypervisor.capabilities
    return {
        "version": agentlab.VERSION,
        "commit": commit,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "kernel": os.uname().release,
        "architecture": os.uname().machine,
        "installation": world.installation,
        "hypervisor": world.config.hypervisor,
        "accelerator": capabilities.accelerator,
        "capabilities": capabilities,
        "settings": world.config,
    }


def _asked(question: Callable[[], object]) -> object:
    """The answer, or the error in its place: a bundle is asked for when something is broken."""
    try:
        return question()
    except AgentLabError as error:
        return {"error": error.message, "code": error.code, "hint": error.hint}
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what there is to tell
        _log.warning("cannot ask the hypervisor for a doctor bundle", exc_info=error)
        return {"error": f"{type(error).__name__}: {error}"}

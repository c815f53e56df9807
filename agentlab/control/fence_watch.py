"""Rules that somebody else has taken away are put back, and what has left them loses its power."""

from __future__ import annotations

import logging

from agentlab.errors import AgentLabError, Conflict, Unavailable
from agentlab.hypervisor.base import Power
from agentlab.model.sandbox import SandboxState
from agentlab.operations.context import World
from agentlab.store import sandboxes

_log = logging.getLogger(__name__)
EVERY = 30.0
# A start in progress looks for itself, and a pause's end does; what has ended may be kept, powered.
_POWERED = (
    SandboxState.READY,
    SandboxState.RUNNING,
    SandboxState.COMPLETED,
    SandboxState.FAILED,
    SandboxState.TIMEOUT,
)


def check(world: World) -> bool:
    """True when the kernel's rules are those asked for; else they are put in place again."""
    try:
        world.fence.verify()
    except Unavailable as gone:
        _log.warning("the sandboxes' network rules were changed by others, mending: %s", gone)
        world.sync_fence()
        return False
    finally:
        stop_strays(world)
    return True


def stop_strays(world: World) -> None:
    """Takes the power of sandboxes whose tap is not where the rules are, by a live migration, say.

    Only where the hypervisor makes the taps; in the local one a tap is made by the fence itself.
    """
    if not world.hypervisor.capabilities.makes_taps:
        return
    with world.store.read() as tx:
        powered = [box for box in sandboxes.fenced(tx) if box.state in _POWERED]
    for box in powered:
        try:
            world.check_port(box.tap)
        except Conflict as stray:
            _stop(world, box.vmid, stray)


def _stop(world: World, vmid: int, stray: Conflict) -> None:
    """One that cannot be stopped keeps no other its power; it is looked at again."""
    try:
        machine = world.hypervisor.status(vmid)
        if machine is None or machine.power is Power.STOPPED:
            return
        world.hypervisor.stop(vmid, owner=world.installation)
    except AgentLabError as error:
        _log.warning(
            "sandbox %d is not behind its rules (%s), and cannot be stopped: %s", vmid, stray, error
        )
    else:
        _log.warning("sandbox %d was not behind its rules: it is stopped: %s", vmid, stray)

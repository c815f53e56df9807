"""The Proxmox hypervisor as a whole."""

from __future__ import annotations

from agentlab.hypervisor.base import Capabilities, Hypervisor
from agentlab.hypervisor.load import Gate
from agentlab.hypervisor.proxmox.guest import ProxmoxGuest
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.hypervisor.proxmox.snapshots import ProxmoxSnapshots
from agentlab.hypervisor.proxmox.tasks import Api
from agentlab.hypervisor.proxmox.transport import Transport
from agentlab.hypervisor.proxmox.volumes import ProxmoxVolumes

# Patience with guests: a host that is busy, and an agent that is slow, are no failure yet.
_SLOWNESS = 5.0


class ProxmoxHypervisor(ProxmoxSnapshots, ProxmoxGuest, ProxmoxVolumes):
    """Machines of a Proxmox VE cluster, by either transport.

    What it knows is in Proxmox itself; it remembers only where a machine was seen last.  So any
    number of instances, in any number of processes, may be used.
    """

    def __init__(self, transport: Transport, settings: Settings, tools: NodeTools) -> None:
        limits = {
            "node": settings.node_limit,
            "template": settings.template_limit,
            "storage": settings.storage_limit,
        }
        gate = Gate(limits, queue=settings.queue_limit)
        super().__init__(Api(transport, gate, patience=settings.patience), settings, tools)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            accelerator="",
            slowness=_SLOWNESS,
            memory_start=False,
            volumes=True,
            volume_tools=self._tools.available_on(self._settings.node),
            makes_taps=True,
            # pvestatd looks each 10 s; a command line costs most of a second of processor time
            look=15.0 if self._api.transport.foreground else 5.0,
        )


_: type[Hypervisor] = ProxmoxHypervisor

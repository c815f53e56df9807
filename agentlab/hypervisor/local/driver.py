"""The local hypervisor as a whole."""

from __future__ import annotations

from agentlab.hypervisor.base import Capabilities, Hypervisor
from agentlab.hypervisor.local.accelerator import SLOWNESS
from agentlab.hypervisor.local.guest import LocalGuest
from agentlab.hypervisor.local.machines import LocalMachines
from agentlab.hypervisor.local.snapshots import LocalSnapshots
from agentlab.hypervisor.local.volumes import LocalVolumes


class LocalHypervisor(LocalMachines, LocalSnapshots, LocalVolumes, LocalGuest):
    """QEMU processes on this host; needs root for their taps.

    It keeps nothing in memory but the last look at each QEMU's processor time: all else that it
    knows is in the machines' directories and in the processes themselves, so any number of
    instances, in any number of processes, may be used.
    """

    @property
    def capabilities(self) -> Capabilities:
        """The first call may take up to 20 s, when KVM has to be tried."""
        accelerator = self.chosen_accelerator()
        return Capabilities(
            accelerator=accelerator,
            slowness=SLOWNESS[accelerator],
            memory_start=self.starts_from_memory(),
            volumes=True,
            volume_tools=True,
            exec_stdin=256 << 10,
        )


_: type[Hypervisor] = LocalHypervisor

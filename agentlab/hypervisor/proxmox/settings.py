"""What the Proxmox driver is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """One installation's part of a Proxmox cluster.

    `node` is the node on which the daemon runs, "" when it runs on none: there the rules that
    fence sandboxes are in place, and the node's own programs can be run.  `nodes` are those on
    which machines may be placed; empty means `node` alone.
    """

    node: str
    bridge: str
    vmids: range
    nodes: tuple[str, ...] = ()
    volume_vmids: range = range(990000, 991000)
    pool: str = ""
    storage: str = ""  # of full clones and volumes; "": that of the template
    full: bool = False
    node_limit: int = 10  # tasks at the same moment on one node
    template_limit: int = 3  # clones of one template
    storage_limit: int = 3  # clones to one storage
    queue_limit: int = 500  # callers that may wait for their turn
    patience: float = (
        20.0  # seconds that a call waits for a task or a lock before it gives the thread back
    )

    @property
    def allowed(self) -> frozenset[str]:
        """The nodes that machines may be placed on; empty when any may be."""
        return frozenset(self.nodes or ((self.node,) if self.node else ()))

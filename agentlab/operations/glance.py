"""One inventory for all that look at nearly the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from agentlab.errors import AgentLabError
from agentlab.hypervisor.base import Hypervisor, Machine


class Glance:
    """The hypervisor's inventory of a moment ago: for a question whose answer is checked again.

    Many jobs that each ask what has become of their machine cost one call together.
    """

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._lock = threading.Lock()
        self._taken = float("-inf")
        self._machines: Mapping[int, Machine] = {}
        self._failure: AgentLabError | None = None

    def machine(self, vmid: int, *, age: float) -> Machine | None:
        """As the inventory had it at most `age` seconds ago, its failure too."""
        with self._lock:
            if time.monotonic() - self._taken > age:
                self._failure = None
                try:
                    self._machines = {each.vmid: each for each in self._hypervisor.inventory()}
                except AgentLabError as failure:
                    self._failure = failure
                self._taken = time.monotonic()
            if self._failure is not None:
                raise self._failure
            return self._machines.get(vmid)

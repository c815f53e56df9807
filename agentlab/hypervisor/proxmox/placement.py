"""On which node a machine is made: where template, storage and bridge are, by free memory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from agentlab.errors import AgentLabError, NotFound, Unavailable, Unsupported
from agentlab.hypervisor.proxmox.inventory import Found, Guest, Inventory, Resources
from agentlab.hypervisor.proxmox.names import parse_drives, past_the_fence, root_drive
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.hypervisor.proxmox.tasks import Api

_BRIDGES_LAST = 300.0  # seconds for which a node's bridges are believed


@dataclass(frozen=True, slots=True)
class Place:
    """Where a clone is asked for, and where it will be."""

    template: Found
    node: str
    storage: str  # where the root disk will be
    storages: frozenset[str]  # where any disk will be
    memory: int  # bytes that the template names

    @property
    def target(self) -> str:
        """The `target` parameter: "" when it stays on the template's node."""
        return "" if self.node == self.template.node else self.node


def pick_template(resources: Resources, name: str) -> list[Guest]:
    """Templates of this name, or the one of this VMID; NotFound tells which there are."""
    machines = [guest for guest in resources.guests.values() if guest.kind == "qemu"]
    templates = [guest for guest in machines if guest.template]
    found = [guest for guest in templates if name in (guest.name, str(guest.vmid))]
    if found:
        return found
    machine = next((each for each in resources.guests.values() if each.name == name), None)
    if machine is not None:
        raise NotFound(
            f"there is no template {name}: VM {machine.vmid} of that name is not a template",
            hint=f"`agentlab template check {name}` says what is missing",
        )
    if any(not guest.name for guest in machines):
        raise Unavailable(
            f"cannot find template {name} yet: Proxmox has not looked at all of its VMs",
            hint="pvestatd does so each 10 s",
        )
    there = ", ".join(sorted({guest.name for guest in templates})) or "none"
    raise NotFound(
        f"there is no template {name} in Proxmox",
        hint=f"templates that can be seen: {there}; `agentlab template build` makes one",
    )


def free_memory(resources: Resources, node: str, owned: frozenset[int], booked: int) -> int:
    """Bytes: what is neither used nor promised.  `owned` are ours, which may be about to start."""
    here = resources.nodes[node]
    promised = sum(
        guest.maxmem
        for guest in resources.guests.values()
        if guest.node == node
        and not guest.template
        and (guest.status == "running" or guest.vmid in owned)
    )
    return here.maxmem - max(here.mem, promised) - booked


class Placement:
    """Chooses, and remembers what it has promised until the machine is there."""

    def __init__(self, api: Api, inventory: Inventory, settings: Settings) -> None:
        self._api = api
        self._inventory = inventory
        self._settings = settings
        self._booked: Counter[str] = Counter()
        self._bridges: dict[str, tuple[float, frozenset[str]]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def place(self, name: str, *, full: bool) -> Iterator[Place]:
        """The best place for a clone of a template; its memory is booked while it is made.

        NotFound for an unknown template; Unavailable when it is known and nothing fits now.
        """
        resources = self._inventory.resources()
        candidates, refused = self._candidates(resources, name, full)
        if not candidates:
            raise Unavailable(
                f"cannot place a clone of {name}: {'; '.join(refused) or 'no node is allowed'}",
                hint="see the proxmox settings, `pvecm status` and `pvesm status`",
            )
        with self._lock:
            ours = frozenset(vmid for vmid in resources.guests if vmid in self._settings.vmids)
            best = max(
                candidates,
                key=lambda each: free_memory(resources, each.node, ours, self._booked[each.node]),
            )
            self._booked[best.node] += best.memory
        try:
            yield best
        finally:
            with self._lock:
                self._booked[best.node] -= best.memory

    def _candidates(
        self, resources: Resources, name: str, full: bool
    ) -> tuple[list[Place], list[str]]:
        found: list[Place] = []
        refused: list[str] = []
        for guest in pick_template(resources, name):
            try:
                found += self._places(resources, guest, full)
            except AgentLabError as error:
                refused.append(f"template {guest.vmid} on node {guest.node}: {error.message}")
        return found, refused

    def _places(self, resources: Resources, guest: Guest, full: bool) -> list[Place]:
        node = resources.nodes.get(guest.node)
        if node is None or not node.online:
            raise Unavailable("its node is offline")
        template = self._inventory.find(guest.vmid)
        root = root_drive(template.config) if template else None
        if template is None or root is None:
            raise Unsupported("it has no disk")
        storage = self._settings.storage if full and self._settings.storage else root.storage
        past = past_the_fence(template.config)
        if past:
            raise Unsupported(
                f"its {', '.join(past)} would come along, and reach past the fence",
                hint=f"take them out of VM {guest.vmid}, or clone from another template",
            )
        drives = parse_drives(template.config)
        used = {storage} if full and self._settings.storage else {each.storage for each in drives}
        used -= {""}
        places, why = [], []
        for other in resources.nodes:
            problem = self._unfit(resources, other, storage)
            if other != guest.node and not _all_shared(
                resources, guest.node, used | {root.storage}
            ):
                continue
            if problem:
                why.append(problem)
            else:
                places.append(Place(template, other, storage, frozenset(used), guest.maxmem))
        if not places:
            raise Unavailable("; ".join(why) or "no node may have machines")
        return places

    def _unfit(self, resources: Resources, node: str, storage: str) -> str:
        """Why a machine cannot be on that node; "" when it can."""
        if self._settings.allowed and node not in self._settings.allowed:
            return f"the settings do not allow node {node}"
        if not resources.nodes[node].online:
            return f"node {node} is offline"
        there = resources.storages.get((node, storage))
        if there is None or not there.available:
            return f"node {node} has no storage {storage}, or it is not available"
        if not self._has_bridge(node):
            return f"node {node} has no bridge {self._settings.bridge} that the token may use"
        return ""

    def _has_bridge(self, node: str) -> bool:
        looked, bridges = self._bridges.get(node, (0.0, frozenset()))
        if self._settings.bridge not in bridges or time.monotonic() - looked > _BRIDGES_LAST:
            what = f"cannot read the bridges of node {node}"
            found = self._api.get(f"/nodes/{node}/network", what=what, type="any_bridge")
            bridges = frozenset(_interfaces(found))
            self._bridges[node] = (time.monotonic(), bridges)
        return self._settings.bridge in bridges


def _interfaces(data: object) -> Sequence[str]:
    entries = data if isinstance(data, list) else []
    return [
        str(entry["iface"]) for entry in entries if isinstance(entry, Mapping) and "iface" in entry
    ]


def _all_shared(resources: Resources, node: str, storages: set[str]) -> bool:
    found = (resources.storages.get((node, storage)) for storage in storages)
    return all(each is not None and each.shared for each in found)

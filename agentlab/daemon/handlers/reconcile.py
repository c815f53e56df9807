"""What the hypervisor has beside what the records say."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.control import drift, reconcile
from agentlab.control import prune as control_prune
from agentlab.control.mend import Outcome
from agentlab.daemon.context import Daemon
from agentlab.daemon.router import Request
from agentlab.daemon.views import machine_view, sandbox_view
from agentlab.store import sandboxes


def prune(daemon: Daemon, _: Request[m.Nothing]) -> m.PruneView:
    pruned = control_prune.prune(daemon.world)
    removed = [sandbox_view(one, {}) for one in pruned.removed]
    return m.PruneView(removed, list(pruned.kept))


def inventory(daemon: Daemon, _: Request[m.Nothing]) -> m.Inventory:
    """All machines, by VMID; raises what the hypervisor raises when it cannot be read whole."""
    machines = daemon.world.hypervisor.inventory()
    place = drift.place_of(daemon.world)
    with daemon.world.store.read() as tx:
        records = {one.vmid: one for one in sandboxes.live(tx)}
    ordered = sorted(machines, key=lambda machine: machine.vmid)
    return m.Inventory([machine_view(one, records.get(one.vmid), place) for one in ordered])


def look(daemon: Daemon, _: Request[m.Nothing]) -> m.DriftList:
    found = drift.look(daemon.world)
    return m.DriftList(
        [_view(Outcome(each)) for each in found.drifts], found.complete, found.problem
    )


def apply(daemon: Daemon, _: Request[m.Nothing]) -> m.DriftList:
    found, outcomes = reconcile.apply(daemon.world, daemon.runner)
    return m.DriftList([_view(each) for each in outcomes], found.complete, found.problem)


def _view(outcome: Outcome) -> m.DriftView:
    seen = outcome.drift
    return m.DriftView(
        kind=seen.kind.value,
        vmid=seen.vmid,
        name=seen.name,
        detail=f"{seen.detail}; {outcome.why}" if outcome.why else seen.detail,
        mend=seen.asked.value,
        remedy=seen.remedy,
        operation=outcome.operation,
        mended=outcome.mended,
    )

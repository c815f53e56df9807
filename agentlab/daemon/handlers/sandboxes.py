"""Sandboxes: made, listed, shown, changed, started, stopped, reverted, destroyed."""

from __future__ import annotations

from collections.abc import Callable

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.handlers.operations import shown
from agentlab.daemon.job_spec import parse_labels, parse_ttl
from agentlab.daemon.router import Request
from agentlab.daemon.views import holders, plan_view, power_of_all, sandbox_view
from agentlab.daemon.views_work import held as workspaces_held
from agentlab.errors import Invalid
from agentlab.model.sandbox import SANDBOX, Sandbox, SandboxSpec, SandboxState
from agentlab.operations import lease_requests, sandbox_power, sandbox_requests
from agentlab.store import sandboxes


def create(daemon: Daemon, request: Request[m.SandboxRequest]) -> m.OperationView:
    spec = _spec(request.document)
    return shown(daemon, sandbox_requests.create(daemon.world, daemon.runner, spec, request.key))


def validate(daemon: Daemon, request: Request[m.SandboxRequest]) -> m.PlanView:
    spec = _spec(request.document)
    return plan_view(sandbox_requests.plan_sandbox(daemon.world, spec), workspace=spec.workspace)


def _spec(asked: m.SandboxRequest) -> SandboxSpec:
    return SandboxSpec(
        profile=asked.profile,
        name=asked.name,
        ttl=parse_ttl(asked.ttl),
        keepalive=asked.keepalive,
        vmid=asked.vmid,
        labels=parse_labels(asked.labels),
        queue=asked.queue,
        workspace=asked.workspace,
    )


def all_known(daemon: Daemon, request: Request[m.Nothing]) -> m.SandboxList:
    """Those that live, or with `all` or their state destroyed ones too; one inventory for all."""
    wanted = _filter(request)
    destroyed = request.query.get("state", "").upper() == SandboxState.DESTROYED
    with daemon.world.store.read() as tx:
        found = sandboxes.newest(tx) if request.flag("all") or destroyed else sandboxes.live(tx)
        found = [each for each in found if wanted(each)]
        held, work = holders(tx, found), workspaces_held(tx)
    power = power_of_all(daemon) if found else {}
    return m.SandboxList(
        [sandbox_view(each, power, held.get(each.id), work.get(each.id, "")) for each in found]
    )


def _filter(request: Request[m.Nothing]) -> Callable[[Sandbox], bool]:
    state, profile = request.query.get("state", "").upper(), request.query.get("profile", "")
    if state and state not in list(SANDBOX.states):
        raise Invalid(f"the parameter state must be one of {', '.join(SANDBOX.states)}")
    key, equals, value = request.query.get("label", "").partition("=")

    def wanted(one: Sandbox) -> bool:
        return (
            (not state or one.state == state)
            and (not profile or one.profile == profile)
            and (not key or (one.labels.get(key) == value if equals else key in one.labels))
        )

    return wanted


def show(daemon: Daemon, request: Request[m.Nothing]) -> m.SandboxView:
    with daemon.world.store.read() as tx:
        found = sandboxes.get_live(tx, request.values["vmid"])
    return _view(daemon, found)


def _view(daemon: Daemon, found: Sandbox) -> m.SandboxView:
    with daemon.world.store.read() as tx:
        held, work = holders(tx, [found]), workspaces_held(tx)
    return sandbox_view(found, power_of_all(daemon), held.get(found.id), work.get(found.id, ""))


def update(daemon: Daemon, request: Request[m.UpdateRequest]) -> m.SandboxView:
    asked = request.document
    parse_labels({key: value or "" for key, value in asked.labels.items()})
    changed = sandbox_requests.update(
        daemon.world, request.values["vmid"], cores=asked.cores, memory=asked.memory,
        labels=asked.labels,
    )  # fmt: skip
    return _view(daemon, changed)


def start(daemon: Daemon, request: Request[m.StartRequest]) -> m.OperationView:
    return _acted(daemon, request, sandbox_power.START, queue=request.document.queue)


def stop(daemon: Daemon, request: Request[m.Nothing]) -> m.OperationView:
    return _acted(daemon, request, sandbox_power.STOP)


def pause(daemon: Daemon, request: Request[m.Nothing]) -> m.OperationView:
    return _acted(daemon, request, sandbox_power.PAUSE)


def resume(daemon: Daemon, request: Request[m.Nothing]) -> m.OperationView:
    return _acted(daemon, request, sandbox_power.RESUME)


def _acted(
    daemon: Daemon,
    request: Request[m.Nothing] | Request[m.StartRequest],
    kind: str,
    **given: object,
) -> m.OperationView:
    vmid = request.values["vmid"]
    return shown(
        daemon,
        sandbox_requests.act(daemon.world, daemon.runner, kind, vmid, request.key, **given),
    )


def revert(daemon: Daemon, request: Request[m.RevertRequest]) -> m.OperationView:
    """To `clean`, or to the snapshot that the path names."""
    name = {"name": request.values["name"]} if "name" in request.values else {}
    identity = sandbox_requests.revert(
        daemon.world, daemon.runner, request.values["vmid"], request.key,
        force=request.document.force, restart=request.document.restart, **name,
    )  # fmt: skip
    return shown(daemon, identity)


def destroy(daemon: Daemon, request: Request[m.DestroyRequest]) -> m.OperationView:
    identity = sandbox_requests.destroy(
        daemon.world, daemon.runner, request.values["vmid"], request.key,
        force=request.document.force,
    )  # fmt: skip
    return shown(daemon, identity)


def renew(daemon: Daemon, request: Request[m.RenewRequest]) -> m.SandboxView:
    ttl = parse_ttl(request.document.ttl)
    return _view(
        daemon, lease_requests.renew(daemon.world, daemon.runner, request.values["vmid"], ttl)
    )


def snapshots(daemon: Daemon, request: Request[m.Nothing]) -> m.SnapshotList:
    with daemon.world.store.read() as tx:
        found = sandboxes.get_live(tx, request.values["vmid"])
    return m.SnapshotList(list(daemon.world.hypervisor.snapshots(found.vmid)))


def save_snapshot(daemon: Daemon, request: Request[m.SnapshotRequest]) -> m.OperationView:
    identity = sandbox_requests.save_snapshot(
        daemon.world, daemon.runner, request.values["vmid"], request.key, request.document.name
    )
    return shown(daemon, identity)


def delete_snapshot(daemon: Daemon, request: Request[m.Nothing]) -> m.OperationView:
    identity = sandbox_requests.delete_snapshot(
        daemon.world, daemon.runner, request.values["vmid"], request.key, request.values["name"]
    )
    return shown(daemon, identity)

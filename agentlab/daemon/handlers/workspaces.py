"""Workspaces: made, listed, attached, checked, copied, deleted; and their snapshots."""

from __future__ import annotations

from agentlab.api import messages as m
from agentlab.control import workspace_check
from agentlab.daemon.context import Daemon
from agentlab.daemon.handlers.operations import shown
from agentlab.daemon.job_spec import parse_ttl
from agentlab.daemon.router import Request
from agentlab.daemon.views_work import workspace_view
from agentlab.model.sandbox import SandboxSpec
from agentlab.model.workspace import Workspace, WorkspaceSpec
from agentlab.operations import workspace_requests
from agentlab.store import workspaces


def create(daemon: Daemon, request: Request[m.WorkspaceRequest]) -> m.OperationView:
    asked = request.document
    size = asked.size or daemon.world.config.workspace_size
    spec = WorkspaceSpec(asked.name, size, asked.storage)
    return shown(daemon, workspace_requests.create(daemon.world, daemon.runner, spec, request.key))


def all_known(daemon: Daemon, _: Request[m.Nothing]) -> m.WorkspaceList:
    with daemon.world.store.read() as tx:
        return m.WorkspaceList([workspace_view(tx, each) for each in workspaces.live(tx)])


def show(daemon: Daemon, request: Request[m.Nothing]) -> m.WorkspaceView:
    with daemon.world.store.read() as tx:
        return workspace_view(tx, workspaces.get(tx, request.values["name"]))


def attach(daemon: Daemon, request: Request[m.AttachRequest]) -> m.OperationView:
    identity = workspace_requests.attach(
        daemon.world, daemon.runner, request.values["name"], request.document.sandbox, request.key
    )
    return shown(daemon, identity)


def detach(daemon: Daemon, request: Request[m.DetachRequest]) -> m.OperationView:
    identity = workspace_requests.detach(
        daemon.world, daemon.runner, request.values["name"], request.key,
        force=request.document.force,
    )  # fmt: skip
    return shown(daemon, identity)


def check(daemon: Daemon, request: Request[m.Nothing]) -> m.WorkspaceCheckView:
    name = request.values["name"]
    found = workspace_check.check(daemon.world, name)
    return m.WorkspaceCheckView(
        name, [m.WorkspaceFindingView(each.name, each.problem, each.remedy) for each in found]
    )


def fsck(daemon: Daemon, request: Request[m.FsckRequest]) -> m.OperationView:
    identity = workspace_requests.fsck(
        daemon.world, daemon.runner, request.values["name"], request.key,
        repair=request.document.repair,
    )  # fmt: skip
    return shown(daemon, identity)


def rebind(daemon: Daemon, request: Request[m.RebindRequest]) -> m.OperationView:
    asked = request.document
    identity = workspace_requests.rebind(
        daemon.world, daemon.runner, request.values["name"],
        SandboxSpec(profile=asked.profile, name=asked.name, ttl=parse_ttl(asked.ttl)),
        request.key, keep_old=asked.keep_old, force=asked.force,
    )  # fmt: skip
    return shown(daemon, identity)


def fork(daemon: Daemon, request: Request[m.ForkRequest]) -> m.OperationView:
    identity = workspace_requests.fork(
        daemon.world, daemon.runner, request.values["name"], request.key,
        new=request.document.name, snapshot=request.document.snapshot,
    )  # fmt: skip
    return shown(daemon, identity)


def resize(daemon: Daemon, request: Request[m.ResizeRequest]) -> m.OperationView:
    identity = workspace_requests.resize(
        daemon.world, daemon.runner, request.values["name"], request.key,
        size=request.document.size,
    )  # fmt: skip
    return shown(daemon, identity)


def delete(daemon: Daemon, request: Request[m.Nothing]) -> m.OperationView:
    identity = workspace_requests.delete(
        daemon.world, daemon.runner, request.values["name"], request.key
    )
    return shown(daemon, identity)


def clear_lease(daemon: Daemon, request: Request[m.LeaseClearRequest]) -> m.WorkspaceView:
    cleared: Workspace = workspace_requests.clear_lease(
        daemon.world, request.values["name"], force=request.document.force
    )
    with daemon.world.store.read() as tx:
        return workspace_view(tx, cleared)


# --- snapshots ---


def snapshots(daemon: Daemon, request: Request[m.Nothing]) -> m.SnapshotList:
    """Of its volume, which may be attached; one that is still to be made has none."""
    world = daemon.world
    with world.store.read() as tx:
        found = workspaces.get(tx, request.values["name"])
    if not found.volid:
        return m.SnapshotList([])
    return m.SnapshotList(
        list(world.hypervisor.volume_snapshots(found.volid, owner=world.installation))
    )


def save_snapshot(daemon: Daemon, request: Request[m.SnapshotRequest]) -> m.OperationView:
    identity = workspace_requests.save_snapshot(
        daemon.world, daemon.runner, request.values["name"], request.key, request.document.name
    )
    return shown(daemon, identity)


def restore_snapshot(daemon: Daemon, request: Request[m.Nothing]) -> m.OperationView:
    identity = workspace_requests.restore_snapshot(
        daemon.world, daemon.runner, request.values["name"], request.key,
        request.values["snapshot"],
    )  # fmt: skip
    return shown(daemon, identity)


def delete_snapshot(daemon: Daemon, request: Request[m.Nothing]) -> m.OperationView:
    identity = workspace_requests.delete_snapshot(
        daemon.world, daemon.runner, request.values["name"], request.key,
        request.values["snapshot"],
    )  # fmt: skip
    return shown(daemon, identity)

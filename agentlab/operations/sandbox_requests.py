"""What people ask for of sandboxes: refused at once where that is certain, else written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from agentlab.engine.runner import Runner
from agentlab.errors import AgentLabError, Busy, Conflict, Invalid, InvalidTransition
from agentlab.model import plan
from agentlab.model.ids import new_id
from agentlab.model.plan import Plan
from agentlab.model.sandbox import (
    CLEAN,
    SANDBOX,
    Sandbox,
    SandboxSpec,
    SandboxState,
    parse_sandbox_name,
    parse_snapshot_name,
)
from agentlab.operations import (
    admit,
    job_run,
    sandbox_create,
    sandbox_destroy,
    sandbox_power,
    sandbox_snapshots,
)
from agentlab.operations.asked import digest_of, earlier
from agentlab.operations.context import World
from agentlab.store import events, operations, sandboxes, workspaces
from agentlab.store.db import Tx
from agentlab.store.operations import OperationRow

_MOST_CORES, _MOST_MEMORY, _LEAST_MEMORY = 128, 64 * 1024 * 1024, 128
_VERBS = {
    sandbox_power.START: "start",
    sandbox_power.STOP: "stop",
    sandbox_power.PAUSE: "pause",
    sandbox_power.RESUME: "resume",
}


def plan_sandbox(world: World, spec: SandboxSpec) -> Plan:
    """What a sandbox would get; NotFound for its profile, Invalid or Conflict for what it asks."""
    planned = plan.plan_sandbox(world.profile(spec.profile), spec)
    admit.refuse_never(world.config.limits, planned.cores, planned.memory)
    if spec.name:
        parse_sandbox_name(spec.name)
    vmids = world.config.vmids
    if spec.vmid and spec.vmid not in vmids:
        raise Invalid(
            f"cannot use VMID {spec.vmid}: sandboxes have {vmids.start} to {vmids.stop - 1}",
            hint="choose one of these, or change vmid_range in the settings",
            details={"path": "vmid"},
        )
    with world.store.read() as tx:
        _refuse_taken(tx, spec)
        _workspace_for(tx, spec)
    return planned


def _workspace_for(tx: Tx, spec: SandboxSpec) -> int:
    """The id of the workspace that it is to have, 0 for none; Conflict when another has it."""
    if not spec.workspace:
        return 0
    workspace = workspaces.get(tx, spec.workspace)
    workspaces.refuse_attached(tx, workspace, "use")
    return workspace.id


def create(world: World, runner: Runner, spec: SandboxSpec, key: str) -> str:
    """The operation that makes a sandbox; the same key with the same spec gives the same one."""
    identity = new_id()
    digest = digest_of(sandbox_create.KIND, dataclasses.asdict(spec))
    with world.store.read() as tx:
        before = earlier(tx, key, digest)
    if before is not None:
        return before.id
    planned = plan_sandbox(world, spec)
    if spec.vmid:
        _refuse_strangers(world, spec.vmid)
    arguments = {
        **dataclasses.asdict(spec),
        "name": spec.name
        or f"{spec.profile[:48].strip('._-').replace('_', '-').replace('.', '-')}-{identity[-7:]}",
        "plan": dataclasses.asdict(planned),
    }
    with world.store.write() as tx:
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        _refuse_taken(tx, spec)
        arguments["workspace"] = _workspace_for(tx, spec)
        if not spec.queue:
            limits = world.config.limits
            admit.refuse_now(tx, limits, planned.cores, planned.memory, new=True)
        return runner.submit(
            tx, sandbox_create.KIND, [f"sandbox-new:{identity}"], arguments, operation=identity,
            request=(key, digest),
        )  # fmt: skip


def _refuse_taken(tx: Tx, spec: SandboxSpec) -> None:
    """Conflict for a name or a VMID that another sandbox has, or has asked for."""
    live = sandboxes.live(tx)
    asked = [each.input for each in operations.of_kind(tx, sandbox_create.KIND)]
    if spec.name and spec.name in {*(one.name for one in live), *(each["name"] for each in asked)}:
        raise Conflict(
            f"cannot make sandbox {spec.name}: there is one of that name already",
            hint=f"choose another name, or see: agentlab sandbox show {spec.name}",
            details={"path": "name"},
        )
    if spec.vmid and spec.vmid in {*(one.vmid for one in live), *(each["vmid"] for each in asked)}:
        raise Conflict(
            f"cannot make sandbox {spec.vmid}: there is one with that VMID already",
            hint="choose another, or leave --vmid out",
            details={"path": "vmid"},
        )


def _refuse_strangers(world: World, vmid: int) -> None:
    for machine in world.hypervisor.inventory():
        if machine.vmid == vmid:
            whose = "one of ours without a record" if machine.owner else "somebody else's"
            raise Conflict(
                f"cannot make sandbox {vmid}: there is a VM {vmid} already, {whose}",
                hint="choose another VMID, or leave --vmid out: see agentlab sandbox inventory",
                details={"path": "vmid"},
            )


def act(world: World, runner: Runner, kind: str, reference: str, key: str, **given: object) -> str:
    """The operation that starts, stops, pauses or resumes a sandbox, in its turn."""
    verb = _VERBS[kind]

    def check(tx: Tx, sandbox: Sandbox) -> None:
        try:
            SANDBOX.next(sandbox.state, sandbox_power.EVENTS[kind])
        except InvalidTransition as error:
            raise InvalidTransition(
                f"cannot {verb} sandbox {sandbox.vmid}: it is {sandbox.state}",
                hint=remedy(sandbox) or error.hint, details=error.details,
            ) from error  # fmt: skip
        if kind == sandbox_power.START and given.get("queue") is False:
            limits = world.config.limits
            admit.refuse_now(tx, limits, sandbox.cores, sandbox.memory, new=False)

    return _submit(world, runner, kind, reference, key, verb, check, given)


def remedy(sandbox: Sandbox) -> str:
    """What leads on from states that people run into."""
    vmid = sandbox.vmid
    return {
        SandboxState.STOPPED: f"start it: agentlab sandbox start {vmid}",
        SandboxState.SUSPENDED: f"let it go on: agentlab sandbox resume {vmid}",
        SandboxState.DESTROYED: "see: agentlab sandbox list --all",
    }.get(sandbox.state, "")


def revert(
    world: World, runner: Runner, reference: str, key: str,
    *, name: str = CLEAN, force: bool = False, restart: bool | None = None,
) -> str:  # fmt: skip
    """The operation that puts a root disk back; with `force` also from under a job, which it ends."""
    parse_snapshot_name(name)

    def check(_: Tx, sandbox: Sandbox) -> None:
        sandbox_snapshots.refuse(sandbox, "revert", sandbox_snapshots.REVERTIBLE)

    def evict(tx: Tx, sandbox: Sandbox, holder: OperationRow) -> None:
        sandboxes.set_held(tx, sandbox.vmid, held=True)
        runner.cancel(tx, holder.id)

    return _submit(
        world, runner, sandbox_snapshots.REVERT, reference, key, "revert", check,
        {"name": name, "force": force, "restart": restart}, evict=evict if force else None,
    )  # fmt: skip


def save_snapshot(world: World, runner: Runner, reference: str, key: str, name: str) -> str:
    """The operation that takes a snapshot; Conflict for a name that is there."""
    parse_snapshot_name(name)

    def check(_: Tx, sandbox: Sandbox) -> None:
        sandbox_snapshots.refuse_powered(sandbox, "take a snapshot of")

    _refuse_snapshot(world, reference, key, name)
    return _submit(
        world, runner, sandbox_snapshots.SAVE, reference, key, "take a snapshot of", check,
        {"name": name},
    )  # fmt: skip


def _refuse_snapshot(world: World, reference: str, key: str, name: str) -> None:
    with world.store.read() as tx:
        sandbox = sandboxes.get_live(tx, reference)
        if key and operations.by_request(tx, key) is not None:
            return  # asked again after a lost reply: the one that is there is its own
    if sandbox.state is SandboxState.STOPPED and name in world.hypervisor.snapshots(sandbox.vmid):
        raise Conflict(
            f"cannot take snapshot {name} of sandbox {sandbox.vmid}: there is one of that name",
            hint=f"choose another name, or: agentlab sandbox snapshot delete {sandbox.vmid} {name}",
            details={"path": "name"},
        )


def delete_snapshot(world: World, runner: Runner, reference: str, key: str, name: str) -> str:
    """The operation that deletes a snapshot; `clean` stays, since `revert` needs it."""
    parse_snapshot_name(name)
    if name == CLEAN:
        raise Conflict(
            "cannot delete snapshot clean: revert goes back to it",
            hint="it goes with its sandbox: agentlab sandbox destroy",
        )

    def check(_: Tx, sandbox: Sandbox) -> None:
        sandbox_snapshots.refuse_powered(sandbox, "delete a snapshot of")

    return _submit(
        world, runner, sandbox_snapshots.DELETE, reference, key, "delete a snapshot of", check,
        {"name": name},
    )  # fmt: skip


def _submit(
    world: World,
    runner: Runner,
    kind: str,
    reference: str,
    key: str,
    verb: str,
    check: Callable[[Tx, Sandbox], None],
    given: Mapping[str, object],
    *,
    evict: Callable[[Tx, Sandbox, OperationRow], None] | None = None,
) -> str:
    """Writes an operation down that waits for its turn; one that a job is in the way of is Busy."""
    with world.store.write() as tx:
        sandbox = sandboxes.get_live(tx, reference)
        digest = digest_of(kind, sandbox.id, given)
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        subject = f"sandbox:{sandbox.vmid}"
        holder = operations.holder_of(tx, subject)
        if sandbox.state is SandboxState.DESTROYED:
            check(tx, sandbox)
        elif holder is None:
            if not operations.waiting_for(tx, subject):
                check(tx, sandbox)
        elif holder.kind == job_run.KIND:
            if evict is None:
                raise _job_is_in(verb, sandbox, holder)
            evict(tx, sandbox, holder)
        return runner.submit(
            tx, kind, [subject], {"id": sandbox.id, **given}, job=sandbox.job,
            vmid=sandbox.vmid, in_turn=True, request=(key, digest),
        )  # fmt: skip


def _job_is_in(verb: str, sandbox: Sandbox, holder: OperationRow) -> Busy:
    forcible = {"revert": ", or use --force, which cancels it"}.get(verb, "")
    return Busy(
        f"cannot {verb} sandbox {sandbox.vmid}: job {holder.job} runs in it",
        hint=f"wait for it (agentlab job wait {holder.job}), cancel it "
        f"(agentlab job cancel {holder.job}){forcible}",
        details={"operation": holder.id, "job": holder.job},
    )


def destroy(world: World, runner: Runner, reference: str, key: str, *, force: bool) -> str:
    """The operation that destroys a sandbox; with `force` from any state, a running job's too."""
    taken: list[OperationRow] = []
    absent = None if force else _without_vm(world, reference)
    with world.store.write() as tx:
        sandbox = sandboxes.get_live(tx, reference)
        digest = digest_of(sandbox_destroy.DESTROY, sandbox.id, force)
        before = earlier(tx, key, digest)
        if before is not None:
            return before.id
        if sandbox.state is SandboxState.DESTROYED:
            raise Conflict(
                f"failed to destroy sandbox {sandbox.vmid}: it is DESTROYED already",
                hint="see: agentlab sandbox list --all",
            )
        holder = operations.holder_of(tx, f"sandbox:{sandbox.vmid}")
        if holder is None:
            if not force:
                sandbox_destroy.refuse(sandbox)
            if sandbox == absent:
                raise Conflict(
                    f"failed to destroy sandbox {sandbox.vmid}: its VM is gone",
                    hint=f"agentlab sandbox destroy --force {sandbox.vmid}",
                    details={"state": sandbox.state.value},
                )
        elif holder.kind in (sandbox_destroy.DESTROY, sandbox_destroy.EXPIRE):
            if not force or sandbox_destroy.forced(holder):
                return holder.id
        elif not force:
            _refuse_destroy(sandbox, holder)
        else:
            sandboxes.set_held(tx, sandbox.vmid, held=False)
            runner.cancel(tx, holder.id)
            taken.append(holder)
        identity = runner.submit(
            tx, sandbox_destroy.DESTROY, [f"sandbox:{sandbox.vmid}"],
            {"id": sandbox.id, "force": force}, job=sandbox.job, vmid=sandbox.vmid, in_turn=True,
            request=(key, digest),
        )  # fmt: skip
    for each in taken:
        _hurry(world, runner, sandbox.vmid, each)
    return identity


def _without_vm(world: World, reference: str) -> Sandbox | None:
    """The sandbox as it was before the hypervisor was sure that there is no VM of it, else None."""
    with world.store.read() as tx:
        sandbox = sandboxes.get_live(tx, reference)
    try:
        return sandbox if world.hypervisor.status(sandbox.vmid) is None else None
    except AgentLabError:
        return None  # whoever destroys it will see


def _refuse_destroy(sandbox: Sandbox, holder: OperationRow) -> None:
    if holder.kind == job_run.KIND:
        raise Busy(
            f"failed to destroy sandbox {sandbox.vmid}: job {holder.job} runs in it",
            hint=f"agentlab job cancel {holder.job}, or use --force",
            details={"operation": holder.id, "job": holder.job},
        )
    if holder.kind == sandbox_create.KIND:
        sandbox_destroy.refuse(sandbox)


def _hurry(world: World, runner: Runner, vmid: int, holder: OperationRow) -> None:
    """Without power what holds it sees at once that nothing more will come.

    It is no more than that: a hypervisor that cannot be reached now loses nothing.  Where there is
    a workspace, its guest is given the time to write everything out.
    """
    with world.store.read() as tx:
        sandbox = sandboxes.find(tx, vmid)
        if sandbox is not None and workspaces.held_by(tx, sandbox.id) is not None:
            return
    try:
        world.hypervisor.stop(vmid, owner=world.installation)
    except AgentLabError:
        pass
    runner.wake(holder.id)


def update(
    world: World, reference: str,
    *, cores: int = 0, memory: int = 0, labels: Mapping[str, str | None],
) -> Sandbox:  # fmt: skip
    """New labels at once (None takes one away), new cores and memory (0: as before) at its next start."""
    for key, value, low, high in (
        ("cores", cores, 1, _MOST_CORES), ("memory", memory, _LEAST_MEMORY, _MOST_MEMORY),
    ):  # fmt: skip
        if value and not low <= value <= high:
            raise Invalid(
                f"{key}: must be from {low} to {high}", details={"path": key},
                hint="such as --cores 4" if key == "cores" else "such as --memory 8G",
            )  # fmt: skip
    with world.store.write() as tx:
        sandbox = sandboxes.get_live(tx, reference)
        if sandbox.state is SandboxState.DESTROYED:
            raise Conflict(
                f"cannot update sandbox {sandbox.vmid}: it is DESTROYED", hint=remedy(sandbox)
            )
        size = (cores or sandbox.cores, memory or sandbox.memory)
        if size != (sandbox.cores, sandbox.memory):
            admit.refuse_never(world.config.limits, *size)
            holder = operations.holder_of(tx, f"sandbox:{sandbox.vmid}")
            if holder is not None:
                raise Busy(
                    f"cannot update sandbox {sandbox.vmid}: {holder.kind} {holder.id} is under way",
                    hint="cores and memory can be changed when it has ended",
                    details={"operation": holder.id},
                )
        merged = {**sandbox.labels, **labels}
        sandboxes.set_labels(tx, sandbox.vmid, {k: v for k, v in merged.items() if v is not None})
        sandboxes.set_size(tx, sandbox.vmid, cores=size[0], memory=size[1])
        changed = sandboxes.get(tx, sandbox.vmid)
        if changed != sandbox:
            events.append(
                tx, "sandbox.updated", f"sandbox {sandbox.vmid} was updated", job=sandbox.job,
                vmid=sandbox.vmid,
                facts={"cores": size[0], "memory": size[1], "labels": changed.labels},
            )  # fmt: skip
    return changed

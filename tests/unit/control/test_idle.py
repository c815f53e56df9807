"""The loop that stops sandboxes in which nothing happens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import pytest

from agentlab.control import idle
from agentlab.control.idle import IdleStop
from agentlab.errors import Unavailable
from agentlab.hypervisor.base import Power
from agentlab.model.job import JobState
from agentlab.model.sandbox import Sandbox, SandboxState
from agentlab.operations.sandbox_power import PAUSE, STOP
from agentlab.store import events, operations, sandboxes, tokens
from tests.unit.operations.bench import Bench, bench

__all__ = ["bench"]  # the fixture
S = SandboxState
LIMIT = 60.0


@dataclass
class Host:
    """What the loop sees of this host, and its clock."""

    now: float = 1000.0
    bytes: dict[str, int | None] = field(default_factory=dict)
    ssh: set[IPv4Address] = field(default_factory=set)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(idle, "tap_bytes", lambda tap: host.bytes.get(tap, 0))
    monkeypatch.setattr(idle, "open_ssh", lambda: host.ssh)
    return host


@pytest.fixture
def loop(bench: Bench, host: Host) -> IdleStop:
    return IdleStop(bench.world, bench.runner, clock=lambda: host.now)


def new(bench: Bench, limit: float = LIMIT) -> Sandbox:
    box = bench.new()
    with bench.world.store.write() as tx:
        tx.execute("UPDATE sandbox SET idle_stop = ? WHERE id = ?", (limit, box.id))
    cpu(bench, box.vmid, 0.01)
    return bench.box(box.vmid)


def cpu(bench: Bench, vmid: int, share: float | None) -> None:
    machines = bench.hypervisor.machines
    machines[vmid] = replace(machines[vmid], cpu=share)


def rounds(loop: IdleStop, host: Host, seconds: float = LIMIT) -> None:
    """Looks each twenty seconds for so long, from now on."""
    until = host.now + seconds
    while True:
        loop.check()
        if host.now >= until:
            return
        host.now += 20


def ended(bench: Bench) -> list[str]:
    """The kinds of operation that the loop has asked for, when they are over."""
    with bench.world.store.read() as tx:
        rows = tx.execute("SELECT id FROM operation WHERE kind = ?", (STOP,)).fetchall()
    return [bench.ended(row["id"]).state for row in rows]


def told(bench: Bench) -> list[str]:
    with bench.world.store.read() as tx:
        return [
            each.text for each in events.after(tx, 0, limit=9999) if each.kind == "sandbox.idle"
        ]


@pytest.mark.parametrize("used", [False, True])
def test_an_idle_one_is_stopped_once(bench: Bench, loop: IdleStop, host: Host, used: bool) -> None:
    box = new(bench)
    if used:
        bench.use(box)
    rounds(loop, host, LIMIT - 20)
    assert ended(bench) == []
    rounds(loop, host, 100)
    assert ended(bench) == ["done"]
    now = bench.box(box.vmid)
    assert (now.state, now.reason) == (S.STOPPED, "idle for 1m")
    assert told(bench) == [f"sandbox {box.vmid} is idle for 1m: stopping it"]
    assert bench.fence.members == []


@pytest.mark.parametrize("limit", [0.0, LIMIT])
def test_ssh_into_a_ready_one_makes_it_running(
    bench: Bench, loop: IdleStop, host: Host, limit: float
) -> None:
    box, other = new(bench, limit), new(bench, limit)
    loop.check()
    assert bench.box(box.vmid).state is S.READY
    host.ssh = {box.address}
    loop.check()
    assert (bench.box(box.vmid).state, bench.box(other.vmid).state) == (S.RUNNING, S.READY)
    loop.check()
    assert bench.box(box.vmid).state is S.RUNNING


def test_ssh_into_one_that_is_held_or_off_changes_nothing(
    bench: Bench, loop: IdleStop, host: Host
) -> None:
    held, off = new(bench), new(bench)
    bench.act(STOP, off)
    host.ssh = {held.address, off.address}
    with bench.world.store.write() as tx:
        operations.create(tx, "other", "x", [f"sandbox:{held.vmid}"], {}, vmid=held.vmid)
    loop.check()
    assert (bench.box(held.vmid).state, bench.box(off.vmid).state) == (S.READY, S.STOPPED)


def test_nobody_asks_for_connections_when_no_sandbox_is_up(
    bench: Bench, loop: IdleStop, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.act(STOP, new(bench))
    bench.use(new(bench, limit=0.0))
    monkeypatch.setattr(idle, "open_ssh", lambda: pytest.fail("it was asked"))
    loop.check()


def test_one_without_a_limit_and_one_that_is_not_in_use_cost_nothing(
    bench: Bench, loop: IdleStop, host: Host
) -> None:
    new(bench, limit=0.0)
    bench.act(PAUSE, new(bench))
    bench.act(STOP, new(bench))
    bench.hypervisor.calls.clear()
    rounds(loop, host, 200)
    assert bench.hypervisor.calls == []
    assert told(bench) == []


@pytest.mark.parametrize("sign", ["cpu", "no cpu", "traffic", "no tap", "ssh", "exec", "mark"])
def test_one_that_shows_a_sign_of_life_goes_on(
    bench: Bench, loop: IdleStop, host: Host, sign: str
) -> None:
    box = new(bench)
    quiet = new(bench)
    for n in range(12):
        match sign:
            case "cpu":
                cpu(bench, box.vmid, 0.5)
            case "no cpu":
                cpu(bench, box.vmid, None)
            case "traffic":
                host.bytes[box.tap] = n * 50_000
            case "no tap":
                host.bytes[box.tap] = None
            case "ssh":
                host.ssh = {box.address}
            case "exec":
                with bench.world.store.write() as tx:
                    events.append(tx, "exec.start", "root runs ls", vmid=box.vmid)
            case _:
                machines = bench.hypervisor.machines
                machines[box.vmid] = replace(machines[box.vmid], owner="")
        loop.check()
        host.now += 20
    assert ended(bench) == ["done"]
    goes_on = S.RUNNING if sign == "ssh" else S.READY
    assert [bench.box(each.vmid).state for each in (box, quiet)] == [goes_on, S.STOPPED]


def test_a_heartbeat_s_bytes_are_no_sign_of_life(bench: Bench, loop: IdleStop, host: Host) -> None:
    box = new(bench)
    for n in range(5):
        host.bytes[box.tap] = n * 20 * 1000
        loop.check()
        host.now += 20
    assert ended(bench) == ["done"]


@pytest.mark.parametrize(("accelerator", "stopped"), [("kvm", False), ("", False), ("tcg", True)])
def test_an_emulated_guest_may_be_busier_and_still_be_idle(
    bench: Bench, loop: IdleStop, host: Host, accelerator: str, stopped: bool
) -> None:
    box = new(bench)
    cpu(bench, box.vmid, 0.12)
    bench.hypervisor.capabilities = replace(bench.hypervisor.capabilities, accelerator=accelerator)
    rounds(loop, host, LIMIT)
    assert bool(told(bench)) is stopped


def test_a_job_that_shows_nothing_is_cancelled_and_hands_back(
    bench: Bench, loop: IdleStop, host: Host
) -> None:
    job = bench.until(bench.create(), JobState.RUNNING)
    with bench.world.store.write() as tx:
        tx.execute("UPDATE sandbox SET idle_stop = ? WHERE vmid = ?", (LIMIT, job.vmid))
        # its runner has its task: one that never asked for it would not be waited for
        tokens.spend(tx, bench.world.token(job.id).fingerprint, f"session-{job.id}")
    cpu(bench, job.vmid, 0.01)
    folder = bench.world.job_dir(job.id)
    folder.mkdir(parents=True)
    for n in range(4):  # its log grows
        (folder / "agent.log").write_bytes(b"x" * n)
        rounds(loop, host, 20)
    assert told(bench) == []
    rounds(loop, host, 200)
    assert told(bench) == [f"job {job.id} is idle for 1m: cancelling it"]
    with bench.world.store.read() as tx:
        assert operations.get(tx, job.operation).cancel
        assert sandboxes.get(tx, job.vmid).state is S.RUNNING  # until it has handed back
    bench.report(job, "cancelled", "cancelled")
    assert bench.until(job, JobState.CANCELLED)
    assert bench.clean()


def test_an_inventory_that_cannot_be_read_begins_all_times_anew(
    bench: Bench, loop: IdleStop, host: Host
) -> None:
    box = new(bench)
    rounds(loop, host, 40)
    host.now += 20
    bench.hypervisor.faults["inventory"] = [Unavailable("no answer")]
    with pytest.raises(Unavailable):
        loop.check()
    rounds(loop, host, 40)
    assert told(bench) == []
    assert bench.box(box.vmid).state is S.READY
    rounds(loop, host, 40)
    assert ended(bench) == ["done"]


def test_a_restart_of_the_daemon_begins_all_times_anew(
    bench: Bench, loop: IdleStop, host: Host
) -> None:
    new(bench)
    rounds(loop, host, 40)
    rounds(IdleStop(bench.world, bench.runner, clock=lambda: host.now), host, 40)
    assert told(bench) == []


def test_one_that_something_holds_is_in_use(bench: Bench, loop: IdleStop, host: Host) -> None:
    box = new(bench)
    with bench.world.store.write() as tx:
        operations.create(tx, "other", "x", [f"sandbox:{box.vmid}"], {}, vmid=box.vmid)
    rounds(loop, host, 200)
    assert told(bench) == []


def test_one_that_moves_at_the_last_moment_is_left_alone(
    bench: Bench, loop: IdleStop, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = new(bench)
    plan = idle.plan_idle

    def then_used(*given: object) -> object:
        found = plan(*given)  # type: ignore[arg-type]
        if found[1]:
            bench.use(box)
        return found

    monkeypatch.setattr(idle, "plan_idle", then_used)
    rounds(loop, host, LIMIT)
    assert told(bench) == []
    assert bench.box(box.vmid).state is S.RUNNING


def test_one_inventory_for_all(bench: Bench, loop: IdleStop, host: Host) -> None:
    for _ in range(3):
        new(bench)
    bench.hypervisor.calls.clear()
    loop.check()
    assert bench.hypervisor.calls == ["inventory"]
    assert all(each.power is Power.RUNNING for each in bench.hypervisor.machines.values())

"""A VMID that a stranger takes between our look and our clone: another one is taken, his is let be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from agentlab.engine.runner import Runner
from agentlab.errors import Conflict, Unavailable
from agentlab.hypervisor.base import Machine, Power
from agentlab.model.job import JobState
from agentlab.model.sandbox import SandboxState
from agentlab.operations import kinds, provision
from agentlab.store import events, jobs, operations, sandboxes
from tests.unit.operations.bench import Bench, bench
from tests.waiting import PATIENCE, until

__all__ = ["bench"]  # the fixture


class Killed(BaseException):
    """As if the process were gone at this very line."""


def records(bench: Bench) -> dict[int, SandboxState]:
    with bench.world.store.read() as tx:
        return {each.vmid: each.state for each in sandboxes.newest(tx)}


def story(bench: Bench, kind: str) -> list[str]:
    with bench.world.store.read() as tx:
        return [each.text for each in events.after(tx, 0, limit=1000) if each.kind == kind]


def goes_on(bench: Bench, job_id: str, vmid: int) -> None:
    """The job runs under this VMID, everywhere, and ends with nothing left but the strangers."""
    with bench.world.store.read() as tx:
        job = jobs.get(tx, job_id)
        sandbox = sandboxes.get(tx, vmid)
        operation = operations.get(tx, job.operation)
        subjects = {row[0] for row in tx.execute("SELECT name FROM subject")}
        addresses = [row[0] for row in tx.execute("SELECT address FROM token")]
        reserved = operations.steps(tx, operation.id)["reserve"].output
    assert (job.vmid, operation.vmid, sandbox.job) == (vmid, vmid, job_id)
    assert subjects == {f"job:{job_id}", f"sandbox:{vmid}"}
    assert addresses == [str(sandbox.address)]
    assert reserved == {
        "vmid": vmid, "address": str(sandbox.address), "mac": sandbox.mac, "tap": sandbox.tap
    }  # fmt: skip
    assert [member.vmid for member in bench.fence.members] == [vmid]
    assert bench.hypervisor.specs[vmid].nic.address.ip == sandbox.address
    bench.report(job)
    bench.until(job, JobState.COMPLETED)
    with bench.world.store.read() as tx:
        assert sandboxes.live(tx) == []
        assert tx.execute("SELECT count(*) FROM subject").fetchone()[0] == 0
    assert bench.fence.members == []


def left_alone(bench: Bench, *vmids: int) -> None:
    """The only call that ever named a stranger's VMID is the clone that he was faster than."""
    for vmid in vmids:
        assert bench.hypervisor.machines[vmid] == Machine(vmid, "production", "", Power.RUNNING)
        assert [name for name, each in bench.hypervisor.touched if each == vmid] == ["clone"]


def test_the_sandbox_gets_another_vmid_and_address(bench: Bench) -> None:
    bench.hypervisor.strangers = 2
    job = bench.create()
    assert bench.until(job, JobState.RUNNING).vmid == 1002
    assert records(bench) == {
        1000: SandboxState.DESTROYED, 1001: SandboxState.DESTROYED, 1002: SandboxState.RUNNING
    }  # fmt: skip
    assert story(bench, "sandbox.vmid") == [
        "VMID 1000 is another's; it is VMID 1001 now",
        "VMID 1001 is another's; it is VMID 1002 now",
    ]
    given_up = "sandbox 1000 is DESTROYED: given up, and nothing was made: VMID 1000 is another's"
    assert given_up in story(bench, "sandbox.state")
    with bench.world.store.read() as tx:
        assert len({each.address for each in sandboxes.newest(tx)}) == 3
    goes_on(bench, job.id, 1002)
    left_alone(bench, 1000, 1001)


def test_volumes_of_a_stranger_are_as_good_as_his_machine(bench: Bench) -> None:
    bench.hypervisor.residue = {1000}
    job = bench.create()
    assert bench.until(job, JobState.RUNNING).vmid == 1001
    goes_on(bench, job.id, 1001)
    assert [name for name, each in bench.hypervisor.touched if each == 1000] == ["clone"]


def test_a_refused_vmid_is_not_taken_again_when_it_looks_free(bench: Bench) -> None:
    """All others are held by our own sandboxes; 1000 looks free and is not."""
    others = [bench.create() for _ in range(4)]
    assert {bench.until(each, JobState.RUNNING).vmid for each in others} == {1000, 1001, 1002, 1003}
    bench.hypervisor.residue = {1004}
    job = bench.create()
    bench.waits(job, "all of 1000 to 1004 are taken")
    assert [name for name, each in bench.hypervisor.touched if each == 1004] == ["clone"]
    bench.report(others[0])
    freed = bench.until(others[0], JobState.COMPLETED).vmid
    assert bench.until(job, JobState.RUNNING).vmid == freed


def test_bad_luck_without_end_is_told_and_nothing_is_undone_to_strangers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "_VMIDS_TRIED", 3)
    bench.hypervisor.strangers = 99
    failed = bench.until(bench.create(), JobState.FAILED)
    assert failed.reason.startswith("cannot get a VMID: 3 in turn, 1000 to 1002, turned out to be")
    assert "vmid_range" in failed.reason
    left_alone(bench, 1000, 1001, 1002)
    assert set(records(bench).values()) == {SandboxState.DESTROYED}


def test_a_failure_after_the_change_undoes_the_new_one_only(bench: Bench) -> None:
    bench.hypervisor.strangers = 1
    bench.hypervisor.faults["start"] = [Conflict("cannot start")]
    bench.until(bench.create(), JobState.FAILED)
    left_alone(bench, 1000)
    assert set(bench.hypervisor.machines) == {1000}
    assert set(records(bench).values()) == {SandboxState.DESTROYED}


def test_an_inventory_that_cannot_be_read_then_is_waited_for(bench: Bench) -> None:
    bench.hypervisor.strangers = 1
    _on_call(bench, "inventory", 2, lambda: _raise(Unavailable("busy")))
    job = bench.create()
    assert bench.until(job, JobState.RUNNING).vmid == 1001
    goes_on(bench, job.id, 1001)
    left_alone(bench, 1000)


def _raise(error: BaseException) -> None:
    raise error


def _on_call(bench: Bench, method: str, number: int, act: Callable[[], None]) -> None:
    """Calls `act` before the nth call of a hypervisor's method."""
    real, count = getattr(bench.hypervisor, method), [0]

    def call(*args: Any, **more: Any) -> Any:
        count[0] += 1
        if count[0] == number:
            act()
        return real(*args, **more)

    setattr(bench.hypervisor, method, call)


@dataclass
class Killer:
    """Kills once, at a place in `Provision.clone`."""

    bench: Bench
    monkeypatch: pytest.MonkeyPatch
    done: bool = False

    def strike(self) -> None:
        if not self.done:
            self.done = True
            raise Killed

    def before(self, module: object, name: str, word: str = "") -> None:
        """Before the first call of this function, or the first with `word` in its arguments."""
        real = getattr(module, name)

        def call(*args: Any, **more: Any) -> Any:
            if not word or word in args:
                self.strike()
            return real(*args, **more)

        self.monkeypatch.setattr(module, name, call)


def before_the_clone(killer: Killer) -> None:
    _on_call(killer.bench, "clone", 1, killer.strike)


def before_another_is_reserved(killer: Killer) -> None:
    _on_call(killer.bench, "inventory", 2, killer.strike)


def in_the_transaction(killer: Killer) -> None:
    killer.before(provision.operations, "save_output")


def at_the_end_of_the_transaction(killer: Killer) -> None:
    killer.before(provision.events, "append", "sandbox.vmid")


def after_the_transaction(killer: Killer) -> None:
    class Once(provision.Later):
        def __init__(self, *args: Any) -> None:
            killer.strike()
            super().__init__(*args)

    killer.monkeypatch.setattr(provision, "Later", Once)


def before_the_second_clone(killer: Killer) -> None:
    _on_call(killer.bench, "clone", 2, killer.strike)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "place",
    [
        before_the_clone,
        before_another_is_reserved,
        in_the_transaction,
        at_the_end_of_the_transaction,
        after_the_transaction,
        before_the_second_clone,
    ],
)
def test_a_kill_at_any_boundary_goes_on_with_one_sandbox(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, place: Callable[[Killer], None]
) -> None:
    bench.hypervisor.strangers = 1
    killer = Killer(bench, monkeypatch)
    place(killer)
    job = bench.create()
    until(lambda: killer.done)
    bench.runner.stop(PATIENCE)
    bench.runner = Runner(bench.world.store, kinds(replace(bench.world)), workers=4)
    bench.runner.start()
    assert bench.until(job, JobState.RUNNING).vmid == 1001
    goes_on(bench, job.id, 1001)
    left_alone(bench, 1000)
    assert len(story(bench, "sandbox.vmid")) == 1
    bench.runner.stop(PATIENCE)

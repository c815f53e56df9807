"""What every hypervisor driver promises, tried on each of them; the promises are in base.py."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import pytest

from agentlab.errors import Conflict, DeadlineExceeded, Invalid, NotFound, NotOurs, Unavailable
from agentlab.hypervisor.base import ExecResult, Machine, Power
from tests.contract.bench import OWNER, STRANGER, Bench, LocalBench, ProxmoxBench
from tests.waiting import until


def of_ours(bench: Bench) -> list[Machine]:
    """The inventory without what stood there before: templates, and strangers that were given."""
    found = bench.hypervisor.inventory()
    return [replace(each, node="") for each in found if 1000 <= each.vmid < 2000]


# Without power


def test_clone_carries_its_owner_at_once(bench: Bench) -> None:
    bench.clone(1012)
    found = Machine(1012, "box1012", OWNER, Power.STOPPED)
    assert of_ours(bench) == [found]
    seen = bench.hypervisor.status(1012)
    assert seen is not None
    assert replace(seen, node="") == found


def test_clone_twice_leaves_one_machine(bench: Bench) -> None:
    bench.clone(1012)
    bench.clone(1012)
    assert len(of_ours(bench)) == 1


def test_many_clones_of_one_vmid_at_once_leave_one_machine(bench: Bench) -> None:
    if isinstance(bench, ProxmoxBench):
        bench.hypervisor = bench.again(patience=60.0)  # one turn after the other
    threads = [threading.Thread(target=bench.clone, args=(1012,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [machine.vmid for machine in of_ours(bench)] == [1012]
    assert not bench.leftovers()


def test_clone_does_not_take_a_strangers_vmid(bench: Bench) -> None:
    bench.clone(1012, owner=STRANGER)
    with pytest.raises(NotOurs):
        bench.clone(1012)
    assert of_ours(bench)[0].owner == STRANGER


def test_clone_of_an_unknown_template(bench: Bench) -> None:
    with pytest.raises(NotFound):
        bench.hypervisor.clone("windows-3", 1012, name="x", owner=OWNER)
    assert not of_ours(bench)


def test_a_full_clone_stands_alone(bench: Bench) -> None:
    bench.clone(1012, full=True)
    assert of_ours(bench)[0].power is Power.STOPPED


def test_destroy_of_what_is_not_ours_is_refused(bench: Bench) -> None:
    bench.clone(1012, owner=STRANGER)
    with pytest.raises(NotOurs):
        bench.hypervisor.destroy(1012, owner=OWNER)
    assert len(of_ours(bench)) == 1


def test_destroy_twice(bench: Bench) -> None:
    bench.clone(1012)
    bench.hypervisor.destroy(1012, owner=OWNER)
    bench.hypervisor.destroy(1012, owner=OWNER)
    assert not of_ours(bench)
    assert bench.hypervisor.status(1012) is None


def test_everything_else_refuses_what_is_not_ours(bench: Bench) -> None:
    bench.clone(1012, owner=STRANGER)
    driver, spec = bench.hypervisor, bench.spec(1012, tap=False)
    for attempt in (
        lambda: driver.configure(1012, spec, owner=OWNER),
        lambda: driver.start(1012, owner=OWNER),
        lambda: driver.stop(1012, owner=OWNER),
        lambda: driver.shutdown(1012, owner=OWNER, timeout=1),
        lambda: driver.pause(1012, owner=OWNER),
        lambda: driver.resume(1012, owner=OWNER),
        lambda: driver.snapshot(1012, "clean", owner=OWNER),
        lambda: driver.rollback(1012, "clean", owner=OWNER),
        lambda: driver.delete_snapshot(1012, "clean", owner=OWNER),
    ):
        with pytest.raises(NotOurs):
            attempt()


def test_what_is_not_there_is_not_found(bench: Bench) -> None:
    driver, spec = bench.hypervisor, bench.spec(1012, tap=False)
    driver.stop(1012, owner=OWNER)
    for attempt in (
        lambda: driver.configure(1012, spec, owner=OWNER),
        lambda: driver.start(1012, owner=OWNER),
        lambda: driver.pause(1012, owner=OWNER),
        lambda: driver.snapshot(1012, "clean", owner=OWNER),
        lambda: driver.snapshots(1012),
        lambda: driver.blockers(1012, "clean"),
        lambda: driver.ready(1012, spec),
        lambda: driver.ping(1012),
    ):
        with pytest.raises(NotFound):
            attempt()


def test_configure_twice(bench: Bench) -> None:
    bench.clone(1012)
    spec = bench.spec(1012, tap=False)
    bench.hypervisor.configure(1012, spec, owner=OWNER)
    bench.hypervisor.configure(1012, spec, owner=OWNER)


def test_configure_refuses_what_could_be_an_option(bench: Bench) -> None:
    bench.clone(1012)
    spec = bench.spec(1012, tap=False)
    for nic in (replace(spec.nic, tap="t,script=/x"), replace(spec.nic, mac="52:54:00:00:00")):
        with pytest.raises(Invalid):
            bench.hypervisor.configure(1012, replace(spec, nic=nic), owner=OWNER)
    with pytest.raises(Invalid):
        bench.hypervisor.configure(1012, replace(spec, hostname="a\nb"), owner=OWNER)


def test_start_of_a_machine_that_was_never_configured(bench: Bench) -> None:
    bench.clone(1012)
    with pytest.raises(Conflict):
        bench.hypervisor.start(1012, owner=OWNER)


def test_power_verbs_on_a_stopped_machine(bench: Bench) -> None:
    bench.clone(1012)
    bench.hypervisor.stop(1012, owner=OWNER)
    assert bench.hypervisor.shutdown(1012, owner=OWNER, timeout=1)
    with pytest.raises(Conflict):
        bench.hypervisor.pause(1012, owner=OWNER)
    with pytest.raises(Conflict):
        bench.hypervisor.resume(1012, owner=OWNER)
    assert bench.hypervisor.ping(1012) is False
    assert bench.hypervisor.ready(1012, bench.spec(1012, tap=False)) is False


def test_snapshots_are_listed_oldest_first_and_go(bench: Bench) -> None:
    bench.clone(1012)
    driver = bench.hypervisor
    for name in ("clean", "later"):
        driver.snapshot(1012, name, owner=OWNER)
    driver.snapshot(1012, "clean", owner=OWNER)  # the same disk: nothing to do
    assert list(driver.snapshots(1012)) == ["clean", "later"]
    driver.rollback(1012, "clean", owner=OWNER)
    driver.delete_snapshot(1012, "clean", owner=OWNER)
    driver.delete_snapshot(1012, "clean", owner=OWNER)
    assert list(driver.snapshots(1012)) == ["later"]


def test_rollback_to_a_name_that_is_not_there(bench: Bench) -> None:
    bench.clone(1012)
    with pytest.raises(NotFound):
        bench.hypervisor.rollback(1012, "clean", owner=OWNER)
    with pytest.raises(NotFound):
        bench.hypervisor.blockers(1012, "clean")
    with pytest.raises(NotFound):
        bench.hypervisor.blockers(1013, "clean")


def test_later_snapshots_stay_when_an_older_one_is_put_back(bench: Bench) -> None:
    bench.clone(1012)
    bench.hypervisor.configure(1012, bench.spec(1012, tap=False), owner=OWNER)
    for name in ("clean", "second", "third"):
        bench.hypervisor.snapshot(1012, name, owner=OWNER)
    assert not bench.hypervisor.blockers(1012, "clean")
    bench.hypervisor.rollback(1012, "clean", owner=OWNER)
    bench.hypervisor.rollback(1012, "clean", owner=OWNER)
    assert list(bench.hypervisor.snapshots(1012)) == ["clean", "second", "third"]
    bench.hypervisor.rollback(1012, "third", owner=OWNER)


def test_a_disk_grows_after_its_snapshot_and_is_put_back(bench: Bench) -> None:
    bench.clone(1012)
    bench.hypervisor.configure(1012, bench.spec(1012, tap=False), owner=OWNER)
    bench.hypervisor.snapshot(1012, "clean", owner=OWNER)
    larger = replace(bench.spec(1012, tap=False), disk=3072)
    bench.hypervisor.configure(1012, larger, owner=OWNER)
    bench.hypervisor.rollback(1012, "clean", owner=OWNER)
    bench.hypervisor.configure(1012, larger, owner=OWNER)
    assert list(bench.hypervisor.snapshots(1012)) == ["clean"]


def test_destroy_takes_the_snapshots_along(bench: Bench) -> None:
    bench.clone(1012)
    for name in ("clean", "second"):
        bench.hypervisor.snapshot(1012, name, owner=OWNER)
    bench.hypervisor.rollback(1012, "clean", owner=OWNER)
    bench.hypervisor.destroy(1012, owner=OWNER)
    assert not of_ours(bench)
    assert not bench.leftovers()


def test_a_snapshot_needs_a_plain_name(bench: Bench) -> None:
    bench.clone(1012)
    for name in ("", "x", "-c", "a/b", "a b", "ä", "x" * 41, "current", "Pending"):
        with pytest.raises(Invalid):
            bench.hypervisor.snapshot(1012, name, owner=OWNER)


def test_an_inventory_that_cannot_be_read_is_not_an_empty_one(bench: Bench) -> None:
    bench.clone(1012)
    with bench.unreadable():
        with pytest.raises(Unavailable):
            bench.hypervisor.inventory()
        for attempt in (
            lambda: bench.hypervisor.status(1012),
            lambda: bench.hypervisor.destroy(1012, owner=OWNER),
        ):
            with pytest.raises(Unavailable):
                attempt()
    assert len(of_ours(bench)) == 1


# With power


@pytest.mark.vm
@pytest.mark.parametrize(
    "powered", ["local", "api"], indirect=True
)  # a boot takes most of a minute
def test_power_is_taken_up_by_another_daemon(powered: Bench) -> None:
    spec = powered.start(1012)
    second = powered.again()
    second.start(1012, owner=OWNER)
    second.pause(1012, owner=OWNER)
    second.pause(1012, owner=OWNER)
    found = second.status(1012)
    assert found is not None
    assert found.power is Power.PAUSED
    second.resume(1012, owner=OWNER)
    powered.wait(1012, spec)
    with pytest.raises(Conflict):
        second.snapshot(1012, "clean", owner=OWNER)
    with pytest.raises(Conflict):
        second.configure(1012, replace(spec, hostname="other"), owner=OWNER)
    powered.kill(1012)
    until(lambda: (found := second.status(1012)) is None or found.power is Power.STOPPED)
    second.destroy(1012, owner=OWNER)


@pytest.mark.vm
def test_files_and_programs_in_the_guest(powered: Bench) -> None:
    powered.wait(1012, powered.start(1012, disk=12 << 10))
    driver = powered.hypervisor
    assert int(powered.say(1012, "df -m --output=size / | tail -1")) > 11 << 10  # it fills its disk
    content = os.urandom(60_000)
    driver.file_write(1012, "/run/agentlab/x", content, owner=OWNER)
    assert powered.say(1012, "stat -c '%a %s' /run/agentlab/x") == "600 60000"
    result = driver.exec(1012, ["/bin/cat", "/run/agentlab/x"], owner=OWNER, timeout=60)
    assert result == ExecResult(0, content, b"")
    assert powered.say(1012, "ls /run/agentlab/ | grep -c new || true") == "0"
    echo = ["/bin/sh", "-c", "cat; echo no >&2; exit 3"]
    assert driver.exec(1012, echo, stdin=b"a\0b", owner=OWNER, timeout=60) == ExecResult(
        3, b"a\0b", b"no\n"
    )
    assert driver.exec(1012, ["/bin/sh", "-c", "kill -9 $$"], owner=OWNER, timeout=60).status == -9
    with pytest.raises(DeadlineExceeded):
        driver.exec(1012, ["/bin/sleep", "300"], owner=OWNER, timeout=10)
    with pytest.raises(Unavailable):
        driver.exec(1012, ["/no/such/program"], owner=OWNER, timeout=20)
    with pytest.raises(Unavailable):
        driver.file_write(1012, "/no/such/directory/x", b"", owner=OWNER)
    with pytest.raises(Invalid):
        driver.exec(1012, ["/bin/echo", "ä"], owner=OWNER, timeout=20)
    until(lambda: driver.ping(1012))
    assert driver.shutdown(1012, owner=OWNER, timeout=180)


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.parametrize("powered", ["local"], indirect=True)  # two boots; see test_boot_disk.py
def test_a_changed_disk_boots_with_what_was_written(powered: Bench) -> None:
    driver, spec = powered.hypervisor, powered.start(1012)
    powered.wait(1012, spec)
    before = powered.say(1012, "cat /etc/machine-id; echo kept >/root/mark; sync")
    assert driver.shutdown(1012, owner=OWNER, timeout=120)
    driver.start(1012, owner=OWNER)
    print("cold boot", powered.wait(1012, spec))
    assert powered.say(1012, "cat /etc/machine-id") == before
    assert powered.say(1012, "cat /root/mark") == "kept"
    assert powered.say(1012, "systemctl --failed --plain --no-legend") == ""


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.parametrize(  # two cold boots each
    "powered", ["local", pytest.param("api", marks=pytest.mark.soak)], indirect=True
)
def test_clean_is_put_back_under_a_disk_that_grew(powered: Bench) -> None:
    if isinstance(powered, LocalBench):
        powered.hypervisor = powered.again(start_mode="cold")
    driver, spec = powered.hypervisor, powered.spec(1012, disk=12 << 10)
    powered.clone(1012)
    driver.configure(1012, replace(spec, disk=4 << 10), owner=OWNER)
    begun = time.monotonic()
    driver.snapshot(1012, "clean", owner=OWNER)
    print(f"the clean snapshot took {(time.monotonic() - begun) * 1000:.0f} ms")
    for _ in range(2):
        driver.configure(1012, spec, owner=OWNER)
        driver.start(1012, owner=OWNER)
        powered.wait(1012, spec)
        assert int(powered.say(1012, "df -m --output=size / | tail -1")) > 11 << 10
        assert powered.say(1012, "cat /root/mark 2>/dev/null || echo gone") == "gone"
        powered.say(1012, "echo kept >/root/mark; sync")
        driver.stop(1012, owner=OWNER)
        begun = time.monotonic()
        driver.rollback(1012, "clean", owner=OWNER)
        print(f"the rollback took {(time.monotonic() - begun) * 1000:.0f} ms")
    driver.destroy(1012, owner=OWNER)
    assert not powered.leftovers()

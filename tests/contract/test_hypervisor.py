"""What every hypervisor driver promises, tried on each of them; the promises are in base.py."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.errors import Conflict, DeadlineExceeded, Invalid, NotFound, NotOurs, Unavailable
from agentlab.hypervisor.base import ExecResult, Machine, Power
from tests.contract.bench import OWNER, STRANGER, Bench

# Without power


def test_clone_carries_its_owner_at_once(bench: Bench) -> None:
    bench.clone(1012)
    found = Machine(1012, "box1012", OWNER, Power.STOPPED)
    assert list(bench.hypervisor.inventory()) == [found]
    assert bench.hypervisor.status(1012) == found


def test_clone_twice_leaves_one_machine(bench: Bench) -> None:
    bench.clone(1012)
    bench.clone(1012)
    assert len(bench.hypervisor.inventory()) == 1


def test_many_clones_of_one_vmid_at_once_leave_one_machine(bench: Bench) -> None:
    threads = [threading.Thread(target=bench.clone, args=(1012,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [machine.vmid for machine in bench.hypervisor.inventory()] == [1012]
    assert os.listdir(bench.root) == ["1012"]


def test_clone_does_not_take_a_strangers_vmid(bench: Bench) -> None:
    bench.clone(1012, owner=STRANGER)
    with pytest.raises(NotOurs):
        bench.clone(1012)
    assert bench.hypervisor.inventory()[0].owner == STRANGER


def test_clone_of_an_unknown_template(bench: Bench) -> None:
    with pytest.raises(NotFound):
        bench.hypervisor.clone("windows-3", 1012, name="x", owner=OWNER)
    assert not bench.hypervisor.inventory()


def test_a_full_clone_stands_alone(bench: Bench) -> None:
    bench.clone(1012, full=True)
    assert bench.hypervisor.inventory()[0].power is Power.STOPPED


def test_destroy_of_what_is_not_ours_is_refused(bench: Bench) -> None:
    bench.clone(1012, owner=STRANGER)
    with pytest.raises(NotOurs):
        bench.hypervisor.destroy(1012, owner=OWNER)
    assert len(bench.hypervisor.inventory()) == 1


def test_destroy_twice(bench: Bench) -> None:
    bench.clone(1012)
    bench.hypervisor.destroy(1012, owner=OWNER)
    bench.hypervisor.destroy(1012, owner=OWNER)
    assert not bench.hypervisor.inventory()
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


def test_a_snapshot_needs_a_plain_name(bench: Bench) -> None:
    bench.clone(1012)
    for name in ("", "-c", "a/b", "a b", "ä", "x" * 41):
        with pytest.raises(Invalid):
            bench.hypervisor.snapshot(1012, name, owner=OWNER)


def test_an_inventory_that_cannot_be_read_is_not_an_empty_one(bench: Bench) -> None:
    bench.clone(1012)
    away = bench.root.rename(bench.root.with_name("away"))
    with pytest.raises(Unavailable):
        bench.hypervisor.inventory()
    for attempt in (
        lambda: bench.hypervisor.status(1012),
        lambda: bench.hypervisor.destroy(1012, owner=OWNER),
    ):
        with pytest.raises(Unavailable):
            attempt()
    away.rename(bench.root)


# The local driver's own files


def test_a_directory_without_a_record_is_a_strangers(bench: Bench) -> None:
    for vmid, record in ((1012, None), (1013, b"not JSON"), (1014, b'{"owner": "agentlab-test"}')):
        (bench.root / str(vmid)).mkdir()
        if record:
            (bench.root / str(vmid) / "machine.json").write_bytes(record)
    (bench.root / "notes").mkdir()
    assert [machine.owner for machine in bench.hypervisor.inventory()] == ["", "", ""]
    for vmid in (1012, 1013, 1014):
        with pytest.raises(NotOurs):
            bench.hypervisor.destroy(vmid, owner=OWNER)
        with pytest.raises(NotOurs):
            bench.clone(vmid)
        assert (bench.root / str(vmid)).is_dir()


def test_a_clone_that_was_cut_off_is_no_machine_and_is_swept(bench: Bench) -> None:
    left = bench.root / ".1012.0a0b0c0d.new"
    left.mkdir()
    (left / "disk.qcow2").touch()
    os.utime(left, (1, 1))
    assert not bench.hypervisor.inventory()
    assert not left.exists()
    bench.clone(1012)
    assert os.listdir(bench.root) == ["1012"]


# With power


@pytest.mark.vm
def test_two_clones_of_one_memory_snapshot_are_two_machines(powered: Bench) -> None:
    vmids = (1012, 1013)
    specs = {vmid: powered.start(vmid) for vmid in vmids}
    for vmid, spec in specs.items():
        print("ready after", powered.wait(vmid, spec))
    asked = {
        "machine-id": "cat /etc/machine-id",
        "ssh host keys": "cat /etc/ssh/ssh_host_*_key.pub | cut -d' ' -f2",
        "random bytes": "head -c 32 /dev/urandom | base64",
        "uuid": "cat /proc/sys/kernel/random/uuid",
        "MAC": "cat /sys/class/net/eth0/address",
        "address": "ip -br -4 address show eth0",
        "hostname": "hostname",
    }
    for what, script in asked.items():
        one, other = (powered.say(vmid, script) for vmid in vmids)
        assert one, what
        assert one != other, what
    for vmid, spec in specs.items():
        assert abs(float(powered.say(vmid, "date +%s.%N")) - time.time()) < 3
        seen = {interface.mac: interface for interface in powered.hypervisor.interfaces(vmid)}
        assert spec.nic.address.ip in seen[spec.nic.mac].addresses
        assert powered.say(vmid, "hostname") == spec.hostname
        assert powered.say(vmid, "systemctl --failed --plain --no-legend") == ""
    machines = powered.hypervisor.inventory()
    assert [machine.power for machine in machines] == [Power.RUNNING] * 2


@pytest.mark.vm
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
    os.kill(int((powered.root / "1012/pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 5
    while (found := second.status(1012)) and found.power is not Power.STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second.destroy(1012, owner=OWNER)


@pytest.mark.vm
def test_files_and_programs_in_the_guest(powered: Bench) -> None:
    powered.wait(1012, powered.start(1012))
    driver = powered.hypervisor
    content = os.urandom(60_000)
    driver.file_write(1012, "/run/agentlab/x", content)
    assert powered.say(1012, "stat -c '%a %s' /run/agentlab/x") == "600 60000"
    result = driver.exec(1012, ["/bin/cat", "/run/agentlab/x"], timeout=60)
    assert result == ExecResult(0, content, b"")
    assert powered.say(1012, "ls /run/agentlab/ | grep -c new || true") == "0"
    echo = ["/bin/sh", "-c", "cat; echo no >&2; exit 3"]
    assert driver.exec(1012, echo, stdin=b"a\0b", timeout=60) == ExecResult(3, b"a\0b", b"no\n")
    assert driver.exec(1012, ["/bin/sh", "-c", "kill -9 $$"], timeout=60).status == -9
    with pytest.raises(DeadlineExceeded):
        driver.exec(1012, ["/bin/sleep", "30"], timeout=1)
    with pytest.raises(Unavailable):
        driver.exec(1012, ["/no/such/program"], timeout=20)
    with pytest.raises(Unavailable):
        driver.file_write(1012, "/no/such/directory/x", b"")
    with pytest.raises(Invalid):
        driver.exec(1012, ["/bin/echo", "ä"], timeout=20)
    assert driver.ping(1012)


@pytest.mark.vm
def test_a_missing_tap_is_not_made_without_rules(powered: Bench) -> None:
    powered.clone(1012)
    powered.hypervisor.configure(1012, powered.spec(1012, tap=False), owner=OWNER)
    with pytest.raises(Conflict, match="tc1012"):
        powered.hypervisor.start(1012, owner=OWNER)
    assert powered.hypervisor.inventory()[0].power is Power.STOPPED


@pytest.mark.vm
def test_rollback_to_clean_starts_from_memory_again(powered: Bench) -> None:
    driver, spec = powered.hypervisor, powered.spec(1012)
    powered.clone(1012)
    driver.configure(1012, spec, owner=OWNER)
    driver.snapshot(1012, "clean", owner=OWNER)
    driver.start(1012, owner=OWNER)
    powered.wait(1012, spec)
    powered.say(1012, "echo changed >/root/mark; sync")
    driver.stop(1012, owner=OWNER)
    driver.snapshot(1012, "changed", owner=OWNER)
    with pytest.raises(Conflict):
        driver.snapshot(1012, "clean", owner=OWNER)
    driver.rollback(1012, "clean", owner=OWNER)
    driver.start(1012, owner=OWNER)
    assert powered.wait(1012, spec) < 15
    assert powered.say(1012, "ls /root/mark 2>/dev/null || echo gone") == "gone"
    driver.stop(1012, owner=OWNER)
    assert list(driver.snapshots(1012)) == ["clean", "changed"]


@pytest.mark.vm
def test_a_larger_disk_is_there_for_the_guest(powered: Bench) -> None:
    powered.wait(1012, powered.start(1012, disk=12 << 10))
    assert int(powered.say(1012, "df -m --output=size / | tail -1")) > 11 << 10


@pytest.mark.vm
@pytest.mark.slow
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
def test_a_cold_boot_has_an_identity_of_its_own(powered: Bench, tmp_path: Path) -> None:
    powered.hypervisor = powered.again(start_mode="cold")
    spec = powered.start(1012)
    print("cold boot", powered.wait(1012, spec))
    assert powered.say(1012, "hostname") == spec.hostname
    assert len(powered.say(1012, "cat /etc/machine-id")) == 32
    assert powered.say(1012, "ls /etc/ssh/ssh_host_*_key") == "/etc/ssh/ssh_host_ed25519_key"
    assert powered.say(1012, "systemctl --failed --plain --no-legend") == ""
    assert powered.say(1012, "cat /etc/resolv.conf") == "nameserver 10.77.0.1"

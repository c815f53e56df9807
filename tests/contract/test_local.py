"""What is the local driver's own: its files, and starts from memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agentlab.errors import Conflict, NotOurs
from agentlab.hypervisor.base import Power
from agentlab.hypervisor.local.driver import LocalHypervisor
from agentlab.hypervisor.local.memory import NO_CLOUD_INIT
from tests.contract.bench import OWNER, LocalBench
from tests.fakes.late_guest import late_guest


def test_a_directory_without_a_record_is_a_strangers(local_bench: LocalBench) -> None:
    for vmid, record in ((1012, None), (1013, b"not JSON"), (1014, b'{"owner": "agentlab-test"}')):
        (local_bench.root / str(vmid)).mkdir()
        if record:
            (local_bench.root / str(vmid) / "machine.json").write_bytes(record)
    (local_bench.root / "notes").mkdir()
    assert [machine.owner for machine in local_bench.hypervisor.inventory()] == ["", "", ""]
    for vmid in (1012, 1013, 1014):
        with pytest.raises(NotOurs):
            local_bench.hypervisor.destroy(vmid, owner=OWNER)
        with pytest.raises(NotOurs):
            local_bench.clone(vmid)
        assert (local_bench.root / str(vmid)).is_dir()


def test_a_clone_that_was_cut_off_is_no_machine_and_is_swept(local_bench: LocalBench) -> None:
    left = local_bench.root / ".1012.0a0b0c0d.new"
    left.mkdir()
    (left / "disk.qcow2").touch()
    os.utime(left, (1, 1))
    assert not list(local_bench.hypervisor.inventory())
    assert not left.exists()
    local_bench.clone(1012)
    assert os.listdir(local_bench.root) == ["1012"]


@pytest.mark.parametrize(("late", "timeout"), [(1, 60.0), (1000, 0.5)])
def test_an_agent_that_is_late_is_asked_again_to_power_off(
    local_bench: LocalBench, monkeypatch: pytest.MonkeyPatch, late: int, timeout: float
) -> None:
    """The power button alone is not enough: the recipe's guest has nothing that hears it."""
    local_bench.clone(1012)
    driver = local_bench.hypervisor
    assert isinstance(driver, LocalHypervisor)
    machine = driver.machine(1012)
    record = machine.owned(OWNER, "start").powered("cold").going()
    machine.write(record)
    monkeypatch.chdir(machine.path)  # a socket's name is short
    with late_guest(Path(), record.uuid, late) as guest:
        assert driver.shutdown(1012, owner=OWNER, timeout=timeout) is (late == 1)
        assert ("/bin/systemctl poweroff --no-block" in guest.told) is (late == 1)
        assert "system_powerdown" in guest.told
        guest.process.kill()


@pytest.mark.vm
def test_two_clones_of_one_memory_snapshot_are_two_machines(local_powered: LocalBench) -> None:
    vmids = (1012, 1013)
    specs = {vmid: local_powered.start(vmid) for vmid in vmids}
    for vmid, spec in specs.items():
        print("ready after", local_powered.wait(vmid, spec))
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
        one, other = (local_powered.say(vmid, script) for vmid in vmids)
        assert one, what
        assert one != other, what
    for vmid, spec in specs.items():
        begun = time.time()
        assert begun - 3 < float(local_powered.say(vmid, "date +%s.%N")) < time.time() + 3
        seen = {interface.mac: interface for interface in local_powered.hypervisor.interfaces(vmid)}
        assert spec.nic.address.ip in seen[spec.nic.mac].addresses
        assert local_powered.say(vmid, "hostname") == spec.hostname
        assert local_powered.say(vmid, "systemctl --failed --plain --no-legend") == ""
    machines = local_powered.hypervisor.inventory()
    assert [machine.power for machine in machines] == [Power.RUNNING] * 2


@pytest.mark.vm
def test_a_guest_that_computes_is_seen_to_be_busy(local_powered: LocalBench) -> None:
    driver = local_powered.hypervisor
    local_powered.wait(1012, local_powered.start(1012))
    assert local_powered.again().inventory()[0].cpu is None  # it has not looked before

    def lately() -> float:
        driver.inventory()
        time.sleep(2.5)
        (seen,) = driver.inventory()
        assert seen.cpu is not None
        return seen.cpu

    def until_seen(busy: bool) -> None:
        """Other work has the host's processors too, so more than one look may be needed."""
        until = time.monotonic() + 120
        while ((share := lately()) > 0.3) is not busy:
            assert time.monotonic() < until, share

    local_powered.say(
        1012, "(exec sh -c 'while :; do :; done' >/dev/null 2>&1 & echo $! >/run/loop)"
    )
    until_seen(busy=True)
    local_powered.say(1012, "kill $(cat /run/loop)")
    until_seen(busy=False)
    driver.stop(1012, owner=OWNER)
    assert driver.inventory()[0].cpu is None


@pytest.mark.vm
def test_a_missing_tap_is_not_made_without_rules(local_powered: LocalBench) -> None:
    local_powered.clone(1012)
    local_powered.hypervisor.configure(1012, local_powered.spec(1012, tap=False), owner=OWNER)
    with pytest.raises(Conflict, match="tc1012"):
        local_powered.hypervisor.start(1012, owner=OWNER)
    assert local_powered.hypervisor.inventory()[0].power is Power.STOPPED


@pytest.mark.vm
def test_rollback_to_clean_starts_from_memory_again(local_powered: LocalBench) -> None:
    driver, spec = local_powered.hypervisor, local_powered.spec(1012, disk=12 << 10)
    local_powered.clone(1012)
    driver.configure(1012, spec, owner=OWNER)
    begun = time.monotonic()
    driver.snapshot(1012, "clean", owner=OWNER)
    print(f"the clean snapshot took {(time.monotonic() - begun) * 1000:.0f} ms")
    driver.start(1012, owner=OWNER)
    local_powered.wait(1012, spec)
    # a snapshot does not keep it from that
    assert NO_CLOUD_INIT in local_powered.say(1012, "cat /proc/cmdline")
    assert int(local_powered.say(1012, "df -m --output=size / | tail -1")) > 11 << 10
    local_powered.say(1012, "echo changed >/root/mark; sync")
    driver.stop(1012, owner=OWNER)
    driver.snapshot(1012, "changed", owner=OWNER)
    with pytest.raises(Conflict):
        driver.snapshot(1012, "clean", owner=OWNER)
    begun = time.monotonic()
    driver.rollback(1012, "clean", owner=OWNER)
    print(f"the rollback took {(time.monotonic() - begun) * 1000:.0f} ms")
    driver.start(1012, owner=OWNER)
    local_powered.wait(1012, spec)
    assert NO_CLOUD_INIT in local_powered.say(1012, "cat /proc/cmdline")
    assert local_powered.say(1012, "ls /root/mark 2>/dev/null || echo gone") == "gone"
    assert int(local_powered.say(1012, "df -m --output=size / | tail -1")) > 11 << 10
    driver.stop(1012, owner=OWNER)
    assert list(driver.snapshots(1012)) == ["clean", "changed"]
    driver.destroy(1012, owner=OWNER)
    assert not local_powered.leftovers()


@pytest.mark.vm
@pytest.mark.slow
def test_a_cold_boot_has_an_identity_of_its_own(local_powered: LocalBench, tmp_path: Path) -> None:
    local_powered.hypervisor = local_powered.again(start_mode="cold")
    spec = local_powered.start(1012)
    print("cold boot", local_powered.wait(1012, spec))
    assert NO_CLOUD_INIT not in local_powered.say(1012, "cat /proc/cmdline")
    assert local_powered.say(1012, "hostname") == spec.hostname
    assert len(local_powered.say(1012, "cat /etc/machine-id")) == 32
    assert local_powered.say(1012, "ls /etc/ssh/ssh_host_*_key") == "/etc/ssh/ssh_host_ed25519_key"
    assert local_powered.say(1012, "systemctl --failed --plain --no-legend") == ""
    assert local_powered.say(1012, "cat /etc/resolv.conf") == "nameserver 10.77.0.1"

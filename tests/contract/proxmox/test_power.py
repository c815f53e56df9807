"""Power, tasks and the guest agent of Proxmox's machines, by both transports, without a QEMU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agentlab.errors import AgentLabError
from agentlab.hypervisor.base import MachineSpec, Power
from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
from tests.contract.bench import OWNER, ProxmoxBench
from tests.fakes.pve.node import ProxmoxNode, TaskError

BROKEN = "the disk is on fire"
# Proxmox's type of each task, what makes it, and the verbs that come before that.
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "qmclone": ("clone", ()),
    "qmsnapshot": ("snapshot", ("clone",)),
    "qmrollback": ("rollback", ("clone", "snapshot")),
    "qmdelsnapshot": ("delete_snapshot", ("clone", "snapshot")),
    "qmstart": ("start", ("clone", "configure")),
    "qmpause": ("pause", ("clone", "configure", "start")),
    "qmresume": ("resume", ("clone", "configure", "start", "pause")),
    "qmshutdown": ("shutdown", ("clone", "configure", "start")),
    "qmstop": ("stop", ("clone", "configure", "start")),
    "qmdestroy": ("destroy", ("clone",)),
}


def verbs(bench: ProxmoxBench) -> dict[str, Callable[[], Any]]:
    driver, spec = bench.hypervisor, bench.spec(1012)
    return {
        "clone": lambda: bench.clone(1012),
        "configure": lambda: driver.configure(1012, spec, owner=OWNER),
        "snapshot": lambda: driver.snapshot(1012, "clean", owner=OWNER),
        "rollback": lambda: driver.rollback(1012, "clean", owner=OWNER),
        "delete_snapshot": lambda: driver.delete_snapshot(1012, "clean", owner=OWNER),
        "start": lambda: driver.start(1012, owner=OWNER),
        "pause": lambda: driver.pause(1012, owner=OWNER),
        "resume": lambda: driver.resume(1012, owner=OWNER),
        "shutdown": lambda: driver.shutdown(1012, owner=OWNER, timeout=5),
        "stop": lambda: driver.stop(1012, owner=OWNER),
        "destroy": lambda: driver.destroy(1012, owner=OWNER),
    }


def started(bench: ProxmoxBench) -> MachineSpec:
    for verb in ("clone", "configure", "start"):
        verbs(bench)[verb]()
    return bench.spec(1012)


def fails_once(node: ProxmoxNode) -> Callable[..., None]:
    def on_clone(*_: object) -> None:
        del node.on_clone
        raise TaskError(BROKEN)

    return on_clone


def power(bench: ProxmoxBench) -> Power:
    found = bench.hypervisor.status(1012)
    assert found is not None
    return found.power


def test_power_goes_and_comes_as_asked_and_each_verb_may_be_said_twice(
    proxmox: ProxmoxBench,
) -> None:
    driver = proxmox.hypervisor
    started(proxmox)
    driver.start(1012, owner=OWNER)
    assert power(proxmox) is Power.RUNNING
    for verb, wanted in ((driver.pause, Power.PAUSED), (driver.resume, Power.RUNNING)):
        verb(1012, owner=OWNER)
        verb(1012, owner=OWNER)
        assert power(proxmox) is wanted
    driver.pause(1012, owner=OWNER)
    driver.start(1012, owner=OWNER)
    assert power(proxmox) is Power.RUNNING, "a paused machine runs on"
    assert driver.shutdown(1012, owner=OWNER, timeout=5)
    assert power(proxmox) is Power.STOPPED
    driver.start(1012, owner=OWNER)
    driver.stop(1012, owner=OWNER)
    driver.stop(1012, owner=OWNER)
    assert power(proxmox) is Power.STOPPED


def test_a_guest_that_does_not_go_is_told_from_one_that_did(proxmox: ProxmoxBench) -> None:
    started(proxmox)
    with proxmox.served.paused() as node:
        node.vm(1012).acpi = False
    assert proxmox.hypervisor.shutdown(1012, owner=OWNER, timeout=1) is False
    assert power(proxmox) is Power.RUNNING


def test_each_verb_comes_back_when_its_task_has_ended(proxmox: ProxmoxBench) -> None:
    with proxmox.served.paused() as node:
        node.time_scale = 1.0
        node.seconds.update(dict.fromkeys(node.seconds, 0.3))
    for name, verb in verbs(proxmox).items():
        verb()
        with proxmox.served.paused() as node:
            assert node.running_tasks() == [], name
        if name == "shutdown":
            proxmox.hypervisor.start(1012, owner=OWNER)
        if name == "clone":
            with proxmox.served.paused() as node:
                assert node.vm(1012).lock is None


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_that_fails_is_told_in_its_words(proxmox: ProxmoxBench, kind: str) -> None:
    """By pvesh, too, which ends with 0 when a task has failed."""
    name, before = TASKS[kind]
    for verb in before:
        verbs(proxmox)[verb]()
    with proxmox.served.paused() as node:
        if kind == "qmclone":  # which cleans up when it fails, so that it has to begin
            node.on_clone = fails_once(node)
        else:
            node.fail_tasks(kind, BROKEN)
    with pytest.raises(AgentLabError, match=rf"^cannot .*{BROKEN}"):
        verbs(proxmox)[name]()
    verbs(proxmox)[name]()  # it was a passing one


def test_a_guest_counts_when_its_own_agent_tells_its_own_address(proxmox: ProxmoxBench) -> None:
    """Not the address alone: bridges of containers in the guest have some, too."""
    spec = started(proxmox)
    driver = proxmox.hypervisor
    assert isinstance(driver, ProxmoxHypervisor)
    assert driver.ready(1012, spec)
    assert not driver.ready(1012, replace(spec, nic=replace(spec.nic, mac="52:54:00:00:00:01")))
    elsewhere = "10.77.9.9/16"
    with proxmox.served.paused() as node:
        node.guests.interfaces.append({
            "name": "docker0", "hardware-address": "02:42:00:00:00:01",
            "ip-addresses": [{"ip-address": elsewhere[:-3], "ip-address-type": "ipv4", "prefix": 16}],
        })  # fmt: skip
    moved = replace(spec.nic, address=type(spec.nic.address)(elsewhere))
    assert not driver.ready(1012, replace(spec, nic=moved))
    assert driver.ready(1012, spec)


def test_a_guest_counts_when_its_runner_waits(proxmox: ProxmoxBench) -> None:
    spec = started(proxmox)
    for starting in (True, False):
        with proxmox.served.paused() as node:
            (node.guests.starting.add if starting else node.guests.starting.discard)(1012)
        assert proxmox.hypervisor.ready(1012, spec) is not starting


def test_an_agent_that_comes_and_goes_is_not_yet(proxmox: ProxmoxBench) -> None:
    spec = started(proxmox)
    for silent in (True, False, True, False):
        with proxmox.served.paused() as node:
            (node.guests.silent.add if silent else node.guests.silent.discard)(1012)
        assert proxmox.hypervisor.ping(1012) is not silent
        assert proxmox.hypervisor.ready(1012, spec) is not silent

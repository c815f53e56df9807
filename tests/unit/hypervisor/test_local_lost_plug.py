"""A disk that QEMU has got although its answer was lost: what it has, the record says."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.errors import Conflict, DeadlineExceeded, Unavailable
from agentlab.hypervisor.base import Power
from agentlab.hypervisor.local import volumes
from agentlab.hypervisor.local.driver import LocalHypervisor
from agentlab.hypervisor.local.machine_dir import Record


@pytest.mark.parametrize("lets_go", [True, False])
def test_a_lost_answer_of_the_plugging_loses_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, lets_go: bool
) -> None:
    driver = LocalHypervisor(tmp_path, tmp_path, "0123", accelerator="tcg")
    volid = driver.allot(990_000, 64, owner="lab")
    for vmid in (1000, 1001):
        machine = driver.machine(vmid)
        machine.path.mkdir(parents=True)
        machine.write(Record.new(vmid, name="x", owner="lab", template="t"))
    plugged: set[str] = set()

    def plug(directory: Path, _: Path) -> None:
        plugged.add(directory.name)
        raise DeadlineExceeded("QEMU did not answer in time")

    def unplug(directory: Path, _: float) -> bool:
        if lets_go:
            plugged.discard(directory.name)
        return lets_go

    monkeypatch.setattr(volumes, "look", lambda *_: Power.RUNNING)
    monkeypatch.setattr(volumes, "plug", plug)
    monkeypatch.setattr(volumes, "unplug", unplug)
    with pytest.raises(DeadlineExceeded):
        driver.attach(1000, volid, owner="lab")
    (seen,) = driver.volumes(owner="lab")
    assert seen.attached == ((1000,) if plugged else ())
    if not lets_go:
        with pytest.raises(Conflict, match="1000 has it"):
            driver.attach(1001, volid, owner="lab")


def test_a_second_attach_that_fails_leaves_the_disk_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest may have it mounted since the first."""
    driver = LocalHypervisor(tmp_path, tmp_path, "0123", accelerator="tcg")
    volid = driver.allot(990_000, 64, owner="lab")
    machine = driver.machine(1000)
    machine.path.mkdir(parents=True)
    machine.write(Record.new(1000, name="x", owner="lab", template="t"))
    unplugged: list[Path] = []

    def away(*_: Path) -> None:
        raise Unavailable("QEMU does not answer")

    def unplug(directory: Path, _: float) -> bool:
        unplugged.append(directory)
        return True

    monkeypatch.setattr(volumes, "look", lambda *_: Power.RUNNING)
    monkeypatch.setattr(volumes, "plug", lambda *_: None)
    monkeypatch.setattr(volumes, "unplug", unplug)
    driver.attach(1000, volid, owner="lab")
    monkeypatch.setattr(volumes, "plug", away)
    with pytest.raises(Unavailable):
        driver.attach(1000, volid, owner="lab")
    assert unplugged == []
    assert driver.attached(1000, owner="lab") == (volid,)

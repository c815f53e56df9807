"""A machine is turned off on a disk that takes nothing more."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.hypervisor import files
from agentlab.hypervisor.base import Power
from agentlab.hypervisor.local.machine_dir import MachineDir, Record
from agentlab.hypervisor.local.power import look, power_off


def test_a_full_disk_does_not_keep_a_machine_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = MachineDir(tmp_path / "1001")
    machine.path.mkdir()
    record = Record.new(1001, name="box", owner="lab", template="t").powered("cold").going()
    machine.write(record)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        assert power_off(machine, record) == replace(record, run=None)
    assert "cannot note that machine 1001 is off: No space left" in caplog.text
    found = machine.read()
    assert found == record  # as it was, and whole
    assert look(machine, record) is Power.STOPPED
    assert power_off(machine, record) == machine.read() == replace(record, run=None)

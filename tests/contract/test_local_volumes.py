"""SIGKILL of whoever works on a volume of the local driver, at every moment that leaves a trace.

A child process makes one call and dies at its n-th moment: before and after each program that it
runs, each rename, each sync to the disk, each removal.  A program that it has just started goes
on alone, or dies with it.  What is left is the old or the new state, and the same call again
makes it the new one.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agentlab.errors import Conflict, NotOurs, Unavailable
from agentlab.hypervisor.base import Volume
from agentlab.hypervisor.files import sweep
from agentlab.hypervisor.local import images
from agentlab.hypervisor.local.driver import LocalHypervisor
from agentlab.hypervisor.local.machine_dir import MachineDir
from agentlab.hypervisor.local.plug import unplug
from agentlab.hypervisor.local.qmp import open_qmp
from tests.contract.bench import OWNER, LocalBench
from tests.contract.test_volumes import fill, holds, listed, made, until_seen

ONE, TWO = "local:vm-990000-agentlab-agentlab-test", "local:vm-990001-agentlab-agentlab-test"
_PLACES = ("machines", "volumes", "templates")
Seen = tuple[object, ...]


def _dies_at(moment: int, *, whole: bool) -> None:
    """Lets this process be killed at its n-th moment, counted from 1; `whole` with its program."""
    counted = itertools.count(1)

    def here(program: int = 0) -> None:
        if next(counted) == moment:
            if whole and program:
                os.killpg(program, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            here()
            try:
                return function(*args, **named)
            finally:
                here()

        return call

    for owner, name in ((os, "rename"), (os, "fsync"), (os, "unlink"), (shutil, "rmtree")):
        setattr(owner, name, watched(getattr(owner, name)))

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **named: Any) -> None:
            here()
            super().__init__(*args, **named)
            here(self.pid)  # it may have begun, and nobody waits for it

        def communicate(self, *args: Any, **named: Any) -> Any:
            answer = super().communicate(*args, **named)
            here()
            return answer

    subprocess.Popen = Watched  # type: ignore[misc]


def _killed(moment: int, call: Callable[[], object], *, whole: bool) -> bool:
    """Makes a call in a child that dies at this moment; False when it came to its end before."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _dies_at(moment, whole=whole)
            call()
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the call failed"
        return False
    assert os.WTERMSIG(status) == signal.SIGKILL
    return True


def _see(bench: LocalBench) -> Seen:
    """All that the promises are about: volumes, who has them, their snapshots and content."""
    driver = bench.again()
    assert isinstance(driver, LocalHypervisor)
    seen: list[object] = []
    for volume in driver.volumes(owner=OWNER):
        names = tuple(driver.volume_snapshots(volume.volid, owner=OWNER))
        seen.append((volume, names, _content(bench, volume.volid)))
    return tuple(seen)


def _content(bench: LocalBench, volid: str) -> tuple[int, ...]:
    return tuple(pattern for pattern in (0, 1, 2) if holds(bench, volid, pattern))


def _prepare(bench: LocalBench, verb: str) -> None:
    """A machine, and unless it is to be made a volume: 1 in its snapshot, 2 now, and larger."""
    made(bench)
    if verb == "allot":
        return
    driver = bench.volumes
    volid = bench.allot()
    fill(bench, volid, 1)
    driver.snapshot_volume(volid, "first", owner=OWNER)
    fill(bench, volid, 2)
    driver.grow(volid, 96, owner=OWNER)
    if verb in ("detach", "destroy"):
        driver.attach(1012, volid, owner=OWNER)


def _call(bench: LocalBench, verb: str) -> Callable[[], object]:
    driver = bench.again()
    assert isinstance(driver, LocalHypervisor)
    return {
        "allot": lambda: driver.allot(990000, 64, owner=OWNER),
        "attach": lambda: driver.attach(1012, ONE, owner=OWNER),
        "detach": lambda: driver.detach(1012, ONE, owner=OWNER),
        "destroy": lambda: driver.destroy(1012, owner=OWNER),
        "free": lambda: driver.free(ONE, owner=OWNER),
        "grow": lambda: driver.grow(ONE, 128, owner=OWNER),
        "snapshot": lambda: driver.snapshot_volume(ONE, "second", owner=OWNER),
        "rollback": lambda: driver.rollback_volume(ONE, "first", owner=OWNER),
        "delete snapshot": lambda: driver.delete_volume_snapshot(ONE, "first", owner=OWNER),
        "clone": lambda: driver.clone_volume(ONE, 990001, snapshot="first", owner=OWNER),
    }[verb]


VERBS = ["allot", "attach", "detach", "destroy", "free", "grow", "snapshot", "rollback",
         "delete snapshot", "clone"]  # fmt: skip


@dataclass
class Scene:
    """The directories of a bench, which can be put back to what they were."""

    place: Path

    def __post_init__(self) -> None:
        for name in _PLACES:
            if (self.place / name).is_dir():
                shutil.copytree(self.place / name, self.place / "kept" / name, symlinks=True)

    def restore(self) -> None:
        for name in _PLACES:
            shutil.rmtree(self.place / name, ignore_errors=True)
        shutil.copytree(self.place / "kept", self.place, symlinks=True, dirs_exist_ok=True)


def _leftovers(bench: LocalBench) -> list[str]:
    """What is still there when it has lain there for long."""
    found = []
    for directory in (bench.root, bench.root.with_name("volumes")):
        for path in directory.glob(".*"):
            os.utime(path, (1, 1))
        if directory.is_dir():
            sweep(directory)
        found += [path.name for path in directory.glob("**/.*")]
    # see test_files.py: what is beside a record goes with its next writing
    return [name for name in found if ".json." not in name]


def _whole(bench: LocalBench, volid: str) -> None:
    argv = ["qemu-img", "check", "-q", "-f", "qcow2", str(bench.image(volid))]
    assert subprocess.run(argv, check=False).returncode in (0, 3)  # 3: room that is lost, no more


@pytest.mark.slow  # 150 kills
@pytest.mark.parametrize(
    ("verb", "whole"),
    [*((verb, False) for verb in VERBS), *((verb, True) for verb in ("grow", "rollback", "clone"))],
)
def test_killed_at_any_moment_it_is_as_before_or_done(
    local_bench: LocalBench, verb: str, whole: bool
) -> None:
    _prepare(local_bench, verb)
    scene = Scene(local_bench.root.parent)
    old = _see(local_bench)
    _call(local_bench, verb)()
    new = _see(local_bench)
    assert old != new
    seen = {old: 0, new: 0}
    for moment in itertools.count(1):
        scene.restore()
        if not _killed(moment, _call(local_bench, verb), whole=whole):
            break
        _settle(local_bench, verb)
        between = _see(local_bench)
        assert between in seen, f"killed at moment {moment}"
        seen[between] += 1
        try:
            _call(local_bench, verb)()
        except Conflict:
            assert verb == "snapshot"  # it is there, or just being made by what the killed one ran
        assert _see(local_bench) == new, f"done again after moment {moment}"
        for volume in listed(local_bench):
            _whole(local_bench, volume.volid)
        assert not _leftovers(local_bench), f"killed at moment {moment}"
    print(f"{verb}: {moment - 1} kills, {seen[old]} left the old state and {seen[new]} the new one")
    assert min(seen.values()) > 0


def _settle(bench: LocalBench, verb: str) -> None:
    """The next who wants the volume ends a rollback that was cut off: an attachment, here."""
    if verb != "rollback":
        return
    driver = bench.again()
    assert isinstance(driver, LocalHypervisor)
    driver.attach(1012, ONE, owner=OWNER)
    driver.detach(1012, ONE, owner=OWNER)


def test_half_a_rollback_is_ended_by_whoever_comes_next(
    local_bench: LocalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qemu-img makes the image as large as it was first, and puts the content back then."""
    driver = local_bench.volumes
    _prepare(local_bench, "rollback")

    def half(image: Path, name: str) -> None:
        subprocess.run(["qemu-img", "resize", "-q", "--shrink", str(image), "64M"], check=True)
        raise Unavailable("the power has failed")

    with monkeypatch.context() as patch, pytest.raises(Unavailable):
        patch.setattr(images, "apply_snapshot", half)
        driver.rollback_volume(ONE, "first", owner=OWNER)
    assert holds(local_bench, ONE, 2)
    local_bench.hypervisor = local_bench.again()
    copy = local_bench.volumes.clone_volume(ONE, 990001, owner=OWNER)
    assert holds(local_bench, ONE, 1)
    assert holds(local_bench, copy, 1)


def test_a_directory_without_a_record_is_a_strangers(local_bench: LocalBench) -> None:
    volumes = local_bench.root.with_name("volumes")
    (volumes / "990000").mkdir(parents=True)
    (volumes / "notes").mkdir()
    assert listed(local_bench) == []
    for attempt in (
        local_bench.allot,
        lambda: local_bench.volumes.free(ONE, owner=OWNER),
        lambda: local_bench.volumes.grow(ONE, 128, owner=OWNER),
    ):
        with pytest.raises(NotOurs):
            attempt()
    assert sorted(os.listdir(volumes)) == ["990000", "notes"]


def test_a_machine_whose_volume_is_gone_does_not_start(local_bench: LocalBench) -> None:
    made(local_bench)
    local_bench.volumes.attach(1012, local_bench.allot(), owner=OWNER)
    shutil.rmtree(local_bench.image(ONE).parent)
    local_bench.hypervisor = local_bench.again(start_mode="cold")
    with pytest.raises(Conflict, match=f"its volume {ONE} is not there"):
        local_bench.hypervisor.start(1012, owner=OWNER)
    assert listed(local_bench) == []
    local_bench.volumes.detach(1012, ONE, owner=OWNER)


def test_allotting_at_once_makes_one(local_bench: LocalBench) -> None:
    threads = [threading.Thread(target=local_bench.allot) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert listed(local_bench) == [Volume(ONE, 64)]
    assert not _leftovers(local_bench)


@pytest.mark.vm
def test_a_plugging_or_an_unplugging_that_was_cut_off_is_done_again(
    local_powered: LocalBench,
) -> None:
    driver, volid = local_powered.volumes, local_powered.allot()
    machine = MachineDir(local_powered.root / "1012")
    local_powered.wait(1012, local_powered.start(1012))

    def note(attached: str) -> None:
        record = machine.read()
        assert record is not None
        machine.write(replace(record, volume=attached))

    for again in (
        lambda: driver.attach(1012, volid, owner=OWNER),
        lambda: local_powered.hypervisor.start(1012, owner=OWNER),
    ):
        note(volid)  # killed before the disk was plugged in
        again()
        until_seen(local_powered, 1012, there=True)
        assert unplug(machine.path, 60)  # killed before it was noted
        driver.detach(1012, volid, owner=OWNER)
        assert listed(local_powered) == [Volume(volid, 64)]
    image = local_powered.image(volid)
    with open_qmp(machine.path) as qemu:  # killed between the image and the device
        file = {"driver": "file", "filename": str(image)}
        qemu.execute("blockdev-add", driver="qcow2", node_name="work-image", file=file)
    note(volid)
    driver.attach(1012, volid, owner=OWNER)
    until_seen(local_powered, 1012, there=True)
    driver.detach(1012, volid, owner=OWNER)
    driver.grow(volid, 128, owner=OWNER)  # nobody has it open


@pytest.mark.vm
def test_an_image_that_qemu_cannot_have_is_not_attached(local_powered: LocalBench) -> None:
    volid = local_powered.allot()
    local_powered.wait(1012, local_powered.start(1012))
    local_powered.image(volid).write_bytes(b"no image")
    with pytest.raises(Conflict, match="refused blockdev-add"):
        local_powered.volumes.attach(1012, volid, owner=OWNER)
    machine = MachineDir(local_powered.root / "1012").read()
    assert machine is not None
    assert machine.volume == ""
    local_powered.volumes.free(volid, owner=OWNER)

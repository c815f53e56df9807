"""What every driver promises about volumes that outlive machines, tried on each of them."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest

from agentlab.errors import Busy, Conflict, Invalid, NotFound, NotOurs, Unavailable
from agentlab.hypervisor.base import FileSystem, Volume
from tests.contract.bench import OWNER, STRANGER, Bench, LocalBench


def made(bench: Bench, vmid: int = 1012) -> None:
    bench.clone(vmid)
    bench.hypervisor.configure(vmid, bench.spec(vmid, tap=False), owner=OWNER)


def fill(bench: Bench, volid: str, pattern: int) -> None:
    """Writes a mebibyte of this byte to the beginning of a volume."""
    argv = ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 0 1M", str(bench.image(volid))]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def holds(bench: Bench, volid: str, pattern: int) -> bool:
    image = str(bench.image(volid))
    argv = ["qemu-io", "-rU", "-f", "qcow2", "-c", f"read -P {pattern} 0 1M", image]
    said = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    assert "read 1048576/1048576 bytes" in said, said
    return "verification failed" not in said


def listed(bench: Bench) -> list[Volume]:
    return [*bench.volumes.volumes(owner=OWNER)]


# Without power


def test_a_volume_outlives_its_machines(storing: Bench) -> None:
    made(storing)
    volid = storing.allot()
    assert storing.allot() == volid
    storing.volumes.attach(1012, volid, owner=OWNER)
    storing.volumes.attach(1012, volid, owner=OWNER)
    assert listed(storing) == [Volume(volid, 64, (1012,))]
    assert list(storing.volumes.attached(1012, owner=OWNER)) == [volid]
    with pytest.raises(NotOurs):
        storing.volumes.attached(1012, owner=STRANGER)
    storing.hypervisor.destroy(1012, owner=OWNER)
    assert listed(storing) == [Volume(volid, 64)]
    storing.volumes.free(volid, owner=OWNER)
    storing.volumes.free(volid, owner=OWNER)
    assert listed(storing) == []
    with pytest.raises(NotFound):
        storing.volumes.attached(1012, owner=OWNER)


def test_another_daemon_knows_the_volumes_and_who_has_them(storing: Bench) -> None:
    made(storing)
    volid = storing.allot()
    storing.volumes.attach(1012, volid, owner=OWNER)
    storing.hypervisor = storing.again()
    assert listed(storing) == [Volume(volid, 64, (1012,))]
    with pytest.raises(Conflict):
        storing.volumes.free(volid, owner=OWNER)


def test_a_volume_is_attached_to_one_machine_at_most(storing: Bench) -> None:
    driver = storing.volumes
    made(storing)
    made(storing, 1013)
    volid = storing.allot()
    driver.attach(1012, volid, owner=OWNER)
    with pytest.raises(Conflict, match="1012 has it"):
        driver.attach(1013, volid, owner=OWNER)
    with pytest.raises(Conflict, match=r"attached to .* 1012"):
        driver.free(volid, owner=OWNER)
    driver.detach(1013, volid, owner=OWNER)  # it is not there: nothing is done
    assert listed(storing) == [Volume(volid, 64, (1012,))]
    driver.detach(1012, volid, owner=OWNER)
    driver.detach(1012, volid, owner=OWNER)
    driver.detach(1999, volid, owner=OWNER)  # no such machine
    driver.attach(1013, volid, owner=OWNER)
    storing.hypervisor.destroy(1013, owner=OWNER)
    driver.free(volid, owner=OWNER)


def test_many_machines_that_want_one_volume(storing: Bench) -> None:
    volid, vmids = storing.allot(), (1012, 1013, 1014)
    for vmid in vmids:
        made(storing, vmid)
    outcome: dict[int, str] = {}

    def attach(vmid: int) -> None:
        try:
            storing.volumes.attach(vmid, volid, owner=OWNER)
            outcome[vmid] = "has it"
        except Conflict:
            outcome[vmid] = "refused"

    threads = [threading.Thread(target=attach, args=(vmid,)) for vmid in vmids]
    for thread in threads if isinstance(storing, LocalBench) else ():
        thread.start()
    for thread in threads if isinstance(storing, LocalBench) else ():
        thread.join()
    if not isinstance(storing, LocalBench):
        # Proxmox guards nothing, and what is between our look and our act is the lease's affair
        for vmid in vmids:
            attach(vmid)
    assert sorted(outcome.values()) == ["has it", "refused", "refused"]
    (volume,) = listed(storing)
    assert [outcome[vmid] for vmid in volume.attached] == ["has it"]


def test_a_machine_has_one_volume_at_most(storing: Bench) -> None:
    made(storing)
    one, other = storing.allot(990000), storing.allot(990001)
    storing.volumes.attach(1012, one, owner=OWNER)
    with pytest.raises(Conflict, match="already"):
        storing.volumes.attach(1012, other, owner=OWNER)
    assert [volume.attached for volume in listed(storing)] == [(1012,), ()]


def test_a_machine_with_a_volume_is_not_snapshotted_or_rolled_back(storing: Bench) -> None:
    made(storing)
    volid = storing.allot()
    storing.hypervisor.snapshot(1012, "clean", owner=OWNER)
    storing.volumes.attach(1012, volid, owner=OWNER)
    for attempt in (
        lambda: storing.hypervisor.snapshot(1012, "later", owner=OWNER),
        lambda: storing.hypervisor.rollback(1012, "clean", owner=OWNER),
    ):
        with pytest.raises(Conflict, match="is attached to it") as told:
            attempt()
        assert "workspace detach" in told.value.hint
    storing.volumes.detach(1012, volid, owner=OWNER)
    storing.hypervisor.rollback(1012, "clean", owner=OWNER)


def test_a_strangers_volume_is_left_alone(storing: Bench) -> None:
    made(storing)
    driver, theirs = storing.volumes, storing.allot(owner=STRANGER)
    for attempt in (
        lambda: driver.attach(1012, theirs, owner=OWNER),
        lambda: driver.detach(1012, theirs, owner=OWNER),
        lambda: driver.free(theirs, owner=OWNER),
        lambda: driver.grow(theirs, 128, owner=OWNER),
        lambda: driver.snapshot_volume(theirs, "first", owner=OWNER),
        lambda: driver.rollback_volume(theirs, "first", owner=OWNER),
        lambda: driver.delete_volume_snapshot(theirs, "first", owner=OWNER),
        lambda: driver.clone_volume(theirs, 990001, owner=OWNER),
        lambda: driver.volume_snapshots(theirs, owner=OWNER),
        lambda: driver.check_volume(theirs, repair=True, owner=OWNER),
        lambda: driver.move(theirs, "local", owner=OWNER),
        lambda: driver.free("local:9000/base-9000-disk-0.qcow2", owner=OWNER),
        lambda: driver.free("../../etc", owner=OWNER),
    ):
        with pytest.raises(NotOurs):
            attempt()
    assert listed(storing) == []
    assert driver.volumes(owner=STRANGER) == [Volume(theirs, 64)]


def test_a_strangers_machine_gets_no_volume_of_ours(storing: Bench) -> None:
    storing.clone(1012, owner=STRANGER)
    volid = storing.allot()
    for attempt in (
        lambda: storing.volumes.attach(1012, volid, owner=OWNER),
        lambda: storing.volumes.detach(1012, volid, owner=OWNER),
    ):
        with pytest.raises(NotOurs):
            attempt()
    assert listed(storing) == [Volume(volid, 64)]


def test_what_is_not_there(storing: Bench) -> None:
    made(storing)
    driver, volid = storing.volumes, storing.allot()
    driver.free(volid, owner=OWNER)
    for attempt in (
        lambda: driver.attach(1012, volid, owner=OWNER),
        lambda: driver.grow(volid, 128, owner=OWNER),
        lambda: driver.snapshot_volume(volid, "first", owner=OWNER),
        lambda: driver.volume_snapshots(volid, owner=OWNER),
        lambda: driver.clone_volume(volid, 990001, owner=OWNER),
        lambda: driver.check_volume(volid, repair=False, owner=OWNER),
        lambda: driver.check_storage("tank"),
        lambda: driver.allot(990000, 64, storage="tank", owner=OWNER),
    ):
        with pytest.raises(NotFound):
            attempt()
    assert listed(storing) == []
    again = storing.allot()
    with pytest.raises(NotFound):
        driver.attach(1999, again, owner=OWNER)
    with pytest.raises(NotFound):
        driver.rollback_volume(again, "first", owner=OWNER)
    with pytest.raises(NotFound):
        driver.clone_volume(again, 990001, snapshot="first", owner=OWNER)
    driver.delete_volume_snapshot(again, "first", owner=OWNER)
    assert listed(storing) == [Volume(again, 64)]


def test_a_volume_becomes_larger_and_never_smaller(storing: Bench) -> None:
    volid = storing.allot()
    fill(storing, volid, 7)
    storing.volumes.grow(volid, 128, owner=OWNER)
    storing.volumes.grow(volid, 128, owner=OWNER)
    with pytest.raises(Invalid, match="smaller"):
        storing.volumes.grow(volid, 64, owner=OWNER)
    assert listed(storing) == [Volume(volid, 128)]
    assert holds(storing, volid, 7)
    with pytest.raises(Invalid):
        storing.volumes.allot(990001, 0, storage="local", owner=OWNER)


def test_snapshots_of_a_volume(storing: Bench) -> None:
    driver, volid = storing.volumes, storing.allot()
    fill(storing, volid, 1)
    driver.snapshot_volume(volid, "first", owner=OWNER)
    with pytest.raises(Conflict):
        driver.snapshot_volume(volid, "first", owner=OWNER)
    fill(storing, volid, 2)
    driver.grow(volid, 128, owner=OWNER)
    driver.snapshot_volume(volid, "second", owner=OWNER)
    fill(storing, volid, 3)
    assert driver.volume_snapshots(volid, owner=OWNER) == ["first", "second"]
    driver.rollback_volume(volid, "first", owner=OWNER)
    driver.rollback_volume(volid, "first", owner=OWNER)
    assert holds(storing, volid, 1)
    assert listed(storing) == [Volume(volid, 64)]  # as large as it was then
    driver.rollback_volume(volid, "second", owner=OWNER)
    assert holds(storing, volid, 2)
    driver.delete_volume_snapshot(volid, "first", owner=OWNER)
    driver.delete_volume_snapshot(volid, "first", owner=OWNER)
    assert driver.volume_snapshots(volid, owner=OWNER) == ["second"]
    for name in ("x", "-c", "a/b", "current"):
        with pytest.raises(Invalid):
            driver.snapshot_volume(volid, name, owner=OWNER)
    driver.free(volid, owner=OWNER)
    assert not storing.image(volid).exists()


def test_a_copy_of_a_volume_stands_alone(storing: Bench) -> None:
    driver, volid = storing.volumes, storing.allot()
    fill(storing, volid, 1)
    driver.snapshot_volume(volid, "first", owner=OWNER)
    fill(storing, volid, 2)
    assert not driver.clones_thin(volid)
    told: list[float] = []
    now = driver.clone_volume(volid, 990001, owner=OWNER, progress=told.append)
    assert told[-1] == 1.0
    assert told == sorted(told)
    then = driver.clone_volume(volid, 990002, snapshot="first", owner=OWNER)
    assert driver.clone_volume(volid, 990002, snapshot="first", owner=OWNER) == then
    driver.free(volid, owner=OWNER)
    assert holds(storing, now, 2)
    assert holds(storing, then, 1)
    assert driver.volume_snapshots(then, owner=OWNER) == []
    assert sorted(volume.volid for volume in listed(storing)) == sorted([now, then])


def test_an_attached_volume_is_not_changed_and_its_snapshots_are_shown(storing: Bench) -> None:
    driver, volid = storing.volumes, storing.allot()
    made(storing)
    driver.snapshot_volume(volid, "first", owner=OWNER)
    driver.attach(1012, volid, owner=OWNER)
    for attempt in (
        lambda: driver.grow(volid, 128, owner=OWNER),
        lambda: driver.snapshot_volume(volid, "second", owner=OWNER),
        lambda: driver.rollback_volume(volid, "first", owner=OWNER),
        lambda: driver.delete_volume_snapshot(volid, "first", owner=OWNER),
        lambda: driver.clone_volume(volid, 990001, owner=OWNER),
        lambda: driver.check_volume(volid, repair=False, owner=OWNER),
    ):
        with pytest.raises(Conflict, match="1012") as told:
            attempt()
        assert told.value.hint
    assert driver.volume_snapshots(volid, owner=OWNER) == ["first"]
    assert listed(storing) == [Volume(volid, 64, (1012,))]


def test_a_volume_stays_on_its_storage_when_that_is_asked(storing: Bench) -> None:
    volid = storing.allot()
    assert storing.volumes.storage_of(volid) == "local"
    storing.volumes.check_storage("local", tools=True)
    assert storing.volumes.move(volid, "local", owner=OWNER) == volid
    with pytest.raises(NotFound):
        storing.volumes.move(volid, "tank", owner=OWNER)
    assert listed(storing) == [Volume(volid, 64)]


# The file system on a volume: made and damaged here for real, and checked for real


def file_system(directory: Path, *spoil: str, block: int = 1024) -> Path:
    """A raw disk of 64 MiB with an ext4 that holds a file `kept`, and then spoiled by debugfs.

    With blocks of 1 KiB it has copies of its superblock, the first at block 8193.
    """
    raw, tree = directory / "raw", directory / "tree"
    tree.mkdir(exist_ok=True)
    (tree / "kept").write_text("kept\n")
    raw.write_bytes(b"")
    make = ["mke2fs", "-q", "-t", "ext4", "-b", str(block), "-d", str(tree), str(raw), "64M"]
    subprocess.run(make, check=True)
    for request in spoil:
        argv = ["debugfs", "-w", "-R", request, str(raw)]
        subprocess.run(argv, check=True, capture_output=True)
    return raw


def wipe(raw: Path, *places: tuple[int, int]) -> Path:
    """Zeros in a raw disk, each from a byte, for some bytes."""
    with raw.open("r+b") as file:
        for place, size in places:
            file.seek(place)
            file.write(bytes(size))
    return raw


def put(bench: Bench, volid: str, raw: Path) -> None:
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(bench.image(volid))]
    subprocess.run(argv, check=True)


def kept(bench: Bench, volid: str, directory: Path) -> str:
    """What the file system on a volume has in its file, as debugfs reads it."""
    out = directory / "out"
    argv = ["qemu-img", "convert", "-O", "raw", str(bench.image(volid)), str(out)]
    subprocess.run(argv, check=True)
    argv = ["debugfs", "-R", "cat /kept", str(out)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_a_check_tells_a_blank_volume_and_a_clean_one(storing: Bench, tmp_path: Path) -> None:
    driver, volid = storing.volumes, storing.allot()
    for repair in (False, True):
        found = driver.check_volume(volid, repair=repair, owner=OWNER)
        assert found.state is FileSystem.BLANK, found
    put(storing, volid, file_system(tmp_path))
    before = storing.image(volid).read_bytes()
    found = driver.check_volume(volid, repair=False, owner=OWNER)
    assert (found.state, storing.image(volid).read_bytes()) == (FileSystem.CLEAN, before)
    assert "Pass 5" in found.text
    assert str(storing.image(volid)) not in found.text
    assert driver.check_volume(volid, repair=True, owner=OWNER).state is FileSystem.CLEAN
    assert kept(storing, volid, tmp_path) == "kept\n"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("feature needs_recovery", "journal was not replayed yet"),
        ("set_inode_field /kept links_count 7", "reference count"),
        ("ssv state 3", "kernel has noted an error"),
    ],
)
def test_what_needs_repair_is_left_alone_until_that_is_asked(
    storing: Bench, tmp_path: Path, spoil: str, said: str
) -> None:
    driver, volid = storing.volumes, storing.allot()
    put(storing, volid, file_system(tmp_path, spoil))
    before = storing.image(volid).read_bytes()
    for _ in range(2):
        found = driver.check_volume(volid, repair=False, owner=OWNER)
        assert found.state is FileSystem.NEEDS_REPAIR, found
        assert said in found.text
    assert storing.image(volid).read_bytes() == before
    assert driver.check_volume(volid, repair=True, owner=OWNER).state is FileSystem.REPAIRED
    for repair in (False, True):
        found = driver.check_volume(volid, repair=repair, owner=OWNER)
        assert found.state is FileSystem.CLEAN, found
    assert kept(storing, volid, tmp_path) == "kept\n"
    driver.snapshot_volume(volid, "first", owner=OWNER)  # nobody has it open


@pytest.mark.parametrize("copies", [0, 1], ids=["the superblock", "its first copy too"])
def test_a_volume_whose_superblock_is_gone_is_not_blank(
    storing: Bench, tmp_path: Path, copies: int
) -> None:
    driver, volid = storing.volumes, storing.allot()
    gone = [(0, 2048), (8193 * 1024, 1024)][: 1 + copies]
    put(storing, volid, wipe(file_system(tmp_path), *gone))
    found = driver.check_volume(volid, repair=False, owner=OWNER)
    assert found.state is FileSystem.NEEDS_REPAIR, found
    assert "superblock is gone" in found.text
    assert driver.check_volume(volid, repair=True, owner=OWNER).state is FileSystem.REPAIRED
    assert driver.check_volume(volid, repair=False, owner=OWNER).state is FileSystem.CLEAN
    assert kept(storing, volid, tmp_path) == "kept\n"


def crc32c(data: bytes) -> int:
    """As ext4 has it of its superblock: nothing is turned round at the end."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


def flag_copy(raw: Path, at: int) -> None:
    """Says in a copy of the superblock that the journal was not replayed, as a kernel does that
    grows a mounted file system (struct ext4_super_block in ext4(5))."""
    with raw.open("r+b") as file:
        file.seek(at)
        block = bytearray(file.read(1024))
        assert block[0x38:0x3A] == b"\x53\xef"
        assert int.from_bytes(block[1020:], "little") == crc32c(block[:1020])
        block[0x60] |= 4
        block[1020:] = crc32c(block[:1020]).to_bytes(4, "little")
        file.seek(at)
        file.write(block)


@pytest.mark.parametrize("copies", [0, 1], ids=["the superblock", "its first copy too"])
def test_a_superblock_comes_back_from_a_copy_of_a_mounted_one(
    storing: Bench, tmp_path: Path, copies: int
) -> None:
    driver, volid = storing.volumes, storing.allot()
    raw = file_system(tmp_path)
    for copy in (8193, 24577, 40961, 57345):
        flag_copy(raw, copy * 1024)
    put(storing, volid, wipe(raw, *[(0, 2048), (8193 * 1024, 1024)][: 1 + copies]))
    assert driver.check_volume(volid, repair=False, owner=OWNER).state is FileSystem.NEEDS_REPAIR
    mended = driver.check_volume(volid, repair=True, owner=OWNER)
    assert mended.state is FileSystem.REPAIRED, mended
    assert driver.check_volume(volid, repair=False, owner=OWNER).state is FileSystem.CLEAN
    assert kept(storing, volid, tmp_path) == "kept\n"


def test_what_cannot_be_repaired(storing: Bench, tmp_path: Path) -> None:
    driver, volid = storing.volumes, storing.allot()
    put(storing, volid, wipe(file_system(tmp_path, block=4096), (0, 4096)))  # it has no copy
    assert driver.check_volume(volid, repair=False, owner=OWNER).state is FileSystem.NEEDS_REPAIR
    assert driver.check_volume(volid, repair=True, owner=OWNER).state is FileSystem.UNREPAIRABLE
    put(storing, volid, wipe(file_system(tmp_path), (0, 9 << 20)))  # only a far copy is left
    assert driver.check_volume(volid, repair=False, owner=OWNER).state is FileSystem.NEEDS_REPAIR
    raw = tmp_path / "other"
    raw.write_bytes(bytes(64 << 20))
    subprocess.run(["mkswap", "-q", str(raw)], check=True, capture_output=True)
    put(storing, volid, raw)
    before = storing.image(volid).read_bytes()
    found = driver.check_volume(volid, repair=True, owner=OWNER)
    assert found.state is FileSystem.UNREPAIRABLE
    assert "it holds swap, not ext4" in found.text
    assert storing.image(volid).read_bytes() == before


def test_volumes_that_cannot_be_read_are_not_gone(storing: Bench) -> None:
    volid = storing.allot()
    with storing.unreadable():
        with pytest.raises(Unavailable):
            storing.volumes.volumes(owner=OWNER)
        with pytest.raises(Unavailable):
            storing.volumes.free(volid, owner=OWNER)
    assert listed(storing) == [Volume(volid, 64)]


# With power

_DEVICE = """dev=/dev/$(lsblk -dno NAME,SERIAL | awk '$2 == "work" {print $1}')"""


def until_seen(bench: Bench, vmid: int, *, there: bool) -> float:
    """Waits until the guest sees the work disk, or does no longer; how many seconds it took."""
    begun = time.monotonic()
    while ("work" in bench.say(vmid, "lsblk -dno SERIAL")) != there:
        assert time.monotonic() - begun < 180
        time.sleep(0.1)
    return time.monotonic() - begun


@pytest.mark.vm
@pytest.mark.parametrize("powered", ["local"], indirect=True)
def test_a_work_disk_comes_and_goes_while_the_machine_runs(powered: Bench) -> None:
    driver, volid = powered.volumes, powered.allot()
    powered.wait(1012, powered.start(1012))
    driver.attach(1012, volid, owner=OWNER)
    driver.attach(1012, volid, owner=OWNER)
    print(f"seen after {until_seen(powered, 1012, there=True):.2f} s")
    powered.say(
        1012, f"{_DEVICE}; mkfs.ext4 -q $dev; mount $dev /mnt; echo kept >/mnt/x; umount /mnt"
    )
    with pytest.raises(Conflict):
        driver.free(volid, owner=OWNER)
    powered.hypervisor.pause(1012, owner=OWNER)
    with pytest.raises(Busy, match="paused"):
        driver.detach(1012, volid, owner=OWNER)
    powered.hypervisor.resume(1012, owner=OWNER)
    begun = time.monotonic()
    driver.detach(1012, volid, owner=OWNER)
    print(f"detached in {time.monotonic() - begun:.2f} s")
    driver.detach(1012, volid, owner=OWNER)
    until_seen(powered, 1012, there=False)
    driver.snapshot_volume(volid, "first", owner=OWNER)  # QEMU has let go of it
    powered.start(1013)
    driver.attach(1013, volid, owner=OWNER)
    powered.wait(1013, powered.spec(1013))
    until_seen(powered, 1013, there=True)
    assert powered.say(1013, f"{_DEVICE}; mount $dev /mnt; cat /mnt/x; umount /mnt") == "kept"
    powered.kill(1013)  # the power fails: it stays attached
    assert listed(powered) == [Volume(volid, 64, (1013,))]
    powered.hypervisor.destroy(1013, owner=OWNER)
    driver.attach(1012, volid, owner=OWNER)
    until_seen(powered, 1012, there=True)


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.parametrize("powered", ["api"], indirect=True)  # a boot
def test_a_work_disk_comes_and_goes_while_a_machine_of_proxmox_runs(powered: Bench) -> None:
    driver, volid = powered.volumes, powered.allot()
    powered.wait(1012, powered.start(1012))
    mount = f"{_DEVICE}; mount $dev /mnt; cat /mnt/x; umount /mnt"
    for script in (
        f"{_DEVICE}; mkfs.ext4 -q $dev; mount $dev /mnt; echo kept >/mnt/x; umount /mnt",
        mount,
    ):
        driver.attach(1012, volid, owner=OWNER)
        driver.attach(1012, volid, owner=OWNER)
        assert listed(powered) == [Volume(volid, 64, (1012,))]
        print(f"seen after {until_seen(powered, 1012, there=True):.2f} s")
        powered.say(1012, script)
        driver.detach(1012, volid, owner=OWNER)
        driver.detach(1012, volid, owner=OWNER)
        until_seen(powered, 1012, there=False)
        assert listed(powered) == [Volume(volid, 64)]


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.parametrize(  # by REST it boots cold twice; test_proxmox has it in a story of its own
    "powered", ["local", pytest.param("api", marks=pytest.mark.soak)], indirect=True
)
def test_a_rollback_of_the_machine_leaves_the_volume_byte_for_byte(powered: Bench) -> None:
    driver, volid, spec = powered.volumes, powered.allot(), powered.spec(1012)
    powered.clone(1012)
    powered.hypervisor.configure(1012, spec, owner=OWNER)
    powered.hypervisor.snapshot(1012, "clean", owner=OWNER)
    driver.attach(1012, volid, owner=OWNER)
    write = (
        "mkfs.ext4 -q $dev; mount $dev /mnt; head -c 16M /dev/urandom >/mnt/x; "
        "echo changed >/root/mark; umount /mnt; sync; sha256sum <$dev"
    )
    read = "test ! -e /root/mark && fsck.ext4 -fn $dev >&2 && sha256sum <$dev"
    sums = []
    for script in (write, read):
        powered.hypervisor.start(1012, owner=OWNER)
        powered.wait(1012, spec)
        until_seen(powered, 1012, there=True)
        sums.append(powered.say(1012, f"{_DEVICE}; {script}", timeout=300))
        powered.hypervisor.stop(1012, owner=OWNER)
        with pytest.raises(Conflict, match="is attached to it"):
            powered.hypervisor.rollback(1012, "clean", owner=OWNER)
        driver.detach(1012, volid, owner=OWNER)
        powered.hypervisor.rollback(1012, "clean", owner=OWNER)
        driver.attach(1012, volid, owner=OWNER)
    assert sums[0] == sums[1]
    assert list(powered.hypervisor.snapshots(1012)) == ["clean"]

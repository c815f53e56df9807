"""The workspace's disk, mounted and unmounted: with real block devices and real programs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.guest import main as guest_main
from agentlab.guest.workdisk import Superblock
from tests.unit.guest.loops import ROOT, UID, Machine, run
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems: needs root")


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Machine]:
    """A machine whose disk is not plugged in."""
    machine = Machine.make(tmp_path)
    try:
        yield machine
    finally:
        machine.close()


@pytest.fixture
def machine(bare: Machine) -> Machine:
    bare.plug()
    return bare


@pytest.fixture
def mounted(machine: Machine) -> Machine:
    assert machine.do("mount", "--make")["made"] is True
    machine.run("sh", "-c", f"echo kept >{machine.work}/file")
    return machine


def digest(machine: Machine) -> str:
    run("sync", machine.device)
    return hashlib.sha256(machine.image.read_bytes()).hexdigest()


def content(machine: Machine) -> str:
    return machine.run("cat", machine.work / "file")


# Mounting


def test_a_blank_disk_is_made_once_and_mounted_again(machine: Machine) -> None:
    first = machine.do("mount", "--make")
    assert (first["mounted"], first["made"], first["grown"]) == (True, True, False)
    assert first["device"] == machine.device
    assert 32 << 20 < first["free"] <= first["size"] <= 64 << 20
    assert machine.run("stat", "-c", "%u:%g", machine.work) == f"{UID}:{UID}"
    options = machine.run("findmnt", "-no", "OPTIONS", machine.work).split(",")
    assert {"rw", "nodev", "nosuid", "errors=remount-ro"} <= {*options, "errors=remount-ro"}
    machine.run("sh", "-c", f"echo kept >{machine.work}/file")
    again = machine.do("mount", "--make")
    assert (again["mounted"], again["made"]) == (True, False)
    for _ in range(2):
        assert machine.do("unmount") == {"mounted": False}
    assert machine.do("mount", "--make")["made"] is False
    assert content(machine) == "kept"
    status = machine.do("status")
    assert (status["mounted"], status["present"]) == (True, True)


def test_a_blank_disk_is_left_blank_unless_it_is_to_be_made(machine: Machine) -> None:
    before = digest(machine)
    assert machine.do("mount")["error"] == "blank"
    assert machine.do("mount", "--boot", "--wait", "0") == {"mounted": False}
    assert digest(machine) == before
    assert machine.do("status")["mounted"] is False


def test_a_disk_that_comes_late_is_waited_for(bare: Machine) -> None:
    begun = time.monotonic()
    assert bare.do("mount", "--make", "--wait", "0.5")["error"] == "absent"
    assert time.monotonic() - begun > 0.5
    assert bare.do("mount", "--boot", "--wait", "0") == {"mounted": False}
    assert bare.do("unmount") == {"mounted": False}
    assert bare.do("status") == {"mounted": False, "present": False, "size": None, "free": None}
    late = bare.start("mount", "--make", "--wait", "30")
    time.sleep(0.5)
    bare.plug()
    assert json.loads(late.communicate()[0])["mounted"] is True


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ("mkfs.ext4 -q -F -L photos $dev", "photos"),
        ("mkfs.ext4 -q -F $dev", "TYPE=ext4"),
        ("mkswap -q $dev || mkswap $dev", "TYPE=swap"),
        ("echo 'label: gpt' | sfdisk -q --no-reread --no-tell-kernel $dev", "PTTYPE=gpt"),
        ("echo somebody | dd of=$dev bs=1 seek=4096 conv=notrunc", "not blank"),
        ("echo somebody | dd of=$dev bs=1M seek=63 conv=notrunc", "not blank"),
    ],
)
def test_a_disk_with_anything_else_is_not_touched(
    machine: Machine, script: str, named: str
) -> None:
    run("sh", "-ec", f"dev={machine.device}; {script}; sync $dev")
    before = digest(machine)
    for words in (("--make",), ()):
        answer = machine.do("mount", *words)
        assert answer["error"] == "foreign"
        assert named in answer["detail"]
    assert digest(machine) == before


@pytest.mark.parametrize("mib", [64, 256])
def test_a_damaged_file_system_is_refused_and_not_made_anew(tmp_path: Path, mib: int) -> None:
    """With its inode table overwritten; and with its first superblock, when there is a copy."""
    machine = Machine.make(tmp_path, mib)
    try:
        machine.plug()
        machine.do("mount", "--make")
        machine.run("sh", "-c", f"seq 1000 | while read n; do echo $n >{machine.work}/$n; done")
        machine.do("unmount")
        if mib == 64:
            found = run("dumpe2fs", machine.device)
            at = found.partition("Inode table at ")[2].partition("-")[0]
            where = ("bs=4096", f"seek={at}", "count=4")
        else:
            where = ("bs=4096", "seek=0", "count=1")
        run("dd", "if=/dev/urandom", f"of={machine.device}", *where, "conv=notrunc,fsync")
        before = digest(machine)
        answer = machine.do("mount", "--make")
        assert answer["error"] == "damaged", answer
        if mib != 64:
            assert digest(machine) == before
    finally:
        machine.close()


def test_the_journal_of_a_power_cut_is_replayed(mounted: Machine) -> None:
    mounted.run("sync", "-f", mounted.work / "file")
    copy = mounted.top / "copy"
    shutil.copy(mounted.image, copy)  # as it is on the disk while it is mounted
    assert "needs_recovery" in run("dumpe2fs", "-h", copy)
    mounted.do("unmount")
    mounted.unplug()
    mounted.plug(copy)
    answer = mounted.do("mount")
    assert (answer["mounted"], answer["made"]) == (True, False)
    assert content(mounted) == "kept"
    mounted.do("unmount")
    assert "needs_recovery" not in run("dumpe2fs", "-h", mounted.device)
    run("e2fsck", "-fn", mounted.device)


def _may_resize() -> bool:
    """Whether we have CAP_SYS_RESOURCE, without which ext4 does not grow while it is mounted."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> 24 & 1)


@pytest.mark.parametrize("online", [True, False])
def test_a_larger_disk_makes_a_larger_file_system(mounted: Machine, online: bool) -> None:
    if not online:
        mounted.do("unmount")
    run("truncate", "-s", "200M", mounted.image)
    run("losetup", "-c", mounted.device)
    answer = mounted.do("mount")
    assert answer["mounted"] is True
    assert content(mounted) == "kept"
    if _may_resize():
        assert answer["grown"] is True
        assert answer["size"] > 150 << 20
        assert mounted.do("mount")["grown"] is False
    else:  # what could not be grown is mounted all the same, and says so
        assert answer["grown"] is False
        assert "resize2fs" in answer["warning"]
    mounted.do("unmount")
    run("e2fsck", "-fn", mounted.device)


_KILLED = """\
import itertools, os
from agentlab.guest import work, workdisk
counted = itertools.count(1)
def watched(call):
    def new(*words, **named):
        if next(counted) == {moment}:
            os.kill(os.getpid(), 9)
        return call(*words, **named)
    return new
for name in ("pwrite", "fsync", "unlink", "truncate"):
    setattr(os, name, watched(getattr(os, name)))
"""


def test_making_it_may_be_cut_off_at_any_moment(bare: Machine) -> None:
    """Killed at each write, what is left is made anew, and what was used never is."""
    begun, killed = 0, True
    for moment in range(1, 200):
        bare.image.unlink()
        run("truncate", "-s", "64M", bare.image)
        bare.plug()
        argv = bare.command("mount", "--make")
        at = argv.index("-c") + 1
        argv[at] = _KILLED.format(moment=moment) + argv[at]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, check=False)
        killed = done.returncode == -signal.SIGKILL
        if not killed:
            break
        begun += "begun" in str(bare.do("mount").get("detail"))
        assert bare.do("mount", "--make")["mounted"] is True
        bare.run("sh", "-c", f"echo kept >{bare.work}/file")
        bare.do("unmount")
        assert bare.do("mount", "--make")["made"] is False
        assert content(bare) == "kept"
        bare.do("unmount")
        run("e2fsck", "-fn", bare.device)
        bare.unplug()
    assert not killed
    assert begun > 5
    assert not list((bare.top / "run").glob("work.new"))


def test_a_mkfs_that_outlives_the_runner_is_waited_for(machine: Machine) -> None:
    """It holds the lock too."""
    over = machine.top / "over"
    script = (
        "import os, signal\nfrom agentlab import run\nfrom agentlab.guest import work\n"
        "old = run.spawn\n"
        "def spawn(argv, **named):\n"
        f"    old(['sh', '-c', 'sleep 2; touch {over}'], **named)\n"
        "    os.kill(os.getpid(), 9)\n"
        "run.spawn = lambda argv, **named: (spawn if argv[0] == 'mkfs.ext4' else old)(argv, **named)\n"
    )
    argv = machine.command("mount", "--make")
    at = argv.index("-c") + 1
    argv[at] = script + argv[at]
    subprocess.run(argv, cwd=ROOT, check=False)
    assert machine.do("mount", "--make")["made"] is True
    assert over.exists()


def test_a_mark_over_a_file_system_with_files_does_not_cost_them(mounted: Machine) -> None:
    mounted.do("unmount")
    mark = b"agentlab-work: a file system is being made here\n".ljust(512, b"\0")
    with Path(mounted.device).open("r+b") as disk:
        disk.write(mark)
    answer = mounted.do("mount", "--make")
    assert (answer["mounted"], answer["made"]) == (True, False)
    assert content(mounted) == "kept"


def test_two_at_once_make_one_file_system(machine: Machine) -> None:
    both = [machine.start("mount", "--make") for _ in range(3)]
    answers = [json.loads(each.communicate()[0]) for each in both]
    assert sorted(answer["made"] for answer in answers) == [False, False, True]
    assert len(machine.run("findmnt", "-no", "TARGET", machine.device).splitlines()) == 1


def test_the_disk_of_the_system_and_two_disks_are_refused(machine: Machine) -> None:
    other = machine.top / "sys/loop-other"
    other.mkdir()
    (other / "serial").write_text("work\n")
    assert "more than one" in machine.do("mount", "--make")["detail"]
    shutil.rmtree(other)
    before = digest(machine)
    root = Path("/").stat().st_dev
    part = machine.top / "sys" / Path(machine.device).name / (Path(machine.device).name + "p1")
    part.mkdir()
    (part / "dev").write_text(f"{os.major(root)}:{os.minor(root)}\n")
    assert "system runs from" in machine.do("mount", "--make")["detail"]
    assert digest(machine) == before


def test_a_scsi_disk_tells_its_number_in_its_vital_product_data(machine: Machine) -> None:
    entry = machine.top / "sys" / Path(machine.device).name
    (entry / "serial").unlink()
    (entry / "device").mkdir()
    (entry / "device/vpd_pg80").write_bytes(b"\0\x80\0\x04work")
    assert machine.do("mount", "--make")["mounted"] is True
    machine.do("unmount")
    (entry / "device/vpd_pg80").write_bytes(b"\0\x80\0\x05worky")
    assert machine.do("mount", "--wait", "0")["error"] == "absent"


def test_a_link_in_place_of_the_directory_is_not_followed(machine: Machine) -> None:
    machine.work.symlink_to("/mnt")
    assert "not a directory" in machine.do("mount", "--make")["detail"]


def test_a_disk_that_was_pulled_while_mounted_gives_way_to_the_next(mounted: Machine) -> None:
    mounted.run("sync", "-f", mounted.work)
    copy = mounted.top / "copy"
    shutil.copy(mounted.image, copy)
    mounted.unplug()
    assert mounted.do("status")["mounted"] is False
    mounted.plug(copy)
    assert mounted.do("mount")["mounted"] is True
    assert content(mounted) == "kept"


# Unmounting

HOLDERS = {
    "cwd": "cd $work; echo on; exec sleep 100",
    "fd": "exec 5<$work/file; cd /; echo on; exec sleep 100",
    "exe": "cp /bin/sleep $work/tool; $work/tool 100 & echo on; wait",
    "mapped": (
        'cd /; exec python3 -c \'import mmap,sys,time; f=open(sys.argv[1],"r+b");'
        'm=mmap.mmap(f.fileno(),0); f.close(); print("on",flush=True); time.sleep(100)\' $work/file'
    ),
    "namespace": (
        "exec unshare --mount --propagation private sh -c 'cd /; echo on; exec sleep 100'"
    ),
}


@pytest.mark.parametrize("how", HOLDERS)
def test_who_keeps_it_is_named_and_force_ends_it(mounted: Machine, how: str) -> None:
    held = mounted.hold(f"work={mounted.work}; {HOLDERS[how]}")
    answer = mounted.do("unmount")
    assert answer["error"] == "busy"
    found = answer["processes"]
    assert [each["user"] for each in found] == ["root"]
    assert how == "exe" or found[0]["pid"] == held.pid
    assert content(mounted) == "kept"  # nothing was changed
    assert mounted.do("status")["mounted"] is True
    assert mounted.do("unmount", "--force") == {"mounted": False}
    held.wait(PATIENCE)
    assert mounted.do("status")["mounted"] is False
    assert mounted.do("mount")["mounted"] is True
    assert content(mounted) == "kept"


def test_a_name_is_made_printable_and_the_list_has_an_end(mounted: Machine) -> None:
    script = (
        "printf '\\033[31m\\nx' >/proc/self/comm; for n in $(seq 30); do "
        "(printf '\\033[31m\\nx' >/proc/self/comm; exec 5<file; read x </dev/zero) & done; "
        "echo on; wait"
    )
    mounted.hold(
        f"cd {mounted.work}; exec setpriv --reuid={UID} sh -c \"$(cat <<'END'\n{script}\nEND\n)\""
    )
    answer = mounted.do("unmount")
    assert len(answer["processes"]) == 20
    names = [each["name"] for each in answer["processes"]]
    assert all(name.isprintable() for name in names)
    assert {each["user"] for each in answer["processes"]} == {str(UID)}
    assert mounted.do("unmount", "--force") == {"mounted": False}


def test_who_does_not_listen_is_killed(mounted: Machine) -> None:
    held = mounted.hold(f"trap '' TERM; cd {mounted.work}; echo on; while :; do sleep 1; done")
    assert mounted.do("unmount", "--force") == {"mounted": False}
    assert held.wait(PATIENCE) == -signal.SIGKILL


def test_mounts_below_and_elsewhere_are_ended_by_force_only(mounted: Machine) -> None:
    inner = mounted.work / "inner dir"
    mounted.run("mkdir", inner)
    mounted.run("mount", "-t", "tmpfs", "none", inner)
    mounted.run("mkdir", mounted.top / "else")
    mounted.run("mount", "--bind", mounted.work, mounted.top / "else")
    mounted.run("mount", "-t", "tmpfs", "over", mounted.work)
    answer = mounted.do("unmount")
    assert answer["error"] == "busy"
    assert mounted.run("findmnt", "-no", "TARGET", inner) != ""
    mounted.hold(f"cd {mounted.top}/else; echo on; exec sleep 100")
    assert mounted.do("unmount", "--force") == {"mounted": False}
    assert mounted.do("mount")["mounted"] is True
    assert content(mounted) == "kept"


def test_what_the_kernel_keeps_is_named(mounted: Machine) -> None:
    mounted.run("truncate", "-s", "1M", mounted.work / "disk")
    loop = mounted.run("losetup", "-f", "--show", mounted.work / "disk")
    try:
        name = Path(loop).name
        (mounted.top / "sys" / name).symlink_to(f"/sys/block/{name}")
        for words in ((), ("--force",)):
            answer = mounted.do("unmount", *words)
            assert answer["error"] == "busy"
            assert f"{mounted.work}/disk is behind {loop}" in answer["detail"]
            assert answer["processes"] == []
        assert content(mounted) == "kept"
    finally:
        run("losetup", "-d", loop)


def test_a_process_that_stood_at_the_place_before_is_nobodys_holder(machine: Machine) -> None:
    machine.work.mkdir()
    before = machine.hold(f"cd {machine.work}; echo on; exec sleep 100")
    machine.do("mount", "--make")
    machine.hold(f"cd {machine.work}; echo on; exec sleep 100")
    answer = machine.do("unmount")
    assert [each["pid"] for each in answer["processes"]] == [machine.sleepers[-1].pid]
    assert machine.do("unmount", "--force") == {"mounted": False}
    assert before.poll() is None


# A sync that goes on until it is let
_SLOW_SYNC = (
    "import sys\n"
    "from agentlab import run\n"
    "old, top = run.spawn, sys.argv[1]\n"
    "wait = f'touch {top}/syncing; until [ -e {top}/go ]; do sleep 0.02; done'\n"
    "def spawn(argv, **named):\n"
    "    return old(['sh', '-c', wait] if argv[0] == 'sync' else argv, **named)\n"
    "run.spawn = spawn\n"
)


def slow(machine: Machine, *words: str) -> subprocess.Popen[bytes]:
    argv = machine.command(*words)
    at = argv.index("-c") + 1
    argv[at] = _SLOW_SYNC + argv[at]
    started = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)
    until((machine.top / "syncing").exists)
    return started


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_unmount_whose_time_is_over_changes_nothing(
    mounted: Machine, force: tuple[str, ...]
) -> None:
    """Whoever asked has given up by then, and may have had it mounted again."""
    held = mounted.hold(f"cd {mounted.work}; echo on; exec sleep 100")
    writing = slow(mounted, "unmount", *force, "--within", "0.5")
    waiting = mounted.start("unmount", *force, "--within", "0.5")
    mount = mounted.start("mount")
    for each in (waiting, writing):  # the time of the second began before that of the first
        if each is writing:
            (mounted.top / "go").touch()
        answer = json.loads(each.communicate()[0])
        assert answer["error"] == "late", answer
        assert each.returncode == 1
    assert json.loads(mount.communicate()[0])["mounted"] is True
    assert held.poll() is None
    assert mounted.do("status")["mounted"] is True
    assert mounted.do("unmount", "--force", "--within", "60") == {"mounted": False}


# The program


@pytest.mark.parametrize(
    "words",
    [[], ["look"], ["mount", "--wait"], ["mount", "--wait", "nan"], ["mount", "x"], ["status", "x"],
     ["unmount", "--force", "--force"], ["mount", "--wait", "-1"], ["unmount", "--within"],
     ["unmount", "--within", "nan"], ["unmount", "--wait", "1"], ["mount", "--within", "1"]],
)  # fmt: skip
def test_what_is_no_command_has_status_2(words: list[str]) -> None:
    assert guest_main.main(["work", *words]) == 2


def test_the_verbs_do_not_import_what_a_job_needs() -> None:
    script = (
        "import sys; from agentlab.__main__ import main; main(['agentlab', 'guest', 'work', 'x']);"
        "print(*sorted(name for name in sys.modules))"
    )
    argv = [sys.executable, "-S", "-c", script]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "agentlab.guest.work" in loaded
    assert not loaded & {
        "agentlab.guest.runner",
        "http.client",
        "ssl",
        "argparse",
        "urllib.request",
    }


def test_what_is_no_superblock_is_none() -> None:
    assert Superblock.parse(b"") is None
    assert Superblock.parse(bytes(1024)) is None
    wild = bytearray(b"\xff" * 1024)
    wild[0x38:0x3A] = b"\x53\xef"
    parsed = Superblock.parse(bytes(wild))
    assert parsed is not None
    assert parsed.mounted_before

"""The check of a file system on the host: what it says of what it saw, and what it leaves behind.

The states of real file systems are in tests/contract/test_volumes.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentlab import run
from agentlab.errors import Busy, NotFound, Unavailable, Unsupported
from agentlab.hypervisor import fsck
from agentlab.hypervisor.base import FileSystem
from agentlab.hypervisor.fsck import TEXT, Facts, check_device, check_image, judge, parse_facts
from agentlab.hypervisor.fsck_script import SCRIPT

NAME = "local:vm-1-x"


def facts(*statuses: int, kind: str = "ext4", **more: bool) -> Facts:
    seen = {"empty": False, "journal": False, "errors": False, **more}
    return Facts(kind, seen["empty"], seen["journal"], seen["errors"], statuses)


@pytest.mark.parametrize(
    ("seen", "repair", "state"),
    [
        (facts(0), False, FileSystem.CLEAN),
        (facts(0), True, FileSystem.CLEAN),
        (facts(0, journal=True), False, FileSystem.NEEDS_REPAIR),
        (facts(0, errors=True), False, FileSystem.NEEDS_REPAIR),
        (facts(4), False, FileSystem.NEEDS_REPAIR),
        (facts(8), False, FileSystem.NEEDS_REPAIR),
        (facts(139), False, FileSystem.NEEDS_REPAIR),
        (facts(), False, FileSystem.NEEDS_REPAIR),
        (facts(1, 0), True, FileSystem.REPAIRED),
        (facts(4, 1, 0), True, FileSystem.REPAIRED),
        (facts(0, journal=True), True, FileSystem.REPAIRED),
        (facts(8, 1, 0, kind=""), True, FileSystem.REPAIRED),
        (facts(1, 1, 1), True, FileSystem.UNREPAIRABLE),
        (facts(8, kind=""), True, FileSystem.UNREPAIRABLE),
        (facts(139), True, FileSystem.UNREPAIRABLE),
        (facts(kind="", empty=True), True, FileSystem.BLANK),
        (facts(kind="xfs"), False, FileSystem.UNREPAIRABLE),
    ],
)
def test_what_is_said_of_what_was_seen(seen: Facts, repair: bool, state: FileSystem) -> None:
    assert judge(seen, repair=repair)[0] is state


def test_the_facts_are_the_last_line_alone() -> None:
    """A name on the disk cannot be taken for them: they come after all that e2fsck says."""
    said = "facts type=ext4 empty=1 journal=0 errors=0 statuses=0\nPass 1\n"
    last = "facts type= empty=0 journal=1 errors=0 statuses=8,1,0\n"
    found = parse_facts(said + "\n" + last)
    assert found is not None
    assert found[1] == facts(8, 1, 0, kind="", journal=True)
    assert found[0].startswith("facts type=ext4")
    for cut in ("", said, "facts type=ext4 empty=0"):
        assert parse_facts(cut) is None


# --- for real ---


@pytest.fixture
def image(tmp_path: Path) -> Path:
    raw, path = tmp_path / "raw", tmp_path / "a,b c.qcow2"
    raw.write_bytes(b"")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", str(raw), "32M"], check=True)
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
    subprocess.run(argv, check=True)
    return path


def naming(path: Path) -> list[int]:
    """Processes that have this path among their words."""
    found = []
    for name in os.listdir("/proc"):
        try:
            words = Path("/proc", name, "cmdline").read_bytes() if name.isdecimal() else b""
        except OSError:
            continue
        if str(path).encode() in words and int(name) != os.getpid():
            found.append(int(name))
    return found


def test_nothing_is_left_when_we_are_killed_and_the_next_goes_on(
    image: Path, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    program = (
        "import sys; from pathlib import Path; from agentlab.hypervisor import fsck;"
        "cut = '    exec 6<'; assert cut in fsck.SCRIPT;"
        "stop = f'touch {sys.argv[2]}; sleep 60' + chr(10);"
        "fsck.SCRIPT = fsck.SCRIPT.replace(cut, stop + cut);"
        "fsck.check_image(Path(sys.argv[1]), 'qcow2', 'x', repair=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(image), str(stopped)]) as daemon:
        try:
            until = time.monotonic() + 30
            while not stopped.exists():
                assert time.monotonic() < until
                assert daemon.poll() is None
                time.sleep(0.02)
            assert len(naming(image)) > 2
            assert str(tmp_path) not in Path("/proc/self/mounts").read_text(), "others see no mount"
        finally:
            daemon.kill()
    found = check_image(image, "qcow2", NAME, repair=True)
    assert found.state is FileSystem.CLEAN, found
    until = time.monotonic() + 10
    while naming(image):
        assert time.monotonic() < until, naming(image)
        time.sleep(0.02)


@contextmanager
def held(image: Path) -> Iterator[None]:
    """Another process has the image open to write."""
    argv = ["qemu-io", "-f", "qcow2", str(image)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe) as other:
        assert other.stdin
        assert other.stdout
        other.stdin.write(b"read 0 512\n")
        other.stdin.flush()
        other.stdout.readline()
        yield
        other.stdin.close()


@pytest.mark.parametrize("repair", [False, True])
def test_an_image_that_is_in_use_is_not_touched(
    image: Path, monkeypatch: pytest.MonkeyPatch, repair: bool
) -> None:
    monkeypatch.setattr(fsck, "_PATIENCE", 0.3)
    with held(image), pytest.raises(Busy):
        check_image(image, "qcow2", NAME, repair=repair)
    assert check_image(image, "qcow2", NAME, repair=repair).state is FileSystem.CLEAN


def test_what_reads_the_file_system_can_do_nothing_else(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = "id -u; id -G; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; wc -l </proc/net/dev; ls -d /proc/[0-9]* | wc -l; ulimit -v"
    patched = SCRIPT.replace('confined e2fsck "$@" "$disk"', f'confined sh -c "{probe}"')
    assert patched != SCRIPT
    monkeypatch.setattr(fsck, "SCRIPT", patched)
    said = check_image(image, "qcow2", NAME, repair=False).text.split("\n")
    assert said[:2] == ["65534", "65534"]
    assert said[2].split() == ["CapBnd:", "0" * 16] or said[2].split() == ["CapEff:", "0" * 16]
    assert said[3].split()[1] == "0" * 16
    assert said[4].split() == ["NoNewPrivs:", "1"]
    assert int(said[5]) == 3, "two lines of headings and lo"
    assert int(said[6]) < 20, "it sees no process of the host"
    assert int(said[7]) == 4 << 20


def test_what_e2fsck_says_is_bounded_and_printable(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood = "yes $(printf '\\\\033[2Jx\\\\377') | head -n 100000; printf 'the end\\\\007'"
    patched = SCRIPT.replace('confined e2fsck "$@" "$disk"', f'confined sh -c "{flood}"')
    monkeypatch.setattr(fsck, "SCRIPT", patched)
    text = check_image(image, "qcow2", NAME, repair=False).text
    assert len(text.encode()) <= TEXT
    assert all(c.isprintable() or c in "\n\t" for c in text)
    assert text.endswith("the end\\x07")


def test_a_raw_file_and_a_device(image: Path, tmp_path: Path) -> None:
    """A loop device stands for an LV or a zvol, of which this kernel has none."""
    raw = tmp_path / "raw"
    assert check_image(raw, "raw", NAME, repair=False).state is FileSystem.CLEAN
    spoil = ["debugfs", "-w", "-R", "feature needs_recovery", str(raw)]
    subprocess.run(spoil, check=True, capture_output=True)
    device = run.run(["losetup", "--find", "--show", raw], timeout=20).text.strip()
    try:
        states = [check_device(Path(device), NAME, repair=each).state for each in (False, True)]
        assert states == [FileSystem.NEEDS_REPAIR, FileSystem.REPAIRED]
        found = check_device(Path(device), NAME, repair=False)
        assert found.state is FileSystem.CLEAN
        assert NAME in found.text
    finally:
        run.run(["losetup", "--detach", device], timeout=20)


def test_where_it_cannot_the_guides_words_are_said(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(why: str, device: Path | None = None) -> None:
        with pytest.raises(Unsupported, match="unsupported volume path") as told:
            if device:
                check_device(device, NAME, repair=False)
            else:
                check_image(image, "qcow2", NAME, repair=False)
        assert why in told.value.message
        assert told.value.hint == (
            "use a maintenance sandbox, or run fsck manually on the storage host"
        )

    refused("is no block device", image)
    refused("there is no /dev/pve/vm-1-x", Path("/dev/pve/vm-1-x"))
    with pytest.raises(NotFound):
        check_image(tmp_path / "gone.qcow2", "qcow2", NAME, repair=False)
    programs = tmp_path / "bin"
    programs.mkdir()
    stand_in = programs / "qemu-storage-daemon"
    stand_in.write_text("#!/bin/sh\necho '--export [type=]nbd'\n")
    stand_in.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        refused("no FUSE export")
        stand_in.write_text(
            '#!/bin/sh\n[ "$1" != --help ] || echo fuse\n'
            "echo 'Failed to mount FUSE session to export' >&2; exit 1\n"
        )
        refused("cannot be exported by FUSE")
        patch.setenv("PATH", str(programs))
        refused("this host has no e2fsck")
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1000)
        refused("takes root")


def test_an_image_that_is_damaged_itself_is_told(image: Path) -> None:
    image.write_bytes(b"no image")
    with pytest.raises(Unavailable, match="not in qcow2 format"):
        check_image(image, "qcow2", NAME, repair=False)

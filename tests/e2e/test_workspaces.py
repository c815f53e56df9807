"""A workspace's content through all that is done with it, in real VMs, with the one file.

One workspace with random content goes from test to test: each finds it detached and as it was
written first, and leaves it so.  `make soak` does it with 1 GB; what was measured is printed at
the end of a run.
"""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.workspaces import (
    Place,
    findings,
    inode_of,
    overwrite,
    volumes,
    workspace_laboratory,
)

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(3600)]

CHANGE = "echo other >/work/more; dd if=/dev/urandom of=/work/data bs=1M seek=3 count=2 conv=notrunc status=none; sync"


@dataclass
class Kept:
    """The workspace `data` of two sandboxes, and the checksum of its content."""

    place: Place
    digest: str
    one: str
    two: str

    def attach(self, box: str) -> None:
        self.place.run(f"workspace attach data {box}", what="attach, hot")

    def detach(self) -> None:
        self.place.run("workspace detach data", what="detach")

    def another_two(self) -> None:
        """What was sandbox `two` is destroyed, or nobody wants it any more."""
        self.place.lab.cli("sandbox", "destroy", "--force", "two")
        self.two = self.place.box("two")

    def check(self, box: str = "one") -> None:
        """Attached there, it has what was written first."""
        self.attach(box)
        assert self.place.sum(box) == self.digest
        self.detach()


@pytest.fixture(scope="module", params=[64, pytest.param(1024, marks=pytest.mark.soak)])
def kept(request: pytest.FixtureRequest, program: Path) -> Iterator[Kept]:
    with workspace_laboratory(program, request.param) as place:
        boxes = (place.box("one"), place.box("two"))  # there are never more for long
        place.run(f"workspace create data --size {request.param * 3}M", what="create")
        place.run("workspace attach data one", what="attach, the first time: mkfs")
        digest = place.fill("one")
        place.run("workspace detach data", what="detach")
        yield Kept(place, digest, *boxes)
        place.detached("data")
        place.run("workspace delete --yes data")
        assert volumes(place.lab) == []
        cuts = "stopped behind our back"  # what the daemon says of a power cut
        assert [each for each in place.lab.warnings() if cuts not in each] == []


@pytest.fixture(autouse=True)
def tell(kept: Kept, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    kept.place.tell(request.node)


def test_it_goes_from_sandbox_to_sandbox(kept: Kept) -> None:
    place = kept.place
    assert place.show("data")["state"] == "DETACHED"
    kept.attach("two")
    shown = place.show("data")
    assert (shown["state"], shown["vmid"]) == ("ATTACHED", int(kept.two))
    assert place.sum("two") == kept.digest
    assert place.say("two", "stat -c %U /work /work/data") == "agent\nagent"
    assert place.say("two", "lsblk -no LABEL $(findmnt -no SOURCE /work)") == "agentlab-work"
    said = place.run("workspace attach data one", 1)  # at most one has it
    assert kept.two in said
    assert place.say("one", "mountpoint /work || true").endswith("is not a mountpoint")
    kept.detach()
    assert findings(place.lab, "data") == []


def test_it_is_put_back_to_a_snapshot_and_grows(kept: Kept) -> None:
    place = kept.place
    kept.attach("one")
    room = "df --output=size -B1M /work | tail -1"
    before = int(place.say("one", room))
    for verb in ("snapshot create data before", "fork data --name never", "fsck data"):
        said = place.run(f"workspace {verb}", 1)
        assert f"attached to sandbox {kept.one}" in said
        assert "agentlab workspace detach data" in said
    kept.detach()
    place.run("workspace snapshot create data before", what="snapshot")
    kept.attach("one")
    place.say("one", CHANGE)
    kept.detach()
    place.run("workspace snapshot restore data before", 3)  # asks, and there is nobody
    place.run("workspace snapshot restore --yes data before", what="restore")
    place.run(f"workspace resize data --size {place.mib * 4}M", what="resize")
    kept.attach("two")
    assert int(place.say("two", room)) > before + place.mib * 0.9
    assert place.sum("two") == kept.digest
    assert place.say("two", "ls /work") == "data\nlost+found"
    kept.detach()


def test_a_fork_and_its_source_leave_each_other_alone(kept: Kept) -> None:
    place = kept.place
    said = place.run("workspace fork data --name try --from-snapshot before", what="fork")
    assert "the fork of workspace data is a whole copy" in said
    place.run("workspace attach try two", what="attach, hot")
    kept.attach("one")  # both at once
    assert place.sum("two") == kept.digest
    place.say("two", CHANGE)
    assert place.sum("one") == kept.digest
    kept.detach()
    place.run("workspace detach try", what="detach")
    place.run("workspace delete --yes try")
    place.run("workspace snapshot delete --yes data before")


def test_its_sandbox_is_reverted_stopped_and_destroyed(kept: Kept) -> None:
    place = kept.place
    kept.attach("two")
    place.say("two", "echo x >/root/mark; echo later >/work/later; sync")
    place.run("sandbox revert --yes two", what="revert of its sandbox")
    assert place.say("two", "ls /root; cat /work/later") == "later"
    assert place.sum("two") == kept.digest
    place.say("two", "echo x >/root/mark; sync")
    place.run("sandbox stop two")
    place.run("sandbox snapshot save two marked")
    kept.detach()
    kept.attach("two")  # without power
    place.run("sandbox revert --yes two")
    place.run("sandbox snapshot restore --yes --restart two marked", what="restore of its sandbox")
    assert place.say("two", "cat /root/mark /work/later") == "x\nlater"
    assert place.sum("two") == kept.digest
    place.say("two", "rm /work/later; echo unsynced >/work/last")
    place.run("sandbox destroy --force two")
    assert place.show("data")["state"] == "DETACHED"
    kept.attach("one")
    assert place.say("one", "cat /work/last; rm /work/last") == "unsynced"
    assert place.sum("one") == kept.digest
    kept.detach()
    kept.another_two()


def test_who_uses_it_is_named_and_ended_by_force(kept: Kept) -> None:
    place = kept.place
    kept.attach("one")
    place.say("one", "cd /work; nohup sleep 1000 >log 2>&1 &", user="agent")
    said = place.run("workspace detach data", 1)
    assert f"it is in use in sandbox {kept.one}" in said
    assert "sleep (" in said
    assert "--force" in said
    assert place.say("one", "pgrep -x sleep; ls /work").endswith("data\nlog\nlost+found")
    said = place.run("workspace rebind --yes data --name new", 1)
    assert "sleep (" in said
    assert place.show("data")["sandbox"] == "one"
    assert place.say("one", "pgrep -x sleep; ls /work").endswith("data\nlog\nlost+found")
    assert place.lab.ask("sandbox", "show", "new")["state"] == "DESTROYED"
    place.run("workspace detach --force data")
    assert place.say("one", "pgrep -x sleep || echo none") == "none"
    kept.attach("one")
    assert place.say("one", "rm /work/log; ls /work") == "data\nlost+found"
    kept.detach()


def test_a_power_cut_while_it_is_written(kept: Kept) -> None:
    place = kept.place
    kept.attach("two")
    place.say(
        "two",
        "mkdir /work/many; nohup sh -c 'i=0; while :; do i=$((i+1)); head -c 20000 /dev/urandom"
        " >/work/many/$i; echo $i >/work/count; sync -f /work; echo $i >/run/synced; done'"
        " >/dev/null 2>&1 &",
    )
    while (synced := int(place.say("two", "cat /run/synced 2>/dev/null || echo 0"))) < 3:
        time.sleep(0.2)
    place.cut_power(kept.two)
    place.run("workspace detach data")
    said = place.run("workspace fsck data", 1, what="fsck after a power cut")
    assert "NEEDS REPAIR" in said
    said = place.run("workspace fsck data --repair", what="fsck --repair after a power cut")
    assert "REPAIRED" in said.upper()
    said = place.run("workspace fsck data", what="fsck")
    assert "clean" in said
    kept.attach("one")
    assert place.sum("one") == kept.digest
    assert int(place.say("one", "cat /work/count")) >= synced
    for_each = f"for i in $(seq {synced}); do test $(stat -c %s /work/many/$i) = 20000; done"
    place.say("one", f"{for_each}; rm -r /work/many /work/count")
    kept.detach()
    kept.another_two()


@pytest.mark.soak
def test_a_power_cut_without_fsck(kept: Kept) -> None:
    """The guest that has it next replays the journal by itself."""
    place = kept.place
    kept.attach("two")
    place.say("two", "echo kept >/work/synced; sync -f /work; echo lost >/work/unsynced")
    place.cut_power(kept.two)
    place.run("sandbox destroy --force two")
    assert place.show("data")["state"] == "DETACHED"
    kept.attach("one")
    assert place.say("one", "cat /work/synced; rm -f /work/synced /work/unsynced") == "kept"
    assert place.sum("one") == kept.digest
    kept.detach()
    kept.another_two()


# --- a damaged file system ---


def refused_and_mended(place: Place) -> None:
    """What is damaged is not attached; a look changes nothing; a repair mends it."""
    said = place.run("workspace attach data one", 1)
    assert "its file system is damaged" in said
    assert "agentlab workspace fsck data" in said
    assert place.show("data")["state"] == "DETACHED"
    before = hashlib.sha256(place.image("data").read_bytes()).digest()
    said = place.run("workspace fsck data", 1, what="fsck of a damaged one")
    assert "NEEDS REPAIR" in said
    assert hashlib.sha256(place.image("data").read_bytes()).digest() == before
    place.run("workspace fsck data --repair", what="fsck --repair of a damaged one")
    assert "clean" in place.run("workspace fsck data", what="fsck")


@pytest.mark.soak
def test_a_superblock_that_is_gone(kept: Kept) -> None:
    overwrite(kept.place.image("data"), 1024, 1024)
    refused_and_mended(kept.place)
    kept.check()


def test_a_directory_that_is_gone(kept: Kept, tmp_path: Path) -> None:
    """Nothing says so until the guest's kernel comes upon it."""
    place = kept.place
    kept.attach("one")
    place.say("one", "mkdir /work/broken; echo kept >/work/broken/inside")
    kept.detach()
    image = place.image("data")
    overwrite(image, inode_of(image, "/broken", tmp_path), 128)
    kept.attach("one")
    assert "cannot access" in place.say("one", "ls /work/broken 2>&1 || true")
    assert place.say("one", "touch /work/x 2>&1 || true").endswith("Read-only file system")
    kept.detach()
    refused_and_mended(place)
    kept.attach("one")
    found = "find /work/lost+found /work/broken -type f -exec cat {} + 2>/dev/null || true"
    assert place.say("one", found) == "kept"
    place.say("one", "rm -rf /work/broken /work/lost+found/*")
    assert place.sum("one") == kept.digest
    kept.detach()


# --- the daemon is killed in the midst ---


MORE = pytest.mark.soak


@pytest.mark.parametrize("moment", ["after:do:attach", pytest.param("after:do:mount", marks=MORE)])
def test_a_killed_attach_ends(kept: Kept, moment: str) -> None:
    place = kept.place
    place.killed_at(moment, "workspace attach data one")
    assert place.last("workspace.attach") == ("done", "")
    assert place.sum("one") == kept.digest
    kept.detach()


@pytest.mark.parametrize(
    "moment", ["after:do:detach", pytest.param("after:do:unmount", marks=MORE)]
)
def test_a_killed_detach_ends(kept: Kept, moment: str) -> None:
    place = kept.place
    kept.attach("one")
    place.say("one", "echo unsynced >/work/last")
    place.killed_at(moment, "workspace detach data")
    assert place.last("workspace.detach") == ("done", "")
    assert place.show("data")["state"] == "DETACHED"
    kept.attach("two")
    assert place.say("two", "cat /work/last; rm /work/last") == "unsynced"
    kept.detach()


@MORE
def test_what_is_killed_while_it_is_detached_ends(kept: Kept) -> None:
    """Snapshot, restore, fork, fsck and resize, one after the other."""
    place, size = kept.place, kept.place.mib * 5
    place.killed_at("after:do:snapshot", "workspace snapshot create data killed")
    assert place.last("workspace.snapshot") == ("done", "")
    assert "killed" in place.run("workspace snapshot list data")
    kept.attach("one")
    place.say("one", CHANGE)
    kept.detach()
    place.killed_at("after:do:rollback", "workspace snapshot restore --yes data killed")
    assert place.last("workspace.restore") == ("done", "")
    place.run("workspace snapshot delete --yes data killed")
    place.killed_at("after:do:copy", "workspace fork data --name copy")
    assert place.last("workspace.fork") == ("done", "")
    place.killed_after(0.2, "workspace fork data --name copy2")  # in the midst of the copying
    assert place.last("workspace.fork") == ("done", "")
    assert len(volumes(place.lab)) == 3
    for each in ("copy", "copy2"):
        same = ["qemu-img", "compare", place.image("data"), place.image(each)]
        subprocess.run(same, check=True, capture_output=True)
        place.run(f"workspace delete --yes {each}")
    place.killed_after(0.2, "workspace fsck data --repair")
    assert place.last("workspace.fsck") == ("done", "")
    place.killed_at("after:do:grow", f"workspace resize data --size {size}M")
    assert place.last("workspace.resize") == ("done", "")
    assert place.show("data")["size"] == size
    kept.check()


def test_a_killed_revert_of_its_sandbox_ends(kept: Kept) -> None:
    """The root disk is back, and the work disk is out: the next daemon gives it back."""
    place = kept.place
    kept.attach("two")
    place.say("two", "echo x >/root/mark; sync; echo unsynced >/work/last")
    place.killed_at("after:do:rollback", "sandbox revert --yes two")
    assert place.last("sandbox.revert") == ("done", "")
    assert place.say("two", "ls /root; cat /work/last; rm /work/last") == "unsynced"
    assert place.sum("two") == kept.digest
    kept.detach()


def test_a_killed_rebind_ends(kept: Kept) -> None:
    place = kept.place
    kept.attach("two")
    place.killed_at("after:do:detach", "workspace rebind --yes data --name new")  # nobody has it
    assert place.last("workspace.rebind") == ("done", "")
    assert place.lab.ask("sandbox", "show", kept.two)["state"] == "DESTROYED"
    assert place.sum("new") == kept.digest
    place.run("workspace rebind --yes data --name two", what="rebind, with a new sandbox")
    shown = place.show("data")
    assert shown["sandbox"] == "two"
    kept.two = str(shown["vmid"])
    assert place.lab.ask("sandbox", "show", "new")["state"] == "DESTROYED"
    assert place.sum("two") == kept.digest
    kept.detach()

"""What the tests of workspaces and sessions share: a laboratory, its sandboxes, and random content
whose checksum is taken inside of the guest, from the disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.lab import ROOT, Lab, laboratory
from tests.tables import Table

TIMES = Table("Workspaces and sessions in real VMs: seconds at the command line", ("what",))
KILLER = [sys.executable, str(ROOT / "tests/fakes/killing_daemon.py")]
_OPEN = "SELECT kind, id FROM operation WHERE state IN ('doing', 'undoing')"


@dataclass
class Place:
    """`mib` of random content are what the tests go by."""

    lab: Lab
    mib: int = 64
    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self, line: str, status: int = 0, *, what: str = "") -> str:
        """Runs a line of the client, whose words have no spaces; `what` is its row in the table."""
        begun = time.monotonic()
        done = self.lab.cli(*line.split())
        seconds = time.monotonic() - begun
        said = done.stdout + done.stderr
        print(f"\n$ agentlab {line}\n{said.rstrip()}\n[status {done.returncode}, {seconds:.1f} s]")
        assert done.returncode == status, said
        if what:
            self.took[what].append(seconds)
        return said

    def say(self, box: str, script: str, *, user: str = "root") -> str:
        """What a script in a sandbox prints; it must end well."""
        done = self.lab.cli("sandbox", "exec", "--user", user, box, "--", "sh", "-ec", script)
        assert done.returncode == 0, done
        return done.stdout.strip()

    def box(self, name: str) -> str:
        """Makes a sandbox; its VMID."""
        return str(self.lab.ask("sandbox", "new", "--profile", "box", "--name", name)["vmid"])

    def fill(self, box: str) -> str:
        """Writes random content; its checksum as read from the disk."""
        self.say(box, f"head -c {self.mib}M /dev/urandom >/work/data; sync", user="agent")
        return self.sum(box)

    def sum(self, box: str) -> str:
        """Of the content at /work, of which the guest's memory has nothing any more."""
        begun = time.monotonic()
        said = self.say(
            box, "mountpoint -q /work; echo 3 >/proc/sys/vm/drop_caches; sha256sum </work/data"
        )
        self.took["sha256 in the guest"].append(time.monotonic() - begun)
        return said.split()[0]

    def show(self, workspace: str) -> dict[str, object]:
        return self.lab.ask("workspace", "show", workspace)

    def image(self, workspace: str) -> Path:
        """The image of its volume."""
        return self.lab.scratch / f"data/volumes/{self.show(workspace)['number']}/disk.qcow2"

    def volumes(self) -> list[str]:
        """The volumes that there are."""
        return volumes(self.lab)

    def detached(self, workspace: str) -> None:
        """Whatever has it gives it up."""
        self.run(f"workspace detach {workspace}")
        assert self.show(workspace)["state"] == "DETACHED"

    def cut_power(self, vmid: str) -> None:
        """Its QEMU is shot."""
        machine = self.lab.scratch / "data/machines" / vmid
        found = [
            pid for pid in self.lab.processes() if Path(f"/proc/{pid}/cwd").readlink() == machine
        ]
        assert len(found) == 1
        os.kill(found[0], signal.SIGKILL)

    def settle(self, timeout: float = 300.0) -> None:
        """Waits until no operation is under way."""
        until = time.monotonic() + timeout
        while self.lab.rows(_OPEN):
            assert time.monotonic() < until, (
                self.lab.rows(_OPEN),
                self.lab.log.read_text()[-3000:],
            )
            time.sleep(0.1)

    def last(self, kind: str) -> tuple[object, ...]:
        """State and error of the operation of a kind that was asked for last."""
        return self.lab.rows(
            f"SELECT state, error FROM operation WHERE kind = '{kind}'"
            " ORDER BY created DESC, id DESC LIMIT 1"
        )[0]

    def killed_at(self, moment: str, line: str) -> None:
        """Asks a daemon for an operation that is killed at a moment of it; another one ends it."""
        assert self.lab.stop() == 0
        killer = [*KILLER, "--kill", moment]
        self.lab.across_death(lambda: self.run(f"{line} --no-wait"), killer)
        self.settle()

    def killed_after(self, seconds: float, line: str) -> None:
        """As `killed_at`, of the daemon proper, at a time."""
        self.run(f"{line} --no-wait")
        time.sleep(seconds)
        assert self.lab.kill() == -signal.SIGKILL
        self.lab.start()
        self.settle()

    def tell(self, item: pytest.Item) -> None:
        """Puts what was measured so far into the table."""
        for what, each in self.took.items():
            least, most = f"{min(each):.1f}", f"{max(each):.1f}"
            cell = f"{least} to {most} ({len(each)} times)" if least != most else most
            TIMES.note(item, [what], {f"{self.mib} MiB": cell})


@contextlib.contextmanager
def workspace_laboratory(program: Path, mib: int = 64) -> Iterator[Place]:
    """A laboratory with the one file, a template and the profile `box`; nothing may be left over."""
    with laboratory([sys.executable, str(program)]) as lab:
        lab.profile("box", "true", ttl="4h")
        lab.start()
        built = lab.cli("template", "build", "debian-12", timeout=1800)
        assert built.returncode == 0, built.stderr
        place = Place(lab, mib)
        yield place
        for each in lab.rows("SELECT vmid FROM sandbox WHERE state != 'DESTROYED'"):
            lab.cli("sandbox", "destroy", "--force", str(each[0]))
        assert lab.leftovers() == []
        assert lab.stop() == 0


def overwrite(image: Path, at: int, length: int) -> None:
    """Damages what the guest sees of an image that nobody has."""
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P 0x5a {at} {length}", image],
        check=True, capture_output=True,
    )  # fmt: skip


def inode_of(image: Path, path: str, scratch: Path) -> int:
    """At which byte the inode of a file begins, by debugfs(8)."""
    raw = scratch / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    said = subprocess.run(
        ["debugfs", "-R", f"imap {path}", raw], check=True, capture_output=True, text=True
    ).stdout
    raw.unlink()
    found = re.search(r"located at block (\d+), offset 0x([0-9a-f]+)", said)
    assert found, said
    return int(found[1]) * 4096 + int(found[2], 16)


def volumes(lab: Lab) -> list[str]:
    """The volumes that there are."""
    return sorted(path.name for path in (lab.scratch / "data/volumes").glob("[0-9]*"))


def findings(lab: Lab, workspace: str) -> list[object]:
    """What `workspace check` finds."""
    done = lab.cli("workspace", "check", workspace, "--json")
    found = json.loads(done.stdout)["findings"]
    assert isinstance(found, list)
    assert (done.returncode == 0) == (found == [])
    return found


def number_in(said: str, pattern: str) -> str:
    """The only group of a pattern that must be in what was said."""
    found = re.search(pattern, said, re.MULTILINE)
    assert found, said
    return found[1]

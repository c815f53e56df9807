"""A machine's disks for `agentlab guest work`: loop devices, in a mount namespace of its own.

What sysfs says of the disk (its serial number, its device number) is in a directory of the test;
the device itself, its content, the programs and the mounts are real.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
UID = 54321
_PROGRAM = """\
import sys
from pathlib import Path
from agentlab import log
from agentlab.guest import work
from agentlab.guest.account import Account
from agentlab.guest.paths import Paths
log.setup()
top = Path(sys.argv[1])
paths = Paths(run=top / "run", workspace=top / "work", sys_block=top / "sys", sys_dev=top / "dev")
account = Account("agent", 54321, 54321, top)
sys.exit(work.main(sys.argv[2:], work.Work(paths, lambda: account, grace=1.0, patience=10.0)))
"""


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout.strip()


@dataclass
class Machine:
    """A mount namespace that a sleeping process keeps, and the loop devices that were plugged in."""

    top: Path
    image: Path
    device: str = ""
    sleepers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def make(cls, top: Path, mib: int = 64) -> Machine:
        machine = cls(top, top / "image")
        for name in ("run", "sys", "dev"):
            (top / name).mkdir()
        run("truncate", "-s", f"{mib}M", machine.image)
        argv = ["unshare", "--mount", "--propagation", "private", "sleep", "600"]
        machine.sleepers.append(subprocess.Popen(argv))
        own = Path("/proc/self/ns/mnt").readlink()
        while Path(f"/proc/{machine.sleepers[0].pid}/ns/mnt").readlink() == own:
            time.sleep(0.01)
        return machine

    @property
    def work(self) -> Path:
        return self.top / "work"

    def plug(self, image: Path | None = None) -> None:
        """The disk appears."""
        self.device = run("losetup", "-f", "--show", image or self.image)
        number = Path("/sys/block", Path(self.device).name, "dev").read_text().strip()
        entry = self.top / "sys" / Path(self.device).name
        entry.mkdir()
        (entry / "serial").write_text("work")
        (entry / "dev").write_text(number + "\n")
        (self.top / "dev" / number).mkdir()

    def unplug(self) -> None:
        """It is gone, mounted or not."""
        entry = self.top / "sys" / Path(self.device).name
        (self.top / "dev" / (entry / "dev").read_text().strip()).rmdir()
        shutil.rmtree(entry)
        subprocess.run(["losetup", "-d", self.device], check=False)

    def inside(self, *argv: str | Path) -> list[str]:
        """The command, in the namespace."""
        space = f"--mount=/proc/{self.sleepers[0].pid}/ns/mnt"
        return ["nsenter", space, "--", *(str(word) for word in argv)]

    def run(self, *argv: str | Path) -> str:
        return run(*self.inside(*argv))

    def command(self, *words: str) -> list[str]:
        return self.inside(
            "env", f"PYTHONPATH={ROOT}", sys.executable, "-c", _PROGRAM, self.top, *words
        )

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(*words), cwd=ROOT, stdout=subprocess.PIPE)

    def do(self, *words: str) -> dict[str, Any]:
        """One verb; its answer, which is one line."""
        done = subprocess.run(self.command(*words), cwd=ROOT, capture_output=True, check=False)
        (line,) = done.stdout.decode().splitlines() or [done.stderr.decode()]
        answer: dict[str, Any] = json.loads(line)
        assert done.returncode == (1 if "error" in answer else 0), (answer, done.stderr)
        return answer

    def hold(self, script: str) -> subprocess.Popen[bytes]:
        """A shell script in the namespace that says `on` when it holds what it holds."""
        held = subprocess.Popen(self.inside("sh", "-c", script), stdout=subprocess.PIPE)
        self.sleepers.append(held)
        assert held.stdout is not None
        assert held.stdout.readline() == b"on\n"
        return held

    def close(self) -> None:
        for sleeper in reversed(self.sleepers):
            sleeper.kill()
            sleeper.wait()
            if sleeper.stdout:
                sleeper.stdout.close()
        if self.device:
            subprocess.run(["losetup", "-d", self.device], check=False, stderr=subprocess.DEVNULL)

"""The user that the agent runs as, and the end of all its processes."""

from __future__ import annotations

import logging
import os
import pwd
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentlab import run
from agentlab.clock import Deadline
from agentlab.errors import DeadlineExceeded, Unsupported

_PROCESSES = 4096  # that the agent may have at once
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Account:
    """A user.  `user` is None when it is the one that we run as (then nothing is dropped)."""

    name: str
    uid: int
    gid: int
    home: Path

    @classmethod
    def named(cls, name: str) -> Account:
        try:
            entry = pwd.getpwnam(name)
        except KeyError as unknown:
            raise Unsupported(
                f"cannot run the agent: this machine has no user {name}",
                hint="build the template again",
            ) from unknown
        return cls(name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))

    @property
    def user(self) -> int | None:
        return None if self.uid == os.geteuid() else self.uid

    @property
    def environment(self) -> dict[str, str]:
        """What every process of this user gets; nothing of ours is passed on."""
        return {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": "/bin/sh",
            "PATH": f"{self.home}/.local/bin:{SEARCH_PATH}",
            "LANG": "C.UTF-8",
        }

    def make_directory(self, path: Path) -> None:
        """A directory of this user; what stands there already is left alone."""
        try:
            path.mkdir(mode=0o755)
        except FileExistsError:
            return
        if self.user is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


def processes(uid: int, proc: Path) -> Iterator[int]:
    """The live processes that run as `uid` in any of its forms; dead ones do not count."""
    for name in os.listdir(proc):
        if not name.isdigit():
            continue
        try:
            status = (proc / name / "status").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        fields = dict(line.partition(b":")[::2] for line in status.splitlines())
        uids = {int(word) for word in fields.get(b"Uid", b"").split()}
        if uid in uids and fields.get(b"State", b"").strip()[:1] not in (b"Z", b"X"):
            yield int(name)


def limited(argv: Sequence[str]) -> list[str]:
    """The command with a limit on processes that is below ours.

    A fork bomb must leave numbers for us, and must not keep `kill_all` from becoming its user:
    execve(2) refuses a user that is over the limit of whoever calls it.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    most = _PROCESSES if soft == resource.RLIM_INFINITY else min(_PROCESSES, soft * 3 // 4)
    return ["prlimit", f"--nproc={most}:{most}", "--", *argv]


def kill_all(account: Account, *, within: float = 30.0, proc: Path = Path("/proc")) -> bool:
    """Ends every process of the user, also those that left their group; False: some live on.

    A machine that is short of time or of processes makes it try again, not raise.
    Does nothing for the user that we run as ourselves.
    """
    if account.user is None:
        return True
    deadline = Deadline.after(within)
    while not deadline.passed:
        # First, without a look: what forks and ends without pause is not seen in /proc.
        _kill_at_once(account, deadline.left)
        if not any(processes(account.uid, proc)):
            return True
        time.sleep(0.02)
    logging.error("some processes of user %s cannot be ended", account.name)
    return False


def _kill_at_once(account: Account, within: float) -> None:
    """kill(-1) as the user: the kernel gets them all in one go, also those that fork for ever.

    Reading /proc and killing what is there never catches up with a fork bomb (tried).
    """
    try:
        run.run(
            ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups",
             "/bin/sh", "-c", "kill -KILL -1"],
            timeout=within, check=False, cwd=Path("/"),
        )  # fmt: skip
    except (DeadlineExceeded, OSError) as late:
        logging.warning("cannot end the processes of user %s yet: %s", account.name, late)

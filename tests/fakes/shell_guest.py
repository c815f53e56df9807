"""A guest that is this machine: programs run here, and what it keeps is in a test's directory."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentlab.errors import Unavailable
from agentlab.hypervisor.base import ExecResult
from agentlab.hypervisor.programs import BASE


@dataclass
class ShellGuest:
    """It knows `Guest.exec` alone, with the limits of the narrowest driver.

    `twice`: every call is carried out twice, and the second answer is the one that counts, as
    when the first was lost.  `before` is told of each call, and may raise what a driver would.
    """

    home: Path
    twice: bool = False
    before: Callable[[str], None] = lambda _: None
    most_stdin: int = 45_000
    calls: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def base(self) -> Path:
        return self.home / "programs"

    def exec(
        self, vmid: int, argv: Sequence[str], *, owner: str, stdin: bytes = b"", timeout: float
    ) -> ExecResult:
        assert len(stdin) <= self.most_stdin
        assert all(argv), "an empty word gets lost on the way"
        assert all(word.isascii() and "\0" not in word for word in argv)
        assert sum(map(len, argv)) < 60_000
        assert argv[4] == BASE
        what = argv[3].removeprefix("agentlab-")
        with self.lock:
            self.calls.append(what)
        self.before(what)
        words = [*argv[:4], str(self.base), *argv[5:]]
        if self.twice:
            _run(words, stdin, timeout)
        return _run(words, stdin, timeout)


def has_ended(pid: int) -> bool:
    """Whether a process has; who started it may not have asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _run(words: Sequence[str], stdin: bytes, timeout: float) -> ExecResult:
    try:
        done = subprocess.run(
            [*words], input=stdin, capture_output=True, timeout=timeout, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable("the call took too long") from error
    assert done.stderr == b"", done.stderr
    return ExecResult(done.returncode, done.stdout, done.stderr)

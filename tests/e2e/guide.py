"""The lines of the published guide that are about sandboxes, and about workspaces, and the means to
run them as written."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.lab import ROOT, Lab

GUIDE = ROOT.parent / "shared" / "guide" / "troubleshooting.md"
_COPIES = ROOT / "tests" / "data" / "guide"
_INLINE = re.compile(r"`(agentlab [^`]+)`")
_CRON = re.compile(r"(?:\S+ ){5}root (?:/\S+/)?(agentlab .+)")


@dataclass(frozen=True)
class Topic:
    """What some sections of the guide are about: lines that begin so; `copy` is ours of them."""

    begins: str
    sections: tuple[str, ...]
    copy: Path


SANDBOXES = Topic(
    r"agentlab sandbox |qm destroy ",
    ("Sandbox Operations", "Database Issues", "Common Error Messages", "Maintenance"),
    _COPIES / "sandbox_lines.txt",
)
WORKSPACES = Topic(
    r"agentlab (workspace|session) ", ("Workspace Issues",), _COPIES / "workspace_lines.txt"
)
TOPICS = (SANDBOXES, WORKSPACES)


def extract(guide: str, topic: Topic) -> list[str]:
    """Every different line of a topic, in order: of code blocks, of cron, and inside of text."""
    found: dict[str, None] = {}
    section, code = "", False
    for line in guide.splitlines():
        if line.startswith("```"):
            code = not code
        elif line.startswith("## ") and not code:
            section = line[3:].strip()
        elif section in topic.sections:
            cron = _CRON.fullmatch(line)
            lines = [cron[1]] if cron else [line] if code else _INLINE.findall(line)
            found.update(dict.fromkeys(each for each in lines if re.match(topic.begins, each)))
    return list(found)


def lines(topic: Topic) -> list[str]:
    """Those of the guide when it is there, else of our copy, which a test holds to it."""
    if GUIDE.exists():
        return extract(GUIDE.read_text(), topic)
    return topic.copy.read_text().splitlines()


class Reader:
    """Somebody who follows the guide: runs its lines, and prints what they say."""

    def __init__(self, lab: Lab, topic: Topic = SANDBOXES) -> None:
        self._lab, self._topic = lab, topic

    def guide(self, line: str, status: int = 0, *, says: str = "", answer: str = "") -> str:
        """Runs a line that must be in the guide; `says` is its text with < > filled in."""
        assert line in lines(self._topic), f"not in the guide: {line}"
        return self.run(says or line, status, answer=answer)

    def run(self, line: str, status: int = 0, *, answer: str = "") -> str:
        """Runs a line; with `answer` on a terminal, where its question is answered so."""
        begun = time.monotonic()
        words = shlex.split(line)
        assert words[0] == "agentlab"
        if answer:
            got, said = _on_terminal(self._lab, words[1:], answer)
        else:
            done = self._lab.cli(*words[1:])
            got, said = done.returncode, done.stdout + done.stderr
        print(f"\n$ {line}\n{said.rstrip()}\n[status {got}, {time.monotonic() - begun:.1f} s]")
        assert got == status, said
        return said


def _on_terminal(lab: Lab, words: list[str], answer: str) -> tuple[int, str]:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*lab.program, "--socket", str(lab.socket), "--no-color", *words],
        cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    os.close(slave)
    said, answered = b"", False
    try:
        while piece := _read(master):
            said += piece
            if not answered and b"[y/N]" in said:
                os.write(master, answer.encode() + b"\n")
                answered = True
        assert answered, said
        return process.wait(60), said.decode().replace("\r\n", "\n")
    finally:
        os.close(master)
        process.kill()
        process.wait()


def _read(master: int) -> bytes:
    """What the terminal shows; b"" when nobody has it open any more."""
    try:
        return os.read(master, 65536)
    except OSError:
        return b""


def write_copies() -> None:
    """Renews our copies from the guide."""
    for topic in TOPICS:
        found = extract(GUIDE.read_text(), topic)
        topic.copy.write_text("".join(f"{line}\n" for line in found))

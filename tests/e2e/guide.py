"""The lines of the published guide that are about sandboxes, and about workspaces, and the means to
run them as written."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.lab import ROOT, Lab
from tests.tables import Table

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
    (
        "Sandbox Operations",
        "Doctor Bundles",
        "Database Issues",
        "Common Error Messages",
        "Maintenance",
    ),
    _COPIES / "sandbox_lines.txt",
)
WORKSPACES = Topic(
    r"agentlab (workspace|session) ",
    ("Workspace Issues", "Doctor Bundles"),
    _COPIES / "workspace_lines.txt",
)
TOPICS = (SANDBOXES, WORKSPACES)
TRANSCRIPTS = Table("The guide's lines, as they were run", ("story",))


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
    """Somebody who follows the guide: runs its lines, and writes down what they say."""

    def __init__(self, lab: Lab, topic: Topic, story: str) -> None:
        """`story` is what the transcript is called."""
        self._lab, self._topic, self._story = lab, topic, story
        self._ran: set[str] = set()
        self._file = ROOT / "build" / f"guide-{story}.txt"
        self._file.parent.mkdir(exist_ok=True)
        self._file.write_text("")

    def guide(self, line: str, status: int = 0, *, says: str = "", answer: str = "") -> str:
        """Runs a line that must be in the guide; `says` is its text with < > filled in."""
        self.is_run(line)
        return self.run(says or line, status, answer=answer)

    def is_run(self, line: str) -> None:
        """A line that must be in the guide is run, here or by the test itself."""
        assert line in lines(self._topic), f"not in the guide: {line}"
        self._ran.add(line)

    def not_run(self) -> list[str]:
        """The guide's lines of which nobody has run any so far."""
        return [line for line in lines(self._topic) if line not in self._ran]

    def tell(self, item: pytest.Item) -> None:
        """Names the transcript at the end of the run."""
        said = {"lines of the guide": str(len(self._ran)), "file": f"build/{self._file.name}"}
        TRANSCRIPTS.note(item, [self._story], said)

    def note(self, text: str) -> None:
        print(f"\n{text}")
        with self._file.open("a") as file:
            file.write(f"{text}\n\n")

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
        self.note(f"$ {line}\n{said.rstrip()}\n[status {got}, {time.monotonic() - begun:.1f} s]")
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


def bundled(path: Path) -> dict[str, str]:
    """What is in a doctor bundle, by name."""
    with tarfile.open(path) as archive:
        found = {each.name.partition("/")[2]: archive.extractfile(each) for each in archive}
        return {name: file.read().decode() for name, file in found.items() if file}


def write_copies() -> None:
    """Renews our copies from the guide."""
    for topic in TOPICS:
        found = extract(GUIDE.read_text(), topic)
        topic.copy.write_text("".join(f"{line}\n" for line in found))

"""The scripts that keep a program in a guest, run for real by this machine's /bin/sh.

Every test runs twice: as it is, and with every call carried out twice, as after a lost reply.
"""

from __future__ import annotations

import os
import pwd
import secrets
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentlab.clock import Deadline
from agentlab.errors import Conflict, Invalid, NotFound, TooLarge, TooMany, Unavailable
from agentlab.hypervisor import program_scripts
from agentlab.hypervisor.programs import MAX_PROGRAM, Heard, Order, Programs
from tests.fakes.shell_guest import ShellGuest, has_ended
from tests.waiting import PATIENCE, until

ME = pwd.getpwuid(os.geteuid()).pw_name
ALL = bytes(range(256))


@dataclass
class Result:
    """All that a program said; `room` is the most that its directory held, in bytes."""

    out: bytes
    err: bytes
    last: Heard
    calls: int
    room: int = 0

    @property
    def status(self) -> int | None:
        return self.last.status


@dataclass
class Place:
    guest: ShellGuest
    programs: Programs
    names: list[str] = field(default_factory=list)

    def start(self, *argv: str, name: str = "", **more: object) -> tuple[str, Heard]:
        name = name or secrets.token_hex(8)
        more.setdefault("user", ME)
        wait = float(more.pop("wait", 1.0))  # type: ignore[arg-type]
        heard = self.programs.start(name, Order(argv, **more), wait=wait)  # type: ignore[arg-type]
        self.names.append(name)
        return name, heard

    def run(
        self, *argv: str, given: bytes | None = None, pause: float = 0, **more: object
    ) -> Result:
        """A program to its end, its input given beside; `pause` before each time it is heard."""
        more.setdefault("wait", 1.0 if given is None else 0.1)
        name, heard = self.start(*argv, input=given is not None, **more)
        result, sent = Result(heard.out, heard.err, heard, 1), 0
        while result.last.status is None and not result.last.lost:
            if given is not None:
                part = given[sent : sent + 100_000]
                last = sent + len(part) == len(given)
                state = self.programs.feed(name, sent, part, last=last, wait=0.1)
                sent += len(part) if state == "taken" else 0
                given = None if state == "closed" or (last and state == "taken") else given
            time.sleep(pause)
            result.room = max(result.room, self.size(name))
            heard = self.programs.hear(name, result.last.next_out, result.last.next_err, wait=0.5)
            result = Result(
                result.out + heard.out, result.err + heard.err, heard, result.calls + 1, result.room
            )
        return result

    def news(self, name: str, out: int = 0, err: int = 0) -> Heard:
        """The first answer from these pieces on that says something."""
        deadline = Deadline.after(PATIENCE)
        while not (heard := self.programs.hear(name, out, err, wait=1.0)).news:
            assert not deadline.passed, heard
        return heard

    def size(self, name: str) -> int:
        total = 0
        for each in (self.guest.base / name).iterdir():
            try:
                total += each.stat().st_size
            except FileNotFoundError:
                pass
        return total


@pytest.fixture(params=[False, True], ids=["once", "each-call-twice"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    tmp_path.chmod(0o755)
    guest = ShellGuest(tmp_path, twice=request.param)
    made = Place(guest, Programs(guest, 1003, "lab"))  # type: ignore[arg-type]  # exec alone
    yield made  # type: ignore[misc]
    for name in made.names:
        made.programs.end(name)
    assert not guest.base.exists() or os.listdir(guest.base) == []
    until(lambda: _running(str(guest.base)) == [])


def _filled(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _running(word: str) -> list[str]:
    """Processes that work in a directory, but for what a program left there on purpose."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if word in words:
                found.append(words)
    return found


def test_a_short_program_takes_one_call(place: Place) -> None:
    for argv, said in (
        (("sh", "-c", "echo out; echo err >&2; exit 7"), (b"out\n", b"err\n", 7)),
        (("true",), (b"", b"", 0)),
    ):
        for _ in range(5):  # after what comes first, a call listens for 0.1 s: not always enough
            result = place.run(*argv, wait=10.0)
            assert (result.out, result.err, result.status) == said
            if result.calls == 1:
                break
        assert result.calls == 1


def test_every_byte_comes_through_both_ways(place: Place) -> None:
    result = place.run("cat", given=ALL * 500)
    assert (result.out, result.status) == (ALL * 500, 0)
    result = place.run("sh", "-c", "printf '\\000\\377 no end' >&2")
    assert (result.out, result.err) == (b"", b"\0\xff no end")
    assert place.run("cat", given=b"").out == b""
    words = ["", "a b", "ö", "'", '"', "$x", "-n", "\n", "*", "\\", "a\udcff"]
    result = place.run("sh", "-c", 'printf "%s|" "$@"', "sh", *words)
    assert result.out == b"".join(os.fsencode(word) + b"|" for word in words)


def test_ten_megabytes_take_little_room(place: Place) -> None:
    script = "import sys\nfor n in range(10): sys.stdout.buffer.write(bytes([n]) * 1000000)"
    result = place.run("python3", "-c", script)
    assert result.out == b"".join(bytes([n]) * 1_000_000 for n in range(10))
    most = (program_scripts.PIECES + 1) * 65536 * 2 + 10_000
    assert 0 < result.room < most
    print(f"\n10 MB: {result.calls} calls, at most {result.room} bytes in the guest")


def test_who_is_not_heard_is_held_back(place: Place) -> None:
    count = "import sys\nfor n in range(10**7): print(n, file=sys.stderr)"
    name, _ = place.start("python3", "-c", count)
    until(lambda: _filled(place.guest.base / name / "e.full"))
    before = place.size(name)
    time.sleep(0.5)
    assert place.size(name) == before < (program_scripts.PIECES + 1) * 65536 + 10_000


def test_output_comes_while_it_runs(place: Place, tmp_path: Path) -> None:
    script = f"echo one; until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo two; sleep 600"
    name, _ = place.start("sh", "-c", script)
    first = place.news(name)
    assert (first.out, first.status) == (b"one\n", None)
    (tmp_path / "go").touch()
    then = place.news(name, first.next_out, first.next_err)
    assert (then.out, then.status) == (b"two\n", None)


def test_input_is_closed_early(place: Place) -> None:
    result = place.run("head", "-c", "3", given=ALL * 8000)
    assert (result.out, result.status) == (b"\0\1\2", 0)
    name, _ = place.start("sh", "-c", "exec <&-; sleep 60", input=True, wait=0.1)
    deadline = time.monotonic() + 20
    while (state := place.programs.feed(name, 0, ALL, last=False, wait=0.1)) != "closed":
        assert time.monotonic() < deadline, state


def test_input_that_nobody_reads_is_held_back(place: Place) -> None:
    name, _ = place.start("sleep", "60", input=True, wait=0.1)
    states = [
        place.programs.feed(name, n * 100_000, bytes(100_000), last=False, wait=0.1)
        for n in range(12)
    ]
    assert states[0] == "taken"
    assert states[-1] == "full"
    assert place.size(name) < program_scripts.WINDOW + 200_000


def test_input_that_differs_from_what_came_is_refused(place: Place) -> None:
    name, _ = place.start("sh", "-c", "sleep 60", input=True, wait=0.1)
    assert place.programs.feed(name, 45_000, b"later", last=False, wait=0.1) == "taken"
    with pytest.raises(Conflict, match="came before"):
        place.programs.feed(name, 45_000, b"other!", last=False, wait=0.1)


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (("sh", "-c", "kill -9 $$"), 137),
        (("sh", "-c", "kill -TERM $$"), 143),
        (("no-such-program",), 127),
        (("/etc",), 126),
        (("-x",), 127),
        (("sh", "-c", "exit 255"), 255),
    ],
)
def test_how_it_ends(place: Place, argv: tuple[str, ...], status: int) -> None:
    assert place.run(*argv).status == status


def test_a_child_that_holds_the_output_is_not_waited_for(place: Place) -> None:
    began = time.monotonic()
    result = place.run("sh", "-c", "echo x; sleep 600 & echo $! >&2; exit 3")
    child = int(result.err)
    try:
        assert (result.out, result.status, result.last.cut) == (b"x\n", 3, True)
        assert time.monotonic() - began < 120
        place.programs.end(place.names.pop())
        os.kill(child, 0)  # and it goes on: the program had ended by itself
    finally:
        os.kill(child, 9)


def test_the_same_id_runs_once(place: Place, tmp_path: Path) -> None:
    script = f"echo ran >>{tmp_path}/log; echo said"
    name, _ = place.start("sh", "-c", script)
    first = place.news(name)
    again = place.programs.start(name, Order(("sh", "-c", script), user=ME))
    assert first.out == again.out == b"said\n"
    assert (tmp_path / "log").read_text() == "ran\n"


def test_ending_it_ends_all_of_its_session(place: Place, tmp_path: Path) -> None:
    script = f"trap '' TERM; (sleep 444; :) & echo $! >{tmp_path}/pid; while :; do sleep 444; done"
    name, _ = place.start("sh", "-c", script, wait=0.1)
    until(lambda: _filled(tmp_path / "pid") and _filled(place.guest.base / name / "sid"))
    child = int((tmp_path / "pid").read_text())
    began = time.monotonic()
    assert place.programs.end(name) is None
    assert time.monotonic() - began < 60
    until(lambda: has_ended(child))
    with pytest.raises(NotFound, match="no such program"):
        place.programs.hear(name, 0, 0)


def test_a_program_that_its_keeper_does_not_know_yet_is_ended(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = program_scripts.KEEPER.replace("program=$!\n", "program=$!\nsleep 5\n")
    assert late != program_scripts.KEEPER
    monkeypatch.setattr(program_scripts, "KEEPER", late)
    name, first = place.start("sh", "-c", "echo $$; exec sleep 444", wait=4.0)
    assert place.programs.end(name) is None
    until(lambda: has_ended(int(first.out)))


def test_a_program_that_begins_while_it_is_ended_is_ended(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the keeper's session after it was looked for, and before that is ended."""
    late = program_scripts.KEEPER.replace("    read -r sid _", "    sleep 2; read -r sid _")
    slow = program_scripts.END.replace("\nend_keeper\n# what", "\nsleep 4; end_keeper\n# what")
    assert late != program_scripts.KEEPER
    assert slow != program_scripts.END
    monkeypatch.setattr(program_scripts, "KEEPER", late)
    monkeypatch.setattr(program_scripts, "END", slow)
    seconds = f"444.{secrets.randbelow(10**9):09d}"
    name, _ = place.start("sleep", seconds, wait=0.1)
    assert place.programs.end(name) is None
    until(lambda: _running(f"sleep {seconds}") == [])


def test_what_is_written_until_the_last_moment_goes_too(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a process that SIGKILL has not reached yet: a file is there again after the first rm."""
    name, _ = place.start("true")
    folder, tool = place.guest.base / name, tmp_path / "bin/rm"
    tool.parent.mkdir()
    again = f"[ -e {tmp_path}/once ] || {{ : >{tmp_path}/once; mkdir {folder}; : >{folder}/late; }}"
    tool.write_text(f'#!/bin/sh\n/bin/rm "$@"\ncase "$*" in *{folder}) {again} ;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    place.programs.end(name)
    assert (tmp_path / "once").exists()
    assert not folder.exists()


def test_a_keeper_that_is_killed_is_told(place: Place) -> None:
    name, _ = place.start("sleep", "600", wait=0.1)
    until(lambda: _filled(place.guest.base / name / "sid"))
    keeper = int((place.guest.base / name / "pid").read_text().split()[0])
    subprocess.run(["kill", "-9", str(keeper)], check=True)
    until(lambda: place.programs.hear(name, 0, 0, wait=0.1).lost)


def test_where_and_as_whom(place: Place, tmp_path: Path) -> None:
    assert place.run("pwd", workdir="/usr").out == b"/usr\n"
    result = place.run("pwd", workdir="/no/such/dir")
    assert (result.status, b"/no/such/dir" in result.err) == (126, True)
    result = place.run("sh", "-c", 'echo "$A|$B|$HOME"', env={"A": "x 'y\n", "B": "ö"})
    assert result.out == f"x 'y\n|ö|{Path.home()}\n".encode()
    with pytest.raises(Invalid, match="no such user"):
        place.start("true", user="nobody-at-all")
    if os.geteuid() == 0:
        result = place.run(
            "sh", "-c", "id -un; echo x >/dev/stdout; echo y >/dev/stderr; umask", user="nobody"
        )
        assert (result.out, result.err) == (b"nobody\nx\n0022\n", b"y\n")


def test_nothing_of_it_is_seen_in_arguments_or_the_environment_of_others(place: Place) -> None:
    place.start("sh", "-c", "sleep 22; echo argument", env={"A": "hidden-value"}, wait=0.3)
    seen = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True).stdout
    assert b"hidden-value" not in seen


def test_a_guest_without_room(place: Place) -> None:
    place.guest.home.joinpath("programs").write_text("a file in its place")
    try:
        with pytest.raises(Unavailable, match="no room"):
            place.start("true")
    finally:
        place.guest.home.joinpath("programs").unlink()


def test_too_many_at_once(place: Place) -> None:
    place.guest.base.mkdir()
    for n in range(program_scripts.MOST + 1):
        place.guest.base.joinpath(f"{n:016d}").mkdir()
        place.guest.base.joinpath(f"{n:016d}/seen").touch()
    with pytest.raises(TooMany, match="running in this guest already"):
        place.start("true")
    long_ago = time.time() - program_scripts.FORGOTTEN * 60 - 100
    for each in place.guest.base.iterdir():
        os.utime(each / "seen", (long_ago, long_ago))
    assert place.run("echo", "room").out == b"room\n"


@pytest.mark.parametrize(
    "name", ["", "../../../etc/x00", "A" * 20, "a" * 15, "a" * 65, "a" * 16 + "\n"]
)
def test_an_id_that_is_no_plain_name(place: Place, name: str) -> None:
    with pytest.raises(Invalid, match="id of a program"):
        place.programs.hear(name, 0, 0)
    assert place.guest.calls == []


def test_too_much_of_a_command(place: Place) -> None:
    with pytest.raises(TooLarge, match=str(MAX_PROGRAM)):
        place.start("echo", "x" * MAX_PROGRAM)
    assert place.guest.calls == []

"""What reaches a terminal, and what a start imports."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.cli.text import Plain, ago, fields, safe, short, size, span, table
from tests.unit.client.fake_daemon import FakeDaemon, job_view

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[3]


def harmless(text: str) -> bool:
    return all(char.isprintable() or char in "\n\t" for char in text)


@given(st.text())
def test_safe_is_one_harmless_line_and_stable(text: str) -> None:
    assert safe(text).isprintable()
    assert safe(safe(text)) == safe(text)


@given(st.lists(st.binary(max_size=20)))
def test_a_log_in_pieces_is_harmless(pieces: list[bytes]) -> None:
    plain = Plain()
    text = "".join([*(plain.feed(each) for each in pieces), plain.feed(b"", final=True)])
    assert harmless(text)


@given(st.binary(max_size=60), st.integers(0, 60))
def test_where_a_log_is_cut_does_not_matter(data: bytes, at: int) -> None:
    one, two = Plain(), Plain()
    whole = one.feed(data) + one.feed(b"", final=True)
    assert two.feed(data[:at]) + two.feed(data[at:]) + two.feed(b"", final=True) == whole


def test_colours_go_and_other_escapes_are_shown() -> None:
    plain = Plain()
    assert plain.feed(b"\x1b[1;3") == ""
    assert plain.feed(b"1mred\x1b[0m\x1b]0;t\x07\r") == "red\\x1b]0;t\\x07"
    assert plain.feed(b"\nnext\r50%\r", final=True) == "\nnext\n50%\n"


def test_columns_align_and_hostile_cells_stay_in_their_row() -> None:
    assert table(("A", "LONG"), [("x\ny", "1"), ("longer", "")]) == [
        "A       LONG",
        "x\\ny    1",
        "longer",
    ]


def test_fields_leave_out_what_is_empty() -> None:
    assert fields([("a", ""), ("long", 0), ("b", None), ("c", "x\x1b")]) == [
        "long  0",
        "c     x\\x1b",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"),
                        (3 << 40, "3072.0 GiB")],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0s"), (0.42, "0.4s"), (185, "3m05s"), (7800, "2h10m"), (200000, "2d7h")],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_short_texts() -> None:
    assert short("  a\nb", 5) == "a"
    assert short("abcdef", 5) == "abcd…"
    assert ago(0) == ""


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentlab", *argv],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}, check=False,
    )  # fmt: skip


def imported(*argv: str) -> set[str]:
    """The modules that a command line has loaded by its end."""
    program = (
        "import sys; from agentlab.__main__ import main; main(['agentlab', *sys.argv[1:]]);"
        "sys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}",
         *argv],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return set(done.stderr.split())


HEAVY = {
    "http", "http.client", "email", "ssl", "yaml", "requests", "sqlite3", "subprocess", "argparse",
    "dataclasses", "inspect", "typing", "asyncio", "urllib.parse", "tempfile", "logging",
    "agentlab.api.messages", "agentlab.run",
}  # fmt: skip


@pytest.mark.parametrize("argv", [("--help",), ("job", "run", "--help"), ("job", "lst")])
def test_help_imports_next_to_nothing(argv: tuple[str, ...]) -> None:
    assert imported(*argv) & (HEAVY | {"socket", "json"}) == set()


def test_status_imports_little(daemon: FakeDaemon) -> None:
    assert imported("status", "--socket", daemon.path) & HEAVY == set()
    assert imported("status", "--json", "--socket", daemon.path) & HEAVY == set()
    assert "job_list" not in daemon.seen


def test_list_needs_no_process_and_no_http(daemon: FakeDaemon) -> None:
    heavy = {"http.client", "email", "ssl", "yaml", "requests", "sqlite3", "subprocess", "argparse"}
    assert imported("job", "list", "--socket", daemon.path) & heavy == set()


def test_reader_that_goes_away_is_no_traceback(daemon: FakeDaemon) -> None:
    daemon.world.jobs = {f"j{at}": job_view(f"j{at}") for at in range(2000)}
    done = subprocess.run(
        f"{sys.executable} -m agentlab job list --limit 2000 | head -1",
        shell=True, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("ID")
    assert done.stderr == ""


def test_ascii_locale_is_no_traceback(daemon: FakeDaemon) -> None:
    daemon.world.jobs["j1"] = job_view(task="tâche ☃")
    done = run("job", "list", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")


def on_terminal(*argv: str, **env: str) -> str:
    """What a terminal gets to see, on stdout and stderr."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "agentlab", *argv],
        stdin=follower, stdout=follower, stderr=follower, cwd=ROOT,
        env={**os.environ, "TERM": "xterm", **env},
    )  # fmt: skip
    os.close(follower)
    seen = b""
    try:
        while block := os.read(leader, 4096):
            seen += block
    except OSError:  # the other side is closed
        pass
    process.wait()
    os.close(leader)
    return seen.decode()


def test_terminal_gets_colours_only_when_wanted(daemon: FakeDaemon) -> None:
    daemon.world.jobs["j1"] = job_view()
    assert "\x1b[1mID" in on_terminal("job", "list")
    assert "\x1b" not in on_terminal("job", "list", "--no-color")
    assert "\x1b" not in on_terminal("job", "list", NO_COLOR="1")


def test_terminal_is_not_harmed_by_a_log(daemon: FakeDaemon) -> None:
    daemon.world.jobs["j1"] = job_view(state="COMPLETED")
    daemon.world.log, daemon.world.log_final = b"\x1b[2J\x1b]0;x\x07ok\n", True
    assert on_terminal("job", "logs", "j1") == "\\x1b[2J\\x1b]0;x\\x07ok\r\n"

"""Downloads: names are hostile, bytes are checked, nothing is overwritten unasked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentlab.cli.commands.artifacts import place
from agentlab.errors import Invalid
from tests.unit.client.fake_daemon import FakeDaemon, job_view

Run = Callable[..., tuple[int, str, str]]
DOWNLOAD = ("job", "artifacts", "download", "j0")


@pytest.fixture
def world(daemon: FakeDaemon) -> FakeDaemon:
    daemon.world.jobs["j0"] = job_view("j0", "COMPLETED")
    daemon.world.artifacts = {
        "agent.log": b"log", "files/a b/c.txt": b"x" * 1_000_000, "empty": b"",
    }  # fmt: skip
    return daemon


def tree(path: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()
    }


def test_all_of_them_arrive_whole(cli: Run, world: FakeDaemon, tmp_path: Path) -> None:
    status, out, _ = cli(*DOWNLOAD, "--out", str(tmp_path / "out"))
    assert status == 0
    assert tree(tmp_path / "out") == world.world.artifacts
    assert "files/a b/c.txt  976.6 KiB" in out


def test_only_the_named_ones(cli: Run, world: FakeDaemon, tmp_path: Path) -> None:
    assert cli(*DOWNLOAD, "agent.log", "--out", str(tmp_path / "out"))[0] == 0
    assert list(tree(tmp_path / "out")) == ["agent.log"]


def test_unknown_name_suggests_the_near_one(cli: Run, world: FakeDaemon, tmp_path: Path) -> None:
    status, _, err = cli(*DOWNLOAD, "agentlog", "--out", str(tmp_path / "out"))
    assert status == 1
    assert "did you mean agent.log?" in err
    status, _, err = cli(*DOWNLOAD, "zzzzzz", "--out", str(tmp_path / "out"))
    assert "see: agentlab job artifacts j0" in err


@pytest.mark.parametrize(
    "name",
    [
        "../evil", "/etc/evil", "a/../../evil", "a//b", ".", "..", "a/.", "a\nb", "\x1b[2J",
        "a\u202etxt", "n" * 256,
    ],
)  # fmt: skip
def test_hostile_names_write_nothing(
    cli: Run, world: FakeDaemon, tmp_path: Path, name: str
) -> None:
    world.world.artifacts[name] = b"evil"
    out = tmp_path / "deep" / "out"
    status, _, err = cli(*DOWNLOAD, "--out", str(out))
    assert status == 2
    assert "not a plain file name" in err
    assert tree(tmp_path) == {}
    with pytest.raises(Invalid):
        place(Path("out"), name)


def test_link_inside_the_directory_is_not_followed(
    cli: Run, world: FakeDaemon, tmp_path: Path
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "files").symlink_to(elsewhere)
    status, _, err = cli(*DOWNLOAD, "--force", "--out", str(out))
    assert (status, "is no directory" in err) == (1, True)
    assert tree(elsewhere) == {}


def test_link_in_place_of_the_file_is_replaced_and_not_followed(
    cli: Run, world: FakeDaemon, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").write_text("precious")
    (out / "agent.log").symlink_to(tmp_path / "precious")
    assert cli(*DOWNLOAD, "agent.log", "--out", str(out))[0] == 1
    assert cli(*DOWNLOAD, "agent.log", "--force", "--out", str(out))[0] == 0
    assert (tmp_path / "precious").read_text() == "precious"
    assert (out / "agent.log").read_bytes() == b"log"


def test_existing_files_are_kept_unless_forced(cli: Run, world: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "empty").write_text("mine")
    status, _, err = cli(*DOWNLOAD, "--out", str(tmp_path / "out"))
    assert (status, "overwrite it: --force" in err) == (1, True)
    assert tree(tmp_path / "out") == {"empty": b"mine"}
    assert cli(*DOWNLOAD, "--force", "--out", str(tmp_path / "out"))[0] == 0
    assert tree(tmp_path / "out") == world.world.artifacts


@pytest.mark.parametrize("data", [b"other", b"lox", b"log and more", b"lo"])
def test_bytes_that_do_not_match_leave_no_file(
    cli: Run, world: FakeDaemon, tmp_path: Path, data: bytes
) -> None:
    world.handlers.job_artifacts = lambda *_: listed  # type: ignore[method-assign]
    listed = type(world.handlers).job_artifacts(world.handlers, None, {"id": "j0"})
    world.world.artifacts["agent.log"] = data
    status, _, err = cli(*DOWNLOAD, "agent.log", "--out", str(tmp_path / "out"))
    assert (status, "do not have the sha256" in err) == (1, True)
    assert tree(tmp_path / "out") == {}

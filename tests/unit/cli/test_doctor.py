"""Doctor bundles: where they are written, whole or not at all, and nothing is overwritten unasked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.client.fake_daemon import Bytes, FakeDaemon, job_view, sandbox_view

Run = Callable[..., tuple[int, str, str]]
SESSION = ("session", "doctor", "lab")
NAME = "agentlab-session-lab.tar.gz"


@pytest.fixture
def world(daemon: FakeDaemon) -> FakeDaemon:
    daemon.world.jobs["j0"] = job_view("j0", "COMPLETED")
    daemon.world.sandboxes["1003"] = sandbox_view(1003, name="try")
    return daemon


def tree(path: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()
    }


@pytest.mark.parametrize(
    ("noun", "name", "content"),
    [
        ("session", "lab", b"session lab"),
        ("sandbox", "1003", b"sandbox 1003"),
        ("sandbox", "try", b"sandbox 1003"),
        ("job", "j0", b"job j0"),
    ],
)
def test_into_a_directory_by_the_default_name(
    cli: Run, world: FakeDaemon, tmp_path: Path, noun: str, name: str, content: bytes
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    status, said, _ = cli(noun, "doctor", name, "--out", str(out))
    path = out / f"agentlab-{noun}-{name}.tar.gz"
    assert (status, tree(out)) == (0, {path.name: content})
    assert said == f"{path}  {len(content)} B\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_slash_at_the_end_makes_the_directory(
    cli: Run, world: FakeDaemon, tmp_path: Path
) -> None:
    assert cli(*SESSION, "--out", f"{tmp_path}/deep/out/")[0] == 0
    assert tree(tmp_path / "deep") == {f"out/{NAME}": b"session lab"}


def test_without_out_into_the_present_directory(
    cli: Run, world: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli(*SESSION)[:2] == (0, f"{NAME}  11 B\n")
    assert tree(tmp_path / "here") == {NAME: b"session lab"}


def test_to_a_file_and_as_json(cli: Run, world: FakeDaemon, tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.tgz"
    status, said, _ = cli(*SESSION, "--json", "--out", str(path))
    digest = hashlib.sha256(b"session lab").hexdigest()
    assert status == 0
    assert json.loads(said) == {"path": str(path), "size": 11, "sha256": digest}
    assert path.read_bytes() == b"session lab"


@pytest.mark.parametrize("to", ["file", "directory", "link"])
def test_what_is_there_stays_unless_forced(
    cli: Run, world: FakeDaemon, tmp_path: Path, to: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    if to == "link":
        (out / NAME).symlink_to(precious)
    else:
        (out / NAME).write_text("mine")
    target = out / NAME if to == "file" else out
    status, _, err = cli(*SESSION, "--out", str(target))
    assert (status, "overwrite it: --force" in err) == (1, True)
    assert world.seen == []  # refused before anything is asked for
    assert "session_doctor" not in world.seen
    assert cli(*SESSION, "--force", "--out", str(target))[0] == 0
    assert tree(out) == {NAME: b"session lab"}
    assert precious.read_text() == "precious"


def test_what_comes_meanwhile_stays(
    cli: Run, world: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out" / NAME

    def late(*_: object) -> Bytes:
        path.parent.mkdir()
        path.write_text("another's")
        return type(world.handlers).session_doctor(world.handlers, None, {"name": "lab"})

    monkeypatch.setattr(world.handlers, "session_doctor", late)
    assert cli(*SESSION, "--out", str(path))[0] == 1
    assert tree(tmp_path / "out") == {NAME: b"another's"}


def test_no_part_stays_when_it_does_not_arrive(
    cli: Run, world: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / NAME).write_text("mine")
    broken = Bytes(b"session la", {"X-Content-Sha256": hashlib.sha256(b"session lab").hexdigest()})
    monkeypatch.setattr(world.handlers, "session_doctor", lambda *_: broken)
    status, _, err = cli(*SESSION, "--force", "--out", str(out))
    assert (status, "did not arrive as it was sent" in err) == (1, True)
    world.lose.append("session_doctor")
    assert cli(*SESSION, "--force", "--out", str(out))[0] == 6
    assert tree(out) == {NAME: b"mine"}


def test_a_full_disk_leaves_the_old_one(
    cli: Run, world: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / NAME).write_text("mine")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    status, _, err = cli(*SESSION, "--force", "--out", str(out))
    assert (status, "No space left" in err) == (1, True)
    assert tree(out) == {NAME: b"mine"}


def test_places_that_cannot_be(cli: Run, world: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = cli(*SESSION, "--out", f"{tmp_path}/file/")
    assert (status, "is no directory" in err) == (2, True)
    (tmp_path / "out" / NAME).mkdir(parents=True)
    status, _, err = cli(*SESSION, "--force", "--out", f"{tmp_path}/out")
    assert (status, "it is a directory" in err) == (1, True)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "..", "a\nb", "-x\u202e"])
def test_hostile_names_write_nothing(
    cli: Run, world: FakeDaemon, tmp_path: Path, name: str
) -> None:
    assert cli("session", "doctor", "--out", f"{tmp_path}/out/", "--", name)[0] in (1, 2)
    assert not (tmp_path / "out").exists()
    assert world.seen == []


def test_a_near_name_is_offered(cli: Run, world: FakeDaemon, tmp_path: Path) -> None:
    status, _, err = cli("session", "doctor", "la", "--out", str(tmp_path / "x"))
    assert (status, "did you mean lab?" in err) == (1, True)
    assert not (tmp_path / "x").exists()

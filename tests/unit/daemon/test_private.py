"""What other users of the host can read: the socket's group its socket, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab import config
from agentlab.daemon import main
from agentlab.daemon.server import _make_way
from agentlab.errors import Unavailable
from agentlab.hypervisor.image.root import put


@pytest.fixture
def closed_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def settings(folder: Path) -> config.Config:
    return config.parse(
        f"data_dir: {folder}/data\nsocket: {folder}/s.sock\nprofiles_dir: {folder}\n",
        folder / "config.yaml",
    )


def test_the_daemon_begins_with_a_closed_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stop_here(_: config.Config) -> None:
        seen.append(os.umask(0o022))
        raise Unavailable("enough")

    monkeypatch.setattr(main, "_prepare", stop_here)
    monkeypatch.setattr(main, "_heard_signals", lambda: 0)
    before = os.umask(0o022)
    try:
        assert main.serve(settings(tmp_path)) == 1
    finally:
        os.umask(before)
    assert seen == [0o077]


@pytest.mark.parametrize("content", [[], ["agentlab.db", "artifacts", "machines", "templates"]])
def test_a_data_directory_of_ours_is_closed(tmp_path: Path, content: list[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    for each in content:
        (data / each).touch() if "." in each else (data / each).mkdir()
    main._prepare(settings(tmp_path))
    assert mode(data) == 0o700


def test_a_directory_that_holds_other_things_stays_as_it_is(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    (data / "photos").mkdir()
    main._prepare(settings(tmp_path))
    assert mode(data) == 0o755


@pytest.mark.usefixtures("closed_umask")
def test_a_group_can_come_to_its_socket(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    _make_way(tmp_path / "run" / "agentlab")
    _make_way(tmp_path / "run" / "agentlab")
    assert mode(tmp_path / "run") == mode(tmp_path / "run" / "agentlab") == 0o755
    assert mode(tmp_path) == 0o700


@pytest.mark.usefixtures("closed_umask")
def test_the_guests_own_directories_are_open_to_its_users(tmp_path: Path) -> None:
    put(tmp_path / "etc" / "x.d" / "agentlab.conf", b"x", 0o644)
    assert mode(tmp_path / "etc") == mode(tmp_path / "etc" / "x.d") == 0o755
    assert mode(tmp_path / "etc" / "x.d" / "agentlab.conf") == 0o644

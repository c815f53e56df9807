"""A fake daemon, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentlab.cli.main import main
from tests.unit.client.fake_daemon import FakeDaemon, serving


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with serving(tmp_path / "s") as fake:
        monkeypatch.setenv("AGENTLAB_SOCKET", fake.path)
        yield fake


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(list(argv))
        out, err = capfd.readouterr()
        return status, out, err

    return run

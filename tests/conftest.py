"""What all tests share: the one file, built once a session, and the Pythons found here."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.tables import pytest_runtest_logreport, pytest_terminal_summary
from tests.workers import pytest_xdist_make_scheduler

__all__ = ["pytest_runtest_logreport", "pytest_terminal_summary", "pytest_xdist_make_scheduler"]
# How long an example takes says more of the machine than of the example.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A program that a test starts in this process says how it logs for itself alone."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def build_program(root: Path, out: Path, *options: str | Path) -> Path:
    """Runs the recipe of `make dist` in a checkout; the program that it made."""
    done = subprocess.run(
        [sys.executable, str(root / "packaging/build.py"), "--out", str(out), *map(str, options)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["bytes"] > 0
    return out / "agentlab"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one file, built from the work tree."""
    return build_program(ROOT, tmp_path_factory.mktemp("dist"))


@cache
def find_python(minor: int) -> str | None:
    """A Python 3.`minor` that works: by AGENTLAB_PYTHON3_MINOR, in PATH, or among pyenv's."""
    name = f"python3.{minor}"
    candidates = [os.environ.get(f"AGENTLAB_PYTHON3_{minor}", ""), name, "python3", sys.executable]
    try:
        root = _output("pyenv", "root")
    except (OSError, subprocess.SubprocessError):
        root = ""
    if root:
        candidates += [str(path) for path in Path(root).glob(f"versions/3.{minor}.*/bin/{name}")]
    for candidate in filter(None, candidates):
        # a version manager's stand-in may be in PATH and refuse to run, so: ask it who it is
        tell = f"import sys; print(sys.version_info[:2] == (3, {minor}), sys.executable)"
        try:
            right, _, executable = _output(candidate, "-c", tell).partition(" ")
        except (OSError, subprocess.SubprocessError):
            continue
        if right == "True":
            return executable
    return None


def _output(*argv: str) -> str:
    return subprocess.run(
        argv, check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


@pytest.fixture(params=[11, 12, 13], ids=["python3.11", "python3.12", "python3.13"])
def python(request: pytest.FixtureRequest) -> str:
    """Each Python that the program promises to run on; skipped, visibly, where it is not there."""
    found = find_python(request.param)
    if found is None:
        pytest.skip(f"no Python 3.{request.param} here: set AGENTLAB_PYTHON3_{request.param}")
    return found

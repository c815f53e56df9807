"""Is the house in order?  The linters, as tests: what they say is what the failure prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def passes(*argv: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{Path(argv[0]).name}:\n{done.stdout}", pytrace=False)


def tracked(*patterns: str) -> list[str]:
    git = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--", *patterns]
    out = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in out.split("\0") if name and (ROOT / name).is_file()]


def test_ruff_finds_nothing() -> None:
    passes(BIN / "ruff", "check", "--quiet")


def test_the_format_is_ruffs() -> None:
    passes(BIN / "ruff", "format", "--check", "--quiet", "--diff")


def test_types_are_strict() -> None:
    passes(BIN / "mypy", "--no-error-summary")


@pytest.mark.parametrize(
    "script",
    [
        "packaging/build.py",
        "packaging/zip_main.py",
        "scripts/bench",
        "scripts/demo",
        "scripts/soak",
    ],
)
def test_types_of_scripts_are_strict(script: str) -> None:
    passes(BIN / "mypy", "--no-error-summary", "--follow-imports=silent", script)


def test_imports_follow_the_layers() -> None:
    passes(BIN / "lint-imports", "--no-logo")


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "shellcheck is not installed: scripts/need check"
    scripts = [
        name
        for name in tracked()
        if name.endswith(".sh")
        or (ROOT / name)
        .read_bytes()[:64]
        .startswith((b"#!/bin/sh", b"#!/bin/bash", b"#!/usr/bin/env bash"))
    ]
    assert scripts
    passes(shellcheck, *scripts)


def test_the_generated_pages_are_fresh() -> None:
    passes(sys.executable, "-m", "agentlab", "docs", "--check")


def test_scripts_may_be_run() -> None:
    """Whatever begins with #! has its executable bit, and nothing else has."""
    wrong = []
    for name in tracked():
        path = ROOT / name
        if path.is_symlink() or name.startswith("agentlab/hypervisor/image/recipe/"):
            continue  # the recipe's files get their modes when they are put into the image
        script = path.read_bytes()[:2] == b"#!"
        if script != bool(path.stat().st_mode & 0o100):
            wrong.append(name)
    assert wrong == []


def test_nothing_names_the_machine_it_was_made_on() -> None:
    """Neither this checkout's path nor this user's home stands in the tree."""
    words = [str(path).encode() for path in (ROOT,) if len(path.parts) > 2]
    words.append(str(Path.home()).encode() + b"/.")
    texts = {name: (ROOT / name).read_bytes() for name in tracked()}
    assert [name for name, text in texts.items() if any(word in text for word in words)] == []

"""What several workers that share the tests need: groups that stay together, and whole tables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tables import Table, pytest_runtest_logreport, pytest_terminal_summary
from tests.workers import ROOT, group_of, starts_machines


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/e2e/test_jobs.py::test_x[fills-FAILED-5]", "tests/e2e/test_jobs.py"),
        (
            "tests/e2e/test_proxmox.py::test_x[api-before:do:clone]",
            "tests/e2e/test_proxmox.py[api]",
        ),
        ("tests/faults/test_kill.py::test_x[after:undo:start]", "tests/faults/test_kill.py[undo]"),
        ("tests/unit/cli/test_parse.py::test_x[api]", "tests/unit/cli/test_parse.py"),
    ],
)
def test_a_group_is_a_file_or_what_has_a_lab_of_its_own_in_it(nodeid: str, group: str) -> None:
    assert group_of(nodeid) == group


def test_files_with_machines_are_known() -> None:
    assert starts_machines("tests/faults/test_kill.py[undo]")
    assert not starts_machines("tests/contract/test_rest.py")


@pytest.mark.parametrize("dies", ["os._exit(1)", "time.sleep(60)"], ids=["ends", "hangs"])
def test_a_worker_that_ends_in_a_test_costs_that_test_alone(tmp_path: Path, dies: str) -> None:
    for name in "abcd":
        tests = "".join(f"def test_{each}(): pass\n" for each in range(5))
        (tmp_path / f"test_{name}.py").write_text(tests)
    last = f"import os, time\ndef test_1(): pass\ndef test_2(): {dies}\ndef test_3(): pass\n"
    (tmp_path / "test_e.py").write_text(last)
    options = ["-p", "tests.workers", "-p", "no:cacheprovider", "-n3", "--timeout=8", "-c/dev/null"]
    options += ["--timeout-method=thread", f"--rootdir={tmp_path}", "-q", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert re.search(r"^1 failed, 22 passed", run.stdout, re.MULTILINE), run.stdout + run.stderr
    assert run.stdout.count("node down") == 1
    assert "/test_e.py::test_2" in run.stdout


class _Item:
    """An item, and the session whose only item it is."""

    def __init__(self) -> None:
        self.session, self.items = self, [self]
        self.user_properties: list[tuple[str, object]] = []


class _Terminal:
    def __init__(self) -> None:
        self.said: list[str] = []

    def section(self, title: str) -> None:
        self.said.append(title)

    line = section


def test_a_table_is_whole_whoever_filled_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.tables._TOLD", {})
    table = Table("cases", key=("step",), columns={"late": "killed late"})

    def report(row: str, cells: dict[str, str | int]) -> None:
        item = _Item()
        table.note(item, [row], cells)  # type: ignore[arg-type] # what it needs of one
        for when in ("setup", "call", "teardown"):
            made = pytest.TestReport("x", ("x", 0, "x"), {}, "passed", None, when)  # type: ignore[arg-type]
            made.user_properties = item.user_properties
            pytest_runtest_logreport(made)

    report("clone", {"late": "gone", "calls": 2})
    report("start", {"calls": 3})
    report("clone", {"calls": 5})
    terminal = _Terminal()
    pytest_terminal_summary(terminal)  # type: ignore[arg-type] # what it needs of one
    assert terminal.said == [
        "cases", "| step | killed late | calls |", "| --- | --- | --- |",
        "| clone | gone | 7 |", "| start |  | 3 |", "| in all |  | 10 |",
    ]  # fmt: skip

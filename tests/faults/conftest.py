"""What became of each kill and each fault, printed as tables at the end of the run."""

from __future__ import annotations

import pytest

from tests.faults.play import Tally

Table = dict[tuple[str, str], dict[str, str]]  # outcome by (path, step), then by moment
_ROWS = pytest.StashKey[Table]()
_TALLY = pytest.StashKey[Tally]()


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    return request.config.stash.setdefault(_ROWS, {})


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash.setdefault(_TALLY, Tally())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash.get(_ROWS, {})
    if rows:
        terminalreporter.section("job.run under SIGKILL")
        terminalreporter.line("| path | step | killed before | killed after |")
        terminalreporter.line("| --- | --- | --- | --- |")
    for (path, step), cells in rows.items():
        outcomes = f"{cells.get('before', '')} | {cells.get('after', '')}"
        terminalreporter.line(f"| {path} | {step} | {outcomes} |")
    tally = config.stash.get(_TALLY, None)
    if tally is not None and tally.cases:
        terminalreporter.section("operations under kills and faults")
        for line in tally.table():
            terminalreporter.line(line)

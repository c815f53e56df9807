"""What became of each kill, printed as a table at the end of the run."""

from __future__ import annotations

import pytest

Table = dict[tuple[str, str], dict[str, str]]  # outcome by (path, step), then by moment
_ROWS = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    return request.config.stash.setdefault(_ROWS, {})


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash.get(_ROWS, {})
    if not rows:
        return
    terminalreporter.section("job.run under SIGKILL")
    terminalreporter.line("| path | step | killed before | killed after |")
    terminalreporter.line("| --- | --- | --- | --- |")
    for (path, step), cells in rows.items():
        outcomes = f"{cells.get('before', '')} | {cells.get('after', '')}"
        terminalreporter.line(f"| {path} | {step} | {outcomes} |")

"""What became of each kill, printed as a table at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import tables

Table = dict[tuple[str, str], dict[str, str]]  # outcome by (path, step), then by moment

KILLS = tables.Table(
    "job.run under SIGKILL",
    key=("path", "step"),
    columns={"before": "killed before", "after": "killed after"},
)


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """The test's own rows."""
    rows: Table = {}
    yield rows
    for key, cells in rows.items():
        KILLS.note(request.node, key, cells)

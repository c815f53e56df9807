"""What became of each kill and each fault, printed as tables at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import tables
from tests.faults.play import Tally

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


TROUBLES = tables.Table("operations under kills and faults", key=("operation",))


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """What the test has done to each operation, how often, and what it found wrong."""
    made = Tally()
    yield made
    for (scenario, what), count in made.cases.items():
        TROUBLES.note(request.node, [scenario], {what: count})
    for scenario in list(dict.fromkeys(name for name, _ in made.cases))[:1]:
        found = {
            "left over": made.left_over,
            "jobs lost or doubled": made.jobs_wrong,
            "other wrong": made.others,
        }
        TROUBLES.note(request.node, [scenario], found)

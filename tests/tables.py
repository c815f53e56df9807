"""Tables that tests fill in, row by row, and that are printed at the end of a run.

What a test notes travels with its report, so a table is whole when several workers run the tests.
Rows stand in the order of the tests, whoever ended first.  `tests/conftest.py` has the two hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

_NOTE = "agentlab table"  # among a report's properties: (title, heads, place, key, cells)


@dataclass(frozen=True)
class Table:
    """`key` names the columns that tell rows apart; `columns` has each further one and its head."""

    title: str
    key: tuple[str, ...]
    columns: Mapping[str, str]

    def note(self, item: pytest.Item, key: Sequence[str], cells: Mapping[str, str]) -> None:
        """Fills cells of a row while the test runs or is taken down; its other cells stay."""
        item.user_properties.append(self.noted(item, key, cells))

    def noted(
        self, item: pytest.Item, key: Sequence[str], cells: Mapping[str, str]
    ) -> tuple[str, object]:
        """The same as a property, for a report that is there already."""
        heads = [*self.key, *self.columns.values()]
        ordered = [cells.get(column, "") for column in self.columns]
        return _NOTE, (self.title, heads, item.session.items.index(item), list(key), ordered)


class _Printed:
    """What has been told of one table."""

    def __init__(self, heads: list[str]) -> None:
        self.heads = heads
        self.places: dict[tuple[str, ...], int] = {}
        self.rows: dict[tuple[str, ...], list[str]] = {}

    def add(self, place: int, key: tuple[str, ...], cells: list[str]) -> None:
        self.places[key] = min(place, self.places.get(key, place))
        known = self.rows.get(key, [""] * len(cells))
        self.rows[key] = [new or old for new, old in zip(cells, known, strict=True)]


_TOLD: dict[str, _Printed] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == _NOTE:
            title, heads, place, key, cells = value
            _TOLD.setdefault(title, _Printed(heads)).add(place, tuple(key), cells)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, table in _TOLD.items():
        terminalreporter.section(title)
        terminalreporter.line(f"| {' | '.join(table.heads)} |")
        terminalreporter.line(f"|{' --- |' * len(table.heads)}")
        for key in sorted(table.rows, key=lambda key: table.places[key]):
            terminalreporter.line(f"| {' | '.join([*key, *table.rows[key]])} |")

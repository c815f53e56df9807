"""Tables that tests fill in, row by row, and that are printed at the end of a run.

What a test notes travels with its report, so a table is whole when several workers run the tests.
Rows stand in the order of the tests, whoever ended first.  `tests/conftest.py` has the two hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

_NOTE = "agentlab table"  # among a report's properties: (title, key, columns), place, row, cells
Cell = str | int


@dataclass(frozen=True)
class Table:
    """`key` are the heads of what tells rows apart; `columns` has each further column and its head.

    Columns that are not named here follow in alphabetical order, each its own head.
    """

    title: str
    key: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)

    def note(self, item: pytest.Item, row: Sequence[str], cells: Mapping[str, Cell]) -> None:
        """Fills cells of a row while the test runs or is taken down; its other cells stay.

        Text takes the place of text that is there; numbers are added up, and summed at the end.
        """
        head = (self.title, list(self.key), dict(self.columns))
        place = item.session.items.index(item)
        item.user_properties.append((_NOTE, (head, place, list(row), dict(cells))))


class _Told:
    """What has been noted in one table."""

    def __init__(self, key: list[str], columns: dict[str, str]) -> None:
        self.key, self.columns = key, columns
        self.places: dict[tuple[str, ...], int] = {}
        self.rows: dict[tuple[str, ...], dict[str, Cell]] = {}

    def add(self, place: int, row: tuple[str, ...], cells: dict[str, Cell]) -> None:
        self.places[row] = min(place, self.places.get(row, place))
        kept = self.rows.setdefault(row, {})
        for column, cell in cells.items():
            known = kept.get(column)
            both = isinstance(cell, int) and isinstance(known, int)
            kept[column] = known + cell if both else cell  # type: ignore[operator] # see `both`

    def lines(self) -> list[str]:
        more = {column for cells in self.rows.values() for column in cells} - set(self.columns)
        columns = {**self.columns, **{column: column for column in sorted(more)}}
        rows = [
            [*row, *(str(self.rows[row].get(column, "")) for column in columns)]
            for row in sorted(self.rows, key=lambda row: self.places[row])
        ]
        numbers = {column: self._numbers(column) for column in columns}
        if any(numbers.values()):
            sums = [str(sum(each)) if each else "" for each in numbers.values()]
            rows.append(["in all", *[""] * (len(self.key) - 1), *sums])
        heads = [*self.key, *columns.values()]
        return [f"| {' | '.join(each)} |" for each in (heads, ["---"] * len(heads), *rows)]

    def _numbers(self, column: str) -> list[int]:
        cells = [row.get(column) for row in self.rows.values()]
        return [cell for cell in cells if isinstance(cell, int)]


_TOLD: dict[str, _Told] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "teardown":  # the last report of a test has all its notes
        return
    for name, value in report.user_properties:
        if name == _NOTE:
            (title, key, columns), place, row, cells = value
            _TOLD.setdefault(title, _Told(key, columns)).add(place, tuple(row), cells)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, table in _TOLD.items():
        terminalreporter.section(title)
        for line in table.lines():
            terminalreporter.line(line)

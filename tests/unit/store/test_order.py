"""First come, first served: by what was written first, whatever the clock says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab import clock
from agentlab.store import operations
from agentlab.store.db import Store

ASKED = ["c", "a", "b"]  # their names and the clock would have it otherwise


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Three that wait for their turn; somebody set the clock back by an hour between two each."""
    now = [clock.now()]
    monkeypatch.setattr(clock, "now", lambda: now[0])
    found = Store(tmp_path / "agentlab.db")
    with found.write() as tx:
        operations.create(tx, "holds", "test", ["it"], {})
        for each in ASKED:
            operations.create(tx, each, "test", ["it"], {}, in_turn=True)
            operations.begin_step(tx, each, "turn")
            now[0] -= 3600.0
    yield found
    found.close()


def test_who_came_first_is_first(store: Store) -> None:
    with store.read() as tx:
        assert operations.at_step(tx, "turn") == ASKED
        assert [each.id for each in operations.waiting_for(tx, "it")] == ASKED
        assert [each.id for each in operations.unfinished(tx)] == ["holds", *ASKED]


def test_turns_come_in_that_order(store: Store) -> None:
    for holder, following in zip(["holds", *ASKED], ASKED, strict=False):
        with store.write() as tx:
            operations.finish(tx, holder, "done")
            if holder in ASKED:
                operations.end_step(tx, holder, "turn", "done", {})
            for each in ASKED[ASKED.index(following) :]:
                ahead = operations.ahead(tx, operations.get(tx, each), "turn")
                assert (ahead.id if ahead else None) == (None if each == following else following)
            operations.lock(tx, following, "it")


def test_what_was_forgotten_leaves_the_order_as_it_is(store: Store) -> None:
    with store.write() as tx:
        operations.create(tx, "last", "test", ["other"], {})
        operations.finish(tx, "last", "done")
        assert operations.forget_before(tx, clock.now() + 1) == 1
        operations.create(tx, "0", "test", ["it"], {}, in_turn=True)
        operations.begin_step(tx, "0", "turn")
        assert operations.at_step(tx, "turn") == [*ASKED, "0"]

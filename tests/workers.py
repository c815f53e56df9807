"""How several workers share the tests: what stays together, who runs what, and when.

Tests of one file stay together, in their order, so that what a module shares is made once.  The
drivers, the kinds of bridge and the two directions of an operation do not: each has a lab of its
own.  All workers but one run files with virtual machines, which keep a processor busy; one runs
the others, which mostly wait, and has done when there are no more of those.
"""

from __future__ import annotations

import re
import zlib
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

ROOT = Path(__file__).resolve().parents[1]
_APART = re.compile(r"\b(api|shell|local|netfilter-bridged|plain-bridge|do|undo)\b")
# With virtual machines and short: these fill up the end.  All others may be long and begin at once.
_SHORT = ("test_adapt_image", "test_local", "test_hypervisor")


_MATRIX, _PARTS = "test_matrix.py", 8


def group_of(nodeid: str) -> str:
    """The tests that one worker runs one after the other."""
    file, _, test = nodeid.partition("::")
    if file.endswith(_MATRIX):  # each case has a lab of its own, and all of them take long
        return f"{file}[{zlib.crc32(test.encode()) % _PARTS}]"
    found = None if file.startswith("tests/unit/") else _APART.search(test.partition("[")[2])
    return f"{file}[{found[1]}]" if found else file


@cache
def starts_machines(group: str) -> bool:
    file = ROOT / group.partition("[")[0]
    return file.exists() and "mark.vm" in file.read_text()


def order(group: str, tests: int) -> tuple[bool, int, int]:
    """Sorts groups: what may take long first."""
    name = Path(group.partition("[")[0]).stem
    return group.startswith("tests/unit/"), _SHORT.index(name) if name in _SHORT else -1, -tests


class Groups(LoadScopeScheduling):
    """xdist's own scheduler with our groups and our order."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        waiting = sorted(self.workqueue, key=lambda each: order(each, len(self.workqueue[each])))
        others = sum(
            any(starts_machines(group) and not all(tests.values()) for group, tests in work.items())
            for other, work in self.assigned_work.items()
            if other is not node
        )
        machines = others < max(2, self.numnodes - 1)
        chosen = next((each for each in waiting if starts_machines(each) is machines), "")
        if not chosen and not machines:
            node.shutdown()  # all that waits would be one file with machines too many
            return
        self.workqueue.move_to_end(chosen or waiting[0], last=False)
        super()._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """What a worker that ended leaves to others: not the test that ended it.

        xdist's own hands that one out again, and files of which all is done; a worker that gets
        such a file never asks for another, and the run never ends.
        """
        left = self.assigned_work[node]
        ended_in = next(
            (each for tests in left.values() for each in tests if not tests[each]), None
        )
        if ended_in is None:
            return super().remove_node(node)
        del self.assigned_work[node]
        left[group_of(ended_in)][ended_in] = True
        self.workqueue.update({k: tests for k, tests in left.items() if not all(tests.values())})
        for other in self.nodes:
            self._reschedule(other)
        return ended_in


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Groups:
    return Groups(config, log)  # type: ignore[arg-type] # xdist's own kind of log

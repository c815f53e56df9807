"""Turns: who waits is served with a list that is newer than the call."""

import threading
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest

from agentlab.errors import Unavailable
from agentlab.network.fence import Fence
from agentlab.network.settings import Member, NetworkSettings

SETTINGS = NetworkSettings(
    "lab", "vmbr1", IPv4Network("10.77.0.0/16"), IPv4Address("10.77.0.1"), 8844
)


class SlowFence(Fence):
    """Applies nothing, and holds each turn until it is let go."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.turns = 0
        self.fail = False

    def _apply(self, members: Sequence[Member]) -> None:
        self.turns += 1
        self.begun.release()
        self.go.acquire()
        if self.fail:
            raise Unavailable("no")


def waiting(fence: Fence, count: int) -> None:
    """Until so many callers have taken a number (the one place that looks inside)."""
    while int(repr(fence._calls)[6:-1]) <= count:
        pass


def start(fence: SlowFence, reads: list[str], name: str) -> threading.Thread:
    def read() -> list[Member]:
        reads.append(name)
        return []

    thread = threading.Thread(target=fence.sync, args=(read,))
    thread.start()
    return thread


def test_waiting_callers_are_served_by_one_turn() -> None:
    fence, reads = SlowFence(), list[str]()
    first = start(fence, reads, "first")
    fence.begun.acquire()
    late = [start(fence, reads, "late") for _ in range(10)]
    waiting(fence, 12)
    for _ in range(2):
        fence.go.release()
    for thread in (first, *late):
        thread.join()
    assert reads == ["first", "late"]


def test_a_caller_after_the_read_gets_a_turn_of_its_own() -> None:
    fence = SlowFence()
    for turn in range(1, 4):
        fence.go.release()
        fence.sync(list)
        assert fence.turns == turn


def test_failed_turn_serves_nobody() -> None:
    fence = SlowFence()
    fence.fail = True
    fence.go.release()
    with pytest.raises(Unavailable):
        fence.sync(list)
    fence.fail = False
    fence.go.release()
    fence.sync(list)
    assert fence.turns == 2

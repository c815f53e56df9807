"""Turns at nodes, templates and storages."""

from __future__ import annotations

import threading
import time

import pytest

from agentlab.errors import Busy
from agentlab.hypervisor.load import Gate, Resource
from tests.waiting import PATIENCE, until

NODE, TEMPLATE = Resource("node", "pve"), Resource("template", "9000")


def test_no_more_than_the_limit_have_their_turn() -> None:
    gate, now, most, lock = Gate({"node": 3}, queue=50), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal now, most
        with gate.turn([NODE], patience=PATIENCE):
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.005)
            with lock:
                now -= 1

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3
    with gate.turn([NODE], patience=0), gate.turn([NODE], patience=0):
        pass  # all turns were given back


def test_a_kind_without_a_limit_never_waits() -> None:
    gate = Gate({}, queue=1)
    with gate.turn([NODE], patience=0), gate.turn([NODE], patience=0):
        pass


def test_who_waits_too_long_is_told_what_for_and_where_he_stands() -> None:
    gate = Gate({"template": 1}, queue=5)
    with (
        gate.turn([TEMPLATE], patience=0),
        pytest.raises(Busy, match="template 9000: place 1"),
        gate.turn([TEMPLATE], patience=0.01),
    ):
        pass
    with gate.turn([TEMPLATE], patience=0):
        pass


def test_the_queue_is_bounded() -> None:
    gate = Gate({"node": 1}, queue=1)
    inside, leave = threading.Event(), threading.Event()

    def wait_in_the_queue() -> None:
        inside.set()
        with gate.turn([NODE], patience=PATIENCE):
            pass

    with gate.turn([NODE], patience=0):
        waiter = threading.Thread(target=wait_in_the_queue)
        waiter.start()
        inside.wait()
        end = time.monotonic() + PATIENCE
        while True:  # until the waiter is in the queue
            with pytest.raises(Busy) as refused, gate.turn([NODE], patience=0):
                pass
            if "callers wait already" in refused.value.message:
                break
            assert time.monotonic() < end
        leave.set()
    waiter.join()


def test_first_come_first_served() -> None:
    gate, order, threads = Gate({"node": 1}, queue=50), [], []
    with gate.turn([NODE], patience=0):
        for number in range(8):

            def work(number: int = number) -> None:
                with gate.turn([NODE], patience=PATIENCE):
                    order.append(number)

            thread = threading.Thread(target=work)
            thread.start()
            threads.append(thread)
            until(lambda: len(gate._waiting) == len(threads))
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_a_turn_at_a_node_does_not_queue_behind_clones_of_a_busy_template() -> None:
    gate = Gate({"node": 3, "template": 1}, queue=50)
    with gate.turn([NODE, TEMPLATE], patience=0):
        behind = threading.Thread(target=lambda: _take(gate, [NODE, TEMPLATE]))
        behind.start()
        until(lambda: gate._waiting)
        with gate.turn([NODE], patience=0.5):
            pass
    behind.join()


def _take(gate: Gate, resources: list[Resource]) -> None:
    with gate.turn(resources, patience=PATIENCE):
        pass

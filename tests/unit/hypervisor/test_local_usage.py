"""How busy a machine is, from two looks at its process."""

from __future__ import annotations

import os

import pytest

from agentlab.hypervisor.local.usage import Look, Usage, parse_stat, read_look

# /proc/PID/stat of a QEMU of Debian 12, with a name that its owner chose
STAT = (
    "4711 (agentlab-1012 ) R (x)) S 1 4711 4711 0 -1 4194560 21871 0 9 0 1234 66 0 0 20 0 5 0 "
    "18402177 1203470336 30211 18446744073709551615 1 1 0 0 0 0 268444224 4096 16963 0 0 0 17 1 0 0 "
    "0 0 0 0 0 0 0 0 0 0 0\n"
)


class Clockwork:
    """A process and a clock in the test's hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.look: Look | None = Look(4711, 18402177, 5.0)

    def usage(self) -> Usage:
        return Usage(read=lambda pid: self.look, clock=lambda: self.now)

    def pass_time(self, seconds: float, used: float) -> None:
        assert self.look is not None
        self.now += seconds
        self.look = Look(self.look.pid, self.look.begun, self.look.used + used)


def test_a_line_of_proc_with_a_hostile_name() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    assert parse_stat(4711, STAT) == Look(4711, 18402177, 1300 / ticks)


@pytest.mark.parametrize("text", ["", "4711 (x) S 1 2", "4711 (x) " + "a " * 40])
def test_what_is_no_line_of_proc(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # int() says it in its own words
        parse_stat(4711, text)


def test_a_process_that_is_gone_is_not_looked_at() -> None:
    own = read_look(os.getpid())
    assert own is not None
    assert own.pid == os.getpid()
    assert read_look(2**22 + 1) is None  # past pid_max


def test_the_first_look_tells_nothing_and_the_second_the_share_of_its_cores() -> None:
    work = Clockwork()
    usage = work.usage()
    assert usage.share(1012, 4711, 2) is None
    work.pass_time(10, used=5)
    assert usage.share(1012, 4711, 2) == pytest.approx(0.25)
    work.pass_time(10, used=0)
    assert usage.share(1012, 4711, 2) == 0.0


def test_two_who_look_in_turns_do_not_make_each_other_blind() -> None:
    work = Clockwork()
    usage = work.usage()
    usage.share(1012, 4711, 1)
    work.pass_time(0.01, used=0)
    assert usage.share(1012, 4711, 1) is None
    work.pass_time(3.99, used=2)
    assert usage.share(1012, 4711, 1) == pytest.approx(0.5)
    work.pass_time(0.01, used=0.01)
    assert usage.share(1012, 4711, 1) == pytest.approx(0.5)


def test_it_is_never_more_than_all() -> None:
    work = Clockwork()
    usage = work.usage()
    usage.share(1012, 4711, 1)
    work.pass_time(2, used=3)
    assert usage.share(1012, 4711, 1) == 1.0


def test_another_process_under_the_same_number_is_looked_at_anew() -> None:
    work = Clockwork()
    usage = work.usage()
    usage.share(1012, 4711, 1)
    work.now += 10
    work.look = Look(4711, 99999999, 50.0)
    assert usage.share(1012, 4711, 1) is None
    work.pass_time(10, used=1)
    assert usage.share(1012, 4711, 1) == pytest.approx(0.1)


def test_what_is_gone_is_forgotten() -> None:
    work = Clockwork()
    usage = work.usage()
    for vmid in (1012, 1013):
        usage.share(vmid, 4711, 1)
    usage.keep([1013])
    work.pass_time(10, used=1)
    assert usage.share(1012, 4711, 1) is None
    assert usage.share(1013, 4711, 1) == pytest.approx(0.1)
    assert usage.share(1013, None, 1) is None
    assert usage.share(1013, 4711, 1) is None

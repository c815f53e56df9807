"""The log: live, whole up to its limit, then its end; never a burden to the agent."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from agentlab.clock import Deadline
from agentlab.errors import Unavailable
from agentlab.guest import spool as spool_module
from agentlab.guest.joblog import TAIL, JobLog, LogSender
from agentlab.guest.spool import Spool
from tests.unit.guest.world import PACE, World, document


class _Slow:
    """A daemon that takes a log in pieces, fails now and then, and forgets some of it once."""

    def __init__(self) -> None:
        self.log = bytearray()
        self.calls = 0

    def put_log(self, offset: int, data: bytes) -> int:
        self.calls += 1
        if self.calls % 3 == 0:
            raise Unavailable("not now")
        if self.calls == 4:
            del self.log[len(self.log) // 2 :]  # as after a crash: it lost what was not synced
        if offset != len(self.log):
            return len(self.log)
        self.log += data
        return len(self.log)


def _sent(log: JobLog) -> bytes:
    return b"".join(iter(lambda at=[0]: _next(log, at), b""))  # type: ignore[misc]


def _next(log: JobLog, at: list[int]) -> bytes:
    data = log.read(at[0])
    at[0] += len(data)
    return data


def test_bytes_come_as_they_are(world: World) -> None:
    world.run("printf '\\000\\377\\r\\n\\033[1m'; printf 'err' >&2")
    assert bytes(world.daemon.log) == b"\0\xff\r\n\x1b[1merr"


def test_log_is_live(world: World) -> None:
    world.run("echo 1; sleep 0.6; echo 2; sleep 0.6; echo 3")
    times = [at for at, _ in world.daemon.log_times]
    assert len(times) == 3
    assert times[2] - times[0] > 0.8


def test_log_up_to_its_limit_is_whole(tmp_path: Path) -> None:
    log = JobLog(Spool([tmp_path]), 200_000)
    data = os.urandom(200_000 - 128)
    log.write(data)
    log.close()
    assert _sent(log) == data
    assert not log.truncated


@pytest.mark.parametrize("limit", [0, 100, TAIL, 200_000])
@pytest.mark.parametrize("piece", [1000, 300_000])
def test_longer_log_has_its_head_a_notice_and_its_end(
    tmp_path: Path, limit: int, piece: int
) -> None:
    log = JobLog(Spool([tmp_path]), limit)
    data = os.urandom(900_000)
    for at in range(0, len(data), piece):
        log.write(data[at : at + piece])
    log.close()
    sent = _sent(log)
    assert log.truncated
    assert log.written == len(data)
    assert len(sent) <= max(limit, 100)
    if limit > 1000:
        head, _, rest = sent.partition(b"\n[agentlab: ")
        number, _, tail = rest.partition(b" bytes left out here]\n")
        assert head == data[: max(0, limit - TAIL)]
        assert data.endswith(tail)
        assert int(number) == len(data) - len(head) - len(tail)


def test_daemon_that_fails_and_forgets_gets_everything_once(tmp_path: Path) -> None:
    log, daemon = JobLog(Spool([tmp_path]), 8 << 20), _Slow()
    sender = LogSender(daemon, log, PACE)  # type: ignore[arg-type]
    sender.start()
    data = os.urandom(3_000_000)
    for at in range(0, len(data), 100_000):
        log.write(data[at : at + 100_000])
    assert sender.finish(Deadline.after(20)) == ""
    assert bytes(daemon.log) == data


def test_daemon_that_never_comes_back_is_told_in_the_reason(tmp_path: Path) -> None:
    log, daemon = JobLog(Spool([tmp_path]), 1 << 20), _Slow()
    daemon.put_log = _away  # type: ignore[method-assign]
    sender = LogSender(daemon, log, PACE)  # type: ignore[arg-type]
    sender.start()
    log.write(b"x")
    assert "0 of 1 bytes" in sender.finish(Deadline.after(0.2))


def _away(offset: int, data: bytes) -> int:
    raise Unavailable("away")


def test_hundred_megabytes_pass_at_the_agents_pace_and_in_flat_memory(world: World) -> None:
    world.daemon.refuse["log"] = 503  # until the agent has ended
    world.when(lambda: "handback" in world.daemon.heartbeats, world.daemon.refuse.clear)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = world.run("head -c 100000000 /dev/zero; echo; echo the end", limits={
        **document()["limits"], "log_bytes": 1_000_000})  # fmt: skip
    assert report["status"] == "completed"
    assert report["log_truncated"]
    assert report["log_bytes"] == 100_000_009
    assert len(world.daemon.log) <= 1_000_000
    assert world.daemon.log.endswith(b"\0\nthe end\n")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_spool_moves_to_the_next_place_when_the_first_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill_after(monkeypatch, 100_000)
    with Spool([tmp_path / "disk", tmp_path / "tmpfs"]) as spool:
        data = os.urandom(250_000)
        for at in range(0, len(data), 30_000):
            spool.write(data[at : at + 30_000])
        assert spool.read(0, 1 << 20) == data
        assert spool.read(99_000, 2000) == data[99_000:101_000]


def test_full_disk_and_full_tmpfs_still_keep_the_end_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill_after(monkeypatch, 100_000)
    log = JobLog(Spool([tmp_path]), 1 << 20)
    for _ in range(20):
        log.write(b"x" * 10_000)
    assert log.size == 100_000
    log.close()
    assert log.truncated


def _fill_after(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """The first file that is written to has room for so many bytes."""
    real, first = os.pwrite, []

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if not first:
            first.append(os.fstat(fd).st_ino)
        if os.fstat(fd).st_ino == first[0]:
            if offset >= room:
                raise OSError(28, "No space left on device")
            data = data[: room - offset]
        return real(fd, data, offset)

    monkeypatch.setattr(spool_module.os, "pwrite", pwrite)

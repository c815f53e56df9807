"""The small parts of the daemon, each by itself."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from agentlab.daemon.access import check_access, group_id
from agentlab.daemon.exchange import Peer
from agentlab.daemon.instance import sole_instance
from agentlab.daemon.listener import check_socket_path
from agentlab.daemon.notify import notify
from agentlab.daemon.pool import Pool
from agentlab.daemon.rate import Rate
from agentlab.errors import Conflict, Denied, Invalid


def test_one_instance_for_a_directory(tmp_path: Path) -> None:
    with sole_instance(tmp_path):
        with pytest.raises(Conflict) as caught, sole_instance(tmp_path):
            pass
        assert caught.value.message == (
            f"cannot start: another agentlabd (pid {os.getpid()}) works on {tmp_path}"
        )
    with sole_instance(tmp_path):
        pass


@pytest.mark.parametrize("abstract", [False, True])
def test_words_to_the_service_manager(
    tmp_path: Path, abstract: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"@agentlab-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "STATUS=ready")
        assert listener.recv(100) == b"READY=1\nSTATUS=ready"


def test_no_service_manager_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


def test_who_may_use_the_socket() -> None:
    for peer in (Peer(uid=0), Peer(uid=os.geteuid()), Peer(uid=77, gid=5),
                 Peer(uid=77, gid=1, groups=frozenset({5}))):  # fmt: skip
        check_access(peer, 5)
    for group in (None, 5):
        with pytest.raises(Denied):
            check_access(Peer(uid=77, gid=1, groups=frozenset({2})), group)


def test_groups_by_name() -> None:
    assert group_id("root") == 0
    assert group_id("no-such-group") is None


def test_a_socket_path_has_a_limit() -> None:
    check_socket_path(Path("/" + "x" * 106))
    with pytest.raises(Invalid, match="invalid socket path"):
        check_socket_path(Path("/" + "ä" * 54))


def test_a_rate_lets_a_burst_through_and_remembers_few() -> None:
    rate = Rate(0.0, 3)
    assert [rate.take("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert rate.take("b")
    for number in range(5000):
        rate.take(str(number))
    assert len(rate._buckets) == 4096


def test_a_pool_does_not_pass_its_limit() -> None:
    pool, go = Pool("test", 2), threading.Event()
    assert pool.submit(go.wait)
    assert pool.submit(go.wait)
    assert not pool.submit(go.wait)
    assert not pool.wait_idle(0.05)
    go.set()
    assert pool.wait_idle(5)
    names = {each.name for each in threading.enumerate() if each.name.startswith("test-")}
    for _ in range(20):
        assert pool.submit(lambda: None)
        assert pool.wait_idle(5)
    assert {t.name for t in threading.enumerate() if t.name.startswith("test-")} == names

"""A clone of a memory snapshot becomes a machine of its own, in the right order."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from agentlab.errors import Invalid
from agentlab.guest import bootstrap, identity, runner
from agentlab.guest.identity import Kernel, first_ethernet, parse_identity, render_hosts
from agentlab.guest.paths import Paths
from tests.unit.guest.world import PACE, World
from tests.waiting import ended, happened, until

DOCUMENT: dict[str, Any] = {
    "nonce": "0123abcd", "entropy": base64.b64encode(bytes(range(64))).decode(),
    "time": 1_700_000_000.5, "hostname": "sandbox-1012", "machine_id": "ab" * 16,
    "mac": "52:54:00:00:00:05", "address": "10.77.0.5/16", "gateway": "10.77.0.1",
    "dns": ["1.1.1.1", "9.9.9.9"],
}  # fmt: skip


class _Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def kernel(self) -> Kernel:
        return Kernel(
            lambda data: self.calls.append(("entropy", data)),
            lambda now: self.calls.append(("clock", now)),
            lambda name: self.calls.append(("hostname", name)),
            lambda argv, stdin: self.calls.append((" ".join(argv), stdin)),
        )


def _machine(root: Path) -> Paths:
    paths = Paths(run=root / "run", etc=root / "etc", sys_net=root / "net", system_run=root / "r")
    for path in (paths.run, paths.etc / "ssh", paths.sys_net, root / "r/systemd/system"):
        path.mkdir(parents=True, exist_ok=True)
    for name, index, kind in (("lo", 1, 772), ("eth1", 3, 1), ("eth0", 2, 1), ("br0", 4, 1)):
        (paths.sys_net / name).mkdir()
        (paths.sys_net / name / "ifindex").write_text(f"{index}\n")
        (paths.sys_net / name / "type").write_text(f"{kind}\n")
        if name.startswith("eth"):
            (paths.sys_net / name / "device").mkdir()
    for kind in ("rsa", "ed25519"):
        (paths.etc / f"ssh/ssh_host_{kind}_key").write_text("old")
    (paths.etc / "hosts").write_text("127.0.0.1 localhost\n127.0.1.1 template\n")
    (paths.etc / "resolv.conf").symlink_to("/nonexistent/stub")
    (paths.etc / "machine-id").write_text("")
    return paths


def test_identity_is_taken_on_entropy_first_and_done_last(tmp_path: Path) -> None:
    paths, recorder = _machine(tmp_path), _Recorder()
    identity.adopt(parse_identity(DOCUMENT), paths, recorder.kernel())
    names = [name for name, _ in recorder.calls]
    key = paths.etc / "ssh/ssh_host_ed25519_key"
    assert names == [
        "entropy", "clock", "hostname", "ip -batch -",
        f"ssh-keygen -q -t ed25519 -N  -C  -f {key}",
        "systemctl --no-block try-restart ssh.service",
    ]  # fmt: skip
    assert recorder.calls[0][1] == bytes(range(64))
    assert recorder.calls[3][1].splitlines() == [
        "link set dev eth0 down",
        "link set dev eth0 address 52:54:00:00:00:05",
        "address flush dev eth0",
        "address add 10.77.0.5/16 broadcast + dev eth0",
        "link set dev eth0 up",
        "route replace default via 10.77.0.1 dev eth0",
    ]
    assert list((paths.etc / "ssh").iterdir()) == []
    assert (paths.etc / "hostname").read_text() == "sandbox-1012\n"
    assert (paths.etc / "hosts").read_text() == "127.0.0.1 localhost\n127.0.1.1 sandbox-1012\n"
    assert (paths.etc / "machine-id").read_text() == "ab" * 16 + "\n"
    assert (paths.etc / "resolv.conf").read_text() == "nameserver 1.1.1.1\nnameserver 9.9.9.9\n"
    assert paths.identity_done.read_text() == DOCUMENT["nonce"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("mac", "52:54"), ("address", "10.0.0.1"), ("gateway", "x\ny"), ("hostname", "a b"),
     ("machine_id", "AB"), ("entropy", "!"), ("entropy", "AAAA"), ("dns", ["::1"]),
     ("dns", "1.1.1.1"), ("time", "soon"), ("nonce", None)],
)  # fmt: skip
def test_malformed_identity_is_refused_whole(key: str, value: object) -> None:
    with pytest.raises(Invalid, match="cannot take the identity"):
        parse_identity({**DOCUMENT, key: value})


def test_machine_without_ethernet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no Ethernet"):
        first_ethernet(tmp_path)


def test_hosts_twice_is_hosts_once() -> None:
    once = render_hosts("127.0.0.1 localhost\n", "a")
    assert render_hosts(once, "a") == once


def test_kernel_takes_entropy_and_reseeds() -> None:
    try:
        identity._credit_entropy(bytes(64))
    except PermissionError:
        pytest.skip("needs CAP_SYS_ADMIN")


def test_runner_is_ready_adopts_an_identity_and_then_does_its_job(world: World) -> None:
    paths, recorder = _machine(world.root), _Recorder()
    assert paths.etc == world.paths.etc
    guest = runner.Guest(world.paths, PACE, lambda: world.account, recorder.kernel())
    thread = threading.Thread(target=runner.run, args=(guest,), daemon=True)
    thread.start()
    until(world.paths.ready.exists)
    world.paths.identity.write_text(json.dumps(DOCUMENT))
    until(world.paths.identity_done.exists)
    assert not world.paths.identity.exists()
    assert world.paths.ready.exists()
    world.deliver()
    happened(world.daemon.reported)
    ended(thread)
    assert not world.paths.ready.exists()
    assert not world.paths.bootstrap.exists()
    assert world.paths.run.stat().st_mode & 0o077 == 0
    assert world.paths.marker.stat().st_mode & 0o077 == 0


def test_file_that_is_still_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.json"
    path.write_text('{"protocol": 1, "ur')
    assert bootstrap.take(path) is None
    path.write_text('{"protocol": 1}')
    assert bootstrap.take(path) == {"protocol": 1}
    assert not path.exists()
    assert bootstrap.take(path) is None


@pytest.mark.parametrize("document", [{}, {"protocol": 2}, {"protocol": 1, "url": "x", "job": ""}])
def test_malformed_bootstrap_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="cannot use the bootstrap"):
        bootstrap.parse_bootstrap(document)

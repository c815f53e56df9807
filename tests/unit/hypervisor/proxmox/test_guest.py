"""Programs and files in a guest: once each, whole, and binary-safe.

The scripts that go into the guest are run here by a real shell, in a directory of the test.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from agentlab.errors import DeadlineExceeded, Invalid, NotFound, NotOurs, Unavailable
from agentlab.hypervisor.base import ExecResult, MachineSpec, Nic
from agentlab.hypervisor.load import Gate
from agentlab.hypervisor.proxmox import guest, tasks
from agentlab.hypervisor.proxmox.guest import ProxmoxGuest, decode_output, parse_exec
from agentlab.hypervisor.proxmox.names import render_description
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.hypervisor.proxmox.tasks import Api
from agentlab.hypervisor.proxmox.transport import ReplyLost, classify
from tests.fakes.transport import ScriptedTransport

OWNER = "lab"
NIC = Nic(
    "tap1012i0", "52:54:00:77:00:0c", IPv4Interface("10.77.0.12/16"), IPv4Address("10.77.0.1")
)
SPEC = MachineSpec("box", cores=1, memory=512, disk=2048, nic=NIC)


@dataclass
class Guest(ScriptedTransport):
    """A guest whose programs run on this machine; `lose` replies are lost after they ran."""

    run: Path = Path()
    lose: int = 0
    never: int = 0
    ran: int = 0
    pids: dict[int, ExecResult] = field(default_factory=dict)

    def guest_exec(
        self, node: str, vmid: int, argv: Sequence[str], stdin: str, *, timeout: float
    ) -> ExecResult | int:
        if self.never:
            self.never -= 1
            raise ReplyLost("it never came")
        words = [word.replace("/run/agentlab", str(self.run)) for word in argv]
        done = subprocess.run(words, input=stdin.encode(), capture_output=True, check=False)
        self.ran += 1
        if self.lose:
            self.lose -= 1
            raise ReplyLost("it came, and we do not know")
        self.pids[self.ran] = ExecResult(done.returncode, done.stdout, done.stderr)
        return self.ran

    def status(self, params: object) -> object:
        assert isinstance(params, dict)
        result = self.pids.pop(params["pid"], None)
        if result is None:
            raise classify("GET", 500, "Agent error: Invalid parameter 'pid'")
        text = {
            "out-data": result.stdout.decode("latin-1"),
            "err-data": result.stderr.decode("latin-1"),
        }
        ended = {"signal": -result.status} if result.status < 0 else {"exitcode": result.status}
        return {"exited": 1, **ended, **text}


def interface(mac: str, address: str) -> dict[str, object]:
    told = {"ip-address": address, "ip-address-type": "ipv4", "prefix": 16}
    return {"name": "eth0", "hardware-address": mac, "ip-addresses": [told]}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    monkeypatch.setattr(tasks.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(guest, "_ANSWER", 1.0)
    made = Guest(run=tmp_path)
    made.answers = {
        "GET /cluster/resources": [[{"type": "qemu", "vmid": 1012, "node": "pve", "name": "b", "status": "running"}]],
        "GET /cluster/nextid": ["1013"],
        "GET .*/config": [{"description": render_description(OWNER, 1012)}],
        "GET .*/agent/exec-status": [made.status],
        "GET .*/agent/network-get-interfaces": [{"result": [interface(NIC.mac, str(NIC.address.ip))]}],
    }  # fmt: skip
    return made


@pytest.fixture
def driver(machine: Guest) -> ProxmoxGuest:
    settings = Settings(node="pve", bridge="vmbr1", vmids=range(1000, 2000), patience=5.0)
    return ProxmoxGuest(Api(machine, Gate({}, queue=1), patience=5.0), settings, NodeTools("pve"))


@pytest.mark.parametrize("size", [0, 1, 3000, 45_000, 45_001, 65_536])
def test_a_file_arrives_whole_and_private(driver: ProxmoxGuest, tmp_path: Path, size: int) -> None:
    content, target = os.urandom(size), tmp_path / "file"
    driver.file_write(1012, str(target), content, owner=OWNER)
    assert target.read_bytes() == content
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name != "exec"] == ["file"]


def test_a_file_is_replaced(driver: ProxmoxGuest, tmp_path: Path) -> None:
    for content in (b"a" * 50_000, b"b"):
        driver.file_write(1012, str(tmp_path / "file"), content, mode=0o644, owner=OWNER)
    assert (tmp_path / "file").read_bytes() == b"b"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_file_that_cannot_be(driver: ProxmoxGuest, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot write"):
        driver.file_write(1012, str(tmp_path / "no/such/directory"), b"x", owner=OWNER)
    with pytest.raises(Invalid):
        driver.file_write(1012, "relative", b"", owner=OWNER)
    with pytest.raises(Invalid):
        driver.file_write(1012, "/x", bytes(65_537), owner=OWNER)


def test_programs_say_what_they_say(driver: ProxmoxGuest) -> None:
    script = "cat; echo no >&2; exit 3"
    result = driver.exec(
        1012, ["/bin/sh", "-c", script], stdin=b"a\0\xff\xe4", owner=OWNER, timeout=9
    )
    assert result == ExecResult(3, b"a\0\xff\xe4", b"no\n")
    assert driver.exec(1012, ["/bin/sh", "-c", "kill -9 $$"], owner=OWNER, timeout=9).status == -9
    assert (
        driver.exec(1012, ["/bin/echo", "-n", "a b", "*"], owner=OWNER, timeout=9).stdout
        == b"a b *"
    )


def test_a_program_that_is_not_there(driver: ProxmoxGuest) -> None:
    with pytest.raises(Unavailable, match="no such program"):
        driver.exec(1012, ["/no/such/program"], owner=OWNER, timeout=9)
    assert driver.exec(1012, ["/bin/sh", "-c", "exit 125"], owner=OWNER, timeout=9).status == 125


def test_a_guest_is_ready_when_its_runner_waits(
    driver: ProxmoxGuest, machine: Guest, tmp_path: Path
) -> None:
    assert not driver.ready(1012, SPEC)
    (tmp_path / "ready").touch()
    assert driver.ready(1012, SPEC)
    machine.answers["GET .*/agent/network-get-interfaces"] = [
        {"result": [interface(NIC.mac, "10.77.9.9")]}
    ]
    assert not driver.ready(1012, SPEC)
    assert machine.ran == 2, "a guest without its address is not asked for more"


def test_a_guest_that_never_tells_how_it_ended_is_not_ready(
    driver: ProxmoxGuest, machine: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent may be anybody's: each question is one that Proxmox puts to it once.

    `file-read` is none: Proxmox reads on for as long as the agent says that there is more.
    """
    (tmp_path / "ready").touch()
    monkeypatch.setattr(guest, "_LOOK", 0.05)
    for told in ({"exited": 0}, {"exited": 1, "exitcode": "x"}, [], classify("GET", 500, "odd")):
        machine.answers["GET .*/agent/exec-status"] = [told]
        assert not driver.ready(1012, SPEC)
    assert machine.asked("GET", "file-read") == []


def test_words_that_the_agent_dies_of(driver: ProxmoxGuest, machine: Guest) -> None:
    for word in ("ä", "a\0b"):
        with pytest.raises(Invalid):
            driver.exec(1012, ["/bin/echo", word], owner=OWNER, timeout=9)
    assert machine.ran == 0


def test_a_request_that_never_came_is_sent_again(
    driver: ProxmoxGuest, machine: Guest, tmp_path: Path
) -> None:
    machine.never = 2
    driver.exec(1012, ["/bin/sh", "-c", f"echo x >>{tmp_path}/mark"], owner=OWNER, timeout=9)
    assert (tmp_path / "mark").read_text() == "x\n"


def test_a_lost_reply_does_not_run_it_twice(
    driver: ProxmoxGuest, machine: Guest, tmp_path: Path
) -> None:
    machine.lose = 1
    with pytest.raises(Unavailable, match="it ran, and its answer was lost"):
        driver.exec(1012, ["/bin/sh", "-c", f"echo x >>{tmp_path}/mark"], owner=OWNER, timeout=9)
    assert machine.ran == 2
    assert (tmp_path / "mark").read_text() == "x\n"


def test_an_answer_that_can_be_had_once_is_not_taken_for_a_failure_to_run(
    driver: ProxmoxGuest, machine: Guest
) -> None:
    lost = classify("GET", 596, "Broken pipe")

    def told_and_lost(params: object) -> object:
        machine.status(params)
        raise lost

    machine.answers["GET .*/agent/exec-status"] = [told_and_lost, machine.status]
    with pytest.raises(Unavailable, match="it ran, and its answer was lost"):
        driver.exec(1012, ["/bin/true"], owner=OWNER, timeout=9)
    assert machine.ran == 1


def test_a_program_that_takes_too_long(driver: ProxmoxGuest, machine: Guest) -> None:
    machine.answers["GET .*/agent/exec-status"] = [{"exited": 0}]
    with pytest.raises(DeadlineExceeded):
        driver.exec(1012, ["/bin/true"], owner=OWNER, timeout=0.05)


def test_a_machine_that_is_not_there(driver: ProxmoxGuest) -> None:
    with pytest.raises(NotFound):
        driver.exec(1013, ["/bin/true"], owner=OWNER, timeout=1)
    with pytest.raises(NotFound):
        driver.ping(1013)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ({"exited": 0}, None),
        ({}, None),
        ({"exited": 1, "exitcode": "3", "out-data": "x"}, ExecResult(3, b"x", b"")),
        ({"exited": True, "exitcode": 0, "out-truncated": 1}, ExecResult(0, b"", b"", truncated=True)),
        ({"exited": 1, "signal": 15}, ExecResult(-15, b"", b"")),
    ],
)  # fmt: skip
def test_exec_status(answer: object, result: ExecResult | None) -> None:
    assert parse_exec(answer, "cannot") == result


@pytest.mark.parametrize("answer", [None, [], {"exited": 1}, {"exited": 1, "exitcode": "x"}])
def test_exec_status_that_is_none(answer: object) -> None:
    with pytest.raises(Unavailable):
        parse_exec(answer, "cannot")


def test_output_is_bytes_whatever_it_looks_like() -> None:
    everything = bytes(range(256))
    assert decode_output(everything.decode("latin-1")) == everything
    assert decode_output("€") == "€".encode()
    assert decode_output(None) == b""


def test_nothing_is_said_to_a_strangers_guest(driver: ProxmoxGuest, machine: Guest) -> None:
    with pytest.raises(NotOurs):
        driver.exec(1012, ["/bin/true"], owner="other", timeout=9)
    with pytest.raises(NotOurs):
        driver.file_write(1012, "/run/agentlab/bootstrap.json", b"a token", owner="other")
    assert machine.ran == 0


def test_names_of_old_runs_are_taken_away(
    driver: ProxmoxGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "exec/old", tmp_path / "exec/new"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (1, 1))
    for first, there in (("a", True), ("00", False)):
        monkeypatch.setattr(guest.secrets, "token_hex", lambda n, first=first: first * n)
        driver.exec(1012, ["/bin/true"], owner=OWNER, timeout=5)
        assert (old.exists(), new.exists()) == (there, True)

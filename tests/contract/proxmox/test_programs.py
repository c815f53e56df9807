"""Programs through Proxmox's own guest agent calls, by both transports, in a guest that is this
machine.  Every byte passes the node's own decoding; the calls are counted."""

from __future__ import annotations

import os
import pwd
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.hypervisor.programs import Order, Programs
from tests.contract.bench import OWNER, ProxmoxBench

ME = pwd.getpwuid(os.geteuid()).pw_name
ALL = bytes(range(256))


@pytest.fixture
def programs(proxmox: ProxmoxBench, tmp_path: Path) -> Iterator[Programs]:
    run = tmp_path / "run"
    run.mkdir()

    def play(vmid: int, argv: list[str], stdin: str) -> tuple[int, str, str]:
        words = [word.replace("/run/agentlab", str(run)) for word in argv]
        done = subprocess.run(words, input=stdin.encode(), capture_output=True, check=False)
        return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")

    with proxmox.served.paused() as node:
        node.guests.run = play
    proxmox.start(1012)
    driver = proxmox.hypervisor
    yield Programs(driver, 1012, OWNER, driver.capabilities.exec_stdin)
    assert os.listdir(run / "programs") == []


def _calls(proxmox: ProxmoxBench) -> int:
    with proxmox.served.paused() as node:
        return sum(node.counts.values())


def _run(programs: Programs, *argv: str, given: bytes | None = None) -> tuple[bytes, int | None]:
    name = secrets.token_hex(8)
    heard = programs.start(name, Order(argv, user=ME, input=given is not None), wait=0.5)
    out = heard.out
    for at in range(0, len(given or b""), 180_000):
        part = (given or b"")[at : at + 180_000]
        last = at + len(part) == len(given or b"")
        assert programs.feed(name, at, part, last=last, wait=10) == "taken"
    while heard.status is None:
        heard = programs.hear(name, heard.next_out, heard.next_err, wait=0.5)
        out += heard.out
    programs.end(name)
    return out, heard.status


def test_every_byte_through_proxmox(programs: Programs, proxmox: ProxmoxBench) -> None:
    _run(programs, "true")
    figures = []
    for what, argv, given, want in (
        ("true", ("true",), None, b""),
        ("360 kB in", ("sh", "-c", "cat >/dev/null"), ALL * 1400, b""),
        (
            "a file eight times out",
            ("sh", "-c", "cat $0 $0 $0 $0 $0 $0 $0 $0", __file__),
            None,
            None,
        ),
        ("40 kB in and out", ("cat",), ALL * 160, ALL * 160),
    ):
        before, since = _calls(proxmox), time.monotonic()
        out, status = _run(programs, *argv, given=given)
        assert status == 0
        assert out == (Path(__file__).read_bytes() * 8 if want is None else want)
        took = time.monotonic() - since
        figures.append(f"{what}: {_calls(proxmox) - before} calls, {took:.1f} s")
    print("\n" + "\n".join(figures))

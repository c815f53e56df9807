"""A laboratory whose daemon works on a lab node of Proxmox."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.lab import ROOT, Lab, laboratory


@dataclass
class Node:
    """The lab node beside the daemon; `directory` has its storage and its machines."""

    directory: Path
    process: subprocess.Popen[bytes]

    def leftovers(self) -> list[str]:
        """Disks, run directories and calls of machines that are gone; templates stay."""
        images = self.directory / "storage/images"
        found = [f"disk {path}" for path in images.glob("1???/*")]
        return found + [f"machine {path.name}" for path in (self.directory / "run").glob("1???")]


@contextlib.contextmanager
def proxmox_laboratory(backend: str, *, storage: str = "") -> Iterator[tuple[Lab, Node]]:
    """`backend` is api or shell; `storage` is where volumes go when no storage is named."""
    with laboratory() as lab:
        _make_bridge(lab)
        directory, said = lab.scratch / "pve", lab.scratch / "pve.json"
        with said.open("wb") as out, (lab.scratch / "pve.log").open("wb") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", lab.namespace, sys.executable, "-m",
                 "tests.fakes.pve.lab", directory],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            until = time.monotonic() + 60
            while not said.read_bytes().endswith(b"\n"):
                assert process.poll() is None, (lab.scratch / "pve.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.05)
            _configure(lab, json.loads(said.read_bytes()), backend, storage)
            yield lab, Node(directory, process)
        finally:
            process.terminate()
            process.wait(60)


def _configure(lab: Lab, told: dict[str, str], backend: str, storage: str) -> None:
    token = lab.scratch / "token"
    token.touch(0o600)
    token.write_text(told["token"] + "\n")
    lab.path = told["programs"]
    lab.configure(
        extra=(
            f"hypervisor: proxmox\nproxmox_backend: {backend}\n"
            f"proxmox: {{url: '{told['url']}', ca_file: {told['ca']}, token_file: {token}, "
            f"node: {told['node']}{f', storage: {storage}' if storage else ''}}}\n"
        )
    )


def _make_bridge(lab: Lab) -> None:
    """The administrator's own work, by /etc/network/interfaces on a real host."""
    for words in (
        "link add lab0 type bridge forward_delay 0",
        "address add 10.77.0.1/16 dev lab0",
        "link set lab0 up",
    ):
        subprocess.run(["ip", "-n", lab.namespace, *words.split()], check=True)

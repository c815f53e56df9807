"""The guide's lines about sandboxes, run as written, and the life that they belong to.

What each line said is in a file that is named at the end of the run (`-s` shows it, too).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.guide import SANDBOXES, Reader, bundled
from tests.e2e.lab import Lab, laboratory
from tests.e2e.proxmox import Node, proxmox_laboratory

pytestmark = [pytest.mark.vm, pytest.mark.slow]

FILE = "/home/agent/from-before"


@dataclass
class Place:
    """A laboratory with a template; `remove` takes a VM away behind our back."""

    lab: Lab
    reader: Reader
    remove: Callable[[int], None]
    node: Node | None


@pytest.fixture(scope="module", params=["local", pytest.param("proxmox", marks=pytest.mark.soak)])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        node = None
        if request.param == "proxmox":
            lab, node = stack.enter_context(proxmox_laboratory("api"))
        else:
            lab = stack.enter_context(laboratory())
        lab.profile("demo", "true", memory=512 if node else 256)
        lab.start()
        reader = Reader(lab, SANDBOXES, f"sandboxes-{request.param}")
        reader.run("agentlab template build debian-12")

        def remove(vmid: int) -> None:
            if node is None:
                shutil.rmtree(lab.scratch / "data/machines" / str(vmid))
            else:
                reader.is_run("qm destroy <vmid>")
                reader.note(f"$ qm destroy {vmid}")
                qm_destroy(lab, vmid)

        yield Place(lab, reader, remove, node)


@pytest.fixture(autouse=True)
def tell(place: Place, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    place.reader.tell(request.node)


def qm_destroy(lab: Lab, vmid: int) -> None:
    """The guide's `qm destroy <vmid>`."""
    environment = {**os.environ, "PATH": f"{lab.path}:{os.environ['PATH']}"}
    subprocess.run(
        ["ip", "netns", "exec", lab.namespace, "qm", "destroy", str(vmid)],
        check=True, env=environment,
    )  # fmt: skip


def test_a_life_by_the_guide(place: Place) -> None:
    say = place.reader
    said = say.guide(
        "agentlab sandbox new --profile <profile> --ttl <ttl>",
        says="agentlab sandbox new --profile demo --ttl 2h",
    )
    found = re.search(r"^sandbox +(\d+)$", said, re.MULTILINE)
    assert found, said
    vmid = found[1]

    # READY: the guest answers, and nobody has been in it
    assert re.search(
        r"state +READY",
        say.guide("agentlab sandbox show <vmid>", says=f"agentlab sandbox show {vmid}"),
    )
    renew = "agentlab sandbox lease renew --ttl <ttl> <vmid>"
    said = say.guide(renew, 1, says=f"agentlab sandbox lease renew --ttl 4h {vmid}")
    assert f"sandbox lease not renewable: sandbox {vmid} is READY" in said

    # RUNNING: somebody has been in it
    say.run(f"agentlab sandbox exec {vmid} -- touch {FILE}")
    say.guide(renew, says=f"agentlab sandbox lease renew --ttl 4h {vmid}")
    say.run(f"agentlab sandbox lease renew {vmid} --ttl 3h")
    destroy = "agentlab sandbox destroy <vmid>"
    said = say.guide(destroy, 1, says=f"agentlab sandbox destroy {vmid}", answer="y")
    assert f"failed to destroy sandbox {vmid}: it is RUNNING" in said
    assert "--force" in said
    say.run(f"agentlab sandbox pause {vmid}")
    say.run(f"agentlab sandbox resume {vmid}")

    # one file for somebody else to look at; a directory gets a file of its own name
    out = place.lab.scratch / "bundles"
    doctor = "agentlab sandbox doctor <vmid> --out <path>"
    say.guide(doctor, says=f"agentlab sandbox doctor {vmid} --out {out}/")
    found = bundled(out / f"agentlab-sandbox-{vmid}.tar.gz")
    assert json.loads(found["sandbox.json"])["vmid"] == int(vmid)
    assert '"error"' not in found["machine.json"]
    say.guide(doctor, 1, says=f"agentlab sandbox doctor {vmid} --out {out}/")  # it stays

    # stopped, its files are kept; a stopped one has no lease that runs
    say.run(f"agentlab sandbox stop {vmid}")
    said = say.guide(renew, 1, says=f"agentlab sandbox lease renew --ttl 4h {vmid}")
    assert "is STOPPED" in said
    say.run(f"agentlab sandbox snapshot save {vmid} before")
    say.run(f"agentlab sandbox snapshot save {vmid} before", 1)
    assert say.run(f"agentlab sandbox snapshot list {vmid}").split() == ["clean", "before"]
    say.run(f"agentlab sandbox update {vmid} --label ticket=42")
    say.run(f"agentlab sandbox start {vmid}")
    say.run(f"agentlab sandbox exec {vmid} -- test -e {FILE}")

    # revert: asks, and files under / are gone
    revert = "agentlab sandbox revert <vmid>"
    say.guide(revert, 3, says=f"agentlab sandbox revert {vmid}")
    said = say.guide(revert, says=f"agentlab sandbox revert {vmid}", answer="y")
    assert f"sandbox {vmid} is READY, back at snapshot clean" in said
    say.run(f"agentlab sandbox exec {vmid} -- test -e {FILE}", 1)

    # and back again, without power
    said = say.run(f"agentlab sandbox snapshot restore {vmid} before --yes --no-restart")
    assert f"sandbox {vmid} is STOPPED, back at snapshot before" in said
    say.guide(destroy, says=f"agentlab sandbox destroy {vmid}", answer="y")
    assert place.lab.leftovers() == []
    if place.node:
        assert place.node.leftovers() == []


def test_what_nobody_waits_for_and_what_is_orphaned(place: Place) -> None:
    say, lab = place.reader, place.lab
    asked = ["sandbox", "new", "--profile", "demo", "--no-wait", "--json"]
    doomed, orphan, lost = (json.loads(lab.cli(*asked).stdout)["vmid"] for _ in range(3))

    # from every state, and what was under way with it ends
    say.guide(
        "agentlab sandbox destroy --force <vmid>", says=f"agentlab sandbox destroy --force {doomed}"
    )
    said = say.run(f"agentlab sandbox stop {orphan}")  # in its turn, when it has been made
    assert f"sandbox {orphan} is STOPPED" in said
    say.run(f"agentlab sandbox stop {lost}")

    # TIMEOUT, and its VM is gone: nothing that happens by itself, so we make it
    lab.stop()
    place.remove(orphan)
    with contextlib.closing(sqlite3.connect(lab.database)) as connection, connection:
        connection.execute("UPDATE sandbox SET state = 'TIMEOUT' WHERE vmid = ?", (orphan,))
    lab.start()

    # no plain destroy in TIMEOUT
    destroy = "agentlab sandbox destroy <vmid>"
    said = say.guide(destroy, 1, says=f"agentlab sandbox destroy {orphan}", answer="y")
    assert f"failed to destroy sandbox {orphan}: it is TIMEOUT" in said
    assert "--force" in said
    shown = say.guide("agentlab sandbox show <vmid>", says=f"agentlab sandbox show {orphan}")
    assert re.search(r"state +TIMEOUT", shown)
    assert re.search(r"power +absent", shown)
    said = say.guide("agentlab sandbox prune")
    assert f"sandbox {orphan} " in said
    assert "removed" in said
    assert "nothing to prune" in say.guide("agentlab sandbox prune")

    # none of a VM that is gone either; with --force the record is closed
    place.remove(lost)
    said = say.guide(destroy, 1, says=f"agentlab sandbox destroy {lost}", answer="y")
    assert f"failed to destroy sandbox {lost}: its VM is gone" in said
    assert f"agentlab sandbox destroy --force {lost}" in said
    force = "agentlab sandbox destroy --force <vmid>"
    say.guide(force, says=f"agentlab sandbox destroy --force {lost}")
    assert re.search(r"state +DESTROYED", say.run(f"agentlab sandbox show {lost}"))
    say.run("agentlab sandbox reconcile")
    say.run("agentlab sandbox inventory")
    assert lab.leftovers() == []
    # if the daemon has seen them before we did
    told = (f"missing VM: sandbox {orphan} is TIMEOUT", f"missing VM: sandbox {lost} is STOPPED")
    assert [each for each in lab.warnings() if not any(one in each for one in told)] == []
    if place.node:
        assert place.node.leftovers() == []


def test_no_line_of_the_guide_was_left_out(place: Place) -> None:
    """The last one: what stands above has run them all; `qm` there is on Proxmox alone."""
    left = place.reader.not_run()
    assert [line for line in left if place.node or not line.startswith("qm ")] == []

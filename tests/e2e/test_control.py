"""What the daemon looks after by itself, with real VMs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.client.client import Client
from agentlab.model.drift import GONE, LOST_POWER
from tests.e2e.lab import Lab, git_repo, laboratory

pytestmark = [pytest.mark.vm, pytest.mark.slow]

SLEEPS = 'echo before; echo kept > "$AGENTLAB_REPO_DIR/kept.txt"; sleep 3000'


def made(client: Client) -> int:
    """The VMID of a sandbox that is READY."""
    asked = client.call(table.SANDBOX_CREATE, m.SandboxRequest(profile="sleeps"))
    until = time.monotonic() + 300
    while time.monotonic() < until:
        found = client.call(table.OPERATION_SHOW, path={"id": asked.id})
        if found.final:
            assert found.state == "done", found
            return found.vmid
        time.sleep(0.5)
    raise AssertionError(found)


def kill(lab: Lab, vmid: int) -> None:
    """The VM dies; nobody told us."""
    pid = int((lab.scratch / f"data/machines/{vmid}/pid").read_text())
    assert pid in lab.processes()
    os.kill(pid, signal.SIGKILL)


def test_vms_that_die_behind_our_back_are_noticed_and_mended() -> None:
    with laboratory() as lab:
        lab.configure()
        lab.profile("sleeps", SLEEPS)
        lab.start()
        client = Client(str(lab.socket))
        dead, gone, well = made(client), made(client), made(client)
        kill(lab, dead)
        kill(lab, gone)
        shutil.rmtree(lab.scratch / f"data/machines/{gone}")
        until = time.monotonic() + 150
        while time.monotonic() < until:
            live = {each.vmid: each for each in client.call(table.SANDBOX_LIST).sandboxes}
            if {live[dead].state, live[gone].state} == {"STOPPED", "FAILED"}:
                break
            time.sleep(1)
        assert [live[each].state for each in (dead, gone, well)] == ["STOPPED", "FAILED", "READY"]
        assert (live[dead].reason, live[gone].reason) == (LOST_POWER, GONE)
        found = client.call(table.RECONCILE_LOOK)
        assert [(each.kind, each.vmid) for each in found.drifts] == [("missing VM", gone)]
        (closed,) = client.call(table.RECONCILE_APPLY).drifts
        assert closed.mended
        assert client.call(table.RECONCILE_LOOK).drifts == []
        for vmid in (dead, well):
            client.call(
                table.SANDBOX_DESTROY, m.DestroyRequest(force=True), path={"vmid": str(vmid)}
            )
        until = time.monotonic() + 60
        while lab.leftovers() and time.monotonic() < until:
            time.sleep(0.5)
        assert lab.leftovers() == []
        assert len(lab.warnings()) == 2, lab.warnings()  # one for each, told once


def test_a_job_that_only_sleeps_is_cancelled_and_hands_back(tmp_path: Path) -> None:
    repo = git_repo(tmp_path / "repo")
    with laboratory() as lab:
        lab.configure()
        lab.profile("sleeps", SLEEPS)
        path = lab.scratch / "profiles/sleeps.yaml"
        path.write_text(path.read_text() + "idle_stop: 1m\n")
        lab.start()
        asked = str(lab.run_job("sleeps", "nothing", repo)["id"])
        job = lab.wait_final(asked, timeout=500)
        assert job["state"] == "CANCELLED", (job, lab.log.read_text()[-3000:])
        told = lab.rows("SELECT text, facts FROM event WHERE kind = 'sandbox.idle'")
        assert [row[0] for row in told] == [f"job {asked} is idle for 1m: cancelling it"]
        assert json.loads(str(told[0][1])) == {"idle": 60.0}
        folder = Path(str(job["artifact_dir"]))
        assert "before" in (folder / "agent.log").read_text()
        assert (folder / "untracked.tar.gz").stat().st_size > 0
        assert lab.leftovers() == []
        assert lab.warnings() == []

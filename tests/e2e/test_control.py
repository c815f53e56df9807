"""What the daemon looks after by itself, with real VMs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.client.client import Client
from agentlab.model.drift import GONE, LOST_POWER
from tests.e2e.lab import Lab, git_repo, laboratory
from tests.waiting import seen

pytestmark = [pytest.mark.vm, pytest.mark.slow]

SLEEPS = 'echo before; echo kept > "$AGENTLAB_REPO_DIR/kept.txt"; sleep 3000'


def made(client: Client) -> int:
    """The VMID of a sandbox that is READY."""
    asked = client.call(table.SANDBOX_CREATE, m.SandboxRequest(profile="sleeps"))

    def found() -> m.OperationView:
        return client.call(table.OPERATION_SHOW, path={"id": asked.id})

    assert seen(lambda: found().final, 300, pause=0.5), found()
    assert found().state == "done", found()
    return found().vmid


def process_of(lab: Lab, vmid: int) -> int:
    pid = int((lab.scratch / f"data/machines/{vmid}/pid").read_text())
    assert pid in lab.processes()
    return pid


def test_vms_that_die_behind_our_back_are_noticed_and_mended() -> None:
    with laboratory() as lab:
        lab.configure()
        lab.profile("sleeps", SLEEPS)
        lab.start()
        client = Client(str(lab.socket))
        dead, gone, well = made(client), made(client), made(client)
        os.kill(process_of(lab, dead), signal.SIGKILL)
        last = process_of(lab, gone)
        # before it dies: it is never seen there without power
        (lab.scratch / f"data/machines/{gone}").rename(lab.scratch / "gone")
        os.kill(last, signal.SIGKILL)

        def live() -> dict[int, m.SandboxView]:
            return {each.vmid: each for each in client.call(table.SANDBOX_LIST).sandboxes}

        def states() -> list[str]:
            return [live()[each].state for each in (dead, gone, well)]

        ends = ["STOPPED", "FAILED", "READY"]
        assert seen(lambda: states() == ends, 150, pause=1.0), states()
        assert (live()[dead].reason, live()[gone].reason) == (LOST_POWER, GONE)
        found = client.call(table.RECONCILE_LOOK)
        assert [(each.kind, each.vmid) for each in found.drifts] == [("missing VM", gone)]
        (closed,) = client.call(table.RECONCILE_APPLY).drifts
        assert closed.mended
        assert client.call(table.RECONCILE_LOOK).drifts == []
        for vmid in (dead, well):
            client.call(
                table.SANDBOX_DESTROY, m.DestroyRequest(force=True), path={"vmid": str(vmid)}
            )
        assert seen(lambda: not lab.leftovers(), 150, pause=0.5), lab.leftovers()
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

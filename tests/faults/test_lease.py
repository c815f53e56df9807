"""A lease ended by hand: never while a machine has the disk, and after a daemon's death as before."""

from __future__ import annotations

import pytest

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.errors import Conflict
from tests.faults.bench import bench
from tests.faults.play import QUIET
from tests.faults.scenarios_sandbox import with_work

pytestmark = [pytest.mark.slow, QUIET]


def test_a_lease_is_cleared_when_its_machine_is_gone_and_not_before() -> None:
    with bench() as installation:
        installation.start()
        target = with_work(installation)
        with pytest.raises(Conflict, match="renews it"):
            installation.door("clear", target.key)
        with pytest.raises(Conflict, match="has its volume"):
            installation.door("clear", target.key, force=True)
        installation.kill()
        installation.behind(target.vmid, "destroy")
        installation.start()
        installation.poke("UPDATE workspace SET lease_until = 1 WHERE name = ?", target.key)
        assert installation.door("clear", target.key).operation == ""
        assert installation.work(target.key)["state"] == "DETACHED"
        assert installation.door("clear", target.key).operation == ""  # twice is once
        gone = installation.ask(
            table.SANDBOX_DESTROY, m.DestroyRequest(force=True), vmid=target.vmid
        )
        installation.done(gone.id)
        box = installation.create()
        installation.done(installation.door("attach", target.key, to=str(box)).operation)
        volid = installation.work(target.key)["volid"]
        assert installation.content(volid).text == target.text("synced")  # the rest had no power
        assert installation.wrong() == []

"""`agentlab guest work` in real VMs: the disk that is plugged in, and the disk at boot."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.contract.bench import OWNER, Bench

pytestmark = [pytest.mark.vm, pytest.mark.slow]


def work(bench: Bench, vmid: int, *words: str) -> dict[str, Any]:
    """One verb, as the daemon runs it."""
    begun = time.monotonic()
    argv = ["/usr/local/bin/agentlab", "guest", "work", *words]
    done = bench.hypervisor.exec(vmid, argv, timeout=120, owner=OWNER)
    answer: dict[str, Any] = json.loads(done.stdout)
    print(f"{' '.join(words)}: {time.monotonic() - begun:.2f} s: {answer}")
    assert done.status == (1 if "error" in answer else 0), done
    return answer


@pytest.mark.parametrize("powered", ["local"], indirect=True)
def test_a_workspace_goes_from_machine_to_machine_while_they_run(powered: Bench) -> None:
    driver, volid = powered.volumes, powered.allot(size=256)
    powered.wait(1012, powered.start(1012))
    assert work(powered, 1012, "status")["present"] is False
    driver.attach(1012, volid, owner=OWNER)
    assert work(powered, 1012, "mount")["error"] == "blank"
    made = work(powered, 1012, "mount", "--make")
    assert (made["mounted"], made["made"]) == (True, True)
    powered.say(
        1012, "setpriv --reuid=agent --regid=agent --clear-groups sh -c 'echo kept >/work/x'"
    )
    powered.say(1012, "cd /work; nohup sleep 600 >/dev/null 2>&1 &")
    answer = work(powered, 1012, "unmount")
    assert (answer["error"], [each["name"] for each in answer["processes"]]) == ("busy", ["sleep"])
    assert work(powered, 1012, "unmount", "--force") == {"mounted": False}
    assert work(powered, 1012, "unmount") == {"mounted": False}
    driver.detach(1012, volid, owner=OWNER)
    driver.grow(volid, 512, owner=OWNER)
    driver.attach(1012, volid, owner=OWNER)
    again = work(powered, 1012, "mount")
    assert (again["made"], again["grown"]) == (False, True)
    assert again["size"] > 400 << 20
    assert powered.say(1012, "cat /work/x; stat -c %U /work /work/x") == "kept\nagent\nagent"
    assert work(powered, 1012, "mount", "--make")["made"] is False


@pytest.mark.parametrize(
    "powered", ["local", pytest.param("api", marks=pytest.mark.soak)], indirect=True
)
def test_a_machine_that_starts_again_finds_its_workspace(powered: Bench, tmp_path: Path) -> None:
    volid, spec = powered.allot(size=256), powered.spec(1012)
    powered.clone(1012)
    powered.hypervisor.configure(1012, spec, owner=OWNER)
    powered.volumes.attach(1012, volid, owner=OWNER)
    powered.hypervisor.start(1012, owner=OWNER)
    powered.wait(1012, spec)
    assert powered.say(1012, "systemctl is-failed agentlab-work || true") == "inactive"
    assert work(powered, 1012, "mount", "--make")["made"] is True
    powered.say(1012, "cd /work; echo kept >x; nohup sh -c 'trap \"\" TERM; while :; do sleep 1; done'"
                      " >/dev/null 2>&1 &")  # fmt: skip
    assert powered.hypervisor.shutdown(1012, owner=OWNER, timeout=120)
    raw = tmp_path / "raw"
    convert = ["qemu-img", "convert", "-O", "raw", str(powered.image(volid)), str(raw)]
    subprocess.run(convert, check=True)
    said = subprocess.run(
        ["dumpe2fs", "-h", raw], check=True, capture_output=True, text=True
    ).stdout
    assert "needs_recovery" not in said
    powered.hypervisor.start(1012, owner=OWNER)
    powered.wait(1012, spec)
    assert powered.say(1012, "cat /work/x") == "kept"
    print(powered.say(1012, "systemd-analyze blame | grep agentlab; systemctl show agentlab-work "
                            "-p ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic"))  # fmt: skip
    assert work(powered, 1012, "status")["mounted"] is True


@pytest.mark.parametrize("powered", ["local"], indirect=True)
def test_a_machine_without_one_starts_nothing_for_it(powered: Bench) -> None:
    powered.wait(1012, powered.start(1012))
    shown = powered.say(
        1012, "systemctl show agentlab-work -p ConditionResult,ExecMainStartTimestampMonotonic"
    )
    assert {"ConditionResult=no", "ExecMainStartTimestampMonotonic=0"} <= set(shown.split())

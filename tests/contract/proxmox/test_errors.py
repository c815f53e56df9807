"""Each error that Proxmox's sources have for each method that we call, once.

The errors are fakepve's catalogue, taken from Proxmox's own sources.  Whatever is said, the job
ends completed (it was tried again) or failed, nothing is left over, a stranger's VM is as it was,
and the reason is a sentence that begins with what could not be done.
"""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from fakepve import errors as catalogue

from agentlab.errors import AgentLabError
from agentlab.hypervisor.base import MachineSpec, Nic
from agentlab.hypervisor.load import Gate
from agentlab.hypervisor.proxmox import inventory, placement
from agentlab.hypervisor.proxmox.checks import ProxmoxChecks
from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.rights import Scope
from agentlab.hypervisor.proxmox.tasks import Api
from agentlab.hypervisor.proxmox.template import Order, Templates
from agentlab.model.job import JobState
from tests.contract.bench import OWNER, settings
from tests.contract.conftest import connect_api
from tests.contract.proxmox.installation import Installation, installation
from tests.contract.proxmox.test_template import Here
from tests.fakes.pve.commands import make_commands
from tests.fakes.pve.node import ProxmoxNode, SimulatedGuests
from tests.fakes.pve.serving import Served, serve
from tests.tables import Table

NODE = "/nodes/{node}"
VM = "/nodes/{node}/qemu/{vmid}"
STORAGE = "/nodes/{node}/storage/{storage}/content"
# What a job calls, and what a stopped machine's other verbs call besides.
JOB = (
    ("GET", "/cluster/resources"), ("GET", "/access/permissions"), ("GET", f"{NODE}/network"),
    ("GET", STORAGE), ("POST", f"{VM}/clone"), ("GET", f"{VM}/config"), ("PUT", f"{VM}/config"),
    ("PUT", f"{VM}/resize"), ("POST", f"{VM}/status/start"), ("GET", f"{VM}/status/current"),
    ("GET", f"{NODE}/tasks/{{upid}}/status"), ("GET", f"{VM}/agent/network-get-interfaces"),
    ("POST", f"{VM}/agent/exec"), ("GET", f"{VM}/agent/exec-status"), ("POST", f"{VM}/status/stop"),
    ("DELETE", VM),
)  # fmt: skip
OTHERS = (
    ("POST", f"{VM}/status/shutdown"), ("POST", f"{VM}/status/suspend"),
    ("POST", f"{VM}/status/resume"), ("POST", f"{VM}/snapshot"), ("GET", f"{VM}/snapshot"),
    ("POST", f"{VM}/snapshot/{{snapname}}/rollback"), ("DELETE", f"{VM}/snapshot/{{snapname}}"),
    ("GET", f"{NODE}/tasks"), ("POST", f"{VM}/agent/ping"), ("GET", "/cluster/nextid"),
    # a job meets these when it looks whether its guest is ready, not when it gives it the task
    ("POST", f"{VM}/agent/exec"), ("GET", f"{VM}/agent/exec-status"),
    ("GET", "/storage"), ("GET", f"{NODE}/storage"), ("POST", STORAGE),
    ("DELETE", f"{STORAGE}/{{volume}}"), ("GET", f"{NODE}/tasks/{{upid}}/log"),
)  # fmt: skip
# What building a template calls besides, and what `agentlab init` looks at.
BUILD = (("POST", f"{NODE}/qemu"), ("POST", f"{VM}/template"))
LOOKS = (("GET", "/version"), ("GET", "/access/roles"))
WORKERS = 4
_VMIDS = itertools.count(1000)
FILLED = {"node": "pve", "vmid": "1000", "storage": "local", "snapname": "clean",
              "upid": "UPID:pve:00005D59:00062016:6B044FB4:qmclone:9100:root@pam:",
              "volume": "local:vm-1-disk-0"}  # fmt: skip


# What the nodes of these tests were asked for, and errors that were to be met and are unknown.
ASKED: set[tuple[str, str]] = set()
UNKNOWN: list[tuple[str, str, str]] = []


TOLD = Table(
    "errors of Proxmox: method by what became of it",
    key=("method", "path"), columns={"met": "errors", "left over": "left over"},
)  # fmt: skip


@dataclass
class Row:
    """What became of one error."""

    method: str
    template: str
    error: str
    end: str
    said: str
    met: bool  # whether the call was made at all
    left: list[str] = field(default_factory=list)


def cases(calls: tuple[tuple[str, str], ...]) -> list[tuple[str, str, str]]:
    """Each (method, path, error), with a path that the catalogue knows."""
    found = []
    for method, template in calls:
        listed = catalogue.listing(method, template.format(**FILLED))
        assert listed, f"nothing is known of {method} {template}"
        found += [(method, template, str(entry["name"])) for entry in listed]
    return found


@contextmanager
def lab(directory: Path) -> Iterator[tuple[Served, Installation]]:
    directory.mkdir()
    node = ProxmoxNode(guests=SimulatedGuests())
    node.make_template(name="debian-12", size=1 << 30)
    node.make_vm(100, "production", description="not to be touched")
    with ExitStack() as stack:
        served = stack.enter_context(serve(node, directory))
        transport = stack.enter_context(closing(connect_api(served)))
        driver = ProxmoxHypervisor(transport, settings(served, patience=2.0), NodeTools(""))
        yield served, stack.enter_context(installation(directory, driver, workers=2))
        with served.paused() as node:
            # fakepve takes a volume with a slash in its name for no path that it knows
            ASKED.update(call for call in node.counts if "/content/local:" not in call[1])


def left_over(served: Served, *templates: int) -> list[str]:
    """Machines and volumes, whatever their number, but for the stranger's and the templates'."""
    known = {100, 9000, *templates}
    with served.paused() as node:
        machines = [f"VM {vm.vmid}" for vm in node.vms if vm.vmid not in known]
        volumes = [
            f"{name}:{volume}"
            for name, storage in node.storages.items()
            for volume, facts in storage["volumes"].items()
            if facts["vmid"] not in known
        ]
        if node.vm(100) is None or node.vm(100).config["description"] != "not to be touched":
            machines.append("a stranger's VM was touched")
        return machines + volumes


def one_job(served: Served, ours: Installation, method: str, template: str, error: str) -> Row:
    arm(served, method, template, error)
    job = ours.create()
    running = ours.until(job, JobState.RUNNING, JobState.FAILED)
    if running.state is JobState.RUNNING:
        ours.report(job)
        running = ours.until(job, JobState.COMPLETED, JobState.FAILED)
    met = cleared(served)
    left = left_over(served) + ours.left_over()
    return Row(method, template, error, running.state.value, running.reason, met, left)


def arm(served: Served, method: str, template: str, error: str) -> None:
    """Has the next such call answered with this error."""
    with served.paused() as node:
        if "{volume}" in template:  # fakepve takes no volume with a slash for one
            known = catalogue.errors_for(method, template.format(**FILLED))
            entry = next(each for each in known if each["name"] == error)
            node.fail(method, ".qcow2", entry["status"], entry["message"], times=1)
            return
        node.fail(method, template, error=error, times=1)
        if template.endswith("/log"):  # it is read of a task that failed
            node.fail_tasks("qmsnapshot", "the disk is on fire")


def cleared(served: Served) -> bool:
    """Whether the fault was met; it is taken away."""
    with served.paused() as node:
        met = not node.failures
        node.failures.clear()
    return met


def show(item: pytest.Item, rows: list[Row]) -> None:
    for row in rows:
        cells = {"met": 1, row.end: 1, "left over": len(row.left)}
        TOLD.note(item, [row.method, row.template], cells)
    for said in sorted({row.said for row in rows if row.said}):
        print(f"    {said[:150]}")


def check(item: pytest.Item, rows: list[Row]) -> None:
    show(item, rows)
    assert [row for row in rows if row.left] == []
    assert [row for row in rows if not row.met] == []
    assert UNKNOWN == []
    by_qm = {("GET", "/storage/{storage}")}
    assert ASKED - {*JOB, *OTHERS, *BUILD, *LOOKS} - by_qm == set(), "calls that no table has"
    odd = [row for row in rows if row.said and not row.said.startswith(("cannot ", "start: "))]
    assert odd == []


def at_once(
    tmp_path: Path,
    calls: tuple[tuple[str, str], ...],
    meet: Callable[[Served, Installation, str, str, str], Row],
) -> list[Row]:
    """Meets all errors, on a few nodes at the same time; the rows in order."""
    waiting: queue.SimpleQueue[tuple[str, str, str]] = queue.SimpleQueue()
    for case in cases(calls):
        waiting.put(case)
    rows: list[Row] = []
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with lab(tmp_path / str(number)) as (served, ours):
                while not failures:
                    try:
                        case = waiting.get_nowait()
                    except queue.Empty:
                        return
                    rows.append(meet(served, ours, *case))
        except BaseException as failure:  # noqa: BLE001  # told by the test's own thread
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert len(rows) == len(cases(calls))
    return sorted(rows, key=lambda row: (row.method, row.template, row.error))


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights and bridges are asked for each time, as by a driver that has just begun."""
    monkeypatch.setattr(inventory, "_RIGHTS_LAST", -1.0)
    monkeypatch.setattr(placement, "_BRIDGES_LAST", -1.0)


@pytest.fixture(autouse=True)
def _each_error_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """fakepve answers with a 500 of its own for an error that it does not know for a path."""
    find = catalogue.find

    def noted(method: str, path: str, name: str) -> Any:
        found = find(method, path, name)
        if found is None:
            UNKNOWN.append((method, path, name))
        return found

    ASKED.clear()
    UNKNOWN.clear()
    monkeypatch.setattr(catalogue, "find", noted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_meets_each_error_once(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rows = at_once(tmp_path, JOB, one_job)
    check(request.node, rows)
    assert {row.end for row in rows} == {"COMPLETED", "FAILED"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_other_verbs_meet_each_error_once(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    check(request.node, at_once(tmp_path, OTHERS, one_verb))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_template_meets_each_error_once_and_is_built_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    with lab(tmp_path / "0") as (served, _):
        programs = make_commands(served, tmp_path / "bin")
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        with closing(connect_api(served)) as transport:
            api = Api(transport, Gate({}, queue=10), patience=2.0)
            templates = Templates(api, settings(served), Here("pve"))
            rows = [one_build(served, templates, tmp_path, *case) for case in cases(BUILD)]
    check(request.node, rows)


def one_build(
    served: Served, templates: Templates, work: Path, method: str, template: str, error: str
) -> Row:
    image = work / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)

    def build() -> int:
        key = f"{next(_VMIDS):x}"  # another content each time, so that it is made anew
        order = Order("lab-debian", OWNER, key, lambda: image, first=9001, work=work)
        return templates.build(order, lambda line: None)

    vmid = build()
    arm(served, method, template, error)
    end, said = "done", ""
    try:
        vmid = build()
    except AgentLabError as told:
        end, said = f"refused ({told.code})", told.message
    met, left = cleared(served), left_over(served, vmid)
    vmid = build()
    return Row(method, template, error, end, said, met, left + left_over(served, vmid))


@pytest.mark.parametrize(("method", "template", "error"), cases(LOOKS))
def test_a_check_of_the_host_meets_each_error_once(
    tmp_path: Path, method: str, template: str, error: str, request: pytest.FixtureRequest
) -> None:
    with lab(tmp_path / "0") as (served, _), closing(connect_api(served)) as transport:
        scope = Scope(1000, "no-such-bridge")  # so that something is missing
        checks = ProxmoxChecks(transport, "pve", scope, 9000, "", "root@pam!bench")
        arm(served, method, template, error)
        with pytest.raises(AgentLabError) as told:
            for look in checks.table().values():
                look()
        assert cleared(served)
        TOLD.note(request.node, [method, template], {"met": 1, f"refused ({told.value.code})": 1})


def one_verb(served: Served, ours: Installation, method: str, template: str, error: str) -> Row:
    driver = ours.world.hypervisor
    assert isinstance(driver, ProxmoxHypervisor)
    vmid = next(_VMIDS)  # of its own: tasks of an earlier machine are not this one's
    nic = Nic(
        "tap1000i0", "52:54:00:77:00:01", IPv4Interface("10.77.0.5/16"), IPv4Address("10.77.0.1")
    )
    spec = MachineSpec("box", cores=1, memory=512, disk=2048, nic=nic)
    volid: list[str] = []
    steps: list[Callable[[], object]] = [
        lambda: driver.clone("debian-12", vmid, name="box", owner=OWNER),
        lambda: driver.configure(vmid, spec, owner=OWNER),
        lambda: driver.snapshot(vmid, "clean", owner=OWNER),
        lambda: driver.snapshot(vmid, "clean", owner=OWNER),  # looks at the tasks since
        lambda: driver.rollback(vmid, "clean", owner=OWNER),
        lambda: driver.delete_snapshot(vmid, "clean", owner=OWNER),
        lambda: volid.append(driver.allot(990000, 64, storage="local", owner=OWNER)),
        lambda: driver.attach(vmid, volid[0], owner=OWNER),
        lambda: driver.volumes(owner=OWNER),
        lambda: driver.start(vmid, owner=OWNER),
        lambda: driver.ping(vmid),
        lambda: driver.exec(vmid, ["/bin/true"], owner=OWNER, timeout=5),
        lambda: driver.pause(vmid, owner=OWNER),
        lambda: driver.resume(vmid, owner=OWNER),
        lambda: driver.shutdown(vmid, owner=OWNER, timeout=5),
        lambda: driver.detach(vmid, volid[0], owner=OWNER),
        lambda: driver.free(volid[0], owner=OWNER),
        lambda: driver.destroy(vmid, owner=OWNER),
        lambda: driver.status(vmid),
    ]
    arm(served, method, template, error)
    end, said = "done", ""
    for step in steps:
        try:
            step()
        except AgentLabError as told:
            end, said = f"refused ({told.code})", told.message
            break
    met = cleared(served)
    for volume in driver.volumes(owner=OWNER):
        for vmid in volume.attached:
            driver.detach(vmid, volume.volid, owner=OWNER)
        driver.free(volume.volid, owner=OWNER)
    driver.destroy(vmid, owner=OWNER)
    return Row(method, template, error, end, said, met, left_over(served))

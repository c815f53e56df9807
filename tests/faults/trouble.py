"""What may go wrong with a call to Proxmox: one case for each changing call and each trouble."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agentlab.api import table
from agentlab.client.unix import Lost
from agentlab.errors import Unreachable
from tests.fakes.pve.front import Fault
from tests.fakes.pve.tasks import TaskFault
from tests.fakes.sim_daemon import PROGRAM
from tests.faults.bench import VMIDS, Bench, Node
from tests.faults.play import Tally, begin, outcome, unmuted
from tests.faults.scenarios import Scenario, Target

LOCK = "can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout"
FIRE = "the disk is on fire"
_TASKS = {
    "PUT /nodes/{node}/qemu/{vmid}/resize": "resize",
    "POST /nodes/{node}/qemu/{vmid}/snapshot": "qmsnapshot",
    "DELETE /nodes/{node}/qemu/{vmid}/snapshot/{snapname}": "qmdelsnapshot",
    "POST /nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback": "qmrollback",
    "POST /nodes/{node}/qemu/{vmid}/status/start": "qmstart",
    "POST /nodes/{node}/qemu/{vmid}/status/stop": "qmstop",
    "POST /nodes/{node}/qemu/{vmid}/status/shutdown": "qmshutdown",
    "POST /nodes/{node}/qemu/{vmid}/status/suspend": "qmpause",
    "POST /nodes/{node}/qemu/{vmid}/status/resume": "qmresume",
    "DELETE /nodes/{node}/qemu/{vmid}": "qmdestroy",
    "DELETE /nodes/{node}/storage/{storage}/content/{volume}": "imgdel",
}
_NO_TASK = ("/config", "/agent/exec", "/content")
_OF_VOLUMES = "/storage/"
NO_INVENTORY = "no inventory"
_INVENTORY = "GET /cluster/resources"
_BATCH = 12
_FOR_ALL = ("reconcile",)  # it mends all that it sees
_MAKES = ("job", "session resume", "workspace rebind")
_TIMES = {"two lost replies": 2}  # a look at what has become may spare the second
AnyFault = Fault | TaskFault
# How a fault is put in place: the node, method and path, whom it is meant for, and whose it is.
Arm = Callable[[Node, str, str, Callable[[dict[str, str]], bool], int], AnyFault]


def _lost(times: int) -> Arm:
    return lambda node, method, path, only, _: node.lose_reply(method, path, times, only=only)


def _answer(status: int, reason: str, times: int = 1) -> Arm:
    return lambda node, method, path, only, vmid: node.answer_with(
        method, path, status, reason.format(vmid=vmid), times, only=only
    )


def _task(text: str) -> Arm:
    def arm(node: Node, method: str, path: str, _: object, vmid: int) -> AnyFault:
        said = text.format(vmid=vmid)
        if path.endswith("/clone"):  # whose task is the template's: it does not say whom it is for
            return node.fail_clone(vmid, said)
        of = "" if _OF_VOLUMES in path else str(vmid or "")
        return node.fail_tasks(_TASKS[f"{method} {path}"], said, of=of)

    return arm


# By name: how it is put in place, and whether the operation may fail of it.
TROUBLES: Mapping[str, tuple[Arm, bool]] = {
    "lost reply": (_lost(1), False),
    "two lost replies": (_lost(2), False),
    "no worker": (
        lambda node, method, path, only, _: node.refuse_worker(method, path, only=only), False,
    ),
    "500 lock": (_answer(500, LOCK), False),
    "595": (_answer(595, "No route to host"), False),
    "596": (_answer(596, "Broken pipe"), False),
    "599": (_answer(599, "Too many redirections"), False),
    "failed task: lock": (_task(LOCK), False),
    "failed task": (_task(FIRE), True),
}  # fmt: skip


@dataclass
class Case:
    """One trouble with one call of one scenario; `target` and `fault` come as it is played."""

    scenario: Scenario
    call: str  # "METHOD path"
    trouble: str
    target: Target = field(default_factory=Target)
    fault: AnyFault | None = None

    def __str__(self) -> str:
        return f"{self.trouble} at {self.call}"


def cases_of(scenario: Scenario, calls: Sequence[str], troubles: Sequence[str]) -> list[Case]:
    """Each of these troubles with each of these calls of Proxmox; and an inventory that cannot be read."""
    found = [
        Case(scenario, call, trouble)
        for call in calls
        if not call.startswith(PROGRAM)
        for trouble in troubles
        if not (trouble.startswith("failed task") and call.endswith(_NO_TASK))
    ]
    return [*found, Case(scenario, _INVENTORY, NO_INVENTORY)]


def batches(cases: Sequence[Case]) -> list[list[Case]]:
    """What may be played at the same time; what is for all is played alone."""
    alone = [
        each
        for each in cases
        if each.trouble == NO_INVENTORY
        or each.scenario.name.startswith(_FOR_ALL)
        or _OF_VOLUMES in each.call  # whose volume it will be is not known before
        or (each.trouble.startswith("failed task") and each.scenario.name.startswith(_MAKES))
    ]  # nor whose VMID a job will have
    rest = [each for each in cases if each not in alone]
    return [
        *(rest[n : n + _BATCH] for n in range(0, len(rest), _BATCH)),
        *([each] for each in alone),
    ]


def play_all(bench: Bench, batch: Sequence[Case], tally: Tally) -> list[str]:
    """Plays cases at the same time, on one daemon; what is wrong, in sentences."""
    bench.arm()
    for number, case in enumerate(batch):
        case.target = begin(bench, case.scenario)
        case.target.wanted = _free(bench, number) if case.scenario.name.startswith("create") else 0
    bench.arm(fail=batch[0].scenario.fails)
    with bench.served.paused() as node:
        for case in batch:
            case.fault = _put(node, case)
    found: list[str] = []
    with unmuted(bench):
        for case in batch:
            with contextlib.suppress(Lost, Unreachable):
                case.target.operation = case.scenario.ask(bench, case.target)
        bench.quiet()
    for case in batch:
        wrong = _judged(bench, case)
        tally.note(case.scenario.name, case.trouble, wrong)
        found += [f"{case}: {each}" for each in wrong]
    with bench.served.paused() as node:
        node.faults.clear()
        node.task_faults.clear()
        node.clone_faults.clear()
    if batch[0].scenario.name.startswith(_FOR_ALL):
        bench.ask(table.RECONCILE_APPLY)  # what a failure has left over goes when asked for anew
        bench.quiet()
    everything = bench.wrong()
    tally.note(batch[0].scenario.name, "looks", everything)
    return found + [f"{', '.join(map(str, batch))}: {each}" for each in everything]


def _put(node: Node, case: Case) -> AnyFault:
    method, _, path = case.call.partition(" ")
    if case.trouble == NO_INVENTORY:
        return node.answer_with(method, path, 595, "No route to host", 3)
    arm, _ = TROUBLES[case.trouble]
    vmid = case.target.wanted or case.target.vmid

    def only(values: dict[str, str]) -> bool:
        if _OF_VOLUMES in path:
            return True
        if vmid and str(vmid) == str(values.get("newid", values.get("vmid"))):
            return True
        name = _name(node, values)
        return name == f"job-{case.target.job}" or name.startswith(f"{case.target.key}-")

    # a rebind is played alone, and whose task it will be is not known: the old one's or the new one's
    whose = 0 if case.scenario.name.startswith("workspace rebind") else vmid
    return arm(node, method, path, only, whose)


def _name(node: Node, values: Mapping[str, str]) -> str:
    vm = node.vm(int(values["vmid"]))
    return values.get("name") or (vm.name if vm else "")


def _judged(bench: Bench, case: Case) -> list[str]:
    wrong = outcome(bench, case.scenario, case.target)
    assert case.fault is not None
    if case.trouble != NO_INVENTORY and case.fault.times == _TIMES.get(case.trouble, 1):
        wrong.append("the trouble was never met")
    if wrong and TROUBLES.get(case.trouble, (None, False))[1]:
        (row,) = bench.rows("SELECT * FROM operation WHERE id = ?", case.target.operation)
        if row["state"] == "failed" and row["error"] and row["code"] != "internal":
            return []  # it says so, and what is left agrees with its record
    return wrong


def _free(bench: Bench, number: int) -> int:
    """A VMID that nobody has, from the end of the range."""
    taken = {row["vmid"] for row in bench.rows("SELECT vmid FROM sandbox")}
    free = [vmid for vmid in range(VMIDS[1], VMIDS[0], -1) if vmid not in taken]
    return free[number]

"""Each name of a difference, by table; and what is never mended, for any inventory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.model.drift import Drift, Kind, Mend, Place, is_blind, plan_drift
from agentlab.model.sandbox import Sandbox, SandboxState

S, K, M = SandboxState, Kind, Mend
PLACE = Place("lab", range(1000, 1100), range(1090, 1100), "pve1")


@dataclass(frozen=True)
class Vm:
    vmid: int = 1000
    owner: str = "lab"
    power: str = "running"
    node: str = "pve1"
    lock: str = ""
    template: bool = False
    name: str = "x"


def box(state: SandboxState = S.READY, vmid: int = 1000) -> Sandbox:
    return Sandbox(
        vmid=vmid, name=f"box-{vmid}", profile="demo", state=state,
        address=IPv4Address("10.77.0.2"), mac="02:00:00:00:00:01", tap="tap1", network="off",
        job="", created=0.0, changed=0.0, lease_until=0.0, reason="", id=vmid,
    )  # fmt: skip


def found(
    records: list[Sandbox], machines: list[Vm], busy: tuple[int, ...] = ()
) -> list[tuple[Kind, Mend, Mend]]:
    drifts = plan_drift(records, busy, machines, PLACE)
    return [(each.kind, each.by_itself, each.asked) for each in drifts]


NONE = M.NONE
OFF = (K.STOPPED, M.OFF, M.OFF)
UP = (K.RUNNING, M.TAKE_UP, M.TAKE_UP)
LOST = (K.MISSING, M.FAIL, M.CLOSE)
KEPT = (K.MISSING, NONE, M.CLOSE)  # the loop leaves it alone
STRANGER = (K.STRANGER, NONE, NONE)
LOCKED = (K.LOCKED, NONE, NONE)
WRONG = (K.WRONG_NODE, NONE, NONE)


@pytest.mark.parametrize(
    ("state", "machine", "expected"),
    [
        # as it should be
        (S.READY, Vm(), []),
        (S.RUNNING, Vm(), []),
        (S.STOPPED, Vm(power="stopped"), []),
        (S.SUSPENDED, Vm(power="paused"), []),
        (S.COMPLETED, Vm(power="stopped"), []),  # its lease ends it, whatever its power
        (S.TIMEOUT, Vm(power="stopped"), []),
        (S.FAILED, Vm(power="paused"), []),
        # no machine
        (S.READY, None, [LOST]),
        (S.RUNNING, None, [LOST]),
        (S.SUSPENDED, None, [LOST]),
        (S.BOOTING, None, [LOST]),
        (S.STOPPED, None, [KEPT]),
        (S.TIMEOUT, None, [KEPT]),
        (S.FAILED, None, [KEPT]),
        (S.COMPLETED, None, [KEPT]),
        (S.REQUESTED, None, []),
        (S.PROVISIONING, None, []),
        (S.DESTROYED, None, []),
        # power
        (S.READY, Vm(power="stopped"), [OFF]),
        (S.RUNNING, Vm(power="stopped"), [OFF]),
        (S.BOOTING, Vm(power="stopped"), [OFF]),
        (S.SUSPENDED, Vm(power="stopped"), [OFF]),
        (S.STOPPED, Vm(), [UP]),
        (S.STOPPED, Vm(power="paused"), [UP]),
        (S.READY, Vm(power="paused"), [(K.PAUSED, NONE, M.PAUSE)]),
        (S.BOOTING, Vm(power="paused"), [(K.PAUSED, NONE, NONE)]),
        (S.SUSPENDED, Vm(), [(K.RESUMED, NONE, M.RESUME)]),
        (S.READY, Vm(power="unknown"), []),
        (S.STOPPED, Vm(power="unknown", owner=""), []),
        # whose
        (S.READY, Vm(owner=""), [KEPT, STRANGER]),
        (S.READY, Vm(owner="other"), [KEPT, STRANGER]),
        (S.READY, Vm(owner="", lock="clone"), [STRANGER]),
        (S.PROVISIONING, Vm(owner="", lock="clone"), []),  # ours, a moment before its mark
        (S.REQUESTED, Vm(owner=""), []),
        (S.DESTROYED, Vm(owner=""), [STRANGER]),
        (S.DESTROYED, Vm(), [(K.LEFTOVER, NONE, M.DESTROY)]),
        (S.READY, Vm(template=True, owner=""), []),
        # where, and locks
        (S.READY, Vm(node="pve2"), [WRONG]),
        (S.READY, Vm(node="pve2", power="stopped"), [OFF, WRONG]),
        (S.STOPPED, Vm(node="pve2"), [(K.RUNNING, NONE, NONE), WRONG]),
        (S.READY, Vm(node=""), []),
        (S.READY, Vm(lock="backup"), [LOCKED]),
        (S.READY, Vm(lock="backup", power="stopped"), [LOCKED]),  # a backup may take its power
        (S.STOPPED, Vm(lock="clone", node="pve2"), [LOCKED, WRONG]),
    ],
)
def test_a_record_and_what_is_there(
    state: SandboxState, machine: Vm | None, expected: list[tuple[Kind, Mend, Mend]]
) -> None:
    got = found([box(state)], [machine] if machine else [])
    assert sorted(got) == sorted(expected)


def test_what_an_operation_holds_is_its_affair() -> None:
    for machine in (Vm(power="stopped"), Vm(owner=""), Vm(node="pve2"), Vm(lock="clone")):
        assert found([box()], [machine], busy=(1000,)) == []
        assert found([], [machine], busy=(1000,)) == []
    assert found([box()], [], busy=(1000,)) == []


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (Vm(1001), [(K.LEFTOVER, NONE, M.DESTROY)]),
        (Vm(5000), [(K.LEFTOVER, NONE, M.DESTROY)]),  # from a range of before
        (Vm(1001, lock="clone"), [(K.LEFTOVER, NONE, M.DESTROY)]),
        (Vm(1001, lock="backup"), [(K.LEFTOVER, NONE, NONE)]),
        (Vm(1001, power="unknown"), []),
        (Vm(1001, owner=""), [STRANGER]),
        (Vm(1001, owner="other"), [STRANGER]),
        (Vm(1001, owner="", power="unknown"), []),  # nobody could read whose it is
        (Vm(5000, owner=""), []),
        (Vm(5000, owner="other"), []),
        (Vm(1001, template=True), []),
        (Vm(1095), []),  # only volumes have such a VMID
    ],
)
def test_a_machine_that_no_record_is_about(
    machine: Vm, expected: list[tuple[Kind, Mend, Mend]]
) -> None:
    assert found([], [machine]) == expected


def test_each_difference_says_what_and_how() -> None:
    drifts = plan_drift(
        [box(vmid=1000), box(S.STOPPED, 1001), box(vmid=1002), box(vmid=1003)],
        (),
        [Vm(1001), Vm(1002, node="pve2"), Vm(1003, lock="backup"), Vm(1004), Vm(1005, owner="b")],
        PLACE,
    )
    unlock = (
        "wait for who holds it; as root on node pve1, when no task does any more: qm unlock 1003"
    )
    said = {each.kind: (each.detail, each.remedy) for each in drifts}
    assert said == {
        K.MISSING: (
            "sandbox 1000 is READY, and there is no VM 1000",
            "agentlab sandbox destroy --force 1000",
        ),
        K.RUNNING: ("sandbox 1001 is STOPPED, and VM 1001 is running", "agentlab sandbox start 1001"),
        K.WRONG_NODE: (
            "VM 1002 is on node pve2, and the rules that fence it are on node pve1",
            "as root on node pve2: qm migrate 1002 pve1",
        ),
        K.LOCKED: ("VM 1003 is locked (backup), and no operation of ours holds it", unlock),
        K.LEFTOVER: (
            "VM 1004 carries our mark, and no record is about it",
            "agentlab sandbox reconcile --apply",
        ),
        K.STRANGER: (
            "VM 1005 has a VMID that sandboxes may have, and is the installation b's",
            "give AgentLab a vmid_range in the settings that nobody else takes VMIDs from",
        ),
    }  # fmt: skip


def test_an_inventory_without_any_of_ours_is_blind() -> None:
    two = [box(vmid=1000), box(S.STOPPED, 1001)]
    assert is_blind(two, [Vm(1000, owner="")], PLACE)
    assert not is_blind(two, [Vm(1001)], PLACE)
    assert not is_blind(two[:1], [], PLACE)
    assert not is_blind([two[0], box(S.REQUESTED, 1002)], [], PLACE)
    assert not is_blind([], [], PLACE)


vmids = st.integers(998, 1006) | st.integers(1088, 1092)
machines = st.builds(
    Vm,
    vmid=vmids,
    owner=st.sampled_from(["lab", "", "other", "LAB"]),
    power=st.sampled_from(["running", "stopped", "paused", "unknown"]),
    node=st.sampled_from(["pve1", "pve2", ""]),
    lock=st.sampled_from(["", "clone", "backup"]),
    template=st.booleans(),
)
boxes = st.builds(box, st.sampled_from(list(S)), vmids)


@given(
    st.lists(boxes, unique_by=lambda one: one.vmid),
    st.lists(machines, unique_by=lambda one: one.vmid),
    st.frozensets(vmids),
)
def test_nothing_that_is_not_surely_ours_is_ever_mended(
    records: list[Sandbox], there: list[Vm], busy: frozenset[int]
) -> None:
    by_vmid = {each.vmid: each for each in there}
    live = {one.vmid: one for one in records if one.state is not S.DESTROYED}
    drifts: list[Drift] = plan_drift(records, busy, there, PLACE)
    assert not {each.vmid for each in drifts} & busy
    for each in drifts:
        machine = by_vmid.get(each.vmid)
        assert machine is None or (machine.power != "unknown" and not machine.template)
        if M.DESTROY in (each.by_itself, each.asked):
            assert machine is not None
            assert machine.owner == "lab"
            assert each.vmid not in live
            assert each.by_itself is M.NONE
        elif each.asked or each.by_itself:
            assert each.record == live[each.vmid]
            assert each.record.state not in (S.REQUESTED, S.PROVISIONING)
        if machine is not None and machine.owner != "lab":
            assert each.by_itself is M.NONE
            assert each.asked in (M.NONE, M.CLOSE)  # of the record; the machine stays
        assert each.asked or each.remedy


@given(st.lists(boxes, unique_by=lambda one: one.vmid), st.lists(machines))
def test_mending_what_was_found_leaves_nothing_to_find(
    records: list[Sandbox], there: list[Vm]
) -> None:
    """The records as `--apply` leaves them, and the machines as their operations do."""
    there = list({each.vmid: each for each in there}.values())
    after_records = {one.vmid: one for one in records}
    after = {each.vmid: each for each in there}
    drifts = plan_drift(records, (), there, PLACE)
    for each in drifts:
        if each.asked is M.DESTROY:
            del after[each.vmid]
        elif each.asked is M.CLOSE:
            after_records[each.vmid] = replace(after_records[each.vmid], state=S.DESTROYED)
        elif each.asked:
            state = {M.OFF: S.STOPPED, M.TAKE_UP: S.READY, M.PAUSE: S.SUSPENDED, M.RESUME: S.READY}
            after_records[each.vmid] = replace(
                after_records[each.vmid], state=state[each.asked]
            )  # fmt: skip
            if each.asked is M.TAKE_UP:
                after[each.vmid] = replace(after[each.vmid], power="running")
    again = plan_drift(list(after_records.values()), (), list(after.values()), PLACE)
    assert [each for each in again if each.asked] == []

"""Where machines are, whose they are, and what is not known."""

from __future__ import annotations

import pytest

from agentlab.errors import Busy, Denied, NotFound, NotOurs, Unavailable
from agentlab.hypervisor.base import Power
from agentlab.hypervisor.load import Gate
from agentlab.hypervisor.proxmox import names, tasks
from agentlab.hypervisor.proxmox.inventory import Inventory, parse_resources
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.hypervisor.proxmox.tasks import Api
from agentlab.hypervisor.proxmox.transport import classify
from tests.fakes.transport import ScriptedTransport

SETTINGS = Settings(node="pve1", bridge="vmbr1", vmids=range(1000, 2000), patience=0.1)
RIGHTS = {"/vms": {"VM.Audit": 1}}
MISSING = classify(
    "GET", 500, "Configuration file 'nodes/pve1/qemu-server/1012.conf' does not exist"
)
TAKEN = classify("GET", 400, "Parameter verification failed.", {"vmid": "VM 1012 already exists"})
MARK = names.render_description("me", 1012)


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.time, "sleep", lambda seconds: None)


def guest(vmid: int, **changes: object) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": "qemu", "vmid": vmid, "node": "pve1", "name": f"box{vmid}", "status": "stopped",
        "template": 0, "maxmem": 1 << 30,
    }  # fmt: skip
    return {**entry, **changes}


def inventory(answers: dict[str, list[object]]) -> tuple[Inventory, ScriptedTransport]:
    rows = {"GET /access/permissions": [RIGHTS], **answers}
    transport = ScriptedTransport(rows)  # type: ignore[arg-type]
    return Inventory(Api(transport, Gate({}, queue=1), patience=0.1), SETTINGS), transport


def config(vmid: int, node: str = "pve1") -> str:
    return f"GET /nodes/{node}/qemu/{vmid}/config"


def test_one_call_for_all_that_is_tagged_or_out_of_our_range() -> None:
    listed = [
        *(guest(vmid, tags=names.render_tags("me", vmid)) for vmid in range(1000, 1050)),
        *(guest(vmid) for vmid in range(100, 150)),
    ]
    found, transport = inventory({"GET /cluster/resources": [listed]})
    machines = found.machines()
    assert [machine.owner for machine in machines] == [""] * 50 + ["me"] * 50
    found.machines()
    assert len(transport.calls) == 3  # our rights are looked at once a minute


def test_a_clone_that_has_no_tag_yet_is_known_by_its_description() -> None:
    found, _ = inventory(
        {
            "GET /cluster/resources": [[guest(1012), guest(1013), guest(1014, type="lxc")]],
            config(1012): [{"description": MARK, "lock": "clone"}],
            config(1013): [{"description": MARK}],  # a copy of ours by an administrator
        }
    )
    assert [machine.owner for machine in found.machines()] == ["me", "", ""]


def test_what_is_on_a_node_that_is_offline_is_unknown() -> None:
    listed = [guest(1012, status="unknown", tags=names.render_tags("me", 1012))]
    found, _ = inventory({"GET /cluster/resources": [listed]})
    assert [(machine.owner, machine.power) for machine in found.machines()] == [
        ("me", Power.UNKNOWN)
    ]


def test_an_operations_lock_and_how_busy_it_is_come_with_the_one_call() -> None:
    tags = names.render_tags("me", 1012)
    running = guest(1012, tags=tags, status="running", cpu=0.415, maxcpu=2)
    busy = guest(1013, tags=names.render_tags("me", 1013), status="running", cpu=1.07)
    off = guest(1014, tags=names.render_tags("me", 1014), cpu=0, lock="suspended")
    # as recorded while pvestatd had not looked yet: rest.jsonl 654, 837
    fresh = {"lock": "clone", "id": "qemu/1015", "vmid": 1015, "status": "unknown",
             "type": "qemu", "node": "pve", "tags": names.render_tags("me", 1015)}  # fmt: skip
    found, transport = inventory({"GET /cluster/resources": [[running, busy, off, fresh]]})
    told = [(machine.lock, machine.cpu) for machine in found.machines()]
    assert told == [("", 0.415), ("", 1.0), ("suspended", None), ("clone", None)]
    assert len(transport.calls) == 2


def test_without_a_name_nobody_has_looked_at_it_yet() -> None:
    entry = guest(1012, status="stopped")
    del entry["name"]
    assert parse_resources([entry]).guests[1012].power is Power.UNKNOWN


@pytest.mark.parametrize(
    "rights",
    [{}, {"/vms/1012": {"VM.Audit": 1}}, {"/vms": {"VM.Clone": 1}}, {"/": {"VM.Audit": 0}}],
)
def test_a_list_that_our_rights_make_shorter_is_not_given(rights: object) -> None:
    found, transport = inventory(
        {"GET /access/permissions": [rights], "GET /cluster/resources": [[]]}
    )
    with pytest.raises(Denied, match=r"VM\.Audit on /vms"):
        found.machines()
    assert not transport.asked("GET", "/cluster/resources")


def test_rights_that_cannot_be_read_give_no_list() -> None:
    found, transport = inventory({"GET /access/permissions": [[]]})
    with pytest.raises(Unavailable, match="rights"):
        found.machines()
    assert not transport.asked("GET", "/cluster/resources")


@pytest.mark.parametrize(
    "data", [None, {}, "x", [{"type": "qemu"}], [{"type": "qemu", "vmid": "x", "node": "a"}], [7]]
)
def test_an_inventory_that_cannot_be_read_is_not_an_empty_one(data: object) -> None:
    found, _ = inventory({"GET /cluster/resources": [data]})
    with pytest.raises(Unavailable):
        found.machines()


def test_gone_is_only_what_the_cluster_itself_calls_free() -> None:
    found, _ = inventory({"GET /cluster/resources": [[]], "GET /cluster/nextid": ["1012"]})
    assert found.find(1012) is None
    hidden, _ = inventory({"GET /cluster/resources": [[]], "GET /cluster/nextid": [TAKEN]})
    with pytest.raises(Denied, match="may not look at it"):
        hidden.find(1012)


def test_a_machine_that_somebody_migrated_is_found_where_it_is() -> None:
    found, transport = inventory(
        {
            "GET /cluster/resources": [[guest(1012)], [guest(1012, node="pve2")]],
            config(1012): [{"description": MARK}, MISSING],
            config(1012, "pve2"): [{"description": MARK}],
        }
    )
    first, second = found.find(1012), found.find(1012)
    assert first is not None
    assert second is not None
    assert (first.node, second.node) == ("pve1", "pve2")
    third = found.find(1012)
    assert third is not None
    assert len(transport.asked("GET", "/cluster/resources")) == 2


def test_a_node_that_cannot_be_reached_says_nothing_about_its_machines() -> None:
    offline = classify("GET", 595, "No route to host")
    found, _ = inventory({"GET /cluster/resources": [[guest(1012)]], config(1012): [offline]})
    with pytest.raises(Unavailable):
        found.find(1012)


def test_whose_it_is() -> None:
    listed = [guest(1012), {"type": "node", "node": "pve1", "status": "online"}]
    active: list[dict[str, object]] = []

    def look(**entry: object) -> None:
        rows = {"GET /cluster/resources": [listed], config(1012): [entry]}
        found, _ = inventory({**rows, "GET /nodes/pve1/tasks": [active]})
        found.ours(1012, "me", "destroy")

    look(description=MARK)
    for stranger in (
        {},
        {"description": "a VM of mine"},
        {"description": names.render_description("other", 1012)},
        {"description": names.render_description("me", 1013)},
        {"tags": names.render_tags("me", 1012)},  # a tag proves nothing
    ):
        with pytest.raises(NotOurs):
            look(**stranger)
    for lock, task in (("clone", "qmclone"), ("destroyed", "qmdestroy")):
        active[:] = [{"type": task}]
        with pytest.raises(Busy):
            look(lock=lock, description=" qmclone temporary file")
        active.clear()
        with pytest.raises(NotOurs) as left:
            look(lock=lock, description=" qmclone temporary file")
        assert "qm destroy 1012 --skiplock 1" in left.value.hint
    with pytest.raises(NotOurs):
        look(lock="clone", description=names.render_description("other", 1012))


def test_ours_that_is_gone() -> None:
    found, _ = inventory({"GET /cluster/resources": [[]], "GET /cluster/nextid": ["1012"]})
    with pytest.raises(NotFound):
        found.ours(1012, "me", "start")


def test_a_container_of_that_number_is_a_strangers() -> None:
    found, _ = inventory({"GET /cluster/resources": [[guest(1012, type="lxc")]]})
    with pytest.raises(NotOurs):
        found.ours(1012, "me", "destroy")

"""On which node a clone is made."""

from __future__ import annotations

import pytest

from agentlab.errors import NotFound, Unavailable
from agentlab.hypervisor.load import Gate
from agentlab.hypervisor.proxmox import tasks
from agentlab.hypervisor.proxmox.inventory import Inventory
from agentlab.hypervisor.proxmox.placement import Placement
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.hypervisor.proxmox.tasks import Api
from tests.fakes.transport import ScriptedTransport

GIB = 1 << 30
BRIDGES = [{"iface": "vmbr0"}, {"iface": "vmbr1"}]


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.time, "sleep", lambda seconds: None)


def node(name: str, free: int, status: str = "online") -> dict[str, object]:
    return {
        "type": "node",
        "node": name,
        "status": status,
        "maxmem": 64 * GIB,
        "mem": (64 - free) * GIB,
    }


def storage(name: str, at: str, *, shared: int = 0, status: str = "available") -> dict[str, object]:
    return {"type": "storage", "storage": name, "node": at, "shared": shared, "status": status,
            "content": "images,rootdir"}  # fmt: skip


def vm(vmid: int, name: str, at: str, **changes: object) -> dict[str, object]:
    entry: dict[str, object] = {"type": "qemu", "vmid": vmid, "name": name, "node": at,
                                "status": "stopped", "maxmem": GIB, "template": 0}  # fmt: skip
    return {**entry, **changes}


def place(
    resources: list[dict[str, object]],
    *names: str,
    volume: str = "local:9000/base-9000-disk-0.qcow2",
    nodes: tuple[str, ...] = ("pve1", "pve2", "pve3"),
    bridges: dict[str, list[dict[str, str]]] | None = None,
) -> list[str]:
    """The nodes of clones that are all under way at once."""
    rows: dict[str, list[object]] = {
        "GET /cluster/resources": [resources],
        "GET /nodes/[^/]*/qemu/9.../config": [{"template": 1, "scsi0": f"{volume},size=8G"}],
    }
    for name, found in (bridges or {}).items():
        rows[f"GET /nodes/{name}/network"] = [found]
    rows["GET /nodes/.*/network"] = [BRIDGES]
    api = Api(ScriptedTransport(rows), Gate({}, queue=1), patience=0.1)  # type: ignore[arg-type]
    settings = Settings(node="", bridge="vmbr1", vmids=range(1000, 2000), nodes=nodes)
    placement = Placement(api, Inventory(api, settings), settings)
    opened = [placement.place(name, full=False) for name in names or ("debian-12",)]
    chosen = [each.__enter__() for each in opened]
    for each in opened:
        each.__exit__(None, None, None)
    return [each.node for each in chosen]


TWO_LOCAL = [
    node("pve1", 8), node("pve2", 32),
    storage("local", "pve1"), storage("local", "pve2"),
    vm(9000, "debian-12", "pve1", template=1), vm(9001, "debian-12", "pve2", template=1),
]  # fmt: skip
SHARED = [
    node("pve1", 8), node("pve2", 32), node("pve3", 60, "offline"),
    *(storage("nfs", name, shared=1) for name in ("pve1", "pve2", "pve3")),
    vm(9000, "debian-12", "pve1", template=1),
]  # fmt: skip


def test_the_node_with_the_most_free_memory() -> None:
    assert place(TWO_LOCAL) == ["pve2"]


def test_a_template_is_named_by_its_vmid_too() -> None:
    assert place(TWO_LOCAL, "9000") == ["pve1"]


def test_on_shared_storage_any_node_that_is_online() -> None:
    assert place(SHARED, volume="nfs:9000/base-9000-disk-0.qcow2") == ["pve2"]


def test_on_local_storage_only_the_templates_node() -> None:
    assert place([*SHARED, storage("local", "pve1"), storage("local", "pve2")]) == ["pve1"]


def test_what_is_promised_counts() -> None:
    ours = [vm(1000 + n, f"box{n}", "pve2", maxmem=GIB * 10) for n in range(6)]
    assert place(TWO_LOCAL + ours) == ["pve1"]


def test_clones_under_way_count() -> None:
    even = [node("pve1", 32), node("pve2", 32), *TWO_LOCAL[2:]]
    assert sorted(place(even, "debian-12", "debian-12")) == ["pve1", "pve2"]


def test_a_node_without_the_bridge_is_not_taken() -> None:
    assert place(TWO_LOCAL, bridges={"pve2": [{"iface": "vmbr0"}]}) == ["pve1"]


def test_a_node_that_the_settings_do_not_allow_is_not_taken() -> None:
    assert place(TWO_LOCAL, nodes=("pve1",)) == ["pve1"]


@pytest.mark.parametrize(
    ("resources", "why"),
    [
        ([node("pve1", 8, "offline"), *TWO_LOCAL[2:5]], "node is offline"),
        ([node("pve1", 8), TWO_LOCAL[4]], "has no storage local"),
        ([node("pve1", 8), storage("local", "pve1", status="unknown"), TWO_LOCAL[4]], "not available"),
        ([node("pve9", 8), storage("local", "pve9"), vm(9000, "debian-12", "pve9", template=1)], "do not allow"),
    ],
)  # fmt: skip
def test_it_says_why_there_is_no_place(resources: list[dict[str, object]], why: str) -> None:
    with pytest.raises(Unavailable, match=why):
        place(resources)


def test_an_unknown_template_can_never_be_placed() -> None:
    with pytest.raises(NotFound) as unknown:
        place(TWO_LOCAL, "debian-13")
    assert "debian-12" in unknown.value.hint
    with pytest.raises(NotFound, match="is not a template"):
        place([*TWO_LOCAL, vm(100, "debian-13", "pve1")], "debian-13")

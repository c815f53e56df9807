"""Does the node that is not there answer as Proxmox's own programs did?

tests/data/proxmox/recorded_rest.jsonl and recorded_cli.jsonl hold what they answered (Proxmox VE
8.2.4); the tests put the fake node into the same state and send the same again.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.fakes.pve.commands import make_commands
from tests.fakes.pve.node import FakeVm, LoadModel, ProxmoxNode, SimulatedGuests
from tests.fakes.pve.serving import Served, serve
from tests.waiting import until

DATA = Path(__file__).resolve().parents[2] / "data/proxmox"
SCALE = 0.01  # real seconds for each of Proxmox's
ENDLESS = 1e6
CLONE = "/nodes/{node}/qemu/{vmid}/clone"
QEMU = "/nodes/pve/qemu"


def records(name: str) -> dict[str, dict[str, Any]]:
    lines = (DATA / name).read_text().splitlines()
    return {record["id"]: record for record in map(json.loads, lines)}


REST = records("recorded_rest.jsonl")
CLI = records("recorded_cli.jsonl")
ENDS = {
    record["json"]["data"]["upid"]: record["json"]["data"]["exitstatus"]
    for record in REST.values()
    if "/tasks/UPID" in record["path"]
    and "exitstatus" in ((record["json"] or {}).get("data") or {})
}


class Client:
    """Sends requests to the fake, and recorded ones again."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.tls = ssl.create_default_context(cafile=str(served.ca))
        self.pids: dict[int, int] = {}

    def send(
        self,
        method: str,
        path: str,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str, Any]:
        if headers is None:
            headers = {"Authorization": f"PVEAPIToken={self.served.token}"}
        target, body = "/api2/json" + quote(path, safe="/:@!?=&"), None
        given = {k: int(v) if isinstance(v, bool) else v for k, v in (params or {}).items()}
        text = urlencode(given, doseq=True)
        if method in ("GET", "DELETE"):
            target += "?" + text if text else ""
        elif text:
            body = text
            headers = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        connection = http.client.HTTPSConnection(self.served.host, context=self.tls, timeout=20)
        try:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        return answer.status, answer.reason, json.loads(text) if text else None

    def data(self, method: str, path: str, **params: Any) -> Any:
        status, reason, told = self.send(method, path, params)
        assert status == 200, (status, reason, told)
        return told["data"]

    def wait(self, upid: str) -> str:
        path = f"/nodes/{upid.split(':')[1]}/tasks/{upid}/status"
        until(lambda: self.data("GET", path)["status"] == "stopped")
        return str(self.data("GET", path)["exitstatus"])

    def task(self, method: str, path: str, **params: Any) -> str:
        return self.wait(self.data(method, path, **params))

    def again(self, *ids: str, wait: bool = True) -> Any:
        """Sends recorded requests again, and compares status, reason, errors and the task's end."""
        data = None
        for number in ids:
            data = self._again(REST[number], wait)
        return data

    def _again(self, record: dict[str, Any], wait: bool) -> Any:
        params = dict(record["params"] or {})
        if "pid" in params:
            params["pid"] = self.pids.get(params["pid"], params["pid"])
        headers: dict[str, str] | None = dict(record.get("headers") or {})
        if record["auth"] == "root@pam!bench":
            headers = None
        elif record["auth"]:
            headers = {"Authorization": f"PVEAPIToken={record['auth']}=x"}
        path = record["path"].removeprefix("/api2/json")
        status, reason, told = self.send(record["method"], path, params, headers)
        expected = record["json"] or {}
        where = f"{record['id']} {record['method']} {path} {params}"
        assert (status, reason) == (record["status"], record["reason"]), where
        errors = {k: v.strip() for k, v in ((told or {}).get("errors") or {}).items()}
        recorded = {k: v.strip() for k, v in (expected.get("errors") or {}).items()}
        assert errors == recorded, where
        assert (told is None) == (record["json"] is None), where
        if status != 200:
            return None
        data, was = told["data"], expected.get("data")
        if isinstance(was, str) and was.startswith("UPID:"):
            kind = [*was.split(":")[5:7], was.split(":")[7]]
            assert data.split(":")[5:8] == kind, where
            if wait and was in ENDS:
                assert self.wait(data) == ENDS[was], where
        elif isinstance(was, dict) and set(was) == {"pid"}:
            self.pids[was["pid"]] = data["pid"]
        return data


@pytest.fixture
def guests() -> SimulatedGuests:
    return SimulatedGuests(
        boot_secs=2.0, run=play, missing={"uname -a", "/no/such", "/no/such/bin"}
    )


def play(vmid: int, argv: list[str], stdin: str) -> tuple[int, str, str]:
    match argv:
        case ["sh", "-c", "echo out; echo err >&2; exit 3"]:
            return 3, "out\n", "err\n"
        case ["cat"]:
            return 0, stdin, ""
        case ["uname", "-a"]:
            return 0, "Linux guest\n", ""
        case ["sleep", _]:
            time.sleep(0.2)
            return 0, "", ""
    return 0, "", ""


@pytest.fixture
def node(guests: SimulatedGuests) -> ProxmoxNode:
    """The recordings' node, with their template."""
    node = ProxmoxNode(time_scale=SCALE, guests=guests)
    recorded_template(node, 9100)
    return node


def recorded_template(node: ProxmoxNode, vmid: int) -> FakeVm:
    return node.make_template(
        vmid, "agent-tmpl", size=64 * 1024**2, tags="golden,v1", cores=1, memory="512",
        scsi0=f"local:{vmid}/base-{vmid}-disk-0.qcow2,size=64M",
        scsihw="virtio-scsi-pci", ciuser="debian", nameserver="192.0.2.53",
    )  # fmt: skip


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certificate is; it is made once."""
    return tmp_path_factory.mktemp("keys")


@pytest.fixture
def served(node: ProxmoxNode, keys: Path) -> Iterator[Served]:
    with serve(node, keys) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served)


@pytest.fixture
def one(client: Client) -> Client:
    """With VM 1301, a linked clone."""
    client.again("227")
    return client


def booted(client: Client, vmid: int) -> None:
    until(lambda: client.send("POST", f"{QEMU}/{vmid}/agent/ping")[0] == 200)


def hold(served: Served, secs: float) -> Callable[[], None]:
    """Whatever takes just so many PVE seconds lasts until the function that this gives is called."""
    go = asyncio.Event()
    with served.paused() as node:
        plain = node.pause

        async def pause(asked: float) -> None:
            await (go.wait() if asked == secs else plain(asked))

        node.pause = pause
    return lambda: served.call(go.set)


# ----------------------------------------------------------------------------- what comes in


@pytest.mark.parametrize("number", ["001", "002", "003", "005", "006"])
def test_who_is_not_let_in_is_told_so(client: Client, number: str) -> None:
    client.again(number)


@pytest.mark.parametrize(
    "number",
    ["056", "058", "059", "060", "061", "062", "063", "064", "066", "071", "903", "318", "057"],
)  # fmt: skip
def test_calls_that_make_no_sense(client: Client, number: str) -> None:
    client.again(number)


def test_nextid_of_a_taken_id_is_a_bad_request(client: Client) -> None:
    status, _, told = client.send("GET", "/cluster/nextid", {"vmid": 9100})
    assert status == 400
    assert told["errors"] == {"vmid": "VM 9100 already exists"}


def test_a_body_with_delete_is_not_taken(client: Client) -> None:
    headers = {"Authorization": f"PVEAPIToken={client.served.token}"}
    connection = http.client.HTTPSConnection(client.served.host, context=client.tls)
    connection.request("DELETE", f"/api2/json{QEMU}/9100", "purge=1", headers)
    answer = connection.getresponse()
    answer.read()
    assert (answer.status, answer.reason) == (501, "Unexpected content for method 'DELETE'")
    connection.close()


def test_a_node_of_its_own_has_no_cluster(client: Client) -> None:
    assert client.again("042") == REST["042"]["json"]["data"]


# ----------------------------------------------------------------------------- what is not there


MISSING = [
    "073",
    "074",
    "076",
    "077",
    "078",
    "081",
    "084",
    "087",
    "088",
    "089",
    "090",
    "091",
    "092",
    "093",
    "094",
    "095",
    "096",
    "099",
    "102",
    "105",
    "106",
    "109",
    "110",
    "111",
    "115",
    "116",
    "117",
]


@pytest.mark.parametrize("number", MISSING)
def test_a_machine_that_is_not_there(client: Client, number: str) -> None:
    client.again(number)


@pytest.mark.parametrize("number", ["028", "029", "048", "517", "518"])
def test_other_things_that_are_not_there(client: Client, number: str) -> None:
    client.again(number)


def test_a_machine_on_another_node_is_not_on_this_one(keys: Path) -> None:
    node = ProxmoxNode(nodes=("pve", "other"))
    node.add_vm(100, "there", node="other", status="running")
    with serve(node, keys) as served:
        client = Client(served)
        client.again("073")
        node.set_node_offline("other")
        shown = client.data("GET", "/cluster/resources", type="vm")
        assert shown == [
            {"id": "qemu/100", "type": "qemu", "node": "other", "vmid": 100, "status": "unknown"}
        ]
        assert client.send("GET", "/nodes/other/qemu")[0] == 595


# ----------------------------------------------------------------------------- machines


@pytest.mark.parametrize(
    "number", ["118", "119", "120", "121", "122", "123", "124", "125", "127", "130", "206"]
)
def test_a_machine_that_cannot_be_created(one: Client, number: str) -> None:
    one.again(number)


@pytest.mark.xfail(strict=True, reason="fakepve's parameters are PVE 9's: no `cow` any more")
def test_formats_of_disks_are_those_of_8_2(one: Client) -> None:
    one.again("128")


def test_a_template_is_cloned_and_nothing_else(one: Client) -> None:
    one.again("217", "220", "223", "231", "236", "237", "238", "239", "240", "241", "242")
    one.again("243", "254", "256", "257", "259")


def test_linked_clones_have_the_recorded_shape(one: Client) -> None:
    got = one.again("254")
    shape = ("volid", "parent", "size", "format", "vmid", "content")
    was = REST["254"]["json"]["data"]
    key = str
    assert sorted([[v[k] for k in shape] for v in got], key=key) == sorted(
        [[v[k] for k in shape] for v in was], key=key
    )
    config = one.data("GET", f"{QEMU}/1301/config")
    assert config["tags"] == "golden;v1"
    assert config["ide2"] == "local:1301/vm-1301-cloudinit.qcow2,media=cdrom,size=4M"
    assert config["scsi0"] == (
        "local:9100/base-9100-disk-0.qcow2/1301/vm-1301-disk-0.qcow2,size=64M"
    )
    assert "template" not in config
    assert config["net0"] != one.data("GET", f"{QEMU}/9100/config")["net0"]


def test_a_change_of_the_config(one: Client) -> None:
    one.again("263", "264")
    assert one.data("GET", f"{QEMU}/1301/config")["tags"] == "a;b"
    one.again("267", "268", "269", "270", "271", "272", "273", "274", "284")
    one.data("PUT", f"{QEMU}/1301/config", tags="Agentlab b")
    assert one.data("GET", f"{QEMU}/1301/config")["tags"] == "agentlab;b"


def test_a_disk_of_ones_own_is_set_aside(one: Client) -> None:
    one.again("276", "282")
    config = one.data("GET", f"{QEMU}/1301/config")
    assert "scsi1" not in config
    assert config["unused0"] == "local:1301/vm-1301-disk-1.raw"


def test_a_disk_that_is_resized(one: Client) -> None:
    one.again("286", "290", "294", "297")
    assert one.data("GET", f"{QEMU}/1301/config")["scsi0"].endswith(",size=80M")


def test_power(one: Client) -> None:
    one.again("299", "303", "348", "349", "350")
    assert one.again("353")["memory"] == "512"
    assert one.again("352")["memory"] == "700"
    one.again("359")
    now = one.again("362")
    assert (now["status"], now["qmpstatus"]) == (
        "running",
        REST["362"]["json"]["data"]["qmpstatus"],
    )
    assert one.data("GET", "/cluster/resources", type="vm")[1]["status"] == "running"
    one.again("363", "366")
    booted(one, 1301)
    one.again("412", "416", "419", "422", "423", "424", "425", "426", "427")


def test_snapshots(one: Client) -> None:
    one.again("299", "373", "377", "380", "381", "386", "387")
    assert one.data("GET", f"{QEMU}/1301/status/current")["status"] == "stopped"
    one.again("396")
    assert one.data("GET", f"{QEMU}/1301/status/current")["status"] == "running"
    one.again("400", "404", "407")


def test_what_is_roots_own(client: Client) -> None:
    client.data("POST", f"{QEMU}/9100/clone", newid=1302)
    client.again("428", "460", "461", "462", "463")


def test_a_clone_joins_its_pool(client: Client) -> None:
    client.again("801", "802", "803")
    [machine] = client.data("GET", "/pools/p1")["members"]
    assert machine["vmid"] == 1460


def test_a_lock_in_the_config(client: Client) -> None:
    client.task("POST", f"{QEMU}/9100/clone", newid=1401, name="lockvm")
    client.task("POST", f"{QEMU}/1401/snapshot", snapname="s1")
    with client.served.paused() as node:
        node.snapshot_lock(1401, "backup")
    client.again("622", "623", "626", "629", "632", "633", "636", "639", "642", "643", "644")
    client.again("647", "648", "650", "653")
    assert client.again("621")["lock"] == "backup"


# ----------------------------------------------------------------------------- volumes


def test_volumes_are_allotted_and_freed(client: Client) -> None:
    client.data("POST", f"{QEMU}/9100/clone", newid=1500)
    assert client.again("522") == "local:1302/vm-1302-disk-9.qcow2"
    client.again("523", "525", "529", "532")
    status, reason, _ = client.send(
        "POST", "/nodes/pve/storage/local/content",
        {"vmid": 1302, "filename": "badname", "size": "1G"},
    )  # fmt: skip
    assert (status, reason) == (500, "unable to parse volume filename 'badname'")


def test_what_a_vmid_narrows_down(one: Client) -> None:
    """PVE::Storage::Plugin list_volumes."""
    with one.served.paused() as node:
        files = [
            node.put_file(name)
            for name in (
                "snippets/x.yaml", "import/debian.qcow2", "backup/vzdump-qemu-1301-1.vma",
                "backup/vzdump-qemu-1302-1.vma", "iso/debian.iso", "vztmpl/debian.tar.zst",
            )
        ]  # fmt: skip
    content = "/nodes/pve/storage/local/content"
    disks = ["local:1301/vm-1301-cloudinit.qcow2",
             "local:9100/base-9100-disk-0.qcow2/1301/vm-1301-disk-0.qcow2"]  # fmt: skip

    def listed(**values: object) -> list[str]:
        return [each["volid"] for each in one.data("GET", content, **values)]

    assert set(listed()) >= {*files, *disks}
    assert listed(vmid=1301) == sorted([*disks, *files[:3]])
    assert listed(vmid=1301, content="images") == disks


FOREIGN = "local:990001/vm-990001-disk-0.qcow2"


@pytest.fixture
def foreign(one: Client) -> Client:
    one.data("POST", "/nodes/pve/storage/local/content", vmid=990001, size="1G",
             filename="vm-990001-disk-0.qcow2")  # fmt: skip
    return one


def test_a_foreign_volume_is_attached_and_let_go(foreign: Client) -> None:
    config = f"{QEMU}/1301/config"
    foreign.data("PUT", config, scsi1=FOREIGN)
    assert foreign.data("GET", config)["scsi1"] == f"{FOREIGN},size=1G"
    foreign.data("PUT", config, delete="scsi1")
    assert not {"scsi1", "unused0"} & set(foreign.data("GET", config))
    status, reason, _ = foreign.send("PUT", config, {"scsi1": FOREIGN.replace("0.q", "7.q")})
    assert (status, reason) == (500, f"volume '{FOREIGN.replace('0.q', '7.q')}' does not exist")


def test_a_rollback_sets_a_foreign_volume_aside(foreign: Client) -> None:
    config = f"{QEMU}/1301/config"
    foreign.task("POST", f"{QEMU}/1301/snapshot", snapname="before")
    foreign.data("PUT", config, scsi1=FOREIGN)
    assert foreign.task("POST", f"{QEMU}/1301/snapshot/before/rollback") == "OK"
    assert foreign.data("GET", config)["unused0"] == FOREIGN
    foreign.data("PUT", config, scsi1=FOREIGN)
    assert "unused0" not in foreign.data("GET", config)


def test_a_running_machine_takes_a_volume_at_once(foreign: Client) -> None:
    config = f"{QEMU}/1301/config"
    foreign.again("299")
    for values, there in (({"scsi1": FOREIGN}, True), ({"delete": "scsi1"}, False)):
        foreign.data("PUT", config, **values)
        assert ("scsi1" in foreign.data("GET", config, current=1)) is there
        pending = foreign.data("GET", f"{QEMU}/1301/pending")
        assert not [item for item in pending if "pending" in item or "delete" in item]


@pytest.mark.parametrize("how", [{}, {"destroy-unreferenced-disks": 1, "purge": 1}])
def test_a_foreign_volume_outlives_the_machine(foreign: Client, how: dict[str, int]) -> None:
    foreign.data("PUT", f"{QEMU}/1301/config", scsi1=FOREIGN)
    foreign.task("POST", f"{QEMU}/1301/snapshot", snapname="with")
    assert foreign.task("DELETE", f"{QEMU}/1301", **how) == "OK"
    with foreign.served.paused() as node:
        assert node.volumes_of(990001) == [FOREIGN]
        assert node.volumes_of(1301) == []
        assert len(node.volumes_of(9100)) == 2


# ----------------------------------------------------------------------------- clones under way


@pytest.fixture
def slow(client: Client) -> Client:
    """A template whose clones take their time; nothing but its disk, as the recordings' 9200."""
    with client.served.paused() as node:
        node.make_template(9200, "big-tmpl", cloudinit=False)
        node.seconds["qmclone full"] = ENDLESS
    return client


def test_a_clone_under_way_is_seen_and_waited_for(slow: Client) -> None:
    let_end = hold(slow.served, 0.8 * ENDLESS)
    with slow.served.paused() as node:
        node.broadcast_secs = node.lock_wait = ENDLESS
    upid = slow.again("858", wait=False)
    vmid = 1602
    config = slow.data("GET", f"{QEMU}/{vmid}/config")
    was = REST["834"]["json"]["data"]
    assert {**config, "digest": ""} == {**was, "digest": ""}
    listed = slow.data("GET", "/cluster/resources", type="vm")
    assert {
        "lock": "clone", "id": f"qemu/{vmid}", "vmid": vmid, "status": "unknown", "type": "qemu",
        "node": "pve",
    } in listed  # fmt: skip
    active = slow.again("839")
    assert [(task["type"], task["id"], task["status"]) for task in active] == [
        ("qmclone", "9200", "RUNNING")
    ]
    assert set(active[0]) == set(REST["839"]["json"]["data"][0])
    assert slow.data("GET", "/nodes/pve/tasks", source="active", vmid=vmid) == []
    with ThreadPoolExecutor(1) as beside:
        changed = beside.submit(slow.send, "PUT", f"{QEMU}/{vmid}/config", {"memory": 80})  # 841
        try:
            until(lambda: node.vm(vmid).lock_released)  # who waits for the lock waits for that
            assert not changed.done()
        finally:
            let_end()
        assert changed.result()[0] == 200
    assert slow.wait(upid) == "OK"
    assert slow.data("GET", f"{QEMU}/{vmid}/config")["memory"] == "80"


def test_a_clone_with_a_cloudinit_drive_shows_its_description_early(client: Client) -> None:
    let_end = hold(client.served, 0.8 * 10)
    with client.served.paused() as node:
        node.seconds["qmclone"] = 10
    client.again("227", wait=False)  # no description given
    upid = client.data("POST", f"{QEMU}/9100/clone", newid=1310, description="ours")
    until(lambda: client.data("GET", f"{QEMU}/1310/config")["description"] == "ours")
    assert client.data("GET", f"{QEMU}/1310/config")["lock"] == "clone"
    let_end()
    assert client.wait(upid) == "OK"
    assert "lock" not in client.data("GET", f"{QEMU}/1310/config")


def test_a_clone_that_is_stopped_leaves_nothing(slow: Client) -> None:
    upid = slow.again("858", wait=False)
    assert slow.data("DELETE", f"/nodes/pve/tasks/{upid}") is None
    assert slow.wait(upid).startswith("clone failed: ")
    slow.again("862", "864")
    assert slow.again("863") == []


def test_a_clone_that_is_killed_leaves_its_lock_and_a_disk(slow: Client) -> None:
    upid = slow.again("865", wait=False)
    slow.served.call(slow.served.node.kill_task, upid)
    assert slow.wait(upid) == "unexpected status"
    config = slow.again("867")
    was = REST["867"]["json"]["data"]
    assert {**config, "digest": ""} == {**was, "digest": ""}
    assert slow.again("868")["name"] == "VM 1603"
    slow.again("869", "872")
    slow.served.call(slow.served.node.unlock, 1603)
    slow.again("875")
    assert [volume["vmid"] for volume in slow.again("878")] == [1603]


def test_a_lock_file_that_is_held(client: Client, guests: SimulatedGuests) -> None:
    with client.served.paused() as node:
        vm = node.make_vm(1340, "noboot", agent="1")
        node.powered_on(vm)
        guests.silent.add(1340)
    client.data("POST", f"{QEMU}/1340/status/shutdown", timeout=600)
    assert [set(task) for task in client.again("477")] == [set(REST["477"]["json"]["data"][0])]
    client.again("479", "480", "485")
    assert client.data("GET", "/cluster/nextid", vmid=1341) == "1341"


def test_a_shutdown_that_the_guest_ignores(client: Client) -> None:
    with client.served.paused() as node:
        vm = node.make_vm(1340, "noboot")
        vm.acpi = False
        node.powered_on(vm)
    client.again("501", "505")


# ----------------------------------------------------------------------------- guests


def test_the_agent_of_a_guest_that_boots(one: Client, guests: SimulatedGuests) -> None:
    quick, guests.boot_secs = guests.boot_secs, 1e6  # it boots for as long as we look
    one.again("299", "307")
    guests.boot_secs = quick
    booted(one, 1301)
    one.again("308", "321")
    until(guests.quiet)
    assert one.again("323") == REST["323"]["json"]["data"]
    one.again("324", "329", "334", "343", "330")
    until(guests.quiet)
    assert one.again("332") == REST["332"]["json"]["data"]
    one.again("333", "344")
    assert one.again("345") == REST["345"]["json"]["data"]
    one.again("346")


def test_an_agent_that_is_not_there(client: Client) -> None:
    client.again("965")
    with client.served.paused() as node:
        node.powered_on(node.make_vm(1910))
    client.again("971", "972", "973")


def test_the_interfaces_of_a_guest(one: Client) -> None:
    one.data("PUT", f"{QEMU}/1301/config", ipconfig0="ip=10.0.0.5/24,gw=10.0.0.1")
    one.again("299")
    booted(one, 1301)
    found = one.data("GET", f"{QEMU}/1301/agent/network-get-interfaces")["result"]
    mac = one.data("GET", f"{QEMU}/1301/config")["net0"].split(",")[0].split("=")[1].lower()
    assert [each["hardware-address"] for each in found] == ["00:00:00:00:00:00", mac]
    assert found[1]["ip-addresses"][0]["ip-address"] == "10.0.0.5"


# ----------------------------------------------------------------------------- faults and load


def test_a_reply_is_lost_after_the_deed(client: Client) -> None:
    client.served.call(
        lambda: client.served.node.lose_reply("POST", CLONE, only=lambda v: v["newid"] == "101")
    )
    assert client.task("POST", f"{QEMU}/9100/clone", newid=100) == "OK"
    with pytest.raises(ConnectionError):
        client.send("POST", f"{QEMU}/9100/clone", {"newid": 101})
    with client.served.paused() as node:
        assert node.vm(101) is not None
        assert node.counts[("POST", CLONE)] == 2


def test_a_worker_is_refused(client: Client) -> None:
    client.served.node.refuse_worker("POST", CLONE)
    assert client.send("POST", f"{QEMU}/9100/clone", {"newid": 101})[:2] == (
        500, "got no worker upid - start worker failed",
    )  # fmt: skip
    assert client.served.node.vm(101) is None
    assert client.task("POST", f"{QEMU}/9100/clone", newid=101) == "OK"


def test_a_task_fails_as_told(client: Client) -> None:
    client.served.node.fail_tasks("qmstart", "start failed: QEMU exited with code 1")
    client.again("227")
    assert client.task("POST", f"{QEMU}/1301/status/start").startswith("start failed")
    assert client.task("POST", f"{QEMU}/1301/status/start") == "OK"


def test_what_a_token_may_not_audit_is_missing(one: Client) -> None:
    one.served.node.hide(1301)
    listed = one.data("GET", "/cluster/resources", type="vm")
    assert [machine["vmid"] for machine in listed] == [9100]
    assert one.send("GET", f"{QEMU}/1301/config")[:2] == (
        403, "Permission check failed (/vms/1301, VM.Audit)",
    )  # fmt: skip


def test_a_busy_node_queues_and_its_locks_run_out(keys: Path) -> None:
    load = LoadModel(workers=3, request_secs=0.05, clone_secs=1.0, clone_lock_secs=ENDLESS)
    node = ProxmoxNode(time_scale=0.2, load=load)
    recorded_template(node, 9100)
    with serve(node, keys) as served, ThreadPoolExecutor(6) as at_once:
        client = Client(served)
        let_end = hold(served, 0.8)
        path = f"{QEMU}/9100/clone"
        asked = [at_once.submit(client.data, "POST", path, newid=200 + n) for n in range(6)]
        upids = [each.result() for each in asked]
        until(lambda: len(served.call(node.running_tasks)) == 1)  # the others have no lock
        let_end()
        ends = [client.wait(upid) for upid in upids]
        timeout = "can't lock file '/var/lock/qemu-server/lock-9100.conf' - got timeout"
        assert sorted(ends) == ["OK", *[timeout] * 5]
        for number, end in enumerate(ends):
            assert (node.vm(200 + number) is not None) == (end == "OK")
            assert bool(node.volumes_of(200 + number)) == (end == "OK")


# ----------------------------------------------------------------------------- extension points


class Hooked(ProxmoxNode):
    """Somebody's node whose machines are real: it notes what it is told, in which thread."""

    def __init__(self) -> None:
        super().__init__(time_scale=SCALE)
        self.told: list[str] = []
        self.refuse = False

    def note(self, what: str) -> None:
        assert threading.current_thread().name != "fake pve", "it may block, so not on the loop"
        self.told.append(what)

    def on_clone(self, source: FakeVm, vm: FakeVm, full: bool) -> None:
        self.note(f"clone {source.vmid} {vm.vmid} {vm.config['scsi0']}")

    def on_start(self, vm: FakeVm) -> None:
        self.note(f"start {vm.vmid}")
        if self.refuse:
            raise OSError("no /dev/kvm")

    def on_stop(self, vm: FakeVm) -> None:
        self.note(f"stop {vm.vmid}")

    def on_destroy(self, vm: FakeVm) -> None:
        self.note(f"destroy {vm.vmid}")

    def on_attach(self, vm: FakeVm, key: str, volid: str, serial: str) -> None:
        self.note(f"attach {key} {volid} {serial}".strip())

    def on_detach(self, vm: FakeVm, key: str, volid: str) -> None:
        self.note(f"detach {key} {volid}")

    def on_allot(self, volid: str, size: int) -> None:
        self.note(f"allot {volid} {size}")

    def on_free(self, volid: str) -> None:
        self.note(f"free {volid}")

    def agent_is_up(self, vm: FakeVm) -> bool:
        return True

    def agent_call(self, vm: FakeVm, command: str, values: dict[str, Any]) -> Any:
        self.note(f"agent {command}")
        return {"result": {}}


def test_what_is_done_can_be_done_for_real(keys: Path) -> None:
    node = Hooked()
    recorded_template(node, 9100)
    with serve(node, keys) as served:
        client = Client(served)
        client.again("227")
        volume = client.data("POST", "/nodes/pve/storage/local/content", vmid=990001, size="1G",
                             filename="vm-990001-disk-0.qcow2")  # fmt: skip
        node.refuse = True
        assert client.task("POST", f"{QEMU}/1301/status/start") == "OSError: no /dev/kvm"
        node.refuse = False
        assert client.task("POST", f"{QEMU}/1301/status/start") == "OK"
        client.data("PUT", f"{QEMU}/1301/config", scsi1=volume)
        client.data("POST", f"{QEMU}/1301/agent/ping")
        served.call(node.powered_off, node.vm(1301))  # the guest turned itself off
        assert client.task("DELETE", f"{QEMU}/1301") == "OK"
    disk = "local:9100/base-9100-disk-0.qcow2/1301/vm-1301-disk-0.qcow2"
    assert node.told == [
        f"clone 9100 1301 {disk},size=64M", f"allot {volume} {1024**3}", "start 1301",
        "start 1301", f"attach scsi1 {volume}", "agent ping", "destroy 1301",
        "free local:1301/vm-1301-cloudinit.qcow2", f"free {disk}",
    ]  # fmt: skip


# ----------------------------------------------------------------------------- command lines


@pytest.fixture
def commands(served: Served, tmp_path: Path) -> Path:
    """pvesh and qm."""
    return make_commands(served, tmp_path / "bin")


@pytest.fixture
def template(served: Served) -> FakeVm:
    """The template of the recorded command lines."""
    with served.paused() as node:
        return recorded_template(node, 9000)


Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(commands: Path) -> Shell:
    def run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(commands / argv[0]), *argv[1:]],
            input=stdin, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return run


def plain(text: str) -> str:
    """Without what is new each time."""
    text = re.sub(r"UPID:(\w+):[0-9A-F]{8}:[0-9A-F]{8}:[0-9A-F]{8}:", r"UPID:\1:…:", text)
    text = re.sub(r'"(end|start)time":\d+|"(pid|pstart)":\d+', '""', text)
    return re.sub(r'"pid" : \d+', '"pid" : N', text)


def again(shell: Shell, number: str, stdin: str = "") -> str:
    """Runs a recorded command line again; compares all that it prints and whether it failed."""
    record = CLI[number]
    done = shell(*record["argv"], stdin=stdin)
    assert plain(done.stdout) == plain(record["stdout"]), number
    assert plain(done.stderr) == plain(record["stderr"]), number
    assert bool(done.returncode) == bool(record["rc"]), number
    return done.stdout


@pytest.mark.parametrize(
    "number",
    ["026", "027", "028", "030", "031", "032", "037", "041", "042", "046", "050", "058", "059",
     "061", "088", "091", "100", "101", "102", "103", "538"],
)  # fmt: skip
def test_pvesh_prints_what_pvesh_prints(shell: Shell, number: str) -> None:
    again(shell, number)


@pytest.mark.usefixtures("template")
def test_pvesh_makes_machines_and_waits(shell: Shell) -> None:
    for number in ("514", "515", "516", "517", "518"):
        again(shell, number)
    for number in ("524", "525", "526", "527", "528", "530"):
        again(shell, number)


def test_pvesh_says_why_a_task_failed_and_exits_0(shell: Shell, served: Served) -> None:
    again(shell, "514")
    for number in ("520", "522"):
        served.node.fail_tasks("qmstart", "MAX 2 vcpus allowed per VM on this node")
        again(shell, number)
    again(shell, "523")


def test_root_may_what_a_token_may_not(shell: Shell, client: Client) -> None:
    again(shell, "514")
    done = shell("pvesh", "set", f"{QEMU}/1070/config", "--args", "-S")
    assert (done.returncode, done.stdout) == (0, "update VM 1070: -args -S\n")
    assert client.data("GET", f"{QEMU}/1070/config")["args"] == "-S"


@pytest.mark.usefixtures("template")
def test_a_pvesh_that_is_killed_takes_its_task_along(
    commands: Path, shell: Shell, client: Client
) -> None:
    let_die = hold(client.served, ENDLESS)
    with client.served.paused() as node:
        node.seconds["qmclone"] = node.kill_secs = ENDLESS
    words = ["create", f"{QEMU}/9000/clone", "--newid", "1090", "--description", "ours"]
    process = subprocess.Popen(
        [str(commands / "pvesh"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(lambda: client.send("GET", f"{QEMU}/1090/config")[0] == 200)
    [task] = client.data("GET", "/nodes/pve/tasks", source="active")
    process.kill()
    process.wait()
    assert client.data("GET", "/nodes/pve/tasks", source="active") == [task]
    let_die()
    assert client.wait(task["upid"]) == "unexpected status"
    assert client.data("GET", f"{QEMU}/1090/config")["lock"] == "clone"
    done = shell("pvesh", "delete", f"{QEMU}/1090")
    assert (done.returncode, done.stderr) == (0, "VM is locked (clone)\n")
    assert shell("qm", "unlock", "1090").returncode == 0
    how = ("--purge", "1", "--destroy-unreferenced-disks", "1")
    assert shell("pvesh", "delete", f"{QEMU}/1090", *how).returncode == 0
    with client.served.paused() as node:
        assert node.volumes_of(1090) == []


@pytest.mark.usefixtures("template")
def test_qm_runs_programs_in_guests(shell: Shell, client: Client) -> None:
    assert client.task("POST", f"{QEMU}/9000/clone", newid=1001) == "OK"
    again(shell, "285")
    again(shell, "286")
    assert client.task("POST", f"{QEMU}/1001/status/start") == "OK"
    booted(client, 1001)
    for number in ("220", "236", "238", "239", "241"):
        again(shell, number)
    again(shell, "242", stdin="hello stdin\n")


def test_qm_complains_as_qm(shell: Shell, client: Client, guests: SimulatedGuests) -> None:
    with client.served.paused() as node:
        for vmid, config in ((1040, {"agent": "1"}), (1910, {})):
            node.powered_on(node.make_vm(vmid, **config))
        guests.silent.add(1040)
    for number in ("446", "863", "865"):
        again(shell, number)


@pytest.mark.usefixtures("template")
def test_qm_of_a_program_that_is_missing(shell: Shell, client: Client) -> None:
    assert client.task("POST", f"{QEMU}/9000/clone", newid=1001) == "OK"
    assert client.task("POST", f"{QEMU}/1001/status/start") == "OK"
    booted(client, 1001)
    again(shell, "237")

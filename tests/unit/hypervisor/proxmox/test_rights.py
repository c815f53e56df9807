"""Which rights a token lacks: by recordings of Proxmox VE, and by a node that plays it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from agentlab.errors import Denied, Unavailable
from agentlab.hypervisor.base import MachineSpec, Nic
from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.rest import RestTransport, Tls
from agentlab.hypervisor.proxmox.rights import (
    RIGHTS,
    Granted,
    Right,
    Scope,
    holds,
    missing_rights,
    needed,
    parse_major,
    parse_permissions,
    read_permissions,
    render_missing,
    render_remedy,
    role_privileges,
)
from agentlab.hypervisor.proxmox.settings import Settings
from agentlab.secret import Secret
from tests.fakes.pve.node import ProxmoxNode
from tests.fakes.pve.serving import serve

TOKEN = "agentlab@pve!daemon"
SCOPE = Scope(vmid=1000, bridge="vmbr1", templates=(9000,), storages=("local", "fast"))
POOL = Scope(vmid=1000, bridge="vmbr1", templates=(9000,), storages=("local",), pool="lab")


def all_of(scope: Scope, major: int, without: Right | None = None) -> dict[str, dict[str, int]]:
    """What a token has that was given all rights of the table, but for one."""
    granted: dict[str, dict[str, int]] = {}
    for right in needed(major):
        for path in scope.paths(right.place):
            held = granted.setdefault(path, {})
            if right is not without:
                held[right.privilege] = 1
    return granted


def names(granted: Granted, major: int, scope: Scope) -> list[tuple[str, str]]:
    return [(each.privilege, each.path) for each in missing_rights(granted, major, scope)]


@pytest.mark.parametrize("scope", [SCOPE, POOL], ids=["all", "pool"])
@pytest.mark.parametrize("major", [8, 9, 10])
def test_who_has_all_lacks_nothing(major: int, scope: Scope) -> None:
    assert names(all_of(scope, major), major, scope) == []
    assert names({"/": dict.fromkeys({each.privilege for each in RIGHTS}, 1)}, major, scope) == []


@pytest.mark.parametrize("scope", [SCOPE, POOL], ids=["all", "pool"])
@pytest.mark.parametrize(
    ("major", "right"),
    [(major, right) for major in (8, 9) for right in needed(major)],
    ids=lambda value: f"{value.privilege} {value.place}" if isinstance(value, Right) else value,
)
def test_each_privilege_that_is_taken_away_is_named_exactly(
    major: int, right: Right, scope: Scope
) -> None:
    expected = [(right.privilege, path) for path in scope.paths(right.place)]
    assert names(all_of(scope, major, right), major, scope) == expected


def test_a_template_that_we_are_to_build_is_beside_the_sandboxes() -> None:
    for scope in (Scope(1000, "vmbr1"), Scope(1000, "vmbr1", pool="lab")):
        granted = all_of(scope, 9)
        assert names(granted, 9, scope) == []
        del granted[scope.top]["VM.Clone"]
        (missing,) = missing_rights(granted, 9, scope)
        assert (missing.privilege, missing.path, missing.role) == (
            "VM.Clone",
            scope.top,
            "AgentLab",
        )


def test_the_guest_agent_has_another_privilege_since_9() -> None:
    eight, nine = ({each.privilege for each in needed(major)} for major in (8, 9))
    assert eight - nine == {"VM.Monitor"}
    assert nine - eight == {"VM.GuestAgent.Unrestricted"}


@pytest.mark.parametrize(
    ("granted", "path", "held"),
    [
        ({"/": {"VM.Audit": 1}}, "/vms/1000", True),
        ({"/vms": {"VM.Audit": 1}}, "/vms/1000", True),
        ({"/vms": {"VM.Audit": 0}}, "/vms/1000", False),  # not passed on
        ({"/vms": {"VM.Audit": 0}}, "/vms", True),
        ({"/vms": {"VM.Audit": 1}, "/vms/1000": {}}, "/vms/1000", False),  # taken away there
        ({"/vms": {}, "/vms/1000": {"VM.Audit": 0}}, "/vms/1000", True),
        ({"/vms": {}, "/": {"VM.Audit": 1}}, "/vms/1000", False),
        ({"/vms/100": {"VM.Audit": 1}}, "/vms/1000", False),  # a name is not a beginning
        ({"/sdn/zones/localnetwork": {"VM.Audit": 1}}, "/sdn/zones/localnetwork/vmbr1", True),
        ({"/storage/local": {"VM.Audit": 1}}, "/storage/fast", False),
        ({}, "/vms/1000", False),
    ],
)
def test_rights_are_passed_on_as_proxmox_does_it(granted: Granted, path: str, held: bool) -> None:
    assert holds(granted, path, "VM.Audit") is held


def test_a_pool_holds_for_its_members_and_needs_no_passing_on() -> None:
    granted = all_of(POOL, 8)
    granted["/pool/lab"] = dict.fromkeys(granted["/pool/lab"], 0)
    assert names(granted, 8, POOL) == []
    everywhere = {path: held for path, held in granted.items() if path != "/pool/lab"}
    assert len(names(everywhere, 8, POOL)) == 12
    assert names({**everywhere, "/vms": all_of(SCOPE, 8)["/vms"]}, 8, POOL) == []


def test_the_remedy_is_what_root_types() -> None:
    granted = all_of(SCOPE, 8)
    del granted["/vms"]["VM.Snapshot"], granted["/vms"]["VM.Config.CPU"]
    granted["/storage/fast"] = {}
    missing = missing_rights(granted, 8, SCOPE)
    assert render_missing(missing) == (
        "VM.Config.CPU, VM.Snapshot on /vms; "
        "Datastore.AllocateSpace, Datastore.Audit on /storage/fast"
    )
    who = "--users agentlab@pve --tokens 'agentlab@pve!daemon'"
    acl = [
        f"pveum acl modify /vms {who} --roles AgentLab",
        f"pveum acl modify /storage/fast {who} --roles PVEDatastoreUser",
    ]
    cpu = "VM.Config.CPU"
    assert render_remedy(missing, TOKEN, None) == [
        f"pveum role add AgentLab --privs '{cpu} VM.Snapshot'", *acl
    ]  # fmt: skip
    assert render_remedy(missing, TOKEN, {cpu, "VM.Audit"}) == [
        "pveum role modify AgentLab --append 1 --privs VM.Snapshot", *acl
    ]  # fmt: skip
    assert render_remedy(missing, TOKEN, role_privileges(8)) == acl
    assert render_remedy([], TOKEN, None) == []
    first = render_remedy(missing_rights({}, 9, POOL), TOKEN, role_privileges(9))
    assert [line.split()[3] for line in first] == [
        "/pool/lab", "/vms/9000", "/storage/local", "/sdn/zones/localnetwork/vmbr1"
    ]  # fmt: skip


RECORDED: Mapping[str, object] = json.loads(
    '{"/vms": {"VM.Audit": 1, "VM.Config.Cloudinit": 1, "VM.PowerMgmt": 1},'
    ' "/vms/9000": {"VM.Audit": 1, "VM.Clone": 1}}'
)


def test_as_proxmox_8_tells_it_of_a_separated_token() -> None:
    """`pveum user token permissions`, 8.2.4: a role on a deeper path replaced the one above."""
    granted = parse_permissions(RECORDED)
    assert holds(granted, "/vms/1000", "VM.PowerMgmt")
    assert not holds(granted, "/vms/9000", "VM.PowerMgmt")
    assert ("VM.Clone", "/vms/9000") not in names(granted, 8, SCOPE)
    assert ("VM.Snapshot", "/vms") in names(granted, 8, SCOPE)


@pytest.mark.parametrize("data", [None, [], "x", {"/vms": 1}, {"/vms": ["VM.Audit"]}])
def test_rights_that_cannot_be_read_are_not_missing(data: object) -> None:
    with pytest.raises(Unavailable):
        parse_permissions(data)


def test_the_version_is_its_first_number() -> None:
    assert [parse_major({"version": text}) for text in ("8.2.4", "9.0", "10")] == [8, 9, 10]
    for data in ({}, None, {"version": "x"}):
        with pytest.raises(Unavailable):
            parse_major(data)


@pytest.mark.parametrize(
    "scope", [Scope(1000, "vmbr1", (9000,), ("local",)), POOL], ids=["all", "pool"]
)
def test_a_node_tells_what_its_token_lacks(tmp_path: Path, scope: Scope) -> None:
    """The token of a user with each single privilege taken away, asked over HTTPS."""
    node = ProxmoxNode(version="9.0.3")
    value = "01234567-89ab-cdef-0123-456789abcdef"
    node.apitokens[TOKEN] = value
    node.make_template(9000)
    if scope.pool:
        node.pools[scope.pool] = set()
    with serve(node, tmp_path) as served:
        transport = RestTransport(served.url, Secret(f"{TOKEN}={value}"), Tls(served.ca))
        assert parse_major(transport.call("GET", "/version")) == 9
        for right in (None, *needed(9)):
            with served.paused() as paused:
                paused.acl = {}
                for path, held in all_of(scope, 9, right).items():
                    paused.grant(TOKEN, path, *held)
            granted = read_permissions(transport, 9, scope)
            expected = [(right.privilege, scope.paths(right.place)[0])] if right else []
            assert names(granted, 9, scope) == expected
        transport.close()


def test_the_rights_of_the_table_are_enough_for_a_machines_whole_life(tmp_path: Path) -> None:
    """As fakepve checks them, by the schema of Proxmox VE 9."""
    node = ProxmoxNode(version="9.0.3")
    value = "01234567-89ab-cdef-0123-456789abcdef"
    node.apitokens[TOKEN] = value
    node.make_template(9000, "debian-12")
    node.pools["lab"] = set()
    scope = Scope(1000, "vmbr0", (9000,), ("local",), pool="lab")
    for path, held in all_of(scope, 9).items():
        node.grant(TOKEN, path, *held)
    with serve(node, tmp_path) as served:
        transport = RestTransport(served.url, Secret(f"{TOKEN}={value}"), Tls(served.ca))
        settings = Settings("pve", "vmbr0", range(1000, 1010), pool="lab")
        driver = ProxmoxHypervisor(transport, settings, NodeTools("pve"))
        nic = Nic(
            "tap1000i0",
            "02:00:00:00:03:e8",
            IPv4Interface("10.77.0.9/16"),
            IPv4Address("10.77.0.1"),
        )
        driver.clone("debian-12", 1000, name="one", owner="lab")
        driver.configure(1000, MachineSpec("one", 1, 512, 8192, nic), owner="lab")
        driver.snapshot(1000, "clean", owner="lab")
        driver.start(1000, owner="lab")
        driver.ping(1000)
        assert [each.vmid for each in driver.inventory() if each.owner == "lab"] == [1000]
        driver.stop(1000, owner="lab")
        driver.rollback(1000, "clean", owner="lab")
        driver.destroy(1000, owner="lab")
        assert driver.status(1000) is None
        transport.close()


def test_volumes_that_a_token_may_not_see_are_not_gone(tmp_path: Path) -> None:
    """A volume's number is no machine's, so that rights on a pool do not reach it."""
    node = ProxmoxNode(version="9.0.3")
    value = "01234567-89ab-cdef-0123-456789abcdef"
    node.apitokens[TOKEN] = value
    node.pools["lab"] = set()
    for path, held in all_of(POOL, 9).items():
        node.grant(TOKEN, path, *held)
    with serve(node, tmp_path) as served:
        transport = RestTransport(served.url, Secret(f"{TOKEN}={value}"), Tls(served.ca))
        settings = Settings("pve", "vmbr0", range(1000, 1010), pool="lab")
        driver = ProxmoxHypervisor(transport, settings, NodeTools(""))
        volid = driver.allot(990000, 64, storage="local", owner="lab")
        with pytest.raises(Denied, match=r"lacks Datastore\.Allocate on /storage/local"):
            driver.volumes(owner="lab")
        with served.paused() as paused:  # which shows them, and lets nobody free them
            paused.grant(TOKEN, "/vms", "VM.Config.Disk")
        with pytest.raises(Denied, match=r"lacks Datastore\.Allocate on /storage/local") as told:
            driver.check_storage("local")
        assert "/storage/local" in told.value.hint
        assert "VM.Config.Disk" not in told.value.hint
        with served.paused() as paused:
            paused.grant(TOKEN, "/storage/local", "Datastore.Allocate")
        driver.check_storage("local")
        assert [each.volid for each in driver.volumes(owner="lab")] == [volid]
        driver.free(volid, owner="lab")
        assert driver.volumes(owner="lab") == []
        transport.close()


def test_a_storage_that_has_no_volumes_of_ours_need_not_be_read(tmp_path: Path) -> None:
    """As docs/how-to/workspaces.md has it: more rights on the one storage that they are on."""
    node = ProxmoxNode(version="9.0.3")
    value = "01234567-89ab-cdef-0123-456789abcdef"
    node.apitokens[TOKEN] = value
    node.pools["lab"] = set()
    node.add_dir_storage("work")
    for path, held in all_of(POOL, 9).items():  # local is among them, for clones
        node.grant(TOKEN, path, *held)
    node.grant(TOKEN, "/storage/work", "Datastore.Allocate", *all_of(POOL, 9)["/storage/local"])
    with serve(node, tmp_path) as served:
        transport = RestTransport(served.url, Secret(f"{TOKEN}={value}"), Tls(served.ca))
        settings = Settings("pve", "vmbr0", range(1000, 1010), pool="lab", storage="work")
        driver = ProxmoxHypervisor(transport, settings, NodeTools(""))
        driver.check_storage()
        volid = driver.allot(990000, 64, owner="lab")
        for storage in ("", "work"):
            seen = driver.volumes(owner="lab", storage=storage)
            assert [(each.volid, each.size) for each in seen] == [(volid, 64)]
        with pytest.raises(Denied, match=r"lacks Datastore\.Allocate on /storage/local"):
            driver.volumes(owner="lab")
        with pytest.raises(Denied, match=r"lacks Datastore\.Allocate on /storage/local"):
            driver.check_storage("local")
        with pytest.raises(Unavailable, match="storage tape is not active"):
            driver.volumes(owner="lab", storage="tape")
        driver.free(volid, owner="lab")
        assert driver.volumes(owner="lab", storage="work") == []
        transport.close()

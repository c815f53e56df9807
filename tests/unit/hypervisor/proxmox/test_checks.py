"""The checks of Proxmox, against a node that plays it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agentlab.errors import Denied
from agentlab.hypervisor.base import CheckResult, CheckStatus
from agentlab.hypervisor.proxmox.checks import ProxmoxChecks
from agentlab.hypervisor.proxmox.rest import RestTransport, Tls
from agentlab.hypervisor.proxmox.rights import Scope, needed
from agentlab.secret import Secret
from tests.fakes.pve.node import ProxmoxNode
from tests.fakes.pve.serving import Served, serve

TOKEN, VALUE = "agentlab@pve!daemon", "01234567-89ab-cdef-0123-456789abcdef"
OK, MISSING, ERROR, SKIPPED = (
    CheckStatus.OK, CheckStatus.MISSING, CheckStatus.ERROR, CheckStatus.SKIPPED,
)  # fmt: skip


@dataclass
class Bench:
    served: Served
    checks: ProxmoxChecks

    def ask(self, name: str) -> CheckResult:
        return self.checks.table()[name]()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    node = ProxmoxNode(version="9.0.3")
    node.apitokens[TOKEN] = VALUE
    node.make_template(9000, "debian-12")
    with serve(node, tmp_path) as served:
        transport = RestTransport(served.url, Secret(f"{TOKEN}={VALUE}"), Tls(served.ca))
        scope = Scope(1000, "vmbr1")
        yield Bench(served, ProxmoxChecks(transport, "pve", scope, 9000, "", TOKEN))
        transport.close()


def grant(bench: Bench, without: str = "") -> None:
    scope = replace(bench.checks.scope, templates=(9000,), storages=("local",))
    with bench.served.paused() as node:
        node.acl = {}
        for right in needed(9):
            if right.privilege != without:
                for path in scope.paths(right.place):
                    node.grant(TOKEN, path, right.privilege)


def test_a_node_that_is_in_order(bench: Bench) -> None:
    grant(bench)
    found = {name: bench.ask(name) for name in bench.checks.table()}
    assert {name: each.status for name, each in found.items()} == {
        "proxmox_api": OK, "token_privileges": OK, "storage": OK
    }  # fmt: skip
    assert found["proxmox_api"].detail == f"Proxmox VE 9.0.3, node pve, by token {TOKEN}"
    assert found["storage"].detail == "local on node pve"


def test_another_node_or_version_is_told(bench: Bench) -> None:
    other = replace(bench.checks, node="pve7").api()
    assert (other.status, other.remedy) == (ERROR, "set proxmox.node to one of: pve")
    with bench.served.paused() as node:
        node.version, node.release_version = "7.4.1", "7.4"
    old = bench.ask("proxmox_api")
    assert old.status is ERROR
    assert "7.4.1" in old.detail


def test_each_privilege_is_named_with_the_line_that_gives_it(bench: Bench) -> None:
    grant(bench, without="SDN.Use")
    found = bench.ask("token_privileges")
    assert found.status is MISSING
    assert found.detail == f"{TOKEN} lacks SDN.Use on /sdn/zones/localnetwork/vmbr1"
    assert found.remedy == (
        "pveum acl modify /sdn/zones/localnetwork/vmbr1 --users agentlab@pve "
        f"--tokens '{TOKEN}' --roles PVESDNUser"
    )
    grant(bench, without="VM.Snapshot")
    remedy = bench.ask("token_privileges").remedy.splitlines()
    assert remedy[0] == "pveum role add AgentLab --privs VM.Snapshot"
    assert remedy[1].startswith("pveum acl modify /vms --users agentlab@pve ")
    assert len(remedy) == 2


def test_a_token_without_any_right_is_told_all_of_them(bench: Bench) -> None:
    with bench.served.paused() as node:
        node.acl = {}
        node.grant("somebody@pve", "/", "VM.Audit")
    detail = replace(bench.checks, storage="fast").privileges().detail
    for right in needed(9):
        assert right.privilege in detail
    assert "Datastore.AllocateSpace, Datastore.Audit on /storage/fast" in detail


def test_root_needs_no_token(bench: Bench) -> None:
    shell = replace(bench.checks, token_id="")
    assert shell.privileges().status is SKIPPED
    assert shell.api().detail.endswith("by pvesh")


def test_storages(bench: Bench) -> None:
    absent = replace(bench.checks, storage="fast").storages()
    assert absent.status is MISSING
    assert "no storage fast" in absent.detail
    with bench.served.paused() as node:
        node.add_dir_storage("iso", content="iso")
    images = replace(bench.checks, storage="iso").storages()
    assert (images.status, images.remedy) == (MISSING, "pvesm set iso --content images,iso")
    assert replace(bench.checks, template=9100).storages().status is SKIPPED


def test_a_template_is_found_by_its_tag(bench: Bench) -> None:
    with bench.served.paused() as node:
        node.add_dir_storage("fast")
        node.make_template(9001, "debian-13", storage="fast", tags="agentlab-template;x")
    assert bench.ask("storage").detail == "local, fast on node pve"


def test_a_template_that_the_token_may_not_see_is_asked_for(bench: Bench) -> None:
    grant(bench, without="VM.Audit")
    found = bench.ask("token_privileges")
    assert found.detail == f"{TOKEN} lacks VM.Audit on /vms; VM.Audit on /vms/9000"


def test_a_wrong_token_is_told(bench: Bench) -> None:
    with bench.served.paused() as node:
        node.apitokens[TOKEN] = "another"
    for name in bench.checks.table():
        with pytest.raises(Denied, match="invalid token value"):
            bench.ask(name)

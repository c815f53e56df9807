"""Templates built on a node of Proxmox, with a file that is too small to boot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.errors import Conflict, Invalid, NotFound, Unavailable, Unsupported
from agentlab.hypervisor.load import Gate
from agentlab.hypervisor.proxmox import template
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.rest import RestTransport, Tls
from agentlab.hypervisor.proxmox.rights import Place, needed
from agentlab.hypervisor.proxmox.tasks import Api
from agentlab.hypervisor.proxmox.template import Order, Templates, parse_mark
from agentlab.hypervisor.proxmox.transport import Locked
from agentlab.secret import Secret
from tests.contract.bench import OWNER, STRANGER, settings
from tests.contract.conftest import connect_api
from tests.fakes.pve.commands import make_commands
from tests.fakes.pve.serving import Served


class Here(NodeTools):
    """Tools of a node that this machine only seems to be."""

    def available_on(self, node: str) -> bool:
        return node == "pve"


class Yard:
    """A node, what builds templates on it, and what was told on the way."""

    def __init__(self, node: Served, work: Path, api: Api) -> None:
        self.node, self.work, self.api = node, work, api
        self.told: list[str] = []
        self.images = 0
        self.templates = Templates(api, settings(node), Here("pve"))

    def order(self, key: str = "aa", name: str = "lab-debian", owner: str = OWNER) -> Order:
        return Order(name, owner, key, self.image, first=9000, work=self.work)

    def image(self) -> Path:
        self.images += 1
        path = self.work / "image.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
        return path

    def build(self, order: Order | None = None) -> int:
        return self.templates.build(order or self.order(), self.told.append)

    def config(self, vmid: int) -> dict[str, object]:
        with self.node.paused() as node:
            return dict(node.vm(vmid).config)

    def vmids(self) -> list[int]:
        with self.node.paused() as node:
            return sorted(vm.vmid for vm in node.vms)

    def volumes(self, vmid: int) -> list[str]:
        with self.node.paused() as node:
            volumes = node.storages["local"]["volumes"]
            return sorted(name for name, facts in volumes.items() if facts["vmid"] == vmid)


@pytest.fixture
def yard(node: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    programs = make_commands(node, tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    work = tmp_path / "work"
    work.mkdir()
    with closing(connect_api(node)) as transport:
        yield Yard(node, work, Api(transport, Gate({}, queue=10), patience=5.0))


def free_9000(yard: Yard) -> int:
    """The first VMID that a build may take: 9000 is the fixture's own template."""
    return next(vmid for vmid in range(9000, 9100) if vmid not in yard.vmids())


def test_a_template_is_whole_and_passes_its_own_check(yard: Yard) -> None:
    expected = free_9000(yard)
    vmid = yard.build()
    assert vmid == expected
    config = yard.config(vmid)
    mark = parse_mark(config["description"], vmid)
    assert mark is not None
    assert (mark.owner, mark.name, mark.key) == (OWNER, "lab-debian", "aa")
    assert str(config["template"]) == "1"
    assert str(config["scsi0"]).startswith(f"local:{vmid}/base-{vmid}-disk-0.qcow2")
    assert "unused0" not in config
    report = yard.templates.check("lab-debian")
    assert report.findings == ()
    assert str(vmid) in report.detail
    assert yard.templates.check(str(vmid)).name == "lab-debian"


def test_the_same_content_is_built_once(yard: Yard) -> None:
    vmid = yard.build()
    requests = yard.vmids()
    assert yard.build() == vmid
    assert yard.vmids() == requests
    assert yard.images == 1


def test_new_content_takes_the_name_and_the_old_one_goes(yard: Yard) -> None:
    old = yard.build()
    new = yard.build(yard.order("bb"))
    assert new != old
    assert old not in yard.vmids()
    assert yard.volumes(old) == []
    assert yard.config(new)["name"] == "lab-debian"


def test_an_old_one_with_clones_stays_under_another_name(yard: Yard) -> None:
    old = yard.build()
    clone = {"newid": 1500, "name": "box", "full": False}
    yard.api.act("POST", f"/nodes/pve/qemu/{old}/clone", clone, what="cannot clone")
    new = yard.build(yard.order("bb"))
    assert yard.config(old)["name"] == f"lab-debian-old-{old}"
    assert yard.config(new)["name"] == "lab-debian"
    assert "linked clones need it" in yard.told[-1]
    yard.api.act("DELETE", "/nodes/pve/qemu/1500", {"purge": True}, what="cannot destroy")
    assert yard.build(yard.order("bb")) == new
    assert old not in yard.vmids()


def half_an_import(yard: Yard) -> Callable[..., None]:
    """Killed when it has made the disk, which the VM does not name."""

    def cut_off(vmid: int, *_: object) -> None:
        leave_volume(yard, vmid, "local")
        raise KeyboardInterrupt

    return cut_off


@pytest.mark.parametrize("point", ["import_disk", "in import_disk", "_attach", "convert"])
def test_a_build_that_was_cut_off_leaves_nothing(
    yard: Yard, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off before or in the import, after it, and before it becomes a template."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        if point == "import_disk":
            killed.setattr(template, "import_disk", die)
        elif point == "in import_disk":
            killed.setattr(template, "import_disk", half_an_import(yard))
        elif point == "_attach":
            killed.setattr(Templates, "_attach", die)
        else:
            act = Api.act

            def not_template(self: Api, method: str, path: str, *rest: object, **more: object):  # type: ignore[no-untyped-def]
                if path.endswith("/template"):
                    raise KeyboardInterrupt
                return act(self, method, path, *rest, **more)  # type: ignore[arg-type]

            killed.setattr(Api, "act", not_template)
        with pytest.raises(KeyboardInterrupt):
            yard.build()
    half = max(yard.vmids())
    assert len(yard.volumes(half)) == (1 if point == "import_disk" else 2)
    vmid = yard.build()
    assert vmid == half
    assert len(yard.volumes(vmid)) == 2
    assert any("cut off" in line for line in yard.told)


def test_a_half_made_one_of_another_installation_is_left_alone(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(template, "import_disk", die)
        with pytest.raises(KeyboardInterrupt):
            yard.build(yard.order(owner=STRANGER))
    half = max(yard.vmids())
    assert yard.build() != half
    assert half in yard.vmids()


def test_a_copy_of_ours_is_not_ours(yard: Yard) -> None:
    ours = yard.build()
    config = yard.config(ours)
    with yard.node.paused() as node:
        copied = {key: config[key] for key in ("description", "tags")}
        node.make_vm(9050, "lab-debian", **copied)
    yard.build(yard.order("bb"))
    assert 9050 in yard.vmids()


def test_a_strangers_template_of_that_name_is_refused(yard: Yard) -> None:
    seen = yard.vmids()
    with pytest.raises(Conflict, match="not ours"):
        yard.build(yard.order(name="debian-12"))
    assert yard.vmids() == seen


def test_without_root_on_the_node_nothing_is_done(yard: Yard) -> None:
    seen = yard.vmids()
    away = Templates(yard.api, settings(yard.node), NodeTools(""))
    with pytest.raises(Unsupported, match="may not import"):
        away.build(yard.order(), yard.told.append)
    assert yard.vmids() == seen
    assert yard.images == 0
    vmid = yard.build()
    assert away.build(yard.order(), yard.told.append) == vmid


def test_a_file_that_is_no_image_is_named(yard: Yard) -> None:
    order = replace(yard.order(), image=lambda: yard.work / "nothing.qcow2")
    seen = yard.vmids()
    with pytest.raises(Exception, match="non-existent or non-regular file"):
        yard.build(order)
    assert yard.vmids() == seen, "the VM that was to get the disk is gone"
    assert yard.build() == max(yard.vmids())


def test_a_storage_that_is_not_there_is_refused_before_a_vm_is_made(yard: Yard) -> None:
    seen = yard.vmids()
    with pytest.raises(NotFound, match="no storage nosuch"):
        yard.build(replace(yard.order(), storage="nosuch"))
    assert yard.vmids() == seen


@pytest.mark.parametrize("name", ["9000", "my_debian", "debian-"])
def test_names_that_proxmox_does_not_take_are_refused_at_once(yard: Yard, name: str) -> None:
    with pytest.raises(Invalid, match="no such name"):
        yard.build(yard.order(name=name))
    assert yard.images == 0


def test_an_unknown_template_is_not_found(yard: Yard) -> None:
    with pytest.raises(NotFound, match="debian-13") as missing:
        yard.templates.check("debian-13")
    assert "debian-12" in missing.value.hint


def test_lost_inventory_builds_nothing(yard: Yard) -> None:
    with yard.node.paused() as node:
        node.fail("GET", "/cluster/resources", 500, "ipcc_send_rec[1] failed: Connection refused")
    with pytest.raises((Unavailable, Conflict)):
        yard.build()
    assert yard.images == 0


def leave_volume(yard: Yard, vmid: int, storage: str = "tank") -> str:
    """A volume of a VM that is gone."""
    with yard.node.paused() as node:
        if storage not in node.storages:
            node.add_dir_storage(storage)
        node.storages[storage]["volumes"][f"{vmid}/vm-{vmid}-disk-7.qcow2"] = {
            "content": "images", "format": "qcow2", "size": 1 << 30, "vmid": vmid, "ctime": 1,
        }  # fmt: skip
    return f"{storage}:{vmid}/vm-{vmid}-disk-7.qcow2"


def test_volumes_of_a_vm_that_is_gone_are_never_taken_along(yard: Yard) -> None:
    left = leave_volume(yard, free_9000(yard))
    first = yard.build()
    assert first != int(left.split("-")[1])
    other = leave_volume(yard, first)  # somebody's, allotted later
    second = yard.build(yard.order(key="bb"))
    assert first not in yard.vmids()
    with yard.node.paused() as node:
        assert other in node.volumes_of(first)
        assert left in node.volumes_of(int(left.split("-")[1]))
    assert second in yard.vmids()


def test_what_a_failed_build_takes_away_is_its_own_only(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of that VMID that came meanwhile, on a storage that others write to as well."""
    left: list[str] = []

    def fail(vmid: int, *_: object) -> None:
        left.append(leave_volume(yard, vmid))
        leave_volume(yard, vmid, "local")  # what the import has made so far
        raise Unavailable("no room")

    seen = yard.vmids()
    monkeypatch.setattr(template, "import_disk", fail)
    with pytest.raises(Unavailable, match="no room"):
        yard.build()
    assert yard.vmids() == seen
    with yard.node.paused() as node:
        assert node.volumes_of(int(left[0].split("-")[1])) == left


def test_disks_that_the_token_may_not_see_keep_their_vmid(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rights on a pool it sees no volume of a VM that is gone, and not every storage."""
    token, value = "lab@pve!build", "01234567-89ab-cdef-0123-456789abcdef"
    free = free_9000(yard)
    left = [leave_volume(yard, free), leave_volume(yard, free + 1, "local")]
    sandboxes = {right.privilege for right in needed(8) if right.place is Place.SANDBOXES}
    with yard.node.paused() as node:
        node.apitokens[token] = value
        node.pools["lab"] = set()
        node.grant(token, "/pool/lab", *sandboxes, "VM.Clone")
        node.grant(token, "/storage/local", "Datastore.AllocateSpace", "Datastore.Audit")
        node.grant(token, "/sdn/zones/localnetwork/vmbr1", "SDN.Use")

    def fail(*_: object) -> None:
        raise Unavailable("no room")

    secret = Secret(f"{token}={value}")
    with closing(RestTransport(yard.node.url, secret, Tls(yard.node.ca))) as transport:
        api = Api(transport, Gate({}, queue=10), patience=5.0)
        built = Templates(api, settings(yard.node, pool="lab"), Here("pve"))
        with monkeypatch.context() as failing:
            failing.setattr(template, "import_disk", fail)
            with pytest.raises(Unavailable, match="no room"):
                built.build(yard.order(), yard.told.append)
        assert built.build(yard.order(), yard.told.append) == free + 2
    with yard.node.paused() as node:
        assert [*node.volumes_of(free), *node.volumes_of(free + 1)] == left


def test_files_of_a_storage_do_not_take_a_vmid(yard: Yard) -> None:
    free = free_9000(yard)
    with yard.node.paused() as node:
        node.put_file("snippets/x.yaml")
        node.put_file("import/debian.qcow2")
        node.put_file(f"backup/vzdump-qemu-{free}-2026_11_29.vma")
    assert yard.build() == free


def test_an_old_template_that_is_being_backed_up_stays(yard: Yard) -> None:
    first = yard.build()
    with yard.node.paused() as node:
        node._qm_lock(node.vm(first), "backup")
    with pytest.raises(Locked, match="backup"):  # asked again until the backup is through
        yard.build(yard.order(key="bb"))
    assert yard.config(first)["lock"] == "backup"
    with yard.node.paused() as node:
        node._qm_lock(node.vm(first), None)
    yard.build(yard.order(key="bb"))
    assert first not in yard.vmids()


def test_a_template_without_a_base_disk_is_made_anew(yard: Yard) -> None:
    first = yard.build()
    with yard.node.paused() as node:
        config = node.vm(first).config
        config["scsi0"] = str(config["scsi0"]).replace("base-", "vm-")
    again = yard.build()
    assert "base-" in str(yard.config(again)["scsi0"])
    assert [vmid for vmid in yard.vmids() if 9000 < vmid < 9100] == [again]

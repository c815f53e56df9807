"""What the Proxmox driver promises beyond the contract of all drivers, by both transports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from agentlab.errors import Busy, Conflict, Denied, NotOurs, Unavailable, Unsupported
from agentlab.hypervisor.base import MachineSpec, Power
from agentlab.hypervisor.load import Resource
from agentlab.hypervisor.proxmox import names
from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.rest import RestTransport, Tls
from agentlab.hypervisor.proxmox.rights import Place, needed
from agentlab.secret import Secret
from tests.contract.bench import OWNER, STRANGER, ProxmoxBench, settings
from tests.fakes.pve.node import TaskError
from tests.waiting import until

VM = "/nodes/{node}/qemu/{vmid}"
CLONE = f"{VM}/clone"


def driver(bench: ProxmoxBench) -> ProxmoxHypervisor:
    assert isinstance(bench.hypervisor, ProxmoxHypervisor)
    return bench.hypervisor


def made(bench: ProxmoxBench, vmid: int = 1012) -> MachineSpec:
    """A machine of ours, configured."""
    spec = bench.spec(vmid)
    bench.clone(vmid)
    bench.hypervisor.configure(vmid, spec, owner=OWNER)
    return spec


def vmids(bench: ProxmoxBench) -> list[int]:
    with bench.served.paused() as node:
        return sorted(vm.vmid for vm in node.vms if 1000 <= vm.vmid < 2000)


def asked(bench: ProxmoxBench, method: str, template: str) -> int:
    with bench.served.paused() as node:
        return int(node.counts[(method, template)])


# Whose it is


def test_the_mark_is_in_the_clone_call_itself(proxmox: ProxmoxBench) -> None:
    proxmox.clone(1012)
    with proxmox.served.paused() as node:
        assert names.parse_owner(node.vm(1012).config["description"], 1012) == OWNER
        calls = [body for verb, path, body in node.requests if verb == "POST" and "clone" in path]
    assert b"agentlab-owner" in calls[0]
    assert asked(proxmox, "PUT", f"{VM}/config") == 0


def test_a_copy_that_an_administrator_made_of_ours_is_not_ours(proxmox: ProxmoxBench) -> None:
    made(proxmox)
    with proxmox.served.paused() as node:
        config = dict(node.vm(1012).config)
        node.make_vm(1013, "copy", **{key: config[key] for key in ("description", "tags")})
    with pytest.raises(NotOurs):
        proxmox.hypervisor.destroy(1013, owner=OWNER)
    with pytest.raises(NotOurs):
        proxmox.clone(1013)
    owners = {machine.vmid: machine.owner for machine in proxmox.hypervisor.inventory()}
    assert owners[1013] == ""
    assert vmids(proxmox) == [1012, 1013]


def test_a_tag_alone_proves_nothing(proxmox: ProxmoxBench) -> None:
    with proxmox.served.paused() as node:
        node.make_vm(1012, "mine", tags=names.render_tags(OWNER, 1012), description="my database")
    for attempt in (
        lambda: proxmox.hypervisor.destroy(1012, owner=OWNER),
        lambda: proxmox.hypervisor.start(1012, owner=OWNER),
        lambda: proxmox.clone(1012),
    ):
        with pytest.raises(NotOurs):
            attempt()
    assert vmids(proxmox) == [1012]


def test_who_takes_the_mark_out_makes_it_his_own(proxmox: ProxmoxBench) -> None:
    made(proxmox)
    with proxmox.served.paused() as node:
        node.vm(1012).config["description"] = "kept for the audit"
    with pytest.raises(NotOurs):
        proxmox.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox) == [1012]


def test_a_sandbox_that_was_made_a_template_is_left_alone(proxmox: ProxmoxBench) -> None:
    made(proxmox)
    with proxmox.served.paused() as node:
        node.vm(1012).template = True
        node.vm(1012).config["template"] = 1
    with pytest.raises(Conflict, match="template"):
        proxmox.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox) == [1012]


def test_a_vmid_with_volumes_of_a_vm_that_is_gone_is_not_taken(proxmox: ProxmoxBench) -> None:
    with proxmox.served.paused() as node:
        node.storages["local"]["volumes"]["1012/vm-1012-disk-0.qcow2"] = {
            "content": "images", "format": "qcow2", "size": 1 << 30, "vmid": 1012, "ctime": 1,
        }  # fmt: skip
    with pytest.raises(NotOurs, match=r"vm-1012-disk-0\.qcow2"):
        proxmox.clone(1012)
    assert vmids(proxmox) == []
    with proxmox.served.paused() as node:
        assert node.volumes_of(1012) == ["local:1012/vm-1012-disk-0.qcow2"]


@pytest.mark.parametrize("kind", ["dir", "lvmthin"])
def test_a_leftover_that_the_token_may_not_see_gives_the_vmid_up_at_once(
    proxmox_api: ProxmoxBench, kind: str
) -> None:
    """With rights on a pool no volume of a VM that is gone is listed; the clone finds it there."""
    token, value = "lab@pve!pool", "01234567-89ab-cdef-0123-456789abcdef"
    sandboxes = {right.privilege for right in needed(8) if right.place is Place.SANDBOXES}
    name = "vm-1012-cloudinit" if kind == "lvmthin" else "1012/vm-1012-cloudinit.qcow2"
    with proxmox_api.served.paused() as node:
        if kind == "lvmthin":
            node.add_block_storage("thin", kind, vgname="pve")
            node.make_template(9100, "thin-template", storage="thin", size=1 << 30)
        storage, template = ("thin", 9100) if kind == "lvmthin" else ("local", 9000)
        node.storages[storage]["volumes"][name] = {
            "content": "images", "format": "raw", "size": 4 << 20, "vmid": 1012, "ctime": 1,
        }  # fmt: skip
        node.apitokens[token] = value
        node.pools["lab"] = set()
        node.grant(token, "/pool/lab", *sandboxes)
        node.grant(token, f"/vms/{template}", "VM.Audit", "VM.Clone")
        node.grant(token, f"/storage/{storage}", "Datastore.AllocateSpace", "Datastore.Audit")
        node.grant(token, "/sdn/zones/localnetwork/vmbr1", "SDN.Use")
        called = node.vm(template).name
    served, secret = proxmox_api.served, Secret(f"{token}={value}")
    with closing(RestTransport(served.url, secret, Tls(served.ca))) as transport:
        poor = ProxmoxHypervisor(transport, settings(served, pool="lab"), NodeTools(""))
        with pytest.raises(NotOurs, match="already exists") as told:
            poor.clone(called, 1012, name="box", owner=OWNER)
        assert "pvesm" in told.value.hint
        poor.clone(called, 1013, name="box", owner=OWNER)
    assert vmids(proxmox_api) == [1013]
    with proxmox_api.served.paused() as node:
        assert node.volumes_of(1012) == [f"{storage}:{name}"]


FILES = ("snippets/x.yaml", "import/debian.qcow2", "backup/vzdump-qemu-1012-2026_11_29.vma")


def test_files_of_a_storage_do_not_take_a_vmid(proxmox: ProxmoxBench) -> None:
    """Proxmox lists snippets and import images for every VMID; backups outlive their VM."""
    with proxmox.served.paused() as node:
        files = [node.put_file(name) for name in FILES]
    proxmox.clone(1012)
    assert vmids(proxmox) == [1012]
    proxmox.hypervisor.destroy(1012, owner=OWNER)
    with proxmox.served.paused() as node:
        assert {f"local:{name}" for name in node.storages["local"]["volumes"]} >= set(files)


def test_cleaning_up_a_clone_that_died_frees_no_file_of_the_storage(
    proxmox_shell: ProxmoxBench,
) -> None:
    with proxmox_shell.served.paused() as node:
        node.leave_dead_clone(1012, description=names.render_description(OWNER, 1012, ["local"]))
        files = [node.put_file(name) for name in FILES]
    proxmox_shell.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox_shell) == []
    assert not proxmox_shell.leftovers()
    with proxmox_shell.served.paused() as node:
        assert {f"local:{name}" for name in node.storages["local"]["volumes"]} >= set(files)


def test_destroying_takes_no_volume_that_is_not_in_the_configuration(proxmox: ProxmoxBench) -> None:
    made(proxmox)
    with proxmox.served.paused() as node:
        node.storages["local"]["volumes"]["1012/vm-1012-disk-7.qcow2"] = {
            "content": "images", "format": "qcow2", "size": 1 << 30, "vmid": 1012, "ctime": 1,
        }  # fmt: skip
    proxmox.hypervisor.destroy(1012, owner=OWNER)
    with proxmox.served.paused() as node:
        assert node.volumes_of(1012) == ["local:1012/vm-1012-disk-7.qcow2"]


def test_a_container_of_that_number_is_not_taken(proxmox: ProxmoxBench) -> None:
    with proxmox.served.paused() as node:
        node.add_ct(1012, "ct", node=node.node)
    with pytest.raises(NotOurs):
        proxmox.clone(1012)
    with pytest.raises(NotOurs):
        proxmox.hypervisor.destroy(1012, owner=OWNER)


def test_a_vm_that_we_may_not_see_is_a_strangers_and_never_gone(proxmox_api: ProxmoxBench) -> None:
    with proxmox_api.served.paused() as node:
        node.make_vm(1012, "secret")
        node.hide(1012)
    with pytest.raises(NotOurs):
        proxmox_api.clone(1012)
    with pytest.raises(Denied):
        proxmox_api.hypervisor.status(1012)
    with pytest.raises(Denied):
        proxmox_api.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox_api) == [1012]


def test_two_installations_that_want_one_vmid(proxmox: ProxmoxBench) -> None:
    outcome: dict[str, str] = {}

    def attempt(owner: str) -> None:
        try:
            proxmox.clone(1012, owner=owner)
            outcome[owner] = "made"
        except NotOurs:
            outcome[owner] = "refused"

    threads = [threading.Thread(target=attempt, args=(owner,)) for owner in (OWNER, STRANGER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.values()) == ["made", "refused"]
    winner = next(owner for owner, what in outcome.items() if what == "made")
    seen = proxmox.hypervisor.status(1012)
    assert seen is not None
    assert seen.owner == winner


# Lost replies and busy servers


def calls(bench: ProxmoxBench) -> dict[str, tuple[str, str, Callable[[], Any]]]:
    """Each changing call: how the API names it, and what makes it."""
    spec = bench.spec(1012)
    hypervisor = driver(bench)
    larger = replace(spec, disk=4096)
    return {
        "clone": ("POST", CLONE, lambda: bench.clone(1012)),
        "resize": ("PUT", f"{VM}/resize", lambda: hypervisor.configure(1012, larger, owner=OWNER)),
        "config": ("PUT", f"{VM}/config", lambda: hypervisor.configure(1012, larger, owner=OWNER)),
        "snapshot": ("POST", f"{VM}/snapshot", lambda: hypervisor.snapshot(1012, "clean", owner=OWNER)),
        "rollback": (
            "POST", f"{VM}/snapshot/{{snapname}}/rollback",
            lambda: hypervisor.rollback(1012, "clean", owner=OWNER),
        ),
        "delete snapshot": (
            "DELETE", f"{VM}/snapshot/{{snapname}}",
            lambda: hypervisor.delete_snapshot(1012, "clean", owner=OWNER),
        ),
        "start": ("POST", f"{VM}/status/start", lambda: hypervisor.start(1012, owner=OWNER)),
        "suspend": ("POST", f"{VM}/status/suspend", lambda: hypervisor.pause(1012, owner=OWNER)),
        "resume": ("POST", f"{VM}/status/resume", lambda: hypervisor.resume(1012, owner=OWNER)),
        "stop": ("POST", f"{VM}/status/stop", lambda: hypervisor.stop(1012, owner=OWNER)),
        "destroy": ("DELETE", VM, lambda: hypervisor.destroy(1012, owner=OWNER)),
    }  # fmt: skip


def walk(bench: ProxmoxBench, last: str) -> Callable[[], Any]:
    """Makes all calls before one; that one."""
    for name, (_, _, call) in calls(bench).items():
        if name == last:
            return call
        if name != "config":  # resize and config are one call of ours
            call()
        if name == "resize" and last == "config":
            spec = replace(bench.spec(1012), disk=4096, cores=2)
            return lambda: bench.hypervisor.configure(1012, spec, owner=OWNER)
    raise AssertionError(last)


CALLS = ["clone", "resize", "config", "snapshot", "rollback", "delete snapshot", "start", "suspend",
         "resume", "stop", "destroy"]  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_lost_reply_has_its_effect_once(proxmox_api: ProxmoxBench, name: str) -> None:
    proxmox_api.hypervisor = proxmox_api.again(patience=60.0)
    method, template, _ = calls(proxmox_api)[name]
    call = walk(proxmox_api, name)
    with proxmox_api.served.paused() as node:
        before = {vm.vmid for vm in node.vms}
        sent = node.counts[method, template]
        fault = node.lose_reply(method, template)
    call()
    assert fault.times == 0
    sent = asked(proxmox_api, method, template) - sent
    assert sent == (2 if name == "rollback" else 1), "what it has done is looked for, not asked for"
    call()  # and again quietly
    with proxmox_api.served.paused() as node:
        after = {vm.vmid for vm in node.vms}
    assert after ^ before == ({1012} if name in ("clone", "destroy") else set())
    proxmox_api.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox_api) == []
    assert not proxmox_api.leftovers()


def test_a_clone_whose_reply_was_lost_is_waited_for_and_not_asked_for_again(
    proxmox_api: ProxmoxBench,
) -> None:
    with proxmox_api.served.paused() as node:
        node.time_scale, node.seconds["qmclone"] = 1.0, 1.0
        node.lose_reply("POST", CLONE)
    proxmox_api.clone(1012)
    with proxmox_api.served.paused() as node:
        assert (node.vm(1012).lock, node.running_tasks()) == (None, [])
    assert asked(proxmox_api, "POST", CLONE) == 1


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "trouble", ["no worker", "lock", "595", "596", "599", "500", "503", "closed"]
)
def test_a_busy_server_is_asked_again(proxmox_api: ProxmoxBench, name: str, trouble: str) -> None:
    proxmox_api.hypervisor = proxmox_api.again(patience=60.0)
    method, template, _ = calls(proxmox_api)[name]
    call = walk(proxmox_api, name)
    lock = "can't lock file '/var/lock/qemu-server/lock-1012.conf' - got timeout"
    reasons = {"lock": (500, lock), "595": (595, "No route to host"), "596": (596, "Broken pipe"),
               "599": (599, "Too many connections"), "500": (500, "the moon is full"),
               "503": (503, "going away")}  # fmt: skip
    with proxmox_api.served.paused() as node:
        if trouble == "no worker":
            fault = node.refuse_worker(method, template)
        elif trouble == "closed":
            fault = node.hang_up(method, template)
        else:
            fault = node.answer_with(method, template, *reasons[trouble])
    call()
    assert fault.times == 0
    proxmox_api.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox_api) == []


# Clones that are cut off


def test_a_clone_of_ours_that_still_runs_is_waited_for(proxmox: ProxmoxBench) -> None:
    with proxmox.served.paused() as node:
        node.time_scale = 1.0
        node.pvesh_secs = 0.0
        node.seconds["qmclone"] = 1.5
    first = threading.Thread(target=proxmox.clone, args=(1012,))
    first.start()
    while not vmids(proxmox):
        time.sleep(0.01)
    second = proxmox.again()
    second.clone("debian-12", 1012, name="box1012", owner=OWNER)
    with proxmox.served.paused() as node:
        assert node.vm(1012).lock is None
    assert asked(proxmox, "POST", CLONE) <= 2
    first.join()
    assert vmids(proxmox) == [1012]


def test_a_clone_that_died_is_cleaned_away_and_made_anew_by_root(
    proxmox_shell: ProxmoxBench,
) -> None:
    with proxmox_shell.served.paused() as node:
        node.leave_dead_clone(1012, description=names.render_description(OWNER, 1012, ["local"]))
    with pytest.raises(Busy, match="died"):
        proxmox_shell.clone(1012)
    proxmox_shell.clone(1012)
    assert vmids(proxmox_shell) == [1012]
    proxmox_shell.hypervisor.destroy(1012, owner=OWNER)
    assert not proxmox_shell.leftovers()


def test_a_clone_that_died_and_is_destroyed_leaves_no_disk(proxmox_shell: ProxmoxBench) -> None:
    with proxmox_shell.served.paused() as node:
        node.leave_dead_clone(1012, description=names.render_description(OWNER, 1012, ["local"]))
    proxmox_shell.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox_shell) == []
    assert not proxmox_shell.leftovers()


def test_with_a_token_a_clone_that_died_is_told_with_the_remedy(proxmox_api: ProxmoxBench) -> None:
    with proxmox_api.served.paused() as node:
        node.leave_dead_clone(1012, description=names.render_description(OWNER, 1012, ["local"]))
    for attempt in (
        lambda: proxmox_api.clone(1012),
        lambda: proxmox_api.hypervisor.destroy(1012, owner=OWNER),
    ):
        with pytest.raises(Unavailable) as told:
            attempt()
        assert "qm destroy 1012 --skiplock 1" in told.value.hint


def test_a_strangers_dead_clone_is_left_alone(proxmox: ProxmoxBench) -> None:
    with proxmox.served.paused() as node:
        node.leave_dead_clone(1012)
        node.leave_dead_clone(1013, description=names.render_description(STRANGER, 1013))
    for vmid in (1012, 1013):
        with pytest.raises(NotOurs):
            proxmox.clone(vmid)
        with pytest.raises(NotOurs):
            proxmox.hypervisor.destroy(vmid, owner=OWNER)
    assert vmids(proxmox) == [1012, 1013]


def test_a_locked_machine_is_told_and_kept(proxmox: ProxmoxBench) -> None:
    made(proxmox)
    with proxmox.served.paused() as node:
        node._qm_lock(node.vm(1012), "backup")
    for attempt in (
        lambda: proxmox.hypervisor.start(1012, owner=OWNER),
        lambda: proxmox.hypervisor.snapshot(1012, "clean", owner=OWNER),
        lambda: proxmox.hypervisor.destroy(1012, owner=OWNER),
    ):
        with pytest.raises(Busy, match="backup"):
            attempt()
    assert vmids(proxmox) == [1012]


LEFT = {"rollback": "qmrollback", "snapshot": "qmsnapshot", "snapshot-delete": "qmdelsnapshot"}


@pytest.mark.parametrize("lock", LEFT)
def test_a_machine_that_a_dead_task_left_locked_is_destroyed_by_root(
    proxmox_shell: ProxmoxBench, lock: str
) -> None:
    hypervisor = driver(proxmox_shell)
    made(proxmox_shell)
    volid = proxmox_shell.allot()
    hypervisor.attach(1012, volid, owner=OWNER)
    with proxmox_shell.served.paused() as node:
        node._qm_lock(node.vm(1012), lock)
    hypervisor.detach(1012, volid, owner=OWNER)
    with proxmox_shell.served.paused() as node:
        assert node.vm(1012).lock == lock
        assert "scsi1" not in node.vm(1012).config
    for attempt in (
        lambda: hypervisor.start(1012, owner=OWNER),
        lambda: hypervisor.attach(1012, volid, owner=OWNER),
        lambda: hypervisor.snapshot(1012, "clean", owner=OWNER),
    ):
        with pytest.raises(Conflict, match=rf"left it locked \({lock}\)") as told:
            attempt()
        assert not isinstance(told.value, Busy)
        assert "qm unlock 1012" in told.value.hint
    hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox_shell) == []
    assert [each.volid for each in hypervisor.volumes(owner=OWNER)] == [volid]
    hypervisor.free(volid, owner=OWNER)
    assert not proxmox_shell.leftovers()


def test_a_lock_is_a_dead_ones_when_its_task_has_died(proxmox_shell: ProxmoxBench) -> None:
    made(proxmox_shell)
    proxmox_shell.hypervisor.snapshot(1012, "clean", owner=OWNER)
    with proxmox_shell.served.paused() as node:
        node.time_scale = 1.0
        node.seconds["qmrollback"] = 600.0
    told: list[Exception] = []

    def roll_back() -> None:
        try:
            proxmox_shell.again(patience=120.0).rollback(1012, "clean", owner=OWNER)
        except Conflict as error:
            told.append(error)

    client = threading.Thread(target=roll_back)
    client.start()
    while True:
        with proxmox_shell.served.paused() as node:
            if node.vm(1012).lock == "rollback":
                break
        time.sleep(0.05)
    with pytest.raises(Busy):
        proxmox_shell.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox_shell) == [1012]
    with proxmox_shell.served.paused() as node:
        (upid,) = node.running_tasks("qmrollback")
    proxmox_shell.served.call(proxmox_shell.served.node.kill_task, upid)
    client.join()
    assert "unexpected status" in str(told[0])
    with proxmox_shell.served.paused() as node:
        assert node.vm(1012).lock == "rollback"
        node.time_scale = 0.0
    proxmox_shell.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox_shell) == []


def test_a_snapshot_that_is_still_being_taken_does_not_count_as_taken(
    proxmox_api: ProxmoxBench,
) -> None:
    """Its task may fail yet, and Proxmox takes it away again."""
    made(proxmox_api)
    hypervisor = proxmox_api.again(patience=0.5)
    with proxmox_api.served.paused() as node:
        node.time_scale, node.seconds["qmsnapshot"] = 1.0, 600.0
    for _ in range(2):
        with pytest.raises(Busy):
            hypervisor.snapshot(1012, "clean", owner=OWNER)
        assert list(hypervisor.snapshots(1012)) == []
    with pytest.raises(Busy):
        hypervisor.rollback(1012, "clean", owner=OWNER)
    with proxmox_api.served.paused() as node:
        (upid,) = node.running_tasks("qmsnapshot")
    path = f"/nodes/{proxmox_api.served.node.node}/tasks/{upid}"
    proxmox_api.connect().call("DELETE", path)  # it ends as one that fails
    with proxmox_api.served.paused() as node:
        assert (node.vm(1012).lock, node.vm(1012).snapshots) == (None, {})
        node.time_scale = 0.0
    hypervisor.snapshot(1012, "clean", owner=OWNER)
    assert list(hypervisor.snapshots(1012)) == ["clean"]
    hypervisor.rollback(1012, "clean", owner=OWNER)


def test_half_a_snapshot_that_a_killed_task_left_is_told_with_the_remedy(
    proxmox_api: ProxmoxBench,
) -> None:
    made(proxmox_api)
    hypervisor = proxmox_api.again(patience=0.5)
    with proxmox_api.served.paused() as node:
        node.time_scale, node.seconds["qmsnapshot"] = 1.0, 600.0
    with pytest.raises(Busy):
        hypervisor.snapshot(1012, "clean", owner=OWNER)
    with proxmox_api.served.paused() as node:
        (upid,) = node.running_tasks("qmsnapshot")
    proxmox_api.served.call(proxmox_api.served.node.kill_task, upid)
    with proxmox_api.served.paused() as node:
        node.time_scale = 0.0
        assert node.vm(1012).snapshots["clean"]["snapstate"] == "prepare"
    for words, remedy in (
        (r"left it locked \(snapshot\)", "qm unlock 1012"),
        ("there is half of one", "qm delsnapshot 1012 clean --force"),
    ):
        for verb in (hypervisor.snapshot, hypervisor.rollback):
            with pytest.raises(Conflict, match=words) as told:
                verb(1012, "clean", owner=OWNER)
            assert not isinstance(told.value, Busy)
            assert remedy in told.value.hint
        assert list(hypervisor.snapshots(1012)) == []
        with proxmox_api.served.paused() as node:
            node._qm_lock(node.vm(1012), None)  # as the first remedy says
    assert list(hypervisor.snapshots(1012, half=True)) == ["clean"]
    hypervisor.delete_snapshot(1012, "clean", owner=OWNER)
    assert list(hypervisor.snapshots(1012, half=True)) == []
    hypervisor.destroy(1012, owner=OWNER)


def test_with_a_token_a_lock_that_a_dead_task_left_is_told_with_the_remedy(
    proxmox_api: ProxmoxBench,
) -> None:
    made(proxmox_api)
    hypervisor = driver(proxmox_api)
    volid = proxmox_api.allot()
    hypervisor.attach(1012, volid, owner=OWNER)
    with proxmox_api.served.paused() as node:
        node._qm_lock(node.vm(1012), "rollback")
    for attempt in (
        lambda: hypervisor.detach(1012, volid, owner=OWNER),
        lambda: hypervisor.destroy(1012, owner=OWNER),
    ):
        with pytest.raises(Conflict, match=r"left it locked \(rollback\)") as told:
            attempt()
        assert not isinstance(told.value, Busy)
        assert "qm unlock 1012" in told.value.hint
    assert hypervisor.attached(1012, owner=OWNER) == [volid]


def test_a_lock_is_in_the_inventory_by_its_own_word(proxmox: ProxmoxBench) -> None:
    made(proxmox)
    proxmox.hypervisor.start(1012, owner=OWNER)
    with proxmox.served.paused() as node:
        node.vm(1012).stats["cpu"] = 0.25
    (seen,) = (each for each in proxmox.hypervisor.inventory() if each.vmid == 1012)
    assert (seen.lock, seen.cpu) == ("", 0.25)
    with proxmox.served.paused() as node:
        node._qm_lock(node.vm(1012), "backup")
    (seen,) = (each for each in proxmox.hypervisor.inventory() if each.vmid == 1012)
    assert seen.lock == "backup"
    alone = proxmox.hypervisor.status(1012)
    assert alone is not None
    assert (alone.lock, alone.cpu) == ("backup", None)


# Clusters


def test_a_machine_that_somebody_migrated_is_found_and_not_started(
    proxmox: ProxmoxBench,
) -> None:
    made(proxmox)
    with proxmox.served.paused() as node:
        node.add_node("pve2")
        node.vm(1012).node = "pve2"
    seen = proxmox.hypervisor.status(1012)
    assert seen is not None
    assert (seen.node, seen.owner) == ("pve2", OWNER)
    with pytest.raises(Conflict, match="on node pve2, and the rules"):
        proxmox.hypervisor.start(1012, owner=OWNER)
    with proxmox.served.paused() as node:
        node.vm(1012).status, node.vm(1012).qmpstatus = "running", "paused"
    with pytest.raises(Conflict, match="cannot resume VM 1012: it is on node pve2, and the rules"):
        proxmox.hypervisor.resume(1012, owner=OWNER)
    alone = proxmox.hypervisor.status(1012)
    assert alone is not None
    assert alone.power is Power.PAUSED
    proxmox.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox) == []


def test_a_node_that_is_offline_makes_its_machines_unknown(proxmox: ProxmoxBench) -> None:
    made(proxmox)
    with proxmox.served.paused() as node:
        node.add_node("pve2")
        node.vm(1012).node = "pve2"
        node.set_node_offline("pve2")
    seen = proxmox.hypervisor.status(1012)
    assert seen is not None
    assert (seen.power, seen.owner) == (Power.UNKNOWN, OWNER)
    listed = {machine.vmid: machine for machine in proxmox.hypervisor.inventory()}
    assert (listed[1012].power, listed[1012].owner) == (Power.UNKNOWN, OWNER)
    with pytest.raises(Unavailable):
        proxmox.hypervisor.destroy(1012, owner=OWNER)
    with proxmox.served.paused() as node:
        node.set_node_offline("pve2", offline=False)
    proxmox.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox) == []


def test_a_clone_goes_to_another_node_by_shared_storage(proxmox: ProxmoxBench) -> None:
    with proxmox.served.paused() as node:
        node.add_node("pve2")
        node.add_dir_storage("nfs", shared=1)
        node.make_template(9001, "shared", storage="nfs", size=1 << 30)
        node.vm(9001).stats = {}
        node.make_vm(101, "hog", cores=1, memory="7000")
        node.vm(101).status = "running"
    wide = proxmox.again(node="", nodes=("pve", "pve2"))
    wide.clone("shared", 1012, name="box1012", owner=OWNER)
    with proxmox.served.paused() as node:
        assert node.vm(1012).node == "pve2"
        node.vms = [vm for vm in node.vms if vm.vmid != 101]
    wide.destroy(1012, owner=OWNER)


def test_in_a_pool(proxmox: ProxmoxBench) -> None:
    with proxmox.served.paused() as node:
        node.pools["agents"] = set()
    pooled = proxmox.again(pool="agents")
    pooled.clone("debian-12", 1012, name="box1012", owner=OWNER)
    with proxmox.served.paused() as node:
        assert 1012 in node.pools["agents"]
    pooled.destroy(1012, owner=OWNER)


def test_a_template_that_cannot_be_configured_is_told(proxmox_api: ProxmoxBench) -> None:
    with proxmox_api.served.paused() as node:
        node.make_template(9001, "bare", cloudinit=False)
    proxmox_api.hypervisor.clone("bare", 1012, name="box1012", owner=OWNER)
    with pytest.raises(Conflict, match="no cloud-init drive"):
        proxmox_api.hypervisor.configure(1012, proxmox_api.spec(1012), owner=OWNER)
    proxmox_api.hypervisor.destroy(1012, owner=OWNER)


def test_a_second_network_of_the_template_is_taken_away(proxmox: ProxmoxBench) -> None:
    with proxmox.served.paused() as node:
        node.vm(9000).config.update(
            net0="virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,tag=7",
            net1="virtio=BC:24:11:00:00:02,bridge=lan",
            ipconfig1="ip=192.168.1.7/24,gw=192.168.1.1",
            nameserver="192.168.1.1",
            searchdomain="corp.example",
        )
    spec = made(proxmox)
    bare = replace(spec, nic=replace(spec.nic, dns=()))
    proxmox.hypervisor.configure(1012, bare, owner=OWNER)
    with proxmox.served.paused() as node:
        config = node.vm(1012).config
        assert config["net0"] == f"virtio={spec.nic.mac.upper()},bridge=vmbr0"
        assert config["nameserver"] == "127.0.0.1"
        assert config["searchdomain"] == "agentlab.internal"
        assert not {"net1", "ipconfig1"} & config.keys()


# Volumes


def test_a_running_machine_gets_and_gives_its_volume_at_once(proxmox: ProxmoxBench) -> None:
    hypervisor = driver(proxmox)
    made(proxmox)
    hypervisor.start(1012, owner=OWNER)
    volid = hypervisor.allot(990000, 64, storage="local", owner=OWNER)
    hypervisor.attach(1012, volid, owner=OWNER)
    with proxmox.served.paused() as node:
        assert not node.vm(1012).pending
    hypervisor.detach(1012, volid, owner=OWNER)
    hypervisor.free(volid, owner=OWNER)


def test_a_machines_own_disk_is_no_volume(proxmox: ProxmoxBench) -> None:
    hypervisor = driver(proxmox)
    made(proxmox)
    for attempt in (
        lambda: hypervisor.free("local:9000/base-9000-disk-0.qcow2", owner=OWNER),
        lambda: hypervisor.detach(1012, "local:1012/vm-1012-disk-0.qcow2", owner=OWNER),
    ):
        with pytest.raises(NotOurs):
            attempt()


def test_a_lost_reply_to_allotting_makes_one_volume(proxmox_api: ProxmoxBench) -> None:
    with proxmox_api.served.paused() as node:
        node.lose_reply("POST", "/nodes/{node}/storage/{storage}/content")
    volid = driver(proxmox_api).allot(990000, 64, storage="local", owner=OWNER)
    assert asked(proxmox_api, "POST", "/nodes/{node}/storage/{storage}/content") == 1
    assert [volume.volid for volume in driver(proxmox_api).volumes(owner=OWNER)] == [volid]


# Snapshots on storages that have none, or go back to the newest one only


def on_storage(bench: ProxmoxBench, kind: str, **clone: bool) -> None:
    """VM 1012, configured, on a storage of this type."""
    with bench.served.paused() as node:
        node.add_block_storage("tank", kind, pool="rpool/data", vgname="pve")
        node.make_template(9001, "on-tank", storage="tank", size=1 << 30)
    bench.hypervisor.clone("on-tank", 1012, name="box1012", owner=OWNER, **clone)
    bench.hypervisor.configure(1012, bench.spec(1012, tap=False), owner=OWNER)


def config_of(bench: ProxmoxBench) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    with bench.served.paused() as node:
        vm = node.vm(1012)
        return dict(vm.config), dict(vm.snapshots), vm.lock


def test_where_there_are_no_snapshots_it_is_said_and_nothing_is_changed(
    proxmox: ProxmoxBench,
) -> None:
    on_storage(proxmox, "lvm", full=True)
    before = config_of(proxmox)
    with pytest.raises(Unsupported, match=r"its storage has no snapshots.*tank:vm-1012-") as told:
        proxmox.hypervisor.snapshot(1012, "clean", owner=OWNER)
    assert "lvmthin, zfspool" in told.value.hint
    assert config_of(proxmox) == before
    proxmox.hypervisor.destroy(1012, owner=OWNER)
    assert not proxmox.leftovers()


def test_an_older_snapshot_is_refused_with_the_later_ones_and_nothing_is_changed(
    proxmox: ProxmoxBench,
) -> None:
    hypervisor = proxmox.hypervisor
    on_storage(proxmox, "zfspool")
    for name in ("clean", "second", "third"):
        hypervisor.snapshot(1012, name, owner=OWNER)
    before = config_of(proxmox)
    assert hypervisor.blockers(1012, "clean") == ["third", "second"]
    assert hypervisor.blockers(1012, "third") == []
    with pytest.raises(Conflict, match="there are later ones: third, second") as told:
        hypervisor.rollback(1012, "clean", owner=OWNER)
    assert told.value.details["later"] == ["third", "second"]
    assert "delete the later snapshots first" in told.value.hint
    assert config_of(proxmox) == before
    hypervisor.rollback(1012, "third", owner=OWNER)
    for name in ("third", "second"):
        hypervisor.delete_snapshot(1012, name, owner=OWNER)
    assert hypervisor.blockers(1012, "clean") == []
    hypervisor.rollback(1012, "clean", owner=OWNER)
    hypervisor.destroy(1012, owner=OWNER)
    assert not proxmox.leftovers()


def test_a_snapshot_that_somebody_made_on_the_pool_itself_is_told(proxmox: ProxmoxBench) -> None:
    on_storage(proxmox, "zfspool")
    proxmox.hypervisor.snapshot(1012, "clean", owner=OWNER)
    with proxmox.served.paused() as node:
        volume = str(node.vm(1012).config["scsi0"]).partition(",")[0]
        assert volume == "tank:base-9001-disk-0/vm-1012-disk-0"
        node.storages["tank"]["foreign"] = {volume: ["autosnap_2026-11-24"]}
    assert proxmox.hypervisor.blockers(1012, "clean") == []
    with pytest.raises(Conflict, match="Proxmox does not know of") as told:
        proxmox.hypervisor.rollback(1012, "clean", owner=OWNER)
    assert told.value.details["later"] == []
    assert "zfs list -t snapshot" in told.value.hint


def test_snapshots_kept_as_a_chain_go_back_to_the_newest_one_only(proxmox: ProxmoxBench) -> None:
    """Proxmox VE 9, on storages that were set so."""
    made(proxmox)
    with proxmox.served.paused() as node:
        node.storages["local"]["snapshot-as-volume-chain"] = 1
    for name in ("clean", "second"):
        proxmox.hypervisor.snapshot(1012, name, owner=OWNER)
    assert proxmox.hypervisor.blockers(1012, "clean") == ["second"]
    with pytest.raises(Conflict, match="there is a later one: second"):
        proxmox.hypervisor.rollback(1012, "clean", owner=OWNER)


# Rights


def test_a_missing_right_is_named_with_its_path(proxmox_api: ProxmoxBench) -> None:
    with proxmox_api.served.paused() as node:
        node.apitokens["agent@pve!lab"] = "secret"
        node.grant("agent@pve!lab", "/vms", "VM.Audit")
    secret, tls = Secret("agent@pve!lab=secret"), Tls(ca_file=proxmox_api.served.ca)
    with closing(RestTransport(proxmox_api.served.url, secret, tls)) as transport:
        poor = ProxmoxHypervisor(transport, settings(proxmox_api.served), NodeTools(""))
        with pytest.raises((Denied, Unavailable)):
            poor.clone("debian-12", 1012, name="box1012", owner=OWNER)
        with proxmox_api.served.paused() as node:
            for privilege, path in (
                ("Datastore.Audit", "/storage"), ("VM.Allocate", "/vms"), ("SDN.Use", "/sdn"),
                ("VM.Audit", "/vms"), ("Datastore.AllocateSpace", "/storage"),
            ):  # fmt: skip
                node.grant("agent@pve!lab", path, privilege)
        with pytest.raises(Denied, match=r"VM\.Clone") as told:
            poor.clone("debian-12", 1012, name="box1012", owner=OWNER)
        assert "grant VM.Clone on /vms/9000" in told.value.hint
    assert vmids(proxmox_api) == []


# What a look and an act have between them


def swap(bench: ProxmoxBench, vmid: int = 1012) -> None:
    """Somebody destroys ours and makes a VM of his own under its number."""
    with bench.served.paused() as node:
        node.vms = [vm for vm in node.vms if vm.vmid != vmid]
        node.make_vm(vmid, "database", description="not to be touched")


@pytest.mark.parametrize("verb", ["destroy", "stop", "start", "pause", "snapshot"])
def test_whose_it_is_is_proven_when_the_turn_has_come(proxmox_api: ProxmoxBench, verb: str) -> None:
    made(proxmox_api)
    hypervisor = proxmox_api.again(node_limit=1, patience=60.0)
    if verb in ("stop", "pause", "destroy"):
        hypervisor.start(1012, owner=OWNER)
    gate = hypervisor._api._gate
    failed: list[BaseException] = []

    def act() -> None:
        try:
            more = ("clean",) if verb == "snapshot" else ()
            getattr(hypervisor, verb)(1012, *more, owner=OWNER)
        except BaseException as error:  # noqa: BLE001  # told below
            failed.append(error)

    with gate.turn([Resource("node", "pve")], patience=1):
        waiting = threading.Thread(target=act)
        waiting.start()
        until(lambda: gate._waiting)
        swap(proxmox_api)
        time.sleep(0.4)  # what was read is a moment old now
    waiting.join()
    assert [type(error) for error in failed] == [NotOurs]
    with proxmox_api.served.paused() as node:
        assert node.vm(1012).config["description"] == "not to be touched"
        assert node.vm(1012).status == "stopped"


def test_half_a_clone_that_somebody_unlocked_is_not_taken_for_a_whole_one(
    proxmox: ProxmoxBench,
) -> None:
    mark = names.render_description(OWNER, 1012, ["local"])
    with proxmox.served.paused() as node:
        node.leave_dead_clone(1012, description=mark)
        node._qm_lock(node.vm(1012), None)
    with pytest.raises(Busy, match="half a clone"):
        proxmox.clone(1012)
    with proxmox.served.paused() as node:
        for volid in node.volumes_of(1012):  # of a clone that died before it named them
            node._qm_free(volid)
    proxmox.clone(1012)
    proxmox.hypervisor.configure(1012, proxmox.spec(1012), owner=OWNER)
    proxmox.hypervisor.destroy(1012, owner=OWNER)


def test_a_clone_that_does_not_show_its_mark_yet_is_waited_for(proxmox_api: ProxmoxBench) -> None:
    """A full clone shows it when its first drive is whole."""
    with proxmox_api.served.paused() as node:
        node.leave_dead_clone(1012)
        node.tasklog.append(
            {"upid": "UPID:pve:1:1:1:qmclone:9000:root@pam:", "node": "pve", "type": "qmclone",
             "id": "9000", "user": "root@pam!bench", "status": "running", "starttime": 1,
             "pid": 1, "pstart": 1, "log": []}
        )  # fmt: skip
    slow = proxmox_api.again(patience=1.0)
    with pytest.raises(Busy):
        slow.clone("debian-12", 1012, name="box1012", owner=OWNER)
    with pytest.raises(Busy):
        slow.destroy(1012, owner=OWNER)
    assert vmids(proxmox_api) == [1012]


def test_a_machine_that_is_being_destroyed_has_no_mark_and_is_no_strangers(
    proxmox: ProxmoxBench,
) -> None:
    made(proxmox)
    task = {"upid": "UPID:pve:1:1:1:qmdestroy:1012:root@pam:", "node": "pve", "type": "qmdestroy",
            "id": "1012", "user": "root@pam!bench", "status": "running", "starttime": 1,
            "pid": 1, "pstart": 1, "log": []}  # fmt: skip
    with proxmox.served.paused() as node:
        node.vm(1012).config = {"lock": "destroyed"}
        node.tasklog.append(task)
    with pytest.raises(Busy, match="just being made or destroyed"):
        proxmox.hypervisor.destroy(1012, owner=OWNER)
    with proxmox.served.paused() as node:
        task.update(status="stopped", exitstatus="OK", endtime=2)
        node.vms = [vm for vm in node.vms if vm.vmid != 1012]
    proxmox.hypervisor.destroy(1012, owner=OWNER)


def test_a_disk_that_the_guest_still_holds_is_not_detached(proxmox_api: ProxmoxBench) -> None:
    hypervisor = driver(proxmox_api)
    made(proxmox_api)
    made(proxmox_api, 1013)
    volid = hypervisor.allot(990000, 64, storage="local", owner=OWNER)
    hypervisor.attach(1012, volid, owner=OWNER)
    hypervisor.start(1012, owner=OWNER)
    with proxmox_api.served.paused() as node:
        node.vm(1012).pending["scsi1"] = None  # an unplugging that waits
    for attempt in (
        lambda: hypervisor.detach(1012, volid, owner=OWNER),
        lambda: hypervisor.attach(1013, volid, owner=OWNER),
        lambda: hypervisor.free(volid, owner=OWNER),
    ):
        with pytest.raises(Conflict):
            attempt()
    assert [volume.attached for volume in hypervisor.volumes(owner=OWNER)] == [(1012,)]
    hypervisor.stop(1012, owner=OWNER)
    hypervisor.detach(1012, volid, owner=OWNER)
    hypervisor.free(volid, owner=OWNER)


def with_work_disk(bench: ProxmoxBench) -> tuple[ProxmoxHypervisor, str]:
    """A machine 1012 that runs with one."""
    hypervisor = driver(bench)
    made(bench)
    volid = hypervisor.allot(990000, 64, storage="local", owner=OWNER)
    hypervisor.attach(1012, volid, owner=OWNER)
    hypervisor.start(1012, owner=OWNER)
    return hypervisor, volid


def keeps_it(_: object, key: str, __: str) -> None:
    """What Proxmox says of a disk whose guest does not let go (956)."""
    raise TaskError(f"hotplug problem - error on hot-unplugging device '{key}'")


def test_a_disk_that_a_guest_did_not_let_go_of_is_its_own_again(proxmox: ProxmoxBench) -> None:
    """Proxmox says an error, and has it go at the next stop all the same."""
    hypervisor, volid = with_work_disk(proxmox)
    with proxmox.served.paused() as node:
        node.on_detach = keeps_it
    with pytest.raises(Conflict, match="hotplug problem"):
        hypervisor.detach(1012, volid, owner=OWNER)
    with proxmox.served.paused() as node:
        assert node.vm(1012).pending == {"scsi1": None}
    hypervisor.attach(1012, volid, owner=OWNER)
    with proxmox.served.paused() as node:
        del node.on_detach
    hypervisor.stop(1012, owner=OWNER)
    assert [volume.attached for volume in hypervisor.volumes(owner=OWNER)] == [(1012,)]
    with proxmox.served.paused() as node:
        assert volid in str(node.vm(1012).config["scsi1"])
    hypervisor.detach(1012, volid, owner=OWNER)
    hypervisor.free(volid, owner=OWNER)


def test_a_disk_whose_controller_alone_was_late_is_plugged_in_again(proxmox: ProxmoxBench) -> None:
    """Proxmox says the same error, and QEMU has no disk any more (vm_deviceunplug)."""
    hypervisor, volid = with_work_disk(proxmox)
    plugged = []
    with proxmox.served.paused() as node:
        node.on_detach = keeps_it
        node.on_attach = lambda _, __, volume, ___: plugged.append(volume)
    with pytest.raises(Conflict, match="hotplug problem"):
        hypervisor.detach(1012, volid, owner=OWNER)
    with proxmox.served.paused() as node:
        node.on_detach = lambda *_: None  # it is out by now
    hypervisor.attach(1012, volid, owner=OWNER)
    assert plugged == [volid]
    with proxmox.served.paused() as node:
        assert node.vm(1012).pending == {}


def test_a_detach_that_waits_is_done_when_the_guest_has_powered_itself_off(
    proxmox_api: ProxmoxBench,
) -> None:
    """Then Proxmox does not make the changes that wait; it does with the next change."""
    hypervisor, volid = with_work_disk(proxmox_api)
    with proxmox_api.served.paused() as node:
        vm = node.vm(1012)
        vm.pending["scsi1"] = None
        vm.status = vm.qmpstatus = "stopped"
    hypervisor.detach(1012, volid, owner=OWNER)
    assert [volume.attached for volume in hypervisor.volumes(owner=OWNER)] == [()]
    with proxmox_api.served.paused() as node:
        assert (node.vm(1012).pending, node.vm(1012).config.get("scsi1")) == ({}, None)
    hypervisor.free(volid, owner=OWNER)


def test_a_template_with_the_hosts_own_devices_is_refused(proxmox_api: ProxmoxBench) -> None:
    with proxmox_api.served.paused() as node:
        node.vm(9000).config["hostpci0"] = "0000:01:00.0"
    with pytest.raises(Unavailable, match="hostpci0 would come along"):
        proxmox_api.clone(1012)
    assert vmids(proxmox_api) == []


def test_protection_of_the_template_does_not_keep_its_clones(proxmox_api: ProxmoxBench) -> None:
    with proxmox_api.served.paused() as node:
        node.vm(9000).config["protection"] = 1
    made(proxmox_api)
    proxmox_api.hypervisor.destroy(1012, owner=OWNER)
    assert vmids(proxmox_api) == []


def test_a_template_that_proxmox_has_not_looked_at_is_not_unknown(
    proxmox_api: ProxmoxBench,
) -> None:
    with proxmox_api.served.paused() as node:
        node.broadcast_secs, node.time_scale = 1000.0, 1.0
        node.vm(9000).born_at = time.monotonic()
    with pytest.raises(Unavailable, match="not looked at all"):
        proxmox_api.clone(1012)


def test_guests_that_take_their_time_to_go_keep_nobody_waiting(proxmox_api: ProxmoxBench) -> None:
    for vmid in (1012, 1013):
        made(proxmox_api, vmid)
    hypervisor = proxmox_api.again(node_limit=1, patience=3.0)
    hypervisor.start(1012, owner=OWNER)
    with proxmox_api.served.paused() as node:
        node.vm(1012).acpi, node.time_scale = False, 1.0
    outcome: list[bool] = []
    deaf = threading.Thread(
        target=lambda: outcome.append(hypervisor.shutdown(1012, owner=OWNER, timeout=4))
    )
    deaf.start()
    time.sleep(0.5)
    try:
        hypervisor.start(1013, owner=OWNER)
    finally:
        deaf.join()
    assert outcome == [False]
    hypervisor.stop(1012, owner=OWNER)

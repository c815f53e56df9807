"""The sandbox verbs: what they ask of the daemon, what they say, and how they fail."""

from __future__ import annotations

import dataclasses
import io
import json
import threading
import time
from collections.abc import Callable

import pytest

from agentlab.api import messages as m
from agentlab.cli.parse import parse
from tests.unit.client.fake_daemon import FakeDaemon, sandbox_view

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def world(daemon: FakeDaemon) -> FakeDaemon:
    """One sandbox of each state that matters."""
    for vmid, state in ((1003, "READY"), (1004, "STOPPED"), (1005, "RUNNING"), (1006, "SUSPENDED")):
        daemon.world.sandboxes[str(vmid)] = sandbox_view(vmid, state)
    return daemon


@pytest.fixture
def somebody_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def say(text: str) -> None:
        monkeypatch.setattr("agentlab.cli.output.Output.can_ask", lambda _self: True)
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return say


# new and validate


def test_new_asks_for_all_of_it_and_tells_vmid_name_and_address(
    cli: Run, world: FakeDaemon
) -> None:
    line = ("new", "--profile", "demo", "--name", "try", "--ttl", "4h", "--vmid", "1042")
    status, out, err = cli(*line, "--label", "a=b", "--label", "c=", "--no-queue")
    assert status == 0, err
    assert world.world.asked == [
        m.SandboxRequest(
            "demo", name="try", ttl="4h", vmid=1042, labels={"a": "b", "c": ""}, queue=False
        )
    ]
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (shown["sandbox"], shown["name"], shown["address"]) == ("1042", "try", "10.77.0.5")
    assert "make          done  0.5s" in err
    assert err.startswith("sandbox 1042\n")


def test_new_as_json_is_the_sandbox(cli: Run, world: FakeDaemon) -> None:
    status, out, err = cli("sandbox", "new", "--profile", "demo", "--keepalive", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["vmid"] == 1010
    assert json.loads(out)["state"] == "RUNNING"


def test_new_without_waiting_tells_the_vmid_all_the_same(cli: Run, world: FakeDaemon) -> None:
    status, out, err = cli("new", "--profile", "demo", "--no-wait")
    assert (status, err) == (0, "")
    assert out == "sandbox 1010\noperation op-sandbox.create-1010\n"
    document = json.loads(cli("new", "--profile", "demo", "--no-wait", "--json")[1])
    assert document["vmid"] == 1010


def test_lost_replies_make_one_sandbox(cli: Run, world: FakeDaemon) -> None:
    world.lose = ["sandbox_create"] * 2
    assert cli("new", "--profile", "demo")[0] == 0
    assert world.seen.count("sandbox_create") == 3
    assert len(world.world.asked) == 1


@pytest.mark.parametrize(
    ("line", "endpoint"),
    [
        ("start 1004", "sandbox_start"),
        ("stop 1003", "sandbox_stop"),
        ("sandbox pause 1003", "sandbox_pause"),
        ("sandbox resume 1006", "sandbox_resume"),
        ("sandbox revert 1003 --yes", "sandbox_revert"),
        ("sandbox snapshot save 1004 one", "snapshot_save"),
        ("sandbox snapshot restore 1004 one --yes", "snapshot_restore"),
        ("sandbox snapshot delete 1004 one --yes", "snapshot_delete"),
        ("rm 1003 --yes", "sandbox_destroy"),
    ],
)
def test_lost_replies_do_it_once(cli: Run, world: FakeDaemon, line: str, endpoint: str) -> None:
    """A second doing would be refused: the state is another one by then."""
    world.lose = [endpoint]
    status, _, err = cli(*line.split())
    assert status == 0, err
    assert world.seen.count(endpoint) == 2
    assert len(world.world.keys) == 1


def test_new_that_fails_says_what_of(cli: Run, world: FakeDaemon) -> None:
    world.world.fails["sandbox.create"] = "the storage is full"
    status, out, err = cli("new", "--profile", "demo")
    assert (status, out) == (1, "")
    assert "error: failed to make sandbox 1010: the storage is full" in err


def test_place_in_the_queue_is_shown(cli: Run, world: FakeDaemon) -> None:
    world.world.event(
        "step.waits", job="sandbox.create-1010", step="admit",
        waits_for="room on this host: place 2 in the queue",
    )  # fmt: skip
    assert "admit         waits for room on this host: place 2" in cli("new", "--profile=demo")[2]


def test_wait_for_a_sandbox_may_be_given_up(
    cli: Run, world: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def for_ever(_r: object, path: dict[str, str], *_: object) -> m.OperationView:
        return dataclasses.replace(world.world.operations[path["id"]], final=False, state="doing")

    monkeypatch.setattr(world.handlers, "operation_show", for_ever)
    status, _, err = cli("new", "--profile", "demo", "--timeout", "1s")
    assert status == 3
    assert "gave up waiting after 1s: making sandbox 1010 goes on" in err
    assert "agentlab sandbox show 1010" in err


def test_interrupted_wait_tells_that_it_goes_on(
    cli: Run, world: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentlab.cli.progress.Progress.event", interrupt)
    status, out, err = cli("start", "1004")
    assert (status, out) == (130, "")
    assert "interrupted: starting sandbox 1004 goes on" in err


def test_validate_prints_the_plan_and_makes_nothing(cli: Run, world: FakeDaemon) -> None:
    status, out, err = cli("sandbox", "validate", "--profile", "demo", "--ttl", "2d")
    assert (status, err) == (0, "")
    assert "memory    512.0 MiB" in out
    assert "time limit" not in out
    assert "sandbox_create" not in world.seen
    assert json.loads(cli("sandbox", "validate", "--profile", "demo", "--json")[1])["cores"] == 1


def test_name_that_is_taken_and_profile_that_is_not_there(cli: Run, world: FakeDaemon) -> None:
    status, _, err = cli("new", "--profile", "demo", "--name", "box-1003")
    assert status == 1
    assert err.startswith("error: cannot make sandbox box-1003: there is one of that name")
    assert cli("new", "--profile", "dmeo")[2] == (
        "error: cannot make a sandbox: no profile dmeo\nhint: did you mean demo?\n"
    )


# looking


def test_list_passes_its_filters_on(cli: Run, world: FakeDaemon) -> None:
    line = ("ls", "--all", "--state", "READY", "--profile=demo", "--label", "ticket=42")
    assert cli(*line)[0] == 0
    assert world.world.asked == [
        {"all": "1", "state": "READY", "profile": "demo", "label": "ticket=42"}
    ]
    cli("ls")
    assert world.world.asked[-1] == {}


def test_list_shows_no_lease_where_none_runs(cli: Run, world: FakeDaemon) -> None:
    for vmid, left in (("1003", 7230), ("1004", 7230), ("1005", -3)):
        each = world.world.sandboxes[vmid]
        world.world.sandboxes[vmid] = dataclasses.replace(each, lease_until=time.time() + left)
    rows = {line.split()[0]: line for line in cli("ls")[1].splitlines()}
    assert "2h00m" in rows["1003"]
    assert "2h00m" not in rows["1004"]  # STOPPED
    assert "over" in rows["1005"]


def test_show_tells_all_of_it(cli: Run, world: FakeDaemon) -> None:
    world.world.sandboxes["1005"] = dataclasses.replace(
        world.world.sandboxes["1005"], lease_until=time.time() + 7230, keepalive=True,
        labels={"a": "b"}, idle_stop=1800.0, operation="sandbox.stop op1",
        waits_for="the guest", allowed=["pause", "complete", "fail", "stop", "force destroy"],
    )  # fmt: skip
    status, out, _ = cli("show", "box-1005")
    assert status == 0
    shown = dict(line.split("  ", 1) for line in out.splitlines())
    assert shown["under way"].strip() == "sandbox.stop op1"
    assert shown["waits for"].strip() == "the guest"
    assert "(2h00m left, renews itself)" in shown["lease"]
    assert shown["idle stop"].strip() == "after 30m"
    assert shown["labels"].strip() == "a=b"
    assert shown["memory"].strip() == "2.0 GiB"
    assert shown["possible"].strip() == "pause, stop, destroy --force, lease renew"


@pytest.mark.parametrize(("power", "verb"), [("stopped", "destroy"), ("absent", "destroy --force")])
def test_show_names_the_destroy_that_is_possible(
    cli: Run, world: FakeDaemon, power: str, verb: str
) -> None:
    world.world.sandboxes["1008"] = sandbox_view(
        1008, "STOPPED", power=power, allowed=["start", "destroy", "force destroy"]
    )
    shown = dict(line.split("  ", 1) for line in cli("show", "1008")[1].splitlines())
    assert shown["possible"].strip() == f"start, {verb}"


def test_show_tells_when_a_lease_begins(cli: Run, world: FakeDaemon) -> None:
    assert "lease     1h from its next start on" in cli("show", "1004")[1]
    world.world.sandboxes["1007"] = sandbox_view(1007, "PROVISIONING")
    assert "lease     1h from READY on" in cli("show", "1007")[1]
    assert "idle stop" not in cli("show", "1007")[1]


def test_sandbox_that_is_not_there(cli: Run, world: FakeDaemon) -> None:
    for line in ("show 1033", "start 1033", "stop 1033", "sandbox lease renew 1033", "rm 1033",
                 "sandbox revert 1033", "sandbox update 1033 --cores 2",
                 "sandbox snapshot list 1033"):  # fmt: skip
        status, out, err = cli(*line.split())
        assert (status, out) == (1, ""), line
        assert err.startswith("error: cannot "), line
        assert ": no sandbox 1033\nhint: did you mean 1003?\n" in err, line


# update and leases


def test_update_asks_for_what_is_given_and_tells_when_it_counts(
    cli: Run, world: FakeDaemon
) -> None:
    line = ("--cores", "4", "--memory", "4G", "--label", "a=b", "--label", "c=")
    status, out, _ = cli("sandbox", "update", "1003", *line, "--remove-label", "d")
    assert status == 0
    assert world.world.asked == [m.UpdateRequest(4, 4096, {"a": "b", "c": None, "d": None})]
    assert "count from its next start: agentlab sandbox stop 1003 && agentlab" in out
    assert "next start" not in cli("sandbox", "update", "1003", "--label", "a=b")[1]
    assert "next start" not in cli("sandbox", "update", "1004", "--memory", "512")[1]  # STOPPED
    assert world.world.asked[-1] == m.UpdateRequest(0, 512, {})


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "nothing is to change"),
        (("--label", "x"), "must be KEY=VALUE"),
        (("--label", "=x"), "must be KEY=VALUE"),
        (("--remove-label", "a=b"), "must be the KEY of a label alone"),
        (("--label", "a=b", "--remove-label", "a"), "must be the KEY of a label alone"),
        (("--memory", "0"), "cannot read the size '0'"),
    ],
)
def test_bad_updates_change_nothing(
    cli: Run, world: FakeDaemon, words: tuple[str, ...], why: str
) -> None:
    status, _, err = cli("sandbox", "update", "1003", *words)
    assert status == 2
    assert why in err
    assert world.seen == []


def test_lease_of_a_running_sandbox_is_renewed(cli: Run, world: FakeDaemon) -> None:
    status, out, _ = cli("sandbox", "lease", "renew", "--ttl", "2h", "1005")
    assert status == 0
    assert out.startswith("the lease of sandbox 1005 ends at ")
    assert "(2h00m left)" in out
    assert cli("sandbox", "lease", "renew", "1005")[0] == 0
    assert world.world.asked == [m.RenewRequest("2h"), m.RenewRequest("")]


def test_lease_that_is_not_renewable_has_the_guides_words_first(
    cli: Run, world: FakeDaemon
) -> None:
    status, out, err = cli("sandbox", "lease", "renew", "--ttl", "2h", "1003")
    assert (status, out) == (1, "")
    assert err == (
        "error: sandbox lease not renewable: sandbox 1003 is READY, and only RUNNING supports it\n"
        "hint: agentlab sandbox exec 1003 -- true\n"
    )
    document = json.loads(cli("sandbox", "lease", "renew", "1003", "--json")[1])
    assert document["code"] == "invalid_transition"


# power


def test_start_waits_and_tells_the_state(cli: Run, world: FakeDaemon) -> None:
    status, out, err = cli("start", "box-1004", "--no-queue")
    assert (status, out) == (0, "sandbox 1004 is READY\n")
    assert "make          done" in err
    assert world.world.asked == [m.StartRequest(queue=False)]
    status, out, _ = cli("stop", "1004", "--no-wait")
    assert (status, out) == (0, "operation op-sandbox.stop-1004\n")


def test_illegal_transition_is_told_with_what_to_do(cli: Run, world: FakeDaemon) -> None:
    for line, text in (
        ("sandbox pause 1004", "cannot pause sandbox 1004: it is STOPPED"),
        ("start 1003", "cannot start sandbox 1003: it is READY"),
        ("sandbox snapshot save 1003 a1", "cannot take a snapshot of sandbox 1003: it is READY"),
    ):
        status, out, err = cli(*line.split())
        assert (status, out) == (1, "")
        assert err == f"error: {text}\nhint: start it\n"


def test_reason_of_a_failed_operation_is_said_once(cli: Run, world: FakeDaemon) -> None:
    world.world.fails["sandbox.stop"] = "cannot stop sandbox 1003: its VM is gone"
    assert "error: failed to stop sandbox 1003: its VM is gone\n" in cli("stop", "1003")[2]


def test_stop_all_leaves_jobs_alone_and_names_them(cli: Run, world: FakeDaemon) -> None:
    world.world.sandboxes["1008"] = sandbox_view(1008, "RUNNING", job="j1", operation="job.run o1")
    status, out, err = cli("stop", "--all")
    assert status == 0, err
    assert out.splitlines() == [
        "sandbox 1008 left: job j1 runs in it",
        "sandbox 1003 is STOPPED",
        "sandbox 1005 is STOPPED",
        "sandbox 1006 is STOPPED",
    ]
    document = json.loads(cli("stop", "--all", "--json")[1])
    assert document == {"operations": [], "left": [{"vmid": 1008, "job": "j1"}], "failed": []}
    del world.world.sandboxes["1008"]
    assert cli("stop", "--all") == (0, "no sandbox has power\n", "")


def test_stop_of_several_fails_when_one_does(cli: Run, world: FakeDaemon) -> None:
    status, out, err = cli("stop", "1033", "1004", "1003")
    assert (status, out) == (1, "sandbox 1003 is STOPPED\n")
    assert "error: no sandbox 1033" in err
    assert "error: cannot stop sandbox 1004: it is STOPPED" in err
    status, out, err = cli("stop", "1005", "1004", "--json", "--no-wait")
    document = json.loads(out)
    assert (status, err) == (1, "")
    assert [each["vmid"] for each in document["operations"]] == [1005]
    assert [each["sandbox"] for each in document["failed"]] == ["1004"]


@pytest.mark.parametrize("line", ["stop", "stop --all 1003"])
def test_stop_needs_names_or_all(cli: Run, world: FakeDaemon, line: str) -> None:
    status, _, err = cli(*line.split())
    assert status == 2
    assert "name them, or say --all" in err
    assert world.seen == []


def test_failed_stop_in_the_middle_is_told_and_the_rest_goes_on(
    cli: Run, world: FakeDaemon
) -> None:
    world.world.fails["sandbox.stop"] = "its VM is gone"
    status, out, err = cli("stop", "--all")
    assert (status, out) == (1, "no sandbox was stopped\n")
    assert err.count("error: failed to stop sandbox") == 3


# revert and snapshots


def test_revert_asks_first(
    cli: Run, world: FakeDaemon, somebody_says: Callable[[str], None]
) -> None:
    somebody_says("n\n")
    status, _, err = cli("sandbox", "revert", "1003")
    assert status == 3
    assert "Put sandbox 1003 (box-1003, READY) back to snapshot clean?" in err
    assert "Files under / that came later are lost" in err
    assert "sandbox_revert" not in world.seen
    somebody_says("yes\n")
    status, out, _ = cli("sandbox", "revert", "1003")
    assert (status, out) == (0, "sandbox 1003 is READY, back at snapshot clean\n")
    assert world.world.asked == [m.RevertRequest()]


@pytest.mark.parametrize("line", ["revert 1003", "snapshot restore 1003 one", "destroy 1003"])
def test_what_loses_files_needs_a_yes_where_nobody_sits(
    cli: Run, world: FakeDaemon, line: str
) -> None:
    status, out, err = cli("sandbox", *line.split())
    assert (status, out) == (3, "")
    assert "nobody is here to be asked\nhint: say it: --yes" in err
    assert set(world.seen) == {"sandbox_show"}


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ("--yes", m.RevertRequest()),
        ("--force", m.RevertRequest(force=True)),
        ("--yes --restart", m.RevertRequest(restart=True)),
        ("--force --no-restart", m.RevertRequest(force=True, restart=False)),
    ],
)
def test_revert_and_restore_ask_for_what_is_said(
    cli: Run, world: FakeDaemon, flags: str, asked: m.RevertRequest
) -> None:
    assert cli("sandbox", "revert", "1004", *flags.split())[0] == 0
    assert cli("sandbox", "snapshot", "restore", *flags.split(), "1004", "one")[0] == 0
    assert world.world.asked == [asked, "one", asked]


def test_restart_and_no_restart_exclude_each_other(cli: Run, world: FakeDaemon) -> None:
    status, _, err = cli("sandbox", "revert", "1003", "--restart", "--no-restart", "--yes")
    assert (status, "exclude each other" in err) == (2, True)
    assert world.seen == []


def test_snapshots_are_saved_listed_and_deleted(cli: Run, world: FakeDaemon) -> None:
    line = ("sandbox", "snapshot")
    assert cli(*line, "save", "1004", "one")[:2] == (0, "snapshot one of sandbox 1004 taken\n")
    assert world.world.asked == [m.SnapshotRequest("one")]
    said = "snapshot one of sandbox 1004 deleted\n"
    assert cli(*line, "delete", "1004", "one", "--yes")[:2] == (0, said)
    world.world.snapshots = ["clean", "one"]
    assert cli(*line, "list", "1003") == (0, "clean\none\n", "")
    assert json.loads(cli(*line, "list", "1003", "--json")[1]) == {"snapshots": ["clean", "one"]}
    assert "there is one" in cli(*line, "save", "1004", "one")[2]
    assert "revert goes back to it" in cli(*line, "delete", "1004", "clean")[2]


def test_deleting_a_snapshot_asks(
    cli: Run, world: FakeDaemon, somebody_says: Callable[[str], None]
) -> None:
    line = ("sandbox", "snapshot", "delete", "1004", "one")
    assert cli("sandbox", "snapshot", "save", "1004", "one")[0] == 0
    status, _, err = cli(*line)
    assert (status, "hint: say it: --yes" in err) == (3, True)
    somebody_says("n\n")
    status, _, err = cli(*line)
    assert (status, "Delete snapshot one of sandbox 1004 (box-1004)?" in err) == (3, True)
    assert "snapshot_delete" not in world.seen
    somebody_says("y\n")
    assert cli(*line)[0] == 0
    assert cli("sandbox", "snapshot", "save", "1004", "one")[0] == 0
    assert cli(*line, "--force")[0] == 0


# prune, inventory, reconcile


def test_prune_names_what_it_removed_and_what_it_kept(cli: Run, world: FakeDaemon) -> None:
    world.world.sandboxes["1008"] = sandbox_view(1008, "TIMEOUT", power="absent")
    world.world.sandboxes["1009"] = sandbox_view(1009, "TIMEOUT")
    assert cli("sandbox", "prune") == (
        0, "sandbox 1008 (box-1008) removed\nsandbox 1009 kept: its VM is, or may be, still there\n", "",
    )  # fmt: skip
    del world.world.sandboxes["1009"]
    assert cli("sandbox", "prune") == (0, "nothing to prune\n", "")


def test_prune_whose_reply_is_lost_is_not_asked_again(cli: Run, world: FakeDaemon) -> None:
    world.lose = ["sandbox_prune"]
    assert cli("sandbox", "prune")[0] == 6
    assert world.seen == ["sandbox_prune"]


def test_inventory_tells_whose_machines_they_are(cli: Run, world: FakeDaemon) -> None:
    assert cli("sandbox", "inventory") == (0, "no machines\n", "")
    world.world.machines = [
        m.MachineView(1003, "box", "running", "pve", "ours", "READY", True, "clone"),
        m.MachineView(100, "db", "stopped", "pve", "stranger", "", False),
    ]
    assert cli("sandbox", "inventory")[1].splitlines() == [
        "VMID  NAME  POWER    NODE  WHOSE     SANDBOX  LOCK",
        "1003  box   running  pve   ours      READY    clone",
        "100   db    stopped  pve   stranger",
    ]
    assert len(json.loads(cli("sandbox", "inventory", "--json")[1])["machines"]) == 2


LEFTOVER = m.DriftView("leftover", 1011, "old", "it is ours and has no record", "destroy it", "")
STRANGER = m.DriftView("stranger", 1012, "db", "it is in our range", "", "move it:\nqm clone 1012")


def test_reconcile_reports_and_changes_nothing(cli: Run, world: FakeDaemon) -> None:
    assert cli("sandbox", "reconcile") == (0, "records and hypervisor agree\n", "")
    world.world.drifts = m.DriftList([LEFTOVER, STRANGER], True)
    status, out, err = cli("sandbox", "reconcile")
    assert (status, err) == (1, "")
    assert out.splitlines() == [
        "DRIFT     VMID  NAME  MEND        DETAIL",
        "leftover  1011  old   destroy it  it is ours and has no record",
        "stranger  1012  db                it is in our range",
        "",
        "stranger 1012: what to do",
        "  move it:",
        "  qm clone 1012",
        "",
        "mend what can be mended: agentlab sandbox reconcile --apply",
    ]
    assert "reconcile_apply" not in world.seen
    status, out, _ = cli("sandbox", "reconcile", "--json")
    assert status == 1
    assert [each["kind"] for each in json.loads(out)["drifts"]] == ["leftover", "stranger"]


def test_reconcile_asks_before_leftovers_are_destroyed(
    cli: Run, world: FakeDaemon, somebody_says: Callable[[str], None]
) -> None:
    world.world.drifts = m.DriftList([LEFTOVER, STRANGER], True)
    status, _, err = cli("sandbox", "reconcile", "--apply")
    assert status == 3
    assert "cannot destroy VM 1011 (old): nobody is here to be asked" in err
    somebody_says("n\n")
    assert cli("sandbox", "reconcile", "--apply")[0] == 3
    assert "reconcile_apply" not in world.seen
    somebody_says("y\n")
    status, out, err = cli("sandbox", "reconcile", "--apply")
    assert status == 1  # the stranger is still there
    assert "Destroy VM 1011 (old)?" in err
    assert "leftover  1011  old   mended" in out
    world.world.drifts = m.DriftList([LEFTOVER], True)
    assert cli("sandbox", "reconcile", "--apply", "--yes")[0] == 0


def test_reconcile_waits_for_what_it_began_and_tells_what_failed(
    cli: Run, world: FakeDaemon
) -> None:
    world.world.drifts = m.DriftList([LEFTOVER], True)
    world.world.fails["mend-1011"] = "it is locked"
    status, out, _ = cli("sandbox", "reconcile", "--apply", "--yes")
    assert status == 1
    assert "it is ours and has no record; failed to mend sandbox 1011: it is locked" in out


def test_inventory_that_is_not_whole_is_no_agreement(cli: Run, world: FakeDaemon) -> None:
    world.world.drifts = m.DriftList([], False, "node b is offline")
    status, out, err = cli("sandbox", "reconcile")
    assert (status, out) == (1, "")
    assert err == "warning: the inventory could not be read whole: node b is offline\n"


def test_what_the_daemon_would_look_at_twice_is_asked_about(
    cli: Run, world: FakeDaemon, somebody_says: Callable[[str], None]
) -> None:
    missing = m.DriftView("missing VM", 1003, "a", "it is gone", "its record is closed", "")
    world.world.drifts = m.DriftList([missing], True, "all VMs are gone at once")
    assert "warning: all VMs are gone at once" in cli("sandbox", "reconcile")[2]
    status, _, err = cli("sandbox", "reconcile", "--apply")
    assert (status, "nobody is here to be asked" in err) == (3, True)
    assert "reconcile_apply" not in world.seen
    somebody_says("y\n")
    assert cli("sandbox", "reconcile", "--apply")[0] == 0
    world.world.drifts = m.DriftList([missing], True)
    assert cli("sandbox", "reconcile", "--apply")[0] == 0


# all of them


def test_flags_are_taken_behind_the_words_too() -> None:
    for text in ("sandbox stop 1003 --no-wait", "sandbox --no-wait stop 1003"):
        line = parse(text.split())
        assert line.args.many("SANDBOX") == ["1003"]
        assert line.args.flag("--no-wait")


def test_hostile_names_are_shown_and_not_obeyed(cli: Run, world: FakeDaemon) -> None:
    evil = "\x1b[2J\u202e\x07"
    world.world.sandboxes["1008"] = sandbox_view(
        1008, "TIMEOUT", name=evil, reason=evil, power="absent", operation=evil, waits_for=evil,
        labels={evil: evil},
    )  # fmt: skip
    world.world.machines = [m.MachineView(1, evil, evil, evil, evil, evil, True, evil)]
    world.world.snapshots = [evil]
    world.world.drifts = m.DriftList(
        [m.DriftView(evil, 1, evil, evil, "destroy", evil)], False, evil
    )
    for text in ("ls", "show 1008", "sandbox inventory", "sandbox snapshot list 1003",
                 "sandbox reconcile", "sandbox reconcile --apply", "rm 1008", "sandbox revert 1008",
                 "sandbox prune"):  # fmt: skip
        _, out, err = cli(*text.split())
        assert not set("\x1b\x07\u202e") & set(out + err), text


def test_daemon_that_restarts_meanwhile_is_waited_for(cli: Run, world: FakeDaemon) -> None:
    world.lose = ["sandbox_stop"]

    def restart() -> None:
        time.sleep(0.05)
        world.stop()
        time.sleep(0.3)
        world.start()

    thread = threading.Thread(target=restart)
    thread.start()
    assert cli("stop", "1003")[0] == 0
    thread.join()

"""What is repeated and what never; how a task's end is told."""

from __future__ import annotations

import pytest

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Busy, NotOurs, Unavailable
from agentlab.hypervisor.load import Gate, Resource
from agentlab.hypervisor.proxmox import tasks
from agentlab.hypervisor.proxmox.tasks import Api
from agentlab.hypervisor.proxmox.transport import (
    NoSuchVM,
    NotReached,
    Refused,
    ReplyLost,
    Running,
    classify,
)
from tests.fakes.transport import ScriptedTransport

UPID = "UPID:pve:00005D59:00062016:6B044FB4:qmclone:9100:root@pam!bench:"
STATUS, LOG = "GET /nodes/pve/tasks/UPID.*/status", "GET /nodes/pve/tasks/UPID.*/log"
DONE = {"status": "stopped", "exitstatus": "OK"}


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.time, "sleep", lambda seconds: None)


def api(answers: dict[str, list[object]], patience: float = 20.0) -> tuple[Api, ScriptedTransport]:
    transport = ScriptedTransport(answers)  # type: ignore[arg-type]
    return Api(transport, Gate({"node": 1}, queue=5), patience=patience), transport


def said(text: str, status: int = 500) -> AgentLabError:
    return classify("POST /x", status, text)


LOCK = "can't lock file '/var/lock/qemu-server/lock-9100.conf' - got timeout"


@pytest.mark.parametrize(
    "trouble",
    [
        said(LOCK),
        said("got no worker upid - start worker failed"),
        said("No route to host", 595),
        NotReached("no connection"),
    ],
)
def test_what_surely_did_nothing_is_sent_again(trouble: AgentLabError) -> None:
    driver, transport = api({"POST /x": [trouble, trouble, UPID], STATUS: [DONE]})
    driver.act("POST", "/x", what="cannot do it")
    assert len(transport.asked("POST", "/x")) == 3


@pytest.mark.parametrize("status", [596, 599, 502])
def test_a_lost_reply_is_never_sent_again_blindly(status: int) -> None:
    driver, transport = api({"POST /x": [said("Broken pipe", status), UPID]})
    with pytest.raises(ReplyLost, match="cannot do it: Broken pipe"):
        driver.act("POST", "/x", what="cannot do it")
    assert len(transport.asked("POST", "/x")) == 1


def test_reading_is_repeated_after_anything_that_passes() -> None:
    troubles = [said("Broken pipe", 596), NotReached("no"), said(LOCK), Unavailable("odd")]
    driver, _ = api({"GET /x": [*troubles, {"a": 1}]})
    assert driver.get("/x") == {"a": 1}


def test_words_that_nobody_knows_are_given_three_chances() -> None:
    driver, transport = api({"PUT /x": [said("the moon is in the wrong house")]})
    with pytest.raises(Refused, match="cannot do it: the moon"):
        driver.change("PUT", "/x", what="cannot do it")
    assert len(transport.asked("PUT", "/x")) == 3


def test_an_answer_is_believed_at_once() -> None:
    missing = said("Configuration file 'nodes/pve/qemu-server/7.conf' does not exist")
    driver, transport = api({"GET /x": [missing]})
    with pytest.raises(NoSuchVM, match=r"^cannot read /x: Configuration file"):
        driver.get("/x")
    assert len(transport.calls) == 1


def test_the_exit_status_decides_and_the_last_lines_are_told() -> None:
    log = [{"n": 1, "t": "create full clone"}, {"n": 2, "t": "qemu-img: write error"},
           {"n": 3, "t": "TASK ERROR: clone failed: copy failed"}]  # fmt: skip
    bad = {"status": "stopped", "exitstatus": "clone failed: copy failed"}
    driver, _ = api({"POST /x": [UPID], STATUS: [{"status": "running"}, bad], LOG: [log]})
    with pytest.raises(AgentLabError, match="cannot do it: clone failed") as failed:
        driver.act("POST", "/x", what="cannot do it")
    assert "qemu-img: write error" in failed.value.message
    assert failed.value.details["log"] == ["create full clone", "qemu-img: write error"]


def test_a_task_with_warnings_has_succeeded() -> None:
    driver, _ = api({"POST /x": [UPID], STATUS: [{**DONE, "exitstatus": "WARNINGS: 2"}]})
    driver.act("POST", "/x", what="cannot do it")


def test_after_a_task_that_failed_at_a_lock_it_is_looked_at_again() -> None:
    locked = {"status": "stopped", "exitstatus": LOCK}
    driver, transport = api({"POST /x": [UPID], STATUS: [locked, locked, DONE], LOG: [[]]})
    looked: list[str] = []

    def attempt() -> None:
        looked.append("look")
        driver.act("POST", "/x", what="cannot do it")

    tasks.settled(attempt, patience=60)
    assert len(looked) == len(transport.asked("POST", "/x")) == 3


def test_what_a_call_rests_on_is_proven_before_each_try() -> None:
    driver, transport = api({"POST /x": [said(LOCK), UPID], STATUS: [DONE]})
    proven: list[str] = []

    def prove() -> None:
        proven.append("ours")
        if len(proven) == 2:
            raise NotOurs("it is somebody else's now")

    with pytest.raises(NotOurs):
        driver.act("POST", "/x", what="cannot do it", before=prove)
    assert len(transport.asked("POST", "/x")) == 1


def test_a_task_that_runs_on_is_busy_and_gives_its_turn_back() -> None:
    driver, _ = api({"POST /x": [UPID], STATUS: [{"status": "running"}]}, patience=0.05)
    for _ in range(2):
        with pytest.raises(Busy, match="its task still runs") as busy:
            driver.act("POST", "/x", what="cannot do it", turns=[Resource("node", "pve")])
        assert busy.value.details["upid"] == UPID


def test_a_task_that_is_forgotten_is_a_lost_reply() -> None:
    forgotten = classify("GET", 400, "Parameter verification failed.", {"upid": "no such task"})
    driver, _ = api({STATUS: [forgotten]})
    with pytest.raises(ReplyLost):
        driver.wait(UPID, what="cannot do it", deadline=Deadline.after(1))


def test_an_answer_without_a_task_is_an_end() -> None:
    driver, transport = api({"POST /x": [None]})
    driver.act("POST", "/x", what="cannot do it")
    assert len(transport.calls) == 1


def test_who_looks_before_he_acts_looks_again_after_a_lost_reply() -> None:
    seen: list[str] = []

    def attempt() -> str:
        seen.append("look")
        if len(seen) < 3:
            raise ReplyLost("?")
        return "done"

    assert tasks.settled(attempt, patience=60) == "done"
    assert len(seen) == 3


@pytest.mark.parametrize("error", [Running("on"), Refused("r"), NotReached("n"), Busy("b")])
def test_other_errors_are_told_at_once(error: Exception) -> None:
    def attempt() -> None:
        raise error

    with pytest.raises(type(error)):
        tasks.settled(attempt, patience=60)

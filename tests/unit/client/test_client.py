"""Typed calls, lost replies, and following across a restart."""

from __future__ import annotations

import hashlib
import io
import threading
import time

import pytest

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.client import client as client_module
from agentlab.client import follow
from agentlab.client.client import Client, patiently, target
from agentlab.client.unix import Lost
from agentlab.errors import Conflict, Invalid, NotFound, Unavailable, Unreachable
from tests.unit.client.fake_daemon import Bytes, FakeDaemon, job_view, sandbox_view
from tests.waiting import PATIENCE, ended, happened

REQUEST = m.JobRequest(m.RepoRequest(url="https://host/x"), "task", "demo")


@pytest.fixture
def client(daemon: FakeDaemon) -> Client:
    return Client(daemon.path, timeout=5)


def test_call_gives_the_typed_answer(client: Client) -> None:
    assert client.call(table.STATUS).hypervisor == "local"


def test_error_keeps_class_text_and_hint(daemon: FakeDaemon, client: Client) -> None:
    daemon.world.jobs["abcdef"] = job_view("abcdef")
    with pytest.raises(NotFound, match="no job abcdeg") as caught:
        client.call(table.JOB_SHOW, path={"id": "abcdeg"})
    assert caught.value.hint == "did you mean abcdef?"


def test_lost_reply_to_create_still_makes_one_job(daemon: FakeDaemon, client: Client) -> None:
    daemon.lose = ["job_create"] * 3
    assert client.create_job(REQUEST).id == "j1"
    assert daemon.seen == ["job_create"] * 4
    assert len(daemon.world.requests) == 1


def test_create_survives_a_restart_after_a_lost_reply(daemon: FakeDaemon, client: Client) -> None:
    daemon.lose = ["job_create"]

    def restart(_job: str) -> None:
        threading.Thread(target=lambda: (daemon.stop(), time.sleep(0.3), daemon.start())).start()
        time.sleep(0.1)

    daemon.world.created = restart
    assert client.create_job(REQUEST).id == "j1"
    assert len(daemon.world.requests) == 1


def test_create_does_not_wait_for_a_daemon_that_was_never_there(tmp_path: object) -> None:
    with pytest.raises(Unreachable):
        Client(f"{tmp_path}/none").create_job(REQUEST)


def test_other_posts_are_never_sent_twice(daemon: FakeDaemon, client: Client) -> None:
    daemon.world.jobs["j1"] = job_view()
    daemon.lose = ["job_cancel"]
    with pytest.raises(Lost):
        client.call(table.JOB_CANCEL, path={"id": "j1"})
    assert daemon.seen == ["job_cancel"]


def test_lost_get_is_sent_once_more(daemon: FakeDaemon, client: Client) -> None:
    daemon.lose = ["status"]
    client.call(table.STATUS)
    assert daemon.seen == ["status"] * 2


def test_bundle_is_sent_again_when_the_reply_was_lost(daemon: FakeDaemon, client: Client) -> None:
    data = b"bundle" * 100000
    sha = hashlib.sha256(data).hexdigest()
    daemon.lose = ["bundle_put"]
    assert client.put_bundle(io.BytesIO(data), sha, len(data)).size == len(data)
    assert daemon.world.bundles[sha] == data


def test_bundle_over_the_limit_is_not_even_sent(daemon: FakeDaemon, client: Client) -> None:
    with pytest.raises(Invalid, match="longer than 4 GiB"):
        client.put_bundle(io.BytesIO(), "0" * 64, table.MAX_BUNDLE + 1)
    assert daemon.seen == []


def test_answer_of_another_shape_is_not_the_users_fault(daemon: FakeDaemon, client: Client) -> None:
    daemon.handlers.status = lambda *_: Bytes(b'{"version": 5}')  # type: ignore[assignment, method-assign]
    with pytest.raises(Unavailable, match="version: must be a string"):
        client.call(table.STATUS)


def test_path_arguments_are_quoted_and_never_empty() -> None:
    assert target(table.JOB_SHOW, {"id": "../a?b"}, {}) == "/v1/jobs/..%2Fa%3Fb"
    assert target(table.JOB_ARTIFACT, {"id": "j", "name": "files/a b"}, {}).endswith("/files/a%20b")
    with pytest.raises(Invalid, match="id is empty"):
        target(table.JOB_SHOW, {"id": ""}, {})
    with pytest.raises(Invalid, match="unknown parameter"):
        target(table.JOB_SHOW, {"id": "j"}, {"nope": 1})


def test_patiently_gives_up_in_the_end_and_tells_once() -> None:
    told: list[object] = []

    def fail() -> None:
        raise Unavailable("not now")

    with pytest.raises(Unavailable):
        patiently(fail, patience=0.3, on_trouble=told.append)
    assert len(told) == 1


def test_patiently_does_not_repeat_a_refusal() -> None:
    tries: list[int] = []

    def refuse() -> None:
        tries.append(1)
        raise Conflict("no")

    with pytest.raises(Conflict):
        patiently(refuse)
    assert tries == [1]


def watch(
    client: Client, *, log: bool = True, trouble: threading.Event | None = None
) -> tuple[list[int], bytes, int]:
    """Follows j1 to its end: sequence numbers, log, and how often there was trouble."""
    feed = follow.Feed(client, patience=PATIENCE)
    feed.follow_events({"job": "j1"}, lambda: client.call(table.JOB_SHOW, path={"id": "j1"}).final)
    if log:
        feed.follow_log("j1")
    seen, text, troubles = [], b"", 0
    for item in feed.items():
        if isinstance(item, m.EventView):
            seen.append(item.seq)
        elif isinstance(item, follow.LogPart):
            assert item.offset == len(text)
            text += item.data
        elif isinstance(item, follow.Trouble):
            troubles += 1
            if trouble:
                trouble.set()
    return seen, text, troubles


def test_follow_loses_nothing_across_a_restart(daemon: FakeDaemon, client: Client) -> None:
    world = daemon.world
    world.jobs["j1"] = job_view(state="RUNNING")
    world.event("step.doing", step="clone")
    world.log = b"one\n"
    trouble = threading.Event()

    def story() -> None:
        time.sleep(0.2)
        daemon.stop()
        world.event("step.done", step="clone", seconds=1)
        world.log += b"two\n" * 1000
        happened(trouble)
        daemon.start()
        time.sleep(0.2)
        world.log += b"three\n"
        world.finish()

    teller = threading.Thread(target=story)
    teller.start()
    seen, text, _ = watch(client, trouble=trouble)
    ended(teller)
    assert seen == [1, 2, 3]
    assert text == world.log


def test_follow_of_a_job_that_ended_long_ago_without_events(
    daemon: FakeDaemon, client: Client
) -> None:
    daemon.world.jobs["j1"] = job_view(state="COMPLETED")
    daemon.world.log, daemon.world.log_final = b"log", True
    assert watch(client) == ([], b"log", 0)


def test_follow_survives_lost_replies(daemon: FakeDaemon, client: Client) -> None:
    daemon.world.jobs["j1"] = job_view(state="RUNNING")
    daemon.lose = ["events", "events", "job_log", "job_log", "job_show"]
    daemon.world.log = b"x" * 5000
    threading.Timer(0.4, daemon.world.finish).start()
    seen, text, _ = watch(client)
    assert (seen, text) == ([1], b"x" * 5000)


def test_log_that_never_ends_does_not_hold_an_ended_job(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_LOG_GRACE", 0.3)
    daemon.world.jobs["j1"] = job_view(state="FAILED")
    daemon.world.log = b"half"
    assert watch(client) == ([], b"half", 0)


def test_refusal_ends_the_following(daemon: FakeDaemon, client: Client) -> None:
    with pytest.raises(NotFound):
        watch(client)


def test_daemon_that_stays_away_ends_the_following(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.stop()
    feed = follow.Feed(client, patience=0.3)
    feed.follow_events({"job": "j1"}, lambda: False)
    with pytest.raises(Unreachable):
        list(feed.items())


def test_more_events_than_a_page(daemon: FakeDaemon, client: Client) -> None:
    for _ in range(1203):
        daemon.world.event("step.doing", step="s")
    assert [e.seq for e in follow.events(client, query={"job": "j1"})] == list(range(1, 1204))


def test_module_waits_are_sane() -> None:
    assert follow.WAIT < table.MAX_WAIT
    assert client_module.PATIENCE >= 30


def test_what_is_asked_for_once_is_done_once(daemon: FakeDaemon, client: Client) -> None:
    daemon.world.sandboxes["1003"] = sandbox_view()
    daemon.lose = ["sandbox_stop"] * 2
    path = {"vmid": "1003"}
    first = client.act(table.SANDBOX_STOP, path=path)
    assert daemon.seen == ["sandbox_stop"] * 3
    assert first.vmid == 1003
    with pytest.raises(Conflict, match="it is STOPPED"):  # another asking has another key
        client.act(table.SANDBOX_STOP, path=path)


def test_act_that_is_refused_is_not_tried_again(daemon: FakeDaemon, client: Client) -> None:
    daemon.world.sandboxes["1003"] = sandbox_view(state="STOPPED")
    with pytest.raises(Conflict):
        client.act(table.SANDBOX_STOP, path={"vmid": "1003"})
    assert daemon.seen == ["sandbox_stop"]


def test_act_gives_up_when_no_reply_ever_comes(daemon: FakeDaemon, client: Client) -> None:
    daemon.world.sandboxes["1003"] = sandbox_view()
    daemon.lose = ["sandbox_stop"] * 100
    with pytest.raises(Unreachable) as failure:
        client.act(table.SANDBOX_STOP, path={"vmid": "1003"}, patience=0.3)
    assert "it may be done" in failure.value.hint
    assert "journalctl -u agentlabd" in failure.value.hint

"""The workspace and session verbs: what they ask of the daemon, what they say, how they fail."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from agentlab.api import messages as m
from agentlab.cli.output import Output
from agentlab.cli.parse import parse
from agentlab.cli.progress import Progress
from tests.unit.client.fake_daemon import FakeDaemon, sandbox_view
from tests.unit.client.fake_work import session_view, workspace_view

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def world(daemon: FakeDaemon) -> FakeDaemon:
    daemon.world.sandboxes["1003"] = sandbox_view()
    daemon.world.workspaces = {
        "data": workspace_view(),
        "used": workspace_view("used", "ATTACHED", session="going"),
    }
    daemon.world.sessions = {"fix": session_view(), "going": session_view("going", "RUNNING")}
    return daemon


@pytest.mark.parametrize(
    "line",
    [
        "workspace detach data",
        "workspace fsck data",
        "workspace fsck data --repair",
        "workspace attach data 1003",
        "session stop fix",
        "workspace snapshot restore data before",
        "session resume fix",
        "workspace fork data --name new --from-snapshot before",
    ],
)
def test_the_guides_lines_can_be_read(line: str) -> None:
    found = parse(line.split()).command
    assert found is not None
    assert line.startswith(found.name)


def test_create_takes_its_name_either_way_and_a_bare_size_is_gib(
    cli: Run, world: FakeDaemon
) -> None:
    assert cli("workspace", "create", "--name", "a", "--size", "2", "--storage", "fast")[0] == 0
    status, out, err = cli("workspace", "create", "b", "--json")
    assert (status, err, json.loads(out)["name"]) == (0, "", "b")
    assert world.world.asked == [
        m.WorkspaceRequest("a", 2048, "fast"),
        m.WorkspaceRequest("b"),
    ]
    for line in (("create",), ("create", "a", "--name", "b")):
        status, _, err = cli("workspace", *line)
        assert (status, "hint: say it: --name NAME" in err) == (2, True)


def test_lost_replies_make_one_workspace(cli: Run, world: FakeDaemon) -> None:
    world.lose = ["workspace_create"] * 2
    assert cli("workspace", "create", "new")[0] == 0
    assert world.seen.count("workspace_create") == 3
    assert len(world.world.asked) == 1


def test_it_waits_with_a_line_per_step_or_not_at_all(cli: Run, world: FakeDaemon) -> None:
    status, out, err = cli("workspace", "attach", "data", "1003")
    assert (status, out) == (0, "workspace data is attached to sandbox 1003\n")
    assert "make          done  0.5s" in err
    status, out, err = cli("workspace", "detach", "data", "--no-wait")
    assert (status, out, err) == (0, "operation op-workspace.detach\n", "")


def test_what_fails_says_of_what(cli: Run, world: FakeDaemon) -> None:
    world.world.fails["workspace.fork"] = "the storage is full"
    status, _, err = cli("workspace", "fork", "data", "--name", "copy")
    assert status == 1
    assert "error: failed to fork workspace data: the storage is full" in err


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("clean", 0),
        ("blank", 0),
        ("repaired", 0),
        ("NEEDS REPAIR", 1),
        ("unrepairable", 1),
        ("", 1),
    ],
)
def test_fsck_says_the_state_and_its_status_follows(
    cli: Run, world: FakeDaemon, state: str, status: int
) -> None:
    world.world.fsck = {"state": state, "text": "Pass 1\n\x1b[31mbad inode\x07"}
    got, out, _ = cli("workspace", "fsck", "data")
    assert got == status
    assert out.startswith(f"workspace data: {state or 'unknown'}\n  Pass 1\n")
    assert not set("\x1b\x07") & set(out)
    assert ("agentlab workspace fsck data --repair" in out) == (state == "NEEDS REPAIR")
    got, out, _ = cli("workspace", "fsck", "data", "--repair", "--json")
    assert (got, json.loads(out)["result"]["state"]) == (status, state)
    assert world.world.asked == [m.FsckRequest(False), m.FsckRequest(True)]


def test_check_prints_each_finding_with_its_command(cli: Run, world: FakeDaemon) -> None:
    assert cli("workspace", "check", "data") == (0, "workspace data: nothing is wrong\n", "")
    world.world.findings = [
        m.WorkspaceFindingView("stale", "nobody renews it", "agentlab workspace lease clear data")
    ]
    status, out, _ = cli("workspace", "check", "data")
    assert status == 1
    assert out.splitlines() == [
        "workspace data:",
        "  stale: nobody renews it",
        "    agentlab workspace lease clear data",
    ]


DESTRUCTIVE = (
    ("workspace", "delete", "data"),
    ("workspace", "snapshot", "restore", "data", "before"),
    ("workspace", "snapshot", "delete", "data", "before"),
    ("workspace", "rebind", "used"),
    ("session", "delete", "fix"),
)


@pytest.mark.parametrize("line", DESTRUCTIVE)
def test_what_loses_files_needs_a_yes_where_nobody_sits(
    cli: Run, world: FakeDaemon, line: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = cli(*line)
    assert (status, "hint: say it: --yes" in err, world.world.asked) == (3, True, [])
    monkeypatch.setattr("agentlab.cli.output.Output.can_ask", lambda _self: True)
    for said, wanted in (("n\n", 3), ("", 3), ("y\n", 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        assert cli(*line)[0] == wanted
    assert len(world.world.asked) == 1


@pytest.mark.parametrize("line", DESTRUCTIVE)
@pytest.mark.parametrize("word", ["--yes", "--force"])
def test_either_word_is_a_yes(
    cli: Run, world: FakeDaemon, line: tuple[str, ...], word: str
) -> None:
    assert cli(*line, word)[0] == 0
    assert len(world.world.asked) == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (("workspace", "delete", "used"), "cannot delete workspace used: it is attached"),
        (("session", "delete", "going"), "agentlab session stop going"),
    ],
)
def test_force_deletes_nothing_that_is_in_use(
    cli: Run, world: FakeDaemon, line: tuple[str, ...], why: str
) -> None:
    status, _, err = cli(*line, "--force")
    assert (status, why in err) == (1, True), err


def test_rebind_tells_what_is_lost_and_asks_only_then(
    cli: Run, world: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlab.cli.output.Output.can_ask", lambda _self: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    status, _, err = cli("workspace", "rebind", "used")
    assert (status, world.world.asked) == (3, [])
    assert "Destroy sandbox 1003" in err
    assert cli("workspace", "rebind", "used", "--keep-old")[0] == 0


def test_restore_while_attached_names_both_ways_out(cli: Run, world: FakeDaemon) -> None:
    for more in ((), ("--yes",), ("--force",)):
        status, out, err = cli("workspace", "snapshot", "restore", "used", "before", *more)
        assert (status, out) == (1, "")
        assert "cannot restore a snapshot of workspace used: it is attached to sandbox 1003" in err
        assert "agentlab workspace detach used" in err
    _, _, err = cli("workspace", "snapshot", "restore", "used", "before")
    assert "agentlab session stop going" in err


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("workspace show dta", "did you mean data?"),
        ("workspace fsck dta", "did you mean data?"),
        ("workspace delete dta", "did you mean data?"),
        ("session show fxi", "did you mean fix?"),
        ("session stop fxi", "did you mean fix?"),
        ("session resume fxi", "did you mean fix?"),
        ("workspace atach data 1003", "did you mean attach?"),
        ("workspace snapshot restor data x", "did you mean restore?"),
    ],
)
def test_wrong_names_get_the_near_one(cli: Run, world: FakeDaemon, line: str, hint: str) -> None:
    status, _, err = cli(*line.split())
    assert status in (1, 2)
    assert f"hint: {hint}" in err


def test_sessions_from_their_making_to_their_end(cli: Run, world: FakeDaemon) -> None:
    line = ("session", "create", "--name", "new", "--profile", "demo")
    assert cli(*line, "--size", "8G")[0] == 0
    assert world.world.asked == [m.SessionRequest("new", "demo", size=8192)]
    status, out, _ = cli("session", "resume", "new", "--ttl", "4h", "--keepalive", "--no-queue")
    assert (status, out) == (0, "session new runs in sandbox 1003 (box-1003), 10.77.0.5\n")
    assert world.world.asked[-1:] == [m.ResumeRequest("4h", True, False)]
    status, _, err = cli("session", "delete", "--yes", "new")
    assert (status, "agentlab session stop new" in err) == (1, True)
    said = "session new is STOPPED; its work is in workspace new\n"
    assert cli("session", "stop", "new", "--force")[:2] == (0, said)
    assert cli("session", "stop", "new") == (0, "session new is STOPPED already\n", "")
    status, out, _ = cli("session", "delete", "--yes", "--with-workspace", "new")
    assert (status, out) == (0, "session new deleted; workspace new is gone\n")
    assert world.world.asked[-1:] == [m.SessionDeleteRequest(True)]
    assert "workspace going stays" in _deleted(cli, "going")
    document = json.loads(cli("session", "delete", "--yes", "fix", "--json")[1])
    assert document["operation"]["state"] == "done"


def _deleted(cli: Run, name: str) -> str:
    assert cli("session", "stop", name)[0] == 0
    return cli("session", "delete", "--yes", name)[1]


def test_branch_prints_the_name_alone_and_again_the_same(cli: Run, world: FakeDaemon) -> None:
    for _ in range(2):
        status, out, _ = cli("session", "branch", "fix", "feature/x")
        assert (status, out) == (0, "fix-feature-x\n")
    assert world.world.asked == [m.BranchRequest("feature/x")]


def test_a_named_workspace_has_its_size_already(cli: Run, world: FakeDaemon) -> None:
    line = ("session", "create", "--name", "n", "--profile", "demo", "--workspace", "data")
    assert cli(*line, "--size", "8G")[0] == 2
    status, out, err = cli(*line, "--no-wait")
    assert (status, out, err) == (0, "session n\n", "")


JOB = ("job", "run", "--repo", "https://h/x", "--task", "t", "--no-wait")


def test_a_job_in_a_session_needs_no_profile(cli: Run, world: FakeDaemon) -> None:
    more = ("--session", "fix", "--branch", "b", "--workspace-wait", "1h")
    assert cli(*JOB, *more)[0] == 0
    (asked,) = world.world.requests
    assert (asked.profile, asked.session, asked.branch, asked.workspace_wait) == (
        "", "fix", "b", "1h",
    )  # fmt: skip
    assert cli(*JOB, "--profile", "demo", "--stateful")[0] == 0
    assert world.world.requests[1].stateful
    assert cli("sandbox", "new", "--profile", "demo", "--workspace", "data", "--no-wait")[0] == 0
    asked_box = world.world.asked[0]
    assert isinstance(asked_box, m.SandboxRequest)
    assert asked_box.workspace == "data"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "--profile is missing, and only a session has one"),
        ("--stateful", "--profile is missing"),
        (
            "--profile demo --session a --workspace b",
            "--workspace and --session exclude each other",
        ),
        ("--profile demo --session a --stateful", "exclude each other"),
        ("--profile demo --branch b", "--branch is for --session or --stateful"),
        ("--profile demo --workspace w --branch b", "--branch is for --session or --stateful"),
        ("--profile demo --workspace-wait 1h", "--workspace-wait is for a job with"),
        ("--profile demo --workspace w --workspace-wait soon", "cannot read the duration"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(
    cli: Run, world: FakeDaemon, words: str, why: str
) -> None:
    status, _, err = cli(*JOB, *words.split())
    assert (status, why in err) == (2, True), err
    assert world.seen == []


def test_hostile_names_are_shown_and_not_obeyed(cli: Run, world: FakeDaemon) -> None:
    evil = "\x1b]52;c;x\x07\u202e"
    view = workspace_view(origin=evil, volid=evil, waits_for=evil)
    world.world.workspaces["data"] = view
    world.world.sessions["fix"] = session_view(repo=evil, branch=evil, job=evil)
    for line in ("workspace list", "workspace show data", "session list", "session show fix"):
        _, out, err = cli(*line.split())
        assert not set("\x1b\x07\u202e") & set(out + err)


def test_how_far_a_copy_is_is_told_while_it_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("agentlab.cli.progress.time.monotonic", lambda: now[0])
    progress = Progress(Output(json=False, quiet=False, no_color=True))
    doing = m.EventView(1, 1.0, "step.doing", "", "", 0, "op", {"step": "copy"})
    progress.event(doing)
    for at, text in ((1, "the copy: 1% are done"), (11, "the copy: 42% are done"),
                     (12, "the copy: 43% are done"), (30, "")):  # fmt: skip
        now[0] = float(at)
        progress.waits(text)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == ["copy          the copy: 42% are done"]


def test_the_daemon_is_asked_for_it(
    cli: Run, world: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlab.cli.watch._LOOK", 0.0)
    told: list[str] = []
    monkeypatch.setattr(Progress, "waits", lambda _self, text: told.append(text))
    show = world.handlers.operation_show
    left = [6]

    def slow(*call: Any) -> m.OperationView:
        ended = show(*call)
        left[0] -= 1
        if left[0] <= 0:
            return ended
        return dataclasses.replace(
            ended, state="doing", final=False, waits_for="the copy: 42% are done"
        )

    monkeypatch.setattr(world.handlers, "operation_show", slow)
    assert cli("workspace", "fork", "data", "--name", "copy")[0] == 0
    assert "the copy: 42% are done" in told

"""Every command against a daemon that is strict about the contract."""

from __future__ import annotations

import io
import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentlab.api import messages as m
from agentlab.api.codec import from_plain
from agentlab.cli.commands.status import KEYS, TARGET
from agentlab.cli.table import COMMANDS
from agentlab.client.client import Client
from tests.unit.client.fake_daemon import FakeDaemon, job_view, sandbox_view
from tests.unit.client.fake_work import session_view, workspace_view

Run = Callable[..., tuple[int, str, str]]
JOB = ("job", "run", "--repo", "https://host/x", "--profile", "demo", "--task", "do it")

# What each command is tried with; a new command without a line here fails the test below.
LINES: dict[str, tuple[str, ...]] = {
    "job run": JOB,
    "job validate": ("job", "validate", *JOB[2:]),
    "job list": ("job", "list"),
    "job show": ("job", "show", "j0"),
    "job wait": ("job", "wait", "j0"),
    "job cancel": ("job", "cancel", "j0"),
    "job logs": ("job", "logs", "j0"),
    "job artifacts": ("job", "artifacts", "j0"),
    "job artifacts download": ("job", "artifacts", "download", "j0", "--out", "{tmp}/out"),
    "sandbox new": ("sandbox", "new", "--profile", "demo"),
    "sandbox validate": ("sandbox", "validate", "--profile", "demo"),
    "sandbox list": ("sandbox", "list", "--all"),
    "sandbox show": ("sandbox", "show", "1003"),
    "sandbox update": ("sandbox", "update", "1003", "--cores", "4"),
    "sandbox start": ("sandbox", "start", "1004"),
    "sandbox stop": ("sandbox", "stop", "1003"),
    "sandbox pause": ("sandbox", "pause", "1003"),
    "sandbox resume": ("sandbox", "resume", "1006"),
    "sandbox revert": ("sandbox", "revert", "1003", "--yes"),
    "sandbox snapshot save": ("sandbox", "snapshot", "save", "1004", "before"),
    "sandbox snapshot list": ("sandbox", "snapshot", "list", "1003"),
    "sandbox snapshot restore": ("sandbox", "snapshot", "restore", "1004", "before", "--yes"),
    "sandbox snapshot delete": ("sandbox", "snapshot", "delete", "1004", "before", "--yes"),
    "sandbox lease renew": ("sandbox", "lease", "renew", "1005"),
    "sandbox destroy": ("sandbox", "destroy", "1003", "--yes"),
    "sandbox prune": ("sandbox", "prune"),
    "sandbox inventory": ("sandbox", "inventory"),
    "sandbox reconcile": ("sandbox", "reconcile"),
    "sandbox exec": ("sandbox", "exec", "1003", "--", "true"),
    "sandbox cp": ("sandbox", "cp", "{tmp}", "1003:/work"),
    "workspace create": ("workspace", "create", "--name", "new", "--size", "80G"),
    "workspace list": ("workspace", "list"),
    "workspace show": ("workspace", "show", "data"),
    "workspace attach": ("workspace", "attach", "data", "1003"),
    "workspace detach": ("workspace", "detach", "used"),
    "workspace check": ("workspace", "check", "data"),
    "workspace fsck": ("workspace", "fsck", "data"),
    "workspace rebind": ("workspace", "rebind", "used", "--yes"),
    "workspace fork": ("workspace", "fork", "data", "--name", "copy"),
    "workspace resize": ("workspace", "resize", "data", "--size", "80"),
    "workspace delete": ("workspace", "delete", "data", "--yes"),
    "workspace snapshot create": ("workspace", "snapshot", "create", "data", "one"),
    "workspace snapshot list": ("workspace", "snapshot", "list", "data"),
    "workspace snapshot restore": ("workspace", "snapshot", "restore", "data", "before", "--yes"),
    "workspace snapshot delete": ("workspace", "snapshot", "delete", "data", "before", "--yes"),
    "workspace lease clear": ("workspace", "lease", "clear", "data"),
    "session create": ("session", "create", "--name", "new", "--profile", "demo"),
    "session list": ("session", "list"),
    "session show": ("session", "show", "fix"),
    "session resume": ("session", "resume", "fix"),
    "session stop": ("session", "stop", "going"),
    "session fork": ("session", "fork", "fix", "--name", "copy"),
    "session branch": ("session", "branch", "fix", "feature/x"),
    "session delete": ("session", "delete", "fix", "--yes"),
    "job doctor": ("job", "doctor", "j0", "--out", "{tmp}/out/"),
    "sandbox doctor": ("sandbox", "doctor", "1003", "--out", "{tmp}/out/"),
    "session doctor": ("session", "doctor", "lab", "--out", "{tmp}/out/"),
    "profile list": ("profile", "list"),
    "template list": ("template", "list"),
    "template build": ("template", "build"),
    "template check": ("template", "check"),
    "init": ("init",),
    "status": ("status",),
    "logs": ("logs", "1003"),
    "version": ("version",),
    "completion": ("completion", "bash"),
    "docs": ("docs", "--check", "--dir", "docs"),
}


@pytest.fixture
def world(daemon: FakeDaemon) -> FakeDaemon:
    """One finished job, sandboxes of some states, and jobs that finish as soon as they are created."""
    daemon.world.jobs["j0"] = job_view("j0", "COMPLETED")
    for vmid, state in ((1003, "READY"), (1004, "STOPPED"), (1005, "RUNNING"), (1006, "SUSPENDED")):
        daemon.world.sandboxes[str(vmid)] = sandbox_view(vmid, state)
    daemon.world.workspaces = {
        "data": workspace_view(), "used": workspace_view("used", "ATTACHED"),
    }  # fmt: skip
    daemon.world.sessions = {"fix": session_view(), "going": session_view("going", "RUNNING")}
    daemon.world.artifacts = {"changes.patch": b"diff", "files/a/b.txt": b"hello"}
    daemon.world.created = lambda job: daemon.world.finish(job=job)
    daemon.world.log, daemon.world.log_final = b"one\ntwo\nthree\n", True
    return daemon


def test_every_command_is_tried() -> None:
    assert set(LINES) == {each.name for each in COMMANDS if each.run}


@pytest.mark.parametrize("name", LINES)
def test_json_is_one_document_on_stdout_and_nothing_else(
    world: FakeDaemon, cli: Run, tmp_path: Path, name: str
) -> None:
    line = [word.replace("{tmp}", str(tmp_path)) for word in LINES[name]]
    status, out, err = cli("--json", *line)
    assert status in (0, 1) if name == "docs" else status == 0, err
    assert out.count("\n") == 1
    json.loads(out)
    assert err == ""


@pytest.mark.parametrize("name", LINES)
def test_without_json_there_is_something_to_read(
    world: FakeDaemon, cli: Run, tmp_path: Path, name: str
) -> None:
    status, out, err = cli(*(word.replace("{tmp}", str(tmp_path)) for word in LINES[name]))
    assert status in (0, 1) if name == "docs" else status == 0, err
    if name not in ("logs", "sandbox exec"):  # a program may have nothing to say
        assert out.strip()
    assert "\x1b" not in out + err


@pytest.mark.parametrize(
    "name", [name for name in LINES if name not in ("version", "completion", "docs")]
)
def test_without_a_daemon_the_exit_status_is_6(cli: Run, tmp_path: Path, name: str) -> None:
    line = [word.replace("{tmp}", str(tmp_path)) for word in LINES[name]]
    status, out, err = cli(*line, "--socket", str(tmp_path / "none"))
    assert (status, out) == (6, "")
    assert "error: cannot reach the daemon at" in err
    assert "invalid socket path" in err
    assert "hint: is agentlabd running?" in err


def test_error_as_json_is_an_object_with_its_code(cli: Run, world: FakeDaemon) -> None:
    status, out, err = cli("job", "show", "j9", "--json")
    assert (status, err) == (1, "")
    assert json.loads(out) == {
        "error": "cannot show a job: no job j9",
        "message": "no job j9",
        "code": "not_found",
        "hint": "did you mean j0?",
        "details": {"did_you_mean": ["j0"]},
    }


def test_error_for_people_says_what_and_what_next(cli: Run, world: FakeDaemon) -> None:
    status, out, err = cli("job", "show", "j9")
    assert (status, out) == (1, "")
    assert err == "error: cannot show a job: no job j9\nhint: did you mean j0?\n"


def test_status_reads_what_the_contract_has(cli: Run, world: FakeDaemon) -> None:
    _, out, _ = cli("status", "--json")
    assert from_plain(m.Status, json.loads(out)).data_dir == "/data"
    assert TARGET == "/v1/status"
    assert set(KEYS) == set(m.Status.__slots__)


def test_run_waits_and_tells_what_came_of_it(cli: Run, world: FakeDaemon) -> None:
    world.world.created = lambda job: threading.Timer(
        0.2, world.world.finish, kwargs={"job": job}
    ).start()
    status, out, err = cli(*JOB, "--label", "a=b", "--env", "K=v=w", "--ttl", "30m", "--depth", "0",
                           "--no-queue")  # fmt: skip
    assert status == 0
    assert "job j2 COMPLETED after 42.5s" in out
    assert "exit code  0" in out
    assert "aaaaaaaaaaaa → bbbbbbbbbbbb" in out
    assert "artifacts in /nowhere/j2" in out
    assert "git apply" in out
    assert "COMPLETED" in err  # the plain progress lines
    (request,) = world.world.requests
    assert request == m.JobRequest(
        m.RepoRequest(url="https://host/x", depth=0), "do it", "demo", ttl="30m",
        env={"K": "v=w"}, labels={"a": "b"}, queue=False,
    )  # fmt: skip


@pytest.mark.parametrize("state", ["FAILED", "TIMEOUT", "CANCELLED"])
def test_job_that_failed_gives_exit_status_5(cli: Run, world: FakeDaemon, state: str) -> None:
    world.world.created = lambda job: world.world.finish(state, job)
    assert cli(*JOB)[0] == 5
    assert cli("job", "wait", "j2")[0] == 5
    status, out, _ = cli(*JOB, "--json")
    assert (status, json.loads(out)["state"]) == (5, state)


def test_no_wait_gives_the_id_alone(cli: Run, world: FakeDaemon) -> None:
    world.world.created = lambda _job: None
    assert cli(*JOB, "--no-wait") == (0, "j2\n", "")


def test_follow_puts_the_log_on_stdout_and_steps_on_stderr(cli: Run, world: FakeDaemon) -> None:
    world.world.log = b"\xff\x1b]0;evil\x07log\n"
    status, out, err = cli(*JOB, "--follow")
    assert status == 0
    assert out.endswith("log\n")
    assert out.count("\n") == 1
    assert "job j2 COMPLETED" in err


def test_follow_as_json_is_one_object_a_line(cli: Run, world: FakeDaemon) -> None:
    status, out, _ = cli(*JOB, "--follow", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert "".join(each.get("log", "") for each in lines) == "one\ntwo\nthree\n"
    assert lines[-1]["job"]["state"] == "COMPLETED"
    assert [each["event"]["kind"] for each in lines if "event" in each] == ["job.state"]


def test_wait_that_is_too_long_gives_up_and_says_the_job_goes_on(
    cli: Run, world: FakeDaemon
) -> None:
    world.world.jobs["j5"] = job_view("j5", "RUNNING")
    status, _, err = cli("job", "wait", "j5", "--timeout", "1s")
    assert status == 3
    assert "gave up waiting after 1s: job j5 goes on" in err
    assert "agentlab job cancel j5" in err


def test_interrupt_leaves_the_job_and_tells_how_to_reach_it(
    cli: Run, world: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.world.created = lambda _job: None

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentlab.cli.progress.Progress.tick", interrupt)
    status, out, err = cli(*JOB)
    assert (status, out) == (130, "")
    assert "interrupted: job j2 goes on" in err
    assert "agentlab job wait j2" in err
    assert "agentlab job cancel j2" in err


def test_interrupt_elsewhere_is_130_too(
    cli: Run, world: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Client.call

    def interrupt(*arguments: Any, **named: Any) -> Any:
        # Ctrl-C is for the main thread alone; the job that the test above follows is read by others.
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return call(*arguments, **named)

    monkeypatch.setattr(Client, "call", interrupt)
    assert cli("job", "list")[0] == 130


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--task", "x", "--task-file", "y"), "--task or by --task-file"),
        ((), "--task or by --task-file"),
        (("--task", "x", "--env", "9=x"), "no name of a variable"),
        (("--task", "x", "--env", "NOT_SET_ANYWHERE"), "no such variable"),
        (("--task", "x", "--label", "x"), "KEY=VALUE"),
        (("--task", "x", "--follow", "--no-wait"), "exclude each other"),
        (("--task", "x", "--ttl", "soon"), "cannot read the duration"),
        (("--task-file", "/nonexistent/task"), "No such file"),
    ],
)
def test_bad_input_to_run(cli: Run, world: FakeDaemon, words: tuple[str, ...], why: str) -> None:
    status, _, err = cli("job", "run", "--repo", "https://h/x", "--profile", "demo", *words)
    assert status == (1 if "--task-file" in words and len(words) == 2 else 2)
    assert why in err
    assert world.seen == []


@pytest.mark.parametrize("repo", ["-oProxyCommand=x", "ext::sh -c x", "./nothing-here", ""])
def test_repos_that_are_refused(cli: Run, world: FakeDaemon, repo: str) -> None:
    status, _, err = cli("job", "run", f"--repo={repo}", "--profile", "demo", "--task", "x")
    assert status == 2
    assert "cannot use the repository" in err
    assert world.seen == []


def test_task_from_standard_input_and_env_from_here(
    cli: Run, world: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "s3")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("tâche".encode())))
    line = ("job", "run", "--repo", "https://h/x", "--profile", "demo", "--task-file", "-")
    assert cli(*line, "--env", "SOME_TOKEN")[0] == 0
    assert world.world.requests[0].task == "tâche"
    assert world.world.requests[0].env == {"SOME_TOKEN": "s3"}


def test_unknown_profile_suggests_the_near_one(cli: Run, world: FakeDaemon) -> None:
    words = [word.replace("demo", "dmeo") for word in JOB]
    status, _, err = cli(*words)
    assert status == 1
    assert err == "error: cannot run a job: no profile dmeo\nhint: did you mean demo?\n"


def git(path: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", path, *identity, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    path.mkdir()
    git(path, "init", "-q", "-b", "trunk")
    for text in ("one", "two"):
        (path / "file").write_text(text)
        git(path, "add", "file")
        git(path, "commit", "-q", "-m", text)
    return path


def clone(world: FakeDaemon, tmp_path: Path) -> Path:
    """What a guest would get from the only bundle that was sent: by its ref, as it is told."""
    ((sha, data),) = world.world.bundles.items()
    asked = world.world.requests[0].repo
    assert asked == m.RepoRequest(bundle=sha, ref=asked.ref)
    (tmp_path / "b").write_bytes(data)
    words = ["git", "clone", "-q", "--branch", asked.ref, tmp_path / "b", tmp_path / "clone"]
    subprocess.run(words, check=True)
    return tmp_path / "clone"


def test_local_repo_is_sent_whole_and_changes_are_warned_of(
    cli: Run, world: FakeDaemon, repo: Path, tmp_path: Path
) -> None:
    (repo / "file").write_text("three")
    (repo / "new").write_text("new")
    status, _, err = cli("job", "run", "--repo", str(repo), "--profile", "demo", "--task", "x")
    assert status == 0
    assert "warning: 2 changed files in" in err
    assert "not included" in err
    got = clone(world, tmp_path)
    assert git(got, "log", "--format=%s") == "two\none"
    assert git(got, "branch", "--show-current") == "trunk"
    assert git(repo, "for-each-ref", "--format=%(refname)") == "refs/heads/trunk"


@pytest.mark.parametrize("ref", ["HEAD~1", "v1", "{commit}"])
def test_local_ref_of_any_kind(
    cli: Run, world: FakeDaemon, repo: Path, tmp_path: Path, ref: str
) -> None:
    git(repo, "tag", "-a", "v1", "-m", "v1", "HEAD~1")
    ref = ref.replace("{commit}", git(repo, "rev-parse", "HEAD~1"))
    words = ("--repo", str(repo), "--ref", ref, "--profile", "demo", "--task", "x")
    assert cli("job", "run", *words)[0] == 0
    assert git(clone(world, tmp_path), "log", "--format=%s") == "one"


@pytest.mark.parametrize(
    ("more", "sent", "log"),
    [
        ((), "trunk", "two\none"),
        (("--branch", "side"), "side", "one"),
        (("--branch", "side", "--ref", "trunk"), "trunk", "two\none"),
    ],
)
def test_a_session_is_told_which_branch_of_a_local_repo_is_sent(
    cli: Run,
    world: FakeDaemon,
    repo: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    sent: str,
    log: str,
) -> None:
    git(repo, "branch", "side", "HEAD~1")
    assert cli("job", "run", "--repo", str(repo), "--session", "s", *more, "--task", "x")[0] == 0
    assert world.world.requests[0].repo.ref == sent
    assert git(clone(world, tmp_path), "log", "--format=%s") == log


def test_local_refs_and_repos_that_do_not_exist(
    cli: Run, world: FakeDaemon, repo: Path, tmp_path: Path
) -> None:
    words = ("--profile", "demo", "--task", "x")
    status, _, err = cli("job", "run", "--repo", str(repo), "--ref", "nope", *words)
    assert (status, "no commit nope" in err) == (2, True)
    status, _, err = cli("job", "run", "--repo", str(tmp_path), *words)
    assert (status, "not a git repository" in err) == (2, True)
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    status, _, err = cli("job", "run", "--repo", str(empty), *words)
    assert (status, "make a first commit" in err) == (2, True)
    subprocess.run(
        ["git", "clone", "-q", "--depth=1", repo.as_uri(), tmp_path / "shallow"], check=True
    )
    status, _, err = cli("job", "run", "--repo", str(tmp_path / "shallow"), *words)
    assert (status, "shallow clone" in err) == (2, True)
    assert world.seen == []


def test_logs_tail_and_follow(cli: Run, world: FakeDaemon) -> None:
    assert cli("job", "logs", "j0") == (0, "one\ntwo\nthree\n", "")
    assert cli("job", "logs", "j0", "--tail", "2") == (0, "two\nthree\n", "")
    assert cli("job", "logs", "--tail=0", "j0") == (0, "", "")
    world.world.jobs["j5"] = job_view("j5", "RUNNING")
    world.world.log_final = False

    def more() -> None:
        world.world.log += b"four\n"
        world.world.log_final = True

    threading.Timer(0.3, more).start()
    assert cli("job", "logs", "j5", "--tail", "1", "--follow")[1] == "three\nfour\n"


def test_long_logs_come_whole(cli: Run, world: FakeDaemon) -> None:
    world.world.log = b"".join(b"line %d\n" % at for at in range(2000))
    assert cli("job", "logs", "j0")[1].encode() == world.world.log
    document = json.loads(cli("job", "logs", "j0", "--tail", "1", "--json")[1])
    assert document == {"log": "line 1999\n", "offset": len(world.world.log) - 10}


def test_sandbox_logs_are_its_events(cli: Run, world: FakeDaemon) -> None:
    world.world.event("sandbox.state", "sandbox 1003 is READY", **{"from": "BOOTING"})
    world.world.event("guest.refused", "an \x1b[31mevil\x07 name", name="\x1b]0;x\x07")
    status, out, _ = cli("logs", "1003")
    assert status == 0
    assert "sandbox 1003 is READY" in out
    assert "\x1b" not in out
    assert cli("logs", "1003", "--tail", "1")[1].count("\n") == 1


def test_destroy_needs_a_yes_where_nobody_sits(cli: Run, world: FakeDaemon) -> None:
    status, _, err = cli("sandbox", "destroy", "1003")
    assert status == 3
    assert "hint: say it: --yes" in err
    assert "sandbox_destroy" not in world.seen


@pytest.mark.parametrize(("said", "status"), [("y\n", 0), ("n\n", 3), ("", 3)])
def test_destroy_asks_on_a_terminal(
    cli: Run, world: FakeDaemon, monkeypatch: pytest.MonkeyPatch, said: str, status: int
) -> None:
    monkeypatch.setattr("agentlab.cli.output.Output.can_ask", lambda _self: True)
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    got, _, err = cli("rm", "1003")
    assert got == status
    assert "Destroy sandbox 1003" in err


def test_destroy_that_is_refused_has_the_guides_words(cli: Run, world: FakeDaemon) -> None:
    world.world.sandboxes["1003"] = sandbox_view(state="RUNNING")
    status, _, err = cli("sandbox", "destroy", "--yes", "1003")
    assert status == 1
    assert err == "error: failed to destroy sandbox 1003: it is RUNNING\nhint: use --force\n"
    assert cli("sandbox", "destroy", "--force", "1003")[0] == 0


def test_build_shows_steps_and_fails_with_the_reason(cli: Run, world: FakeDaemon) -> None:
    status, out, err = cli("template", "build")
    assert (status, out) == (0, "template debian-12 is ready\n")
    assert "make          done  0.5s" in err
    status, _, err = cli("template", "build", "broken")
    assert status == 1
    assert "error: failed to build template broken: the disk is full" in err


def test_check_says_what_is_missing_and_what_mends_it(cli: Run, world: FakeDaemon) -> None:
    said = "template debian-12 (VM 9000 on node pve) lacks nothing\n"
    assert cli("template", "check") == (0, said, "")
    status, out, _ = cli("template", "check", "half-made")
    assert status == 1
    assert out.splitlines() == [
        "template half-made (VM 9001 on node pve):",
        "  advice: it is slow",
        "    qm set 9001 --delete kvm",
        "  missing: no agent",
        "    qm set 9001 --agent 1",
    ]


def test_an_image_is_named_by_its_whole_path(
    cli: Run, world: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("template", "build", "mine", "--image", "a.qcow2", "--storage", "fast")[0] == 0
    assert world.world.built == m.TemplateBuildRequest("mine", f"{tmp_path}/a.qcow2", "fast")


def test_quiet_leaves_the_answer_alone(cli: Run, world: FakeDaemon) -> None:
    assert cli("-q", "template", "build") == (0, "template debian-12 is ready\n", "")


def test_hostile_text_is_shown_and_not_obeyed(cli: Run, world: FakeDaemon) -> None:
    report: dict[str, object] = {
        "stage": "\x1b[2J", "exit_code": "0", "commit_before": 7, "commit_after": ["\x1b"],
    }  # fmt: skip
    world.world.jobs["j7"] = job_view(
        "j7", "FAILED", reason="\x1b]52;c;x\x07\u202e\r\n", task="\x9b31m", report=report
    )
    for line in (("job", "list"), ("job", "show", "j7"), ("job", "wait", "j7")):
        _, out, err = cli(*line)
        assert not set("\x1b\x07\x9b\u202e\r") & set(out + err)


def test_init_says_what_to_do_and_fails_when_something_is_missing(
    cli: Run, world: FakeDaemon
) -> None:
    commands = "pveum role modify AgentLab --append 1 --privs VM.Clone\npveum acl modify /vms"
    world.world.checks = [
        m.CheckView("bridge_vmbr1", "ok", "vmbr1 has 10.77.0.1/16", ""),
        m.CheckView("token_privileges", "missing", "it lacks VM.Clone on /vms/9000", commands),
        m.CheckView("kvm", "skipped", "not asked", "set `hypervisor: proxmox` to use it"),
    ]
    status, out, err = cli("init")
    assert (status, err) == (1, "")
    assert out.splitlines() == [
        "CHECK             STATUS   DETAIL",
        "bridge_vmbr1      ok       vmbr1 has 10.77.0.1/16",
        "token_privileges  missing  it lacks VM.Clone on /vms/9000",
        "kvm               skipped  not asked",
        "",
        "token_privileges: what to do",
        "  pveum role modify AgentLab --append 1 --privs VM.Clone",
        "  pveum acl modify /vms",
    ]
    status, out, _ = cli("init", "--json")
    assert status == 1
    assert json.loads(out)["checks"][1]["status"] == "missing"
    world.world.checks = world.world.checks[:1]
    assert cli("init")[0] == 0
    world.world.checks = [m.CheckView("storage", "error", "it is not there", "")]
    assert cli("init")[0] == 1

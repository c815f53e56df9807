"""A whole job, with a real agent, real git and a real daemon."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pytest

from agentlab.guest import marker, runner
from agentlab.guest.account import processes
from agentlab.guest.bootstrap import Bootstrap
from agentlab.guest.marker import Marker
from agentlab.guest.report import Facts, Verdict, render_report
from agentlab.secret import Secret
from tests.fakes.guest_daemon import JOB, TOKEN
from tests.unit.guest.world import World, git
from tests.waiting import ended, happened, until

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")


def test_job_that_does_everything_hands_everything_back(world: World) -> None:
    report = world.run(
        "echo hello; echo changed > file.txt; echo new > fresh.txt; "
        "git commit -qam mine; echo more >> file.txt; "
        'mkdir "$AGENTLAB_ARTIFACTS_DIR/sub"; echo x > "$AGENTLAB_ARTIFACTS_DIR/sub/a b"'
    )
    assert (report["status"], report["stage"], report["message"]) == ("completed", "done", "")
    assert report["exit_code"] == 0
    assert report["signal"] is None
    assert report["started"] <= report["ended"]
    assert report["commit_before"] == world.head
    assert report["commit_after"] not in (None, world.head)
    assert report["missing"] == []
    assert bytes(world.daemon.log) == b"hello\n"
    assert report["log_bytes"] == 6
    handed = world.daemon.artifacts
    assert list(handed) == ["changes.patch", "repo.bundle", "untracked.tar.gz", "files/sub/a b"]
    assert handed["files/sub/a b"] == b"x\n"
    with tarfile.open(fileobj=BytesIO(handed["untracked.tar.gz"])) as archive:
        assert archive.getnames() == ["fresh.txt"]
    copy = world.root / "copy"
    git("clone", "-q", world.origin, copy)
    (world.root / "patch").write_bytes(handed["changes.patch"])
    git("-C", copy, "apply", world.root / "patch")
    assert (copy / "file.txt").read_text() == "changed\nmore\n"
    (world.root / "new.bundle").write_bytes(handed["repo.bundle"])
    git("-C", copy, "fetch", "-q", world.root / "new.bundle", "HEAD")
    assert git("-C", copy, "rev-parse", "FETCH_HEAD") == report["commit_after"]


def test_job_that_changes_nothing_hands_nothing_back(world: World) -> None:
    report = world.run("true")
    assert report["artifacts"] == []
    assert report["missing"] == []


def test_script_of_the_repo_goes_before_the_command(world: World) -> None:
    world.commit_to_origin(".agentlab/run.sh", "echo from script\n")  # not executable, no #!
    world.run("echo from command")
    assert bytes(world.daemon.log) == b"from script\n"


def test_executable_script_runs_under_its_own_interpreter(world: World) -> None:
    world.commit_to_origin(".agentlab/run.sh", "#!/usr/bin/env -S cat\nseen\n", 0o755)
    world.run("")
    assert world.daemon.log.endswith(b"seen\n")


def test_neither_script_nor_command_fails_with_a_sentence(world: World) -> None:
    report = world.run("")
    assert (report["status"], report["stage"]) == ("failed", "agent")
    assert "no command" in report["message"]
    assert report["started"] is None


def test_agent_gets_its_environment_and_no_secret(world: World) -> None:
    report = world.run(
        "env -0 | tr '\\0' '\\n'; cat \"$AGENTLAB_TASK_FILE\"; pwd; "
        "ls -l /proc/self/fd; cat /proc/$PPID/environ /proc/*/cmdline; "
        f"grep -rs {TOKEN[:-1]}[{TOKEN[-1]}] {world.root}; cat {world.paths.marker} {world.paths.run}/*",
        env={"EXTRA": "1", "AGENTLAB_TASK": "no"},
    )
    log = world.daemon.log.decode(errors="replace")
    wanted = [
        f"AGENTLAB_JOB_ID={JOB}", "AGENTLAB_TASK=mend it", "AGENTLAB_JOB_MODE=dangerous",
        "AGENTLAB_JOB_PROFILE=yolo", f"AGENTLAB_TASK_FILE={world.paths.task}", "EXTRA=1",
        f"AGENTLAB_REPO_DIR={world.place.repo}", f"HOME={world.account.home}", "USER=agent",
        f"AGENTLAB_ARTIFACTS_DIR={world.place.artifacts}", "LANG=C.UTF-8",
    ]  # fmt: skip
    for line in wanted:
        assert line + "\n" in log
    assert "mend it" + str(world.place.repo) in log
    if os.getuid() == 0:
        assert TOKEN not in log
        assert world.daemon.session not in log
    assert report["status"] == "failed"  # cat could not


def test_task_of_a_megabyte_is_in_the_file_whole(world: World) -> None:
    world.run('wc -c < "$AGENTLAB_TASK_FILE"', task="é" * 500_000)
    assert world.daemon.log.strip() == b"1000000"


@pytest.mark.parametrize(
    ("command", "exit_code", "number", "said"),
    [
        ("exit 3", 3, None, "status 3"),
        ("/no/such/agent", 127, None, "not found"),
        ("./file.txt", 126, None, "executable"),
        ("kill -KILL $$", None, 9, "SIGKILL"),
    ],
)
def test_agent_that_fails_is_reported_with_what_it_ended_with(
    world: World, command: str, exit_code: int | None, number: int | None, said: str
) -> None:
    report = world.run(command)
    assert (report["status"], report["stage"]) == ("failed", "agent")
    assert (report["exit_code"], report["signal"]) == (exit_code, number)
    assert said in report["message"]


def test_bubblewrap_that_is_not_there_fails_with_a_sentence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlab.guest.agent.shutil.which", lambda name: None)
    report = world.run("true", bubblewrap=True)
    assert (report["status"], report["stage"]) == ("failed", "agent")
    assert "bwrap is not installed" in report["message"]


def test_cancelled_job_hands_its_work_back(world: World) -> None:
    world.daemon.cancel = True
    thread = world.start()
    happened(world.daemon.reported)
    ended(thread)
    assert world.daemon.report is not None
    assert world.daemon.report["status"] == "cancelled"


def test_cancel_while_the_agent_runs_stops_it(world: World) -> None:
    world.daemon.document["command"] = "echo x > new.txt; echo up; sleep 60"
    thread = world.start()
    until(world.is_up)
    world.daemon.cancel = True
    happened(world.daemon.reported)
    ended(thread)
    report = world.daemon.report
    assert report is not None
    assert (report["status"], report["stage"], report["signal"]) == ("cancelled", "agent", 15)
    assert "untracked.tar.gz" in world.daemon.artifacts


def test_heartbeats_tell_the_stages_in_order(world: World) -> None:
    world.when(lambda: world.daemon.heartbeats.count("agent") >= 3, world.go)
    assert world.run(world.wait_for_go)["status"] == "completed"
    assert "handback" in world.daemon.heartbeats


def test_lost_replies_change_nothing(world: World) -> None:
    kinds = ("claim", "log", "artifact", "report", "heartbeat")
    world.daemon.lose_replies = dict.fromkeys(kinds, 1)
    world.daemon.fail = {"claim": 1, "log": 1, "artifact": 1, "report": 1, "heartbeat": 1}
    report = world.run("echo once; echo x > new.txt")
    assert report["status"] == "completed"
    assert bytes(world.daemon.log) == b"once\n"
    assert list(world.daemon.artifacts) == ["untracked.tar.gz"]


def test_daemon_that_restarts_gets_the_whole_log_once(world: World) -> None:
    world.daemon.document["command"] = (
        "i=0; while [ $i -lt 80 ]; do echo $i; i=$((i+1)); sleep 0.01; done"
    )
    thread = world.start()
    until(lambda: len(world.daemon.log) > 20)
    world.daemon.down()
    time.sleep(0.7)
    world.daemon.up()
    happened(world.daemon.reported)
    ended(thread)
    assert world.daemon.log.split() == [b"%d" % i for i in range(80)]


def test_spent_token_ends_the_runner_without_a_loop(world: World) -> None:
    world.daemon.session = "S" * 43
    world.deliver()
    assert runner.run(world.guest) == runner.REFUSED
    assert world.daemon.claims == 1
    assert runner.run(world.guest) == runner.DONE  # started again: nothing to do
    assert world.daemon.claims == 1


def test_second_start_after_the_report_does_nothing(world: World) -> None:
    world.run("true")
    assert runner.run(world.guest) == runner.DONE
    assert world.daemon.claims == 1


def test_job_document_of_another_protocol_is_reported(world: World) -> None:
    report = world.run(protocol=2)
    assert (report["status"], report["stage"]) == ("failed", "bootstrap")
    assert "protocol 2" in report["message"]


def test_missing_user_is_reported(world: World) -> None:
    world.guest = runner.Guest(world.paths, world.guest.pace)  # there is no user `agent` here
    if _has_user("agent"):
        pytest.skip("this machine has a user named agent")
    report = world.run("true")
    assert (report["status"], report["stage"]) == ("failed", "bootstrap")
    assert "no user agent" in report["message"]


def test_fault_of_ours_is_reported_with_its_stage(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("agentlab.guest.runner.Agent.run", broken)
    report = world.run("true")
    assert (report["status"], report["stage"]) == ("failed", "agent")
    assert "internal error of the runner: ZeroDivisionError: oops" in report["message"]


@pytest.mark.parametrize(
    ("killed", "said"), [(True, "the job was ended"), (False, "cannot be ended")]
)
def test_restarted_runner_hands_back_but_never_runs_the_task_again(
    world: World, monkeypatch: pytest.MonkeyPatch, killed: bool, said: str
) -> None:
    monkeypatch.setattr("agentlab.guest.runner.kill_all", lambda account: killed)
    world.run("echo ran >> count; echo x > new.txt")
    first = world.daemon
    assert first.session is not None
    # The same machine as if the runner had died while the agent ran.
    world.daemon.report = None
    world.daemon.heartbeats.clear()
    world.daemon.artifacts.clear()
    world.daemon.log.clear()
    died = Marker(
        Bootstrap(first.url, JOB, Secret(TOKEN)), Secret(first.session), "agent", world.head, 12.5
    )
    marker.save(world.paths.marker, died)
    assert runner.run(world.guest) == 0
    report = world.daemon.report
    assert report is not None
    assert (report["status"], report["stage"], report["started"]) == ("failed", "agent", 12.5)
    assert "runner was restarted" in report["message"]
    assert said in report["message"]
    assert (world.place.repo / "count").read_text() == "ran\n"
    assert "untracked.tar.gz" in world.daemon.artifacts


def _program(world: World) -> list[str]:
    """A runner in a process of its own; it prints the modules that were loaded after the start."""
    account = world.account
    text = (
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(Path.cwd())!r})\n"
        "from agentlab.guest import main, runner; from agentlab.guest.account import Account\n"
        "from agentlab.guest.paths import Pace, Paths\n"
        f"r = Path({str(world.root)!r})\n"
        f"a = Account('agent', {account.uid}, {account.gid}, r / 'home')\n"
        "p = Paths(run=r / 'run', shared=r / 'shared', spool=r / 'spool', workspace=r / 'no')\n"
        "main._warm(); before = set(sys.modules)\n"
        "status = runner.run(runner.Guest(p, Pace(grace=0.5), lambda: a))\n"
        "print(*sorted(set(sys.modules) - before)); sys.exit(status)\n"
    )
    return [sys.executable, "-S", "-c", text]


def test_everything_is_imported_before_the_runner_is_ready(world: World) -> None:
    world.daemon.document["command"] = "echo x > $AGENTLAB_ARTIFACTS_DIR/a; echo y > new; exit 3"
    world.deliver()
    done = subprocess.run(_program(world), check=True, capture_output=True, timeout=60)
    assert done.stdout.split() == []


@as_root
def test_killed_runner_reports_after_its_restart(world: World) -> None:
    program = _program(world)
    world.daemon.document["command"] = "echo begun >> count; sleep 60"
    world.deliver()
    first = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    until((world.place.repo / "count").exists)
    first.kill()
    first.wait()
    world.daemon.heartbeats.clear()
    again = subprocess.run(program, check=False, stderr=subprocess.PIPE, timeout=60)
    assert again.returncode == 0, again.stderr.decode()
    report = world.daemon.report
    assert report is not None
    assert (report["status"], report["stage"]) == ("failed", "agent")
    assert report["commit_before"] == world.head
    assert (world.place.repo / "count").read_text() == "begun\n"
    assert not _runs(world.account.uid)


def test_machine_that_is_shut_down_hands_back_first(world: World) -> None:
    world.when(world.is_up, lambda: os.kill(os.getpid(), signal.SIGTERM))
    report = world.run("echo x > new.txt; echo up; sleep 60")
    assert (report["status"], report["stage"]) == ("failed", "agent")
    assert "shut down" in report["message"]
    assert "untracked.tar.gz" in world.daemon.artifacts


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _runs(uid: int) -> bool:
    return any(processes(uid, Path("/proc")))


def test_a_report_of_many_files_stays_small_enough_to_be_taken() -> None:
    names = [{"name": "ü" * 200 + str(n), "size": 1, "sha256": "0" * 64} for n in range(5000)]
    report = render_report(Verdict("completed", "done", ""), Facts(artifacts=names), 1.0)
    assert 300_000 < len(json.dumps(report)) < 1 << 20

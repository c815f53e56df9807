"""The agent's end: nothing of it goes on, nothing of it is waited for."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.clock import Deadline
from agentlab.errors import Unsupported
from agentlab.guest.account import Account, kill_all, processes
from agentlab.guest.agent import _Reader, plan_command, render_environment, wrap
from agentlab.guest.command import run_as
from agentlab.guest.job import parse_job
from agentlab.guest.paths import Workplace
from agentlab.run import spawn
from tests.unit.guest.world import PACE, World, document
from tests.waiting import ended, happened, until

UID = 1_999_999_999  # nobody's
as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")


def _none_left(world: World) -> bool:
    return world.account.user is None or not list(processes(world.account.uid, Path("/proc")))


def test_agent_past_its_time_limit_gets_sigterm_and_hands_back(world: World) -> None:
    world.guest = replace(world.guest, pace=replace(PACE, grace=30))
    world.when(world.is_up, world.time_is_up)
    report = world.run("trap 'echo bye; exit 7' TERM; echo x > new.txt; echo up; sleep 60 & wait")
    assert (report["status"], report["stage"]) == ("timeout", "agent")
    assert (report["exit_code"], report["signal"]) == (7, None)
    assert "time limit of 30 s" in report["message"]
    assert bytes(world.daemon.log) == b"up\nbye\n"
    assert "untracked.tar.gz" in world.daemon.artifacts


def test_a_renewed_lease_gives_the_agent_more_time(world: World) -> None:
    world.daemon.left = 60.0
    report = world.run("sleep 5.5; echo through", time_limit=5)
    assert (report["status"], report["exit_code"]) == ("completed", 0)
    assert bytes(world.daemon.log) == b"through\n"


def test_a_lease_that_was_made_shorter_ends_the_agent_earlier(world: World) -> None:
    world.daemon.left = 0.0
    report = world.run("sleep 30 & wait", time_limit=60)
    assert report["status"] == "timeout"


def test_agent_that_ignores_sigterm_is_killed(world: World) -> None:
    world.when(world.is_up, world.time_is_up)
    report = world.run("trap '' TERM; echo up; while :; do sleep 0.1; done")
    assert (report["status"], report["signal"]) == ("timeout", 9)
    assert _none_left(world)


@as_root
def test_forks_that_left_the_group_are_killed_before_the_hand_back(world: World) -> None:
    world.run(
        "setsid sh -c 'trap \"\" TERM HUP; while :; do echo x >> grows; sleep 0.02; done' &"
        " (setsid setsid sleep 60 &) ; until [ -s grows ]; do sleep 0.02; done"
    )
    size = (world.place.repo / "grows").stat().st_size
    assert _none_left(world)
    assert (world.place.repo / "grows").stat().st_size == size


def test_child_that_keeps_the_pipe_open_is_not_waited_for(world: World) -> None:
    before = time.monotonic()
    report = world.run("setsid sleep 60 & echo done")
    assert report["status"] == "completed"
    assert bytes(world.daemon.log) == b"done\n"
    assert time.monotonic() - before < 18


class _HeldUp:
    """A sink that is kept from going on while more output comes and the time for it passes."""

    def __init__(self) -> None:
        self.taken, self.begun, self.go = bytearray(), threading.Event(), threading.Event()

    def __call__(self, data: bytes) -> None:
        self.taken += data
        self.begun.set()
        happened(self.go)


def test_output_that_is_in_the_pipe_is_read_however_late(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    sink = _HeldUp()
    reader = _Reader(read_end, sink)
    os.write(write_end, b"first")
    happened(sink.begun)
    os.write(write_end, b" second")
    end = threading.Thread(target=reader.finish, args=(0,))
    end.start()
    until(lambda: reader._until is not None)
    sink.go.set()
    ended(end)
    assert sink.taken == b"first second"
    os.close(read_end)
    os.close(write_end)


def test_errors_that_are_in_the_pipe_are_read_however_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlab.guest.command._AFTER_EXIT", 0.0)
    me = Account("me", os.geteuid(), os.getegid(), Path("/"))
    argv = ["/bin/sh", "-c", "head -c 60000 /dev/zero | tr '\\0' x; echo why >&2"]
    out = bytearray()
    done = run_as(me, argv, deadline=Deadline.after(60), env={}, sink=out.extend)
    assert (len(out), done.said) == (60000, b"why\n")


@pytest.mark.parametrize("pause", ["", "; sleep 0.01"])
def test_output_without_end_is_not_read_for_ever(pause: str) -> None:
    me = Account("me", os.geteuid(), os.getegid(), Path("/"))
    chatty = f"while echo x; do :{pause}; done"
    argv = ["/bin/sh", "-c", f"setsid timeout 60 sh -c '{chatty}' &"]
    before = time.monotonic()
    run_as(me, argv, deadline=Deadline.after(60), env={"PATH": "/usr/bin:/bin"})
    assert time.monotonic() - before < 30


@as_root
def test_processes_that_fork_and_end_without_pause_are_all_killed(world: World) -> None:
    # Never more than ten alive, and each line of them has an end: no bomb for our own host.
    script, trace = world.account.home / "hop", world.account.home / "trace"
    script.write_text(f'echo x >> {trace}; [ $1 -gt 0 ] && sh "$0" $(($1 - 1)) &')
    line = f"for i in 1 2 3 4 5; do sh {script} 3000 & done"
    argv = ["prlimit", "--nproc=50:50", "sh", "-c", line]
    spawn(argv, user=world.account.user, cwd=Path("/"), env={"PATH": "/usr/bin:/bin"}).wait()
    until(lambda: trace.exists() and trace.stat().st_size)
    assert kill_all(world.account)
    size = trace.stat().st_size
    time.sleep(0.2)
    assert 0 < size == trace.stat().st_size < 5 * 3000 * 2


@as_root
def test_user_who_has_used_up_its_processes_can_still_be_ended(world: World) -> None:
    argv = ["prlimit", "--nproc=20:20", "sh", "-c", "for i in $(seq 40); do sleep 30 & done"]
    process = spawn(argv, user=world.account.user, cwd=Path("/"), env={"PATH": "/usr/bin:/bin"})
    proc = Path("/proc")
    until(lambda: len(list(processes(world.account.uid, proc))) > 10)
    assert len(list(processes(world.account.uid, proc))) <= 20
    assert kill_all(world.account)
    assert _none_left(world)
    process.wait()


@pytest.mark.parametrize("state", ["S", "Z"])
def test_machine_that_is_too_busy_to_kill_says_whether_some_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    (tmp_path / "setpriv").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "setpriv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "status").write_text(f"State:\t{state}\nUid:\t{UID}\t{UID}\n")
    account = Account("agent", UID, UID, tmp_path)
    assert kill_all(account, within=0.2, proc=tmp_path) is (state == "Z")


def test_machine_without_room_for_one_more_process_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = iter([BlockingIOError("Resource temporarily unavailable"), None])

    def full(*_: object, **__: object) -> None:
        if problem := next(tries):
            raise problem
        (tmp_path / "12" / "status").unlink()

    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "status").write_text(f"State:\tS\nUid:\t{UID}\n")
    monkeypatch.setattr("agentlab.guest.account.run.run", full)
    assert kill_all(Account("agent", UID, UID, tmp_path), proc=tmp_path)


@pytest.mark.parametrize(
    ("command", "said"),
    [("echo x", "some processes"), ("echo x; exit 3", "status 3; some processes")],
)
def test_agent_that_cannot_be_ended_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    monkeypatch.setattr("agentlab.guest.agent.kill_all", lambda account: False)
    report = world.run(command)
    assert (report["status"], report["stage"]) == ("failed", "agent")
    assert said in report["message"]
    assert bytes(world.daemon.log) == b"x\n"


def test_output_is_read_to_its_end_when_the_processes_cannot_be_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(account: Account) -> bool:
        raise Unsupported("cannot run setpriv: not installed")

    monkeypatch.setattr("agentlab.guest.agent.kill_all", broken)
    report = world.run("echo x")
    assert (report["status"], report["message"]) == (
        "failed", "cannot run setpriv: not installed",
    )  # fmt: skip
    assert bytes(world.daemon.log).startswith(b"x\n")


def test_agent_may_have_so_many_processes_and_no_more(world: World) -> None:
    world.run("prlimit --nproc --output=SOFT,HARD --noheadings")
    soft, hard = map(int, world.daemon.log.split())
    assert soft == hard <= 4096


def test_agent_has_no_terminal_no_input_and_its_own_session(world: World) -> None:
    world.run("read x || echo end; tty; ps -o sid= -p $$ | tr -d ' ' > sid; "
              'test "$(cat sid)" = $$ && echo own')  # fmt: skip
    log = bytes(world.daemon.log)
    assert log.startswith(b"end\nnot a tty\n")
    assert log.endswith(b"own\n")


@as_root
def test_agent_is_the_unprivileged_user_without_groups_of_ours(world: World) -> None:
    world.run("id -u; id -g; id -G; touch /etc/x")
    lines = bytes(world.daemon.log).split(b"\n")
    assert lines[0] == b"%d" % world.account.uid
    assert set(lines[:3]) == {lines[0]}
    assert b"denied" in world.daemon.log


def test_agent_would_be_the_first_to_go_when_memory_runs_out(world: World) -> None:
    world.run("until grep -x 500 /proc/$$/oom_score_adj; do sleep 0.02; done")
    assert bytes(world.daemon.log) == b"500\n"


def test_bubblewrap_lets_the_agent_write_in_its_own_places_only(tmp_path: Path) -> None:
    account = Account("agent", 1, 1, Path("/home/agent"))
    place = Workplace(Path("/work/repo"), Path("/home/agent/job/artifacts"))
    argv = wrap(["/bin/sh", "-c", "x"], account, place)
    assert argv[-4:] == ["--", "/bin/sh", "-c", "x"]
    assert argv[argv.index("--ro-bind") :][:3] == ["--ro-bind", "/", "/"]
    bound = [argv[i + 1] for i, word in enumerate(argv) if word == "--bind"]
    assert bound == ["/home/agent", "/work/repo", "/tmp", "/var/tmp"]
    assert "--die-with-parent" in argv


def test_environment_survives_zero_bytes_and_lone_surrogates(tmp_path: Path) -> None:
    job = parse_job(document(task="a\0b\ud800", env={"A=B": "1", "": "2", "OK": "\ud800"}))
    place = Workplace(Path("/r"), Path("/a"))
    environment = render_environment(job, Account("agent", 1, 1, Path("/h")), place, Path("/t"))
    assert environment["AGENTLAB_TASK"] == "ab?"
    assert environment["OK"] == "?"
    assert "A=B" not in environment
    assert "" not in environment


def test_command_is_the_profiles_when_the_repo_has_no_script(tmp_path: Path) -> None:
    assert plan_command(parse_job(document(command="x y")), tmp_path) == ["/bin/sh", "-c", "x y"]

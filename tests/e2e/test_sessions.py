"""Sessions in real VMs, with the one file: jobs that go on with each other's work, workspaces that
are waited for, and two who resume at once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import git_repo, internet
from tests.e2e.workspaces import Place, number_in, volumes, workspace_laboratory
from tests.waiting import seen

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]

# Says what it finds, and leaves something that nobody committed.
GO_ON = 'pwd; cat README; cat extra 2>/dev/null; echo "$AGENTLAB_TASK" >>README; echo loose >>extra'


@pytest.fixture(scope="module")
def place(program: Path) -> Iterator[Place]:
    with workspace_laboratory(program) as made:
        made.lab.profile("work", GO_ON)
        made.lab.profile("net", GO_ON, network="nat")
        made.lab.profile("look", "pwd; cat README; git branch --show-current")
        git_repo(made.lab.scratch / "repo")
        yield made
        assert made.lab.warnings() == []


@pytest.fixture(autouse=True)
def tell(place: Place, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    place.tell(request.node)


def ended(place: Place, job: dict[str, object], state: str = "COMPLETED") -> list[str]:
    """The log of a job that has come to its end."""
    final = place.lab.wait_final(str(job["id"]))
    assert final["state"] == state, (final, place.lab.log.read_text()[-2000:])
    return (Path(str(final["artifact_dir"])) / "agent.log").read_text().splitlines()


def went_on(log: list[str]) -> None:
    """It found the first one's work, and its log says so."""
    assert log[0].startswith("agentlab: /work/repo has changes that are not committed")
    assert log[1:] == ["/work/repo", "hello", "one", "loose"]


def test_a_second_job_goes_on_with_what_the_first_left(place: Place) -> None:
    lab, repo = place.lab, place.lab.scratch / "repo"
    place.run("session create --name fix --profile work --size 256M", what="session create")
    first = ended(place, lab.run_job("work", "one", repo, "--session", "fix"))
    assert first == ["/work/repo", "hello"]
    assert lab.ask("session", "show", "fix")["state"] == "STOPPED"
    done = lab.cli(
        "job",
        "run",
        "--repo",
        str(repo),
        "--task",
        "two",
        "--session",
        "fix",
        "--no-wait",
        "--json",
    )  # the profile is the session's
    assert done.returncode == 0, done.stderr
    second = ended(place, json.loads(done.stdout.splitlines()[-1]))
    went_on(second)
    place.run("session resume fix", what="session resume")
    shown = lab.ask("session", "show", "fix")
    assert shown["state"] == "RUNNING"
    status = "git -C /work/repo status --porcelain"
    assert place.say(str(shown["sandbox"]), status, user="agent") == "M README\n?? extra"
    said = place.run("session stop fix", what="session stop")
    assert "STOPPED" in said
    place.run("session delete --yes --with-workspace fix")
    assert volumes(lab) == []


def test_a_path_goes_by_its_branch_and_another_is_not_the_same(place: Place) -> None:
    lab, repo, other = place.lab, place.lab.scratch / "branches", place.lab.scratch / "other"
    git_repo(repo)
    git_repo(other)
    place.run("workspace create paths --size 128M")

    def commit(path: Path, text: str, *branch: str) -> None:
        (path / "README").write_text(text)
        who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        for words in (["checkout", "-q", *branch], [*who, "commit", "-qam", text]):
            subprocess.run(["git", *words], cwd=path, check=True)

    first = ended(place, lab.run_job("look", "t", repo, "--workspace", "paths"))
    assert first == ["/work/repo", "hello", "main"]
    commit(repo, "more\n", "-b", "feature")
    second = ended(place, lab.run_job("look", "t", repo, "--workspace", "paths"))
    assert second[1:] == ["/work/repo", "more", "feature"]
    # Without a commit in common: the first ones are the same when they are of the same second.
    commit(other, "other\n", "--orphan", "trunk")
    refused = lab.wait_final(str(lab.run_job("look", "t", other, "--workspace", "paths")["id"]))
    assert refused["state"] == "FAILED"
    assert "checkout: cannot check out: /work/repo holds something else" in str(refused["reason"])
    third = ended(place, lab.run_job("look", "t", repo, "--workspace", "paths", "--ref", "main"))
    assert third[1:] == ["/work/repo", "hello", "main"]
    place.run("workspace delete --yes paths")


def test_a_job_waits_visibly_for_a_workspace(place: Place) -> None:
    lab, repo = place.lab, place.lab.scratch / "repo"
    place.run("workspace create held --size 128M")
    holder = place.box("holder")
    place.run("workspace attach held holder")
    words = ["job", "run", "--repo", str(repo), "--task", "t", "--profile", "work", "--no-wait"]
    refused = lab.cli(*words, "--workspace", "held")
    assert refused.returncode == 1
    assert f"sandbox {holder} has it" in refused.stderr
    assert "--workspace-wait" in refused.stderr
    job = lab.run_job("work", "t", repo, "--workspace", "held", "--workspace-wait", "30m")

    def said() -> str:
        return lab.cli("job", "show", str(job["id"])).stdout

    assert seen(lambda: f"sandbox {holder} has it" in said(), 300, pause=0.2), said()
    short = lab.run_job("work", "t", repo, "--workspace", "held", "--workspace-wait", "2s")
    failed = lab.wait_final(str(short["id"]))
    assert failed["state"] == "FAILED"
    assert f"sandbox {holder} has it, and 2s are over" in str(failed["reason"])
    place.run("workspace detach held")
    assert ended(place, job) == ["/work/repo", "hello"]
    place.run("sandbox destroy --force holder")
    place.run("workspace delete --yes held")


def test_two_who_resume_at_once(place: Place) -> None:
    lab = place.lab
    place.run("session create --name race --profile box --size 128M")
    line = [*lab.program, "--socket", str(lab.socket), "session", "resume", "race"]
    both = [
        subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [each.communicate(timeout=300) for each in both]
    print(said)
    assert sorted(each.returncode for each in both) == [0, 1]
    lost = next(text for each, (_, text) in zip(both, said, strict=True) if each.returncode)
    assert "cannot resume session race" in lost
    assert len(lab.rows("SELECT vmid FROM sandbox WHERE state != 'DESTROYED'")) == 1
    place.run("session resume race", 1)
    place.run("session stop race")
    place.run("session delete --yes --with-workspace race")


def test_a_killed_resume_and_a_killed_stop_end(place: Place) -> None:
    lab = place.lab
    place.run("session create --name killed --profile box --size 256M")
    place.killed_at("after:do:attach", "session resume killed")
    assert place.last("sandbox.create") == ("done", "")
    box = str(lab.ask("session", "show", "killed")["sandbox"])
    digest = place.fill(box)
    place.killed_at("after:do:shutdown", "session stop killed")
    assert place.last("session.stop") == ("done", "")
    assert lab.ask("session", "show", "killed")["state"] == "STOPPED"
    said = place.run("session fork killed --name other", what="session fork")
    assert "other" in said
    said = place.run("session branch killed feature/login", what="session branch")
    name = said.split()[0]
    assert place.run("session branch killed feature/login").split()[0] == name
    place.run("session resume other", what="session resume")
    box = str(lab.ask("session", "show", "other")["sandbox"])
    assert place.sum(box) == digest
    place.run("session stop other", what="session stop")
    for each in ("killed", "other", name):
        place.run(f"session delete --yes --with-workspace {each}")
    assert volumes(lab) == []


def test_a_stateful_job_finds_its_own_session(place: Place, tmp_path: Path) -> None:
    lab = place.lab
    git_repo(tmp_path / "project")
    with internet(lab, tmp_path) as base:
        words = ["job", "run", "--repo", f"{base}/project", "--profile", "net", "--stateful"]
        logs = []
        for task in ("one", "two"):
            done = lab.cli(*words, "--task", task, "--no-wait", "--json")
            assert done.returncode == 0, done.stderr
            logs.append(ended(place, json.loads(done.stdout.splitlines()[-1])))
    assert logs[0] == ["/work/repo", "hello"]
    went_on(logs[1])
    (session,) = lab.rows("SELECT name FROM session")
    assert number_in(place.run("session list"), rf"({session[0]})")
    place.run(f"session delete --yes --with-workspace {session[0]}")

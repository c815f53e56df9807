"""A second job in the same workspace: what the first left there stays, and is handed back."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentlab.guest import marker, runner
from agentlab.guest.earlier import is_free, repo_name, same_address
from agentlab.guest.paths import Workplace
from tests.unit.guest.world import World, git


@pytest.fixture
def shop(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine with a workspace: a directory stands for it, which a test cannot mount."""
    world.paths = replace(world.paths, workspace=world.root / "work")
    world.paths.workspace.mkdir()
    world.account.make_directory(world.paths.workspace)
    os.chown(world.paths.workspace, world.account.uid, world.account.gid)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == world.paths.workspace)
    world.guest = replace(world.guest, paths=world.paths)
    world.place = Workplace.of(world.paths, world.account.home)
    git("-C", world.origin, "branch", "side", "HEAD~1")
    world.own_origin()
    return world


def job(world: World, command: str, ref: str | None = None, **repo: Any) -> dict[str, Any]:
    """One job more, as on a new machine with the same workspace; its report."""
    world.paths.marker.unlink(missing_ok=True)
    shutil.rmtree(world.account.home / "job", ignore_errors=True)
    daemon = world.daemon
    daemon.report = daemon.session = None
    for each in (daemon.heartbeats, daemon.artifacts, daemon.log):
        each.clear()
    url = f"file://{world.origin}"
    found = {"kind": "git", "url": url, "ref": ref, "depth": 1, **repo}
    return world.run(command, repo=found)


def log(world: World) -> str:
    return world.daemon.log.decode()


def patched(world: World, commit: str, into: Path) -> Path:
    """A clone at this commit with the handed back patch applied."""
    source = world.paths.workspace / "repo"
    git("-c", f"safe.directory={source}/.git", "clone", "-q", "--no-checkout", source, into)
    git("-C", into, "checkout", "-q", "--detach", commit)
    patch = into / "changes.patch"
    patch.write_bytes(world.daemon.artifacts["changes.patch"])
    git("-C", into, "apply", "--allow-empty", patch)
    return into


def test_the_repo_is_in_the_workspace(shop: World) -> None:
    report = job(shop, "pwd; echo $AGENTLAB_REPO_DIR")
    assert report["status"] == "completed"
    assert log(shop) == f"{shop.paths.workspace}/repo\n" * 2


def test_new_commits_of_the_remote_come_when_nothing_is_in_the_way(shop: World) -> None:
    job(shop, "true")
    shop.commit_to_origin("more.txt", "more\n")
    report = job(shop, "cat more.txt; git branch --show-current")
    assert report["commit_before"] == report["commit_after"] == shop.head
    assert log(shop).endswith("more\nmain\n")
    assert "changes.patch" not in shop.daemon.artifacts


@pytest.mark.parametrize("ref", [None, "main", "refs/heads/main", "side"])
def test_local_changes_stay_and_the_patch_has_them(
    shop: World, ref: str | None, tmp_path: Path
) -> None:
    first = shop.head
    job(shop, "echo mine > file.txt; echo new > new.txt")
    shop.commit_to_origin("file.txt", "theirs\n")
    report = job(shop, "cat file.txt new.txt; echo more >> file.txt", ref)
    assert report["commit_before"] == first
    said, rest = log(shop).split("\n", 1)
    assert rest == "mine\nnew\n"
    assert "changes that are not committed" in said
    assert first[:12] in said
    assert patched(shop, first, tmp_path / "c").joinpath("file.txt").read_text() == "mine\nmore\n"
    assert "untracked.tar.gz" in shop.daemon.artifacts


@pytest.mark.parametrize("ref", [None, "main", "side"])
def test_local_commits_stay_also_when_the_remote_has_new_ones(
    shop: World, ref: str | None, tmp_path: Path
) -> None:
    job(shop, "echo mine > mine.txt; git add .; git commit -qm mine")
    own = git("-c", "safe.directory=*", "-C", shop.place.repo, "rev-parse", "HEAD")
    shop.commit_to_origin("theirs.txt", "theirs\n")
    report = job(shop, "git log --format=%s -1; echo x > mine.txt", ref)
    assert report["commit_before"] == own
    said, rest = log(shop).split("\n", 1)
    assert rest == "mine\n"
    assert "commits that the remote did not have" in said
    assert patched(shop, own, tmp_path / "c").joinpath("mine.txt").read_text() == "x\n"


def test_commits_that_were_pushed_are_in_nobodys_way(shop: World) -> None:
    git("-C", shop.origin, "config", "receive.denyCurrentBranch", "ignore")
    shop.own_origin()
    job(shop, "echo mine > mine.txt; git add .; git commit -qm mine; git push -q origin main")
    report = job(shop, "git branch --show-current; ls", "side")
    assert report["commit_before"] == git("-C", shop.origin, "rev-parse", "side")
    assert log(shop).endswith("side\nfile.txt\n")


def test_another_ref_is_checked_out_when_nothing_is_lost(shop: World) -> None:
    side = git("-C", shop.origin, "rev-parse", "side")
    first = git("-C", shop.origin, "rev-parse", "HEAD~2")
    git("-C", shop.origin, "tag", "v1", first)
    shop.own_origin()
    job(shop, "true")
    for ref, wanted, branch in (
        ("side", side, "side"), ("v1", first, ""), (shop.head, shop.head, ""), ("main", shop.head, "main"),
        (first[:12], first, ""), ("side", side, "side"), (None, side, "side"),
    ):  # fmt: skip
        report = job(shop, "git branch --show-current", ref)
        assert (report["status"], report["commit_before"]) == ("completed", wanted), ref
        assert log(shop).splitlines()[-1] == branch or not branch


def test_a_branch_with_commits_of_its_own_is_gone_on_with(shop: World) -> None:
    job(shop, "echo a > a; git add .; git commit -qm own; git checkout -q side", depth=0)
    job(shop, "git branch --show-current; git log --format=%s -1", "main")
    assert log(shop).splitlines()[-2:] == ["main", "own"]
    assert "commits of its own" in log(shop)


def test_a_rewritten_remote_is_followed_and_what_was_there_keeps_a_name(shop: World) -> None:
    old = shop.head
    job(shop, "true")
    git("-C", shop.origin, "reset", "-q", "--hard", "HEAD~1")
    shop.commit_to_origin("other.txt", "other\n")
    report = job(
        shop, "cat other.txt; git for-each-ref --format='%(objectname)' refs/agentlab/kept"
    )
    assert report["commit_before"] == shop.head
    assert log(shop).splitlines()[-2:] == ["other", old]


def test_ignored_files_are_not_overwritten(shop: World) -> None:
    shop.commit_to_origin(".gitignore", ".env\n")
    job(shop, "echo secret > .env")
    git("-C", shop.origin, "rm", "-q", ".gitignore")
    shop.commit_to_origin(".env", "theirs\n")
    report = job(shop, "true")
    assert (report["status"], report["stage"]) == ("failed", "checkout")
    assert (shop.place.repo / ".env").read_text() == "secret\n"


def test_a_remote_that_is_away_loses_nothing(shop: World) -> None:
    job(shop, "echo mine > file.txt")
    shop.origin.rename(shop.root / "away")
    report = job(shop, "true", "main")
    assert (report["status"], report["stage"]) == ("failed", "checkout")
    assert (shop.place.repo / "file.txt").read_text() == "mine\n"


def test_a_clone_that_was_cut_off_is_ended(shop: World) -> None:
    repo = shop.place.repo
    git("init", "-q", "-b", "main", repo)
    git("-C", repo, "remote", "add", "origin", f"file://{shop.origin}")
    for path in (repo, *repo.rglob("*")):
        os.chown(path, shop.account.uid, shop.account.gid)
    report = job(shop, "cat file.txt")
    assert report["commit_before"] == shop.head
    assert log(shop).endswith("line 3\n")


def second(world: World) -> Path:
    """Another repository, `tools.git`."""
    path = world.root / "tools.git"
    git("clone", "-q", "--bare", world.origin, path)
    for each in (path, *path.rglob("*")):
        os.chown(each, world.account.uid, world.account.gid)
    return path


def test_another_repository_gets_a_directory_of_its_own(shop: World, tmp_path: Path) -> None:
    job(shop, "echo mine > file.txt")
    url = f"file://{second(shop)}"
    for number in (1, 2):
        report = job(shop, "pwd; echo tool > file.txt; echo $AGENTLAB_REPO_DIR", url=url)
        assert report["status"] == "completed"
        assert log(shop).splitlines()[-2:] == [f"{shop.paths.workspace}/tools"] * 2
        assert b"+tool" in shop.daemon.artifacts["changes.patch"], number
    assert (shop.place.repo / "file.txt").read_text() == "mine\n"
    report = job(shop, "cat file.txt")
    assert log(shop).endswith("mine\n")


def test_what_is_in_the_way_is_named_and_left_alone(shop: World) -> None:
    job(shop, "true")
    (shop.paths.workspace / "tools").mkdir()
    (shop.paths.workspace / "tools/notes").write_text("mine\n")
    report = job(shop, "true", url=f"file://{second(shop)}")
    assert (report["status"], report["stage"]) == ("failed", "checkout")
    assert f"{shop.paths.workspace}/tools hold something else" in report["message"]
    assert (shop.paths.workspace / "tools/notes").read_text() == "mine\n"


def test_a_directory_that_is_no_repository_is_left_alone(shop: World) -> None:
    shop.place.repo.mkdir()
    (shop.place.repo / "notes").write_text("mine\n")
    job(shop, "pwd")
    assert log(shop) == f"{shop.paths.workspace}/origin\n"


def test_a_link_is_not_followed(shop: World) -> None:
    outside = shop.root / "outside"
    outside.mkdir()
    shop.place.repo.symlink_to(outside)
    job(shop, "pwd")
    assert log(shop) == f"{shop.paths.workspace}/origin\n"
    assert not any(outside.iterdir())


def bundled(world: World, *refs: str, origin: Path | None = None) -> None:
    path = world.root / "bundle"
    path.unlink(missing_ok=True)
    git("-C", origin or world.origin, "bundle", "create", "-q", path, *(refs or ("--all", "HEAD")))
    world.daemon.bundle = path.read_bytes()


def test_a_second_bundle_is_gone_on_with(shop: World) -> None:
    bundled(shop)
    job(shop, "true", kind="bundle")
    shop.commit_to_origin("more.txt", "more\n")
    bundled(shop)
    report = job(shop, "cat more.txt; echo mine > more.txt", kind="bundle")
    assert report["commit_before"] == shop.head
    before = shop.head
    shop.commit_to_origin("more.txt", "theirs\n")
    bundled(shop)
    report = job(shop, "cat more.txt", kind="bundle")
    assert report["commit_before"] == before
    assert log(shop).endswith("mine\n")


@pytest.mark.parametrize(("ref", "branch"), [("feature", "feature\n"), (None, "")])
def test_a_second_bundle_of_another_branch_is_checked_out(
    shop: World, ref: str | None, branch: str
) -> None:
    bundled(shop, "HEAD", "main")
    job(shop, "true", "main", kind="bundle")
    git("-C", shop.origin, "checkout", "-q", "-b", "feature")
    shop.commit_to_origin("more.txt", "more\n")
    bundled(shop, "HEAD", "feature")
    report = job(shop, "cat more.txt; git branch --show-current", ref, kind="bundle")
    assert (report["status"], report["commit_before"]) == ("completed", shop.head)
    assert log(shop).endswith(f"more\n{branch}")


def test_a_remote_without_the_branch_is_told(shop: World) -> None:
    job(shop, "git checkout -q -b own")
    report = job(shop, "git branch --show-current")
    assert (report["status"], report["commit_before"]) == ("completed", shop.head)
    assert "the remote has no branch own" in log(shop)
    job(shop, "git checkout -q --detach")
    job(shop, "true")
    assert "HEAD is on no branch" in log(shop)


def test_a_remote_that_is_away_is_no_remote_without_news(shop: World) -> None:
    job(shop, "true")
    shop.origin.rename(shop.root / "away")
    report = job(shop, "true")
    assert (report["status"], report["stage"]) == ("failed", "checkout")


def other(world: World) -> Path:
    """A repository that has nothing in common with the first."""
    path = world.root / "other"
    git("init", "-q", "-b", "main", path)
    (path / "file.txt").write_text("other\n")
    git("-C", path, "add", ".")
    git("-C", path, "commit", "-q", "-m", "other")
    return path


@pytest.mark.parametrize("command", ["true", "echo mine > file.txt"])
def test_a_bundle_of_another_repository_is_not_the_same_one(shop: World, command: str) -> None:
    bundled(shop)
    job(shop, command, "main", kind="bundle")
    repo = shop.place.repo
    before = (repo / "file.txt").read_text(), shop.head
    bundled(shop, origin=other(shop))
    report = job(shop, "echo other > file.txt", "main", kind="bundle")
    assert (report["status"], report["stage"]) == ("failed", "checkout")
    assert f"{repo} holds something else already" in report["message"]
    assert (repo / "file.txt").read_text() == before[0]
    refs = git("-c", "safe.directory=*", "-C", repo, "for-each-ref", "--format=%(objectname)")
    assert set(refs.split()) <= {before[1], git("-C", shop.origin, "rev-parse", "side")}
    bundled(shop)
    assert job(shop, "true", "main", kind="bundle")["status"] == "completed"


def test_a_bundle_is_the_same_repository_whatever_head_is_on(shop: World) -> None:
    bundled(shop)
    job(shop, "git checkout -q --orphan new; git commit -qm new", "main", kind="bundle")
    bundled(shop)
    report = job(shop, "git log --format=%s", "main", kind="bundle")
    assert (report["status"], log(shop).splitlines()[-1]) == ("completed", "new")


def test_a_restarted_runner_hands_back_from_the_same_place(shop: World) -> None:
    job(shop, "true")
    url = f"file://{second(shop)}"
    job(shop, "echo tool > file.txt; git remote set-url origin elsewhere", url=url)
    over, daemon = marker.load(shop.paths.marker), shop.daemon
    assert over is not None
    assert over.repo == str(shop.paths.workspace / "tools")
    # The same machine as if the runner had died while the agent ran.
    marker.save(shop.paths.marker, over.at("agent"))
    daemon.report = None
    for each in (daemon.heartbeats, daemon.artifacts, daemon.log):
        each.clear()
    assert runner.run(shop.guest) == 0
    assert b"+tool" in daemon.artifacts["changes.patch"]


def test_names_and_addresses() -> None:
    assert repo_name("https://example.org/a/tools.git/") == "tools"
    assert repo_name("git@example.org:tools") == "tools"
    for url in ("https://example.org/..", "x/.git", "a/-x", "a/repo.git", "a/lost+found", ""):
        assert repo_name(url) == ""
    assert same_address("https://a:b@h/x", "https://c@h/x")
    assert not same_address("https://h/x", "https://h/y")


def test_what_is_free(tmp_path: Path) -> None:
    assert is_free(tmp_path / "none")
    assert is_free(tmp_path)
    (tmp_path / "x").write_text("")
    assert not is_free(tmp_path)
    assert not is_free(tmp_path / "x")

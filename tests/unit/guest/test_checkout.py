"""Fetching the repository: what is asked for comes, and what cannot come is said at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agentlab.errors import Invalid
from agentlab.guest.checkout import refuse_options
from agentlab.guest.git import redact
from tests.unit.guest.world import World, git


def _repo(world: World, ref: str | None, depth: int = 1, url: str = "") -> dict[str, object]:
    url = url or f"file://{world.origin}"
    return {"kind": "git", "url": url, "ref": ref, "depth": depth}


def test_checkout_is_shallow_and_belongs_to_the_agent(world: World) -> None:
    report = world.run("git rev-list --count HEAD; git branch --show-current")
    assert report["commit_before"] == world.head
    assert bytes(world.daemon.log) == b"1\nmain\n"
    assert (world.place.repo / "file.txt").stat().st_uid == world.account.uid


def test_depth_0_fetches_the_whole_history(world: World) -> None:
    world.run("git rev-list --count HEAD", repo=_repo(world, None, 0))
    assert bytes(world.daemon.log) == b"3\n"


@pytest.mark.parametrize("ref", ["side", "v1", "refs/heads/side"])
def test_ref_may_be_a_branch_a_tag_or_a_full_name(world: World, ref: str) -> None:
    first = git("-C", world.origin, "rev-parse", "HEAD~2")
    git("-C", world.origin, "branch", "side", first)
    git("-C", world.origin, "tag", "-a", "-m", "v1", "v1", first)
    world.own_origin()
    report = world.run("true", repo=_repo(world, ref))
    assert (report["status"], report["commit_before"]) == ("completed", first)


@pytest.mark.parametrize("length", [40, 12])
@pytest.mark.parametrize("served", ["true", "false"])
def test_ref_may_be_a_commit_also_when_the_server_gives_none_by_id(
    world: World, length: int, served: str
) -> None:
    git("-C", world.origin, "config", "uploadpack.allowAnySHA1InWant", served)
    first = git("-C", world.origin, "rev-parse", "HEAD~2")
    world.own_origin()
    report = world.run("true", repo=_repo(world, first[:length]))
    assert (report["status"], report["commit_before"]) == ("completed", first)


@pytest.mark.parametrize("ref", ["nope", "feedfeed", "f" * 40])
def test_ref_that_does_not_exist_fails_at_once_with_what_git_said(world: World, ref: str) -> None:
    report = world.run("true", repo=_repo(world, ref))
    assert (report["status"], report["stage"]) == ("failed", "checkout")
    assert report["started"] is None
    assert report["message"].startswith("cannot check out the repo: ")
    assert len(world.daemon.log) > 10
    assert report["log_bytes"] == len(world.daemon.log)


def test_repo_that_does_not_exist_fails_within_seconds_and_shows_no_password(world: World) -> None:
    before = time.monotonic()
    report = world.run("true", repo=_repo(world, None, url="http://me:pass@127.0.0.1:1/x.git"))
    assert (report["status"], report["stage"]) == ("failed", "checkout")
    assert "127.0.0.1" in report["message"]
    assert "pass@" not in report["message"] + world.daemon.log.decode()
    assert time.monotonic() - before < 18


@pytest.mark.parametrize(
    ("url", "ref"),
    [("--upload-pack=touch x", None), ("ext::sh -c true", None), ("x", "--help"), ("x", "a b")],
)
def test_what_git_would_take_for_an_option_is_refused(
    world: World, url: str, ref: str | None
) -> None:
    report = world.run("true", repo=_repo(world, ref, url=url))
    assert (report["status"], report["stage"]) == ("failed", "checkout")
    assert not world.place.repo.exists()


def test_refusals_are_invalid() -> None:
    with pytest.raises(Invalid, match="dash"):
        refuse_options("-x", None)
    refuse_options("git@example.org:a/b.git", "feature/x")


def test_credentials_are_taken_out_of_what_git_says() -> None:
    assert (
        redact(b"fatal: https://u:p@h/x and https://h/y")
        == b"fatal: https://***@h/x and https://h/y"
    )


def test_empty_repository_is_a_place_to_begin(world: World) -> None:
    empty = world.root / "empty"
    git("init", "-q", "-b", "main", empty)
    world.origin = empty
    world.own_origin()
    report = world.run("echo x > a; git add a; git commit -qm first; echo y > a")
    assert (report["status"], report["commit_before"]) == ("completed", None)
    assert report["commit_after"] is not None
    assert {"changes.patch", "repo.bundle"} <= set(world.daemon.artifacts)


def test_bundle_is_fetched_from_the_daemon_also_after_a_lost_reply(world: World) -> None:
    path = world.root / "bundle"
    git("-C", world.origin, "bundle", "create", "-q", path, "--all", "HEAD")
    world.daemon.bundle = path.read_bytes()
    world.daemon.lose_replies = {"repo_bundle": 1}
    report = world.run("cat file.txt", repo={"kind": "bundle", "ref": None})
    assert (report["status"], report["commit_before"]) == ("completed", world.head)
    assert bytes(world.daemon.log) == b"line 3\n"
    assert os.listdir(world.place.made[0]) == ["artifacts", "repo"] or set(
        os.listdir(world.place.made[0])
    ) == {"artifacts", "repo"}


def test_checkout_that_never_ends_is_a_time_out_in_its_stage(world: World) -> None:
    report = world.run("true", time_limit=0.5, repo=_repo(world, None, url="ssh://x/y"),
                       env={"GIT_SSH_COMMAND": "sleep 60;"})  # fmt: skip
    assert (report["status"], report["stage"]) == ("timeout", "checkout")


def test_cancel_stops_a_checkout(world: World) -> None:
    world.daemon.cancel = True
    report = world.run("true", repo=_repo(world, None, url="ssh://x/y"),
                       env={"GIT_SSH_COMMAND": "sleep 60;"})  # fmt: skip
    assert (report["status"], report["stage"]) == ("cancelled", "checkout")


def test_hook_of_a_template_directory_does_not_run(world: World) -> None:
    mark = world.root / "home" / "hooked"
    hook = Path(world.account.home) / "templates/hooks/post-checkout"
    hook.parent.mkdir(parents=True)
    hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
    hook.chmod(0o755)
    world.run("true", env={"GIT_TEMPLATE_DIR": str(hook.parent.parent)})
    assert not mark.exists()


def test_work_that_is_in_the_workspace_already_goes_on(world: World) -> None:
    world.run("echo kept > kept.txt")
    world.paths.marker.unlink()
    world.daemon.report = None
    world.daemon.session = None
    world.daemon.heartbeats.clear()
    world.daemon.artifacts.clear()
    world.daemon.log.clear()
    world.run("cat kept.txt")
    assert world.daemon.log.endswith(b"\nkept\n")

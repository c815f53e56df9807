"""Handing back from a repository and a tree that are hostile."""

from __future__ import annotations

import os
import socket
import tarfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.unit.guest.world import World, document, git
from tests.waiting import ended, happened, until

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")


def _limits(**changes: int) -> dict[str, Any]:
    return {**document()["limits"], **changes}


def _missing(report: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["reason"] for one in report["missing"]}


def test_nothing_that_the_agent_configured_runs_while_handing_back(world: World) -> None:
    mark = world.account.home / "hacked"
    evil = world.account.home / "evil"
    report = world.run(
        f"printf '#!/bin/sh\\ntouch {mark}\\ncat\\n' > {evil}; chmod +x {evil}; "
        f"for key in core.fsmonitor core.sshCommand core.pager diff.external diff.evil.textconv "
        f"diff.evil.command filter.evil.clean filter.evil.smudge filter.evil.process "
        f"core.gitProxy gpg.program uploadpack.packObjectsHook; do git config $key {evil}; "
        f"git config --global $key {evil}; done; git config core.hooksPath {world.account.home}; "
        f"git config filter.evil.required true; git config extensions.partialClone origin; "
        f"for hook in post-index-change reference-transaction pre-auto-gc; do "
        f"cp {evil} .git/hooks/$hook; cp {evil} {world.account.home}/$hook; done; "
        f"echo '* filter=evil diff=evil' > .gitattributes; rm -f {mark}; echo more >> file.txt; "
        f"rm -f {mark}",
        env={**document()["env"], "GIT_CONFIG_GLOBAL": str(world.account.home / ".gitconfig")},
    )
    assert not mark.exists()
    assert report["missing"] == []
    assert b"+more" in world.daemon.artifacts["changes.patch"]


@pytest.mark.parametrize("spoil", ["rm -rf .git", "echo ref: ../x > .git/HEAD", "rm -rf .git; ln -s / .git",
                                   "rm .git/HEAD; mkfifo .git/HEAD"])  # fmt: skip
def test_files_come_back_when_the_repository_is_destroyed(world: World, spoil: str) -> None:
    before = time.monotonic()
    report = world.run(f"echo x > new.txt; {spoil}; echo y > $AGENTLAB_ARTIFACTS_DIR/a")
    assert "changes.patch" in _missing(report)
    assert "files/a" in world.daemon.artifacts
    with tarfile.open(fileobj=BytesIO(world.daemon.artifacts["untracked.tar.gz"])) as archive:
        assert "./new.txt" in archive.getnames()
    assert time.monotonic() - before < 18  # the time for all of it is 20


def test_broken_objects_cost_only_what_needs_them(world: World) -> None:
    report = world.run("echo x > new.txt; echo y >> file.txt; rm -rf .git/objects/*")
    assert {"changes.patch", "repo.bundle"} <= set(_missing(report))
    assert "untracked.tar.gz" in world.daemon.artifacts
    assert report["status"] == "completed"


def test_bundle_has_the_commits_of_every_branch(world: World) -> None:
    world.run(
        "git checkout -qb side; echo a > a; git add a; git commit -qm a; git checkout -q main"
    )
    copy = world.root / "copy"
    git("clone", "-q", world.origin, copy)
    (world.root / "b").write_bytes(world.daemon.artifacts["repo.bundle"])
    git("-C", copy, "fetch", "-q", world.root / "b", "refs/heads/side:side")
    assert git("-C", copy, "log", "-1", "--format=%s", "side") == "a"


def test_bundle_of_rewritten_history_can_be_cloned_by_itself(world: World) -> None:
    world.run("echo a > a; git add a; git commit -q --amend -m rewritten")
    (world.root / "b").write_bytes(world.daemon.artifacts["repo.bundle"])
    git("clone", "-q", world.root / "b", world.root / "copy")
    assert (world.root / "copy/a").read_text() == "a\n"


def test_binary_changes_are_in_the_patch(world: World) -> None:
    world.run("head -c 5000 /dev/urandom > file.txt")
    assert b"GIT binary patch" in world.daemon.artifacts["changes.patch"]


def test_untracked_leaves_out_what_is_ignored_and_keeps_what_is_odd(world: World) -> None:
    report = world.run(
        "echo '*.o' > .gitignore; echo x > a.o; echo x > -rf; echo x > 'two\nlines'; "
        "ln -s /etc/shadow link; mkfifo fifo; mkdir inner; cd inner; git init -q; echo x > deep"
    )
    with tarfile.open(fileobj=BytesIO(world.daemon.artifacts["untracked.tar.gz"])) as archive:
        members = {member.name: member for member in archive.getmembers()}
    assert {".gitignore", "-rf", "two\nlines", "link", "inner/deep"} <= set(members)
    assert members["link"].issym()
    assert "a.o" not in members
    assert report["status"] == "completed"


def test_one_huge_untracked_file_does_not_keep_the_others(world: World) -> None:
    report = world.run("head -c 3000000 /dev/urandom > huge; echo x > small",
                       limits=_limits(artifact_bytes=1_000_000))  # fmt: skip
    with tarfile.open(fileobj=BytesIO(world.daemon.artifacts["untracked.tar.gz"])) as archive:
        assert archive.getnames() == ["small"]
    assert "limit of 1000000" in _missing(report)["untracked.tar.gz: huge"]


@as_root
def test_only_regular_files_that_the_agent_could_read_come_back(world: World) -> None:
    secret = world.root / "secret"
    secret.write_text("root only")
    secret.chmod(0o600)
    hidden = world.root / "hidden"
    hidden.mkdir(mode=0o700)
    world.commit_to_origin("x", "x")
    artifacts = world.place.artifacts
    thread = world.start_with(f"{world.wait_for_go}; cd $AGENTLAB_ARTIFACTS_DIR; echo ok > good; "
        f"ln -s {secret} symlink; ln -s {world.root} dirlink; mkfifo fifo; "
        "printf x > \"$(printf 'bad\\377name')\"; printf x > \"$(printf 'new\\nline')\"; "
        "mkdir locked; echo own > locked/own; chmod 0 locked/own locked")  # fmt: skip
    until(artifacts.exists)
    os.link(secret, artifacts / "hardlink")  # as if fs.protected_hardlinks were off
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(artifacts / "socket"))
    os.mknod(artifacts / "null", 0o666 | 0o020000, os.makedev(1, 3))
    (artifacts / "roots").mkdir(mode=0o700)
    world.go()
    happened(world.daemon.reported)
    ended(thread)
    assert world.daemon.report is not None
    missing = _missing(world.daemon.report)
    assert set(world.daemon.artifacts) == {"files/good", "files/locked/own"}
    assert missing == {
        "files/symlink": "not a regular file but a symlink",
        "files/dirlink": "not a regular file but a symlink",
        "files/fifo": "not a regular file but a fifo",
        "files/socket": "not a regular file but a socket",
        "files/null": "not a regular file but a device",
        "files/hardlink": "the agent itself cannot read it",
        "files/roots": "the agent itself cannot read it",
        "files/bad\\xffname": "its name is not UTF-8",
        "files/new\\nline": "its name has control characters",
    }


@pytest.mark.parametrize(
    "swap",
    ["rm -rf $AGENTLAB_ARTIFACTS_DIR; ln -s {outside} $AGENTLAB_ARTIFACTS_DIR",
     "cd ..; mv ../job ../gone; ln -s {parent} ../job"],
)  # fmt: skip
def test_directory_swapped_for_a_symlink_is_not_followed(world: World, swap: str) -> None:
    outside = world.root / "elsewhere/artifacts"
    outside.mkdir(parents=True)
    (outside / "stolen").write_text("x")
    report = world.run(swap.format(outside=outside, parent=outside.parent))
    assert world.daemon.artifacts == {}
    assert "cannot be opened" in _missing(report)["files"]


def test_limits_of_size_sum_and_count_hold(world: World) -> None:
    report = world.run(
        "cd $AGENTLAB_ARTIFACTS_DIR; head -c 2000 /dev/zero > a; head -c 900 /dev/zero > b; "
        "head -c 900 /dev/zero > c; head -c 900 /dev/zero > d; echo > e; echo > f",
        limits=_limits(artifact_bytes=1000, artifact_total=2000, artifact_count=3),
    )
    assert list(world.daemon.artifacts) == ["files/b", "files/c", "files/e"]
    missing = _missing(report)
    assert "limit of 1000 bytes" in missing["files/a"]
    assert "2000 bytes in sum" in missing["files/d"]
    assert "3 files" in missing["files/f"]


def test_tree_of_many_things_makes_a_short_report(world: World) -> None:
    report = world.run("cd $AGENTLAB_ARTIFACTS_DIR; mkfifo $(seq 500)")
    assert len(report["missing"]) == 201
    assert report["missing"][-1]["reason"] == "and 300 more"


def test_deep_tree_is_cut_with_a_word(world: World) -> None:
    report = world.run("cd $AGENTLAB_ARTIFACTS_DIR; mkdir -p $(printf 'd/%.0s' $(seq 60))x")
    assert list(_missing(report).values()) == ["too deep"]


def test_artifact_that_the_daemon_refuses_is_missing_and_the_others_come(world: World) -> None:
    world.daemon.refuse = {"artifact": 413}
    report = world.run("echo x > $AGENTLAB_ARTIFACTS_DIR/a")
    assert _missing(report) == {"files/a": "no"}
    assert report["status"] == "completed"


def test_daemon_that_fails_on_one_file_does_not_use_up_the_time(world: World) -> None:
    world.daemon.fail = {"artifact": 6}
    report = world.run("echo x > $AGENTLAB_ARTIFACTS_DIR/a; echo y > $AGENTLAB_ARTIFACTS_DIR/b")
    assert _missing(report) == {"files/a": "not now"}
    assert list(world.daemon.artifacts) == ["files/b"]


def test_time_that_has_passed_is_said_for_what_is_left(world: World) -> None:
    world.daemon.fail = {"artifact": 1000}
    report = world.run("echo x > new.txt; echo x > $AGENTLAB_ARTIFACTS_DIR/a", handback_limit=0.3)
    assert set(_missing(report)) >= {"untracked.tar.gz"}
    assert report["status"] == "completed"


@as_root
def test_agent_that_fills_the_disk_still_gets_its_work_back(world: World) -> None:
    disk = world.root / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m none {disk} 2>/dev/null") != 0:
        pytest.skip("cannot mount here")
    try:
        # The spool is on the disk that the agent fills; its second place has room.
        disk.chmod(0o777)
        object.__setattr__(world.paths, "spool", disk / "spool")
        report = world.run(
            f"echo early; echo x > new.txt; head -c 9000000 /dev/zero > {disk}/fill; echo late"
        )
        assert bytes(world.daemon.log).startswith(b"early\n")
        assert bytes(world.daemon.log).endswith(b"late\n")
        assert "untracked.tar.gz" in world.daemon.artifacts
        assert report["missing"] == []
    finally:
        assert os.system(f"umount {disk}") == 0


def test_spools_leave_no_file_behind(world: World) -> None:
    world.run("echo x > new.txt; echo y")
    assert list(Path(world.paths.spool).iterdir()) == []

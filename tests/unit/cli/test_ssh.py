"""`sandbox new --and-ssh`: the keys change places through the guest agent, and then it is ssh."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from agentlab.api import messages as m
from agentlab.cli.commands.sandbox_ssh import command
from tests.unit.client.fake_daemon import FakeDaemon, sandbox_view

Run = Callable[..., tuple[int, str, str]]
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHostKeyOfTheGuest"
OURS = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOurKey me@home"
LINE = ("new", "--profile", "demo", "--and-ssh")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    return tmp_path / ".ssh"


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ssh that we have become."""
    argv: list[str] = []

    def execvp(_file: str, words: list[str]) -> None:
        argv.extend(words)
        raise SystemExit(0)

    monkeypatch.setattr("os.execvp", execvp)
    return argv


def answering(daemon: FakeDaemon, out: str, status: int = 0) -> list[m.ExecRequest]:
    asked: list[m.ExecRequest] = []

    def start(request: m.ExecRequest, *_: object) -> m.ExecOutput:
        asked.append(request)
        said = base64.b64encode(out.encode()).decode()
        return m.ExecOutput(1, 1, status, False, False, False, said, "")

    daemon.handlers.exec_start = start  # type: ignore[assignment, method-assign]
    return asked


def test_our_key_goes_in_and_only_its_own_key_is_trusted(
    cli: Run, daemon: FakeDaemon, home: Path, became: list[str]
) -> None:
    (home / "id_ed25519.pub").write_text(OURS + "\n")
    (home / "id_rsa.pub").write_text("another")
    (home / "id_ed25519").touch()
    asked = answering(daemon, f"{HOST_KEY} root@x\n")
    with pytest.raises(SystemExit):
        cli(*LINE, "--name", "box")
    assert (asked[0].user, asked[0].argv[-1]) == ("agent", OURS)
    assert became[0] == "ssh"
    assert became[-1] == "agent@10.77.0.5"
    assert became[-2] == str(home / "id_ed25519")
    assert f"KnownHostsCommand=/bin/echo agentlab-1010 {HOST_KEY}" in became
    assert "StrictHostKeyChecking=yes" in became
    assert "UserKnownHostsFile=/dev/null" in became


def test_key_of_an_agent_is_named_by_its_public_half(tmp_path: Path) -> None:
    argv = command(sandbox_view(), tmp_path / "only.pub", HOST_KEY)
    assert argv[-2] == str(tmp_path / "only.pub")


def test_identity_is_named_by_either_half(
    cli: Run, daemon: FakeDaemon, home: Path, became: list[str]
) -> None:
    (home / "mine.pub").write_text(OURS)
    for name in ("mine", "mine.pub"):
        asked = answering(daemon, f"{HOST_KEY}\n")
        with pytest.raises(SystemExit):
            cli(
                *LINE,
                "--vmid",
                "1020" if name == "mine" else "1021",
                "--identity",
                str(home / name),
            )
        assert asked[0].argv[-1] == OURS


@pytest.mark.parametrize(
    "text", ["-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "ssh-rsa", "", "a\nb"]
)
def test_what_is_no_public_key_is_refused_before_anything_is_made(
    cli: Run, daemon: FakeDaemon, home: Path, text: str
) -> None:
    (home / "id_rsa.pub").write_text(text)
    status, _, err = cli(*LINE)
    assert status == 2
    assert "is no public key of ssh" in err
    assert daemon.seen == []


def test_no_key_at_all_tells_how_to_make_one(cli: Run, daemon: FakeDaemon, home: Path) -> None:
    status, _, err = cli(*LINE)
    assert status == 2
    assert "no public key in" in err
    assert "hint: make one: ssh-keygen -t ed25519 -f" in err
    assert cli(*LINE, "--identity", str(home / "none"))[0] == 1
    assert daemon.seen == []


@pytest.mark.parametrize(
    ("out", "status"), [("", 1), ("", 0), ("rubbish\n", 0), (HOST_KEY + "\n" + HOST_KEY + "\n", 0),
                        ("ssh-ed25519 AAAA -oProxyCommand=x\n", 0)],
)  # fmt: skip
def test_guest_without_a_host_key_of_its_own_gets_no_ssh(
    cli: Run, daemon: FakeDaemon, home: Path, became: list[str], out: str, status: int
) -> None:
    (home / "id_rsa.pub").write_text(OURS)
    answering(daemon, out, status)
    got, _, err = cli(*LINE)
    assert got == 1
    assert "error: cannot use ssh: sandbox 1010: " in err
    assert became == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((*LINE, "--no-wait"), "--and-ssh goes with neither"),
        ((*LINE, "--json"), "--and-ssh goes with neither"),
        (("new", "--profile", "demo", "--identity", "x"), "--identity is for --and-ssh"),
    ],
)
def test_what_does_not_go_together(
    cli: Run, daemon: FakeDaemon, words: tuple[str, ...], why: str
) -> None:
    status, out, err = cli(*words)
    assert status == 2
    assert why in out + err
    assert daemon.seen == []

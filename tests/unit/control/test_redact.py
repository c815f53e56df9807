"""What is hidden, by key, by form and by value; what stays; how long it may take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentlab.control.redact import MAX_TEXT, Redactor, is_environment, is_secret, secrets_in
from agentlab.secret import Secret


@pytest.mark.parametrize(
    "key",
    [
        "token", "tokens", "api_key", "apiKey", "GITHUB_TOKEN", "nonce", "private-key", "password",
        "db.passwd", "client_secret", "Set-Cookie", "authorization", "accesskey", "credentials",
    ],
)  # fmt: skip
def test_keys_that_hide_their_values(key: str) -> None:
    assert is_secret(key)
    assert Redactor().document({key: "abc"}) == {key: "***"}
    assert Redactor().document([{"a": {key: ["abc"]}}]) == [{"a": {key: "***"}}]


@pytest.mark.parametrize("key", ["keepalive", "session", "task", "keyboard", "kind", "lock"])
def test_keys_that_do_not(key: str) -> None:
    assert Redactor().document({key: "abc"}) == {key: "abc"}


def test_an_environment_keeps_the_names_of_its_variables() -> None:
    assert is_environment("env")
    assert not is_environment("envelope")
    shown = Redactor().document({"env": {"HOME": "x", "N": ""}, "agent_env": ["A=b"]})
    assert shown == {"env": {"HOME": "***", "N": "***"}, "agent_env": "***"}


def test_labels_stay_whatever_they_are_called() -> None:
    labels = {"token": "blue", "env": "test"}
    assert Redactor().document({"labels": labels}) == {"labels": labels}
    assert Redactor(["bluebluebl"]).document({"labels": {"a": "bluebluebl"}}) == {
        "labels": {"a": "***"}
    }


def test_nothing_stays_nothing() -> None:
    plain = {"token": None, "nonce": "", "key": False}
    assert Redactor().document(plain) == plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://me:pw@host/x and a@b", "see https://***@host/x and a@b"),
        ("https://ghp@host", "https://***@host"),
        ("ssh://git:p@ss@host/x", "ssh://***@host/x"),
        ("no://credentials/at@all", "no://credentials/at@all"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer ***"),
        ("API_TOKEN=abc claude", "API_TOKEN=*** claude"),
        ('{"password": "a b c", "x": 1}', '{"password": ***, "x": 1}'),
        ("root@pam!lab=01234567-89ab-cdef-0123-456789abcdef!", "root@pam!lab=***!"),
        ("it is ghp_0123456789abcdefghij here", "it is *** here"),
        ("a -----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- b", "a *** b"),
        ("tokens are counted: 12", "tokens are counted: 12"),
    ],
)
def test_texts_that_look_like_a_secret(text: str, shown: str) -> None:
    assert Redactor().text(text) == shown


def test_what_is_known_is_hidden_wherever_it_stands() -> None:
    redactor = Redactor(["correct horse", "correct horse battery", "short"])
    text = "correct horse battery, short: xcorrect horsey"
    assert redactor.text(text) == "***, short: x***y"
    assert redactor.document({"correct horse": ["correct horse"]}) == {"***": ["***"]}


@dataclass
class Thing:
    token: Secret
    folder: Path
    name: str


def test_secrets_and_paths_of_our_own_records() -> None:
    thing = Thing(Secret("user@pam!id=0123456789"), Path("/home/somebody/x"), "n")
    assert Redactor().document(thing) == {"token": "***", "name": "n"}
    assert Redactor().document([Secret("abc")]) == ["***"]
    assert {"user@pam!id=0123456789", "0123456789"} <= {*secrets_in(thing)}


def test_secrets_are_found_where_they_are_kept() -> None:
    document = {
        "agent": {"env": {"A": "value-a"}}, "labels": {"key": "not-this"}, "nonce": "n1",
        "repo": {"url": "https://me:pass-word@host/x"}, "task": "nor this",
    }  # fmt: skip
    assert {*secrets_in(document)} == {"value-a", "n1", "me:pass-word", "pass-word"}


def test_what_json_cannot_say_and_what_has_no_end() -> None:
    deep: list[object] = []
    for _ in range(500):
        deep = [deep]
    shown = Redactor().document([float("nan"), deep, range(3, 5), {"b", "a"}])
    assert isinstance(shown, list)
    assert (shown[0], shown[2:]) == ("nan", [[3, 4], ["a", "b"]])
    assert "nested too deeply" in repr(shown[1])
    many = Redactor().document([0] * 10_000)
    assert isinstance(many, list)
    assert many[-1] == "… (5000 entries are left out)"


@pytest.mark.parametrize("before", [MAX_TEXT - 3, MAX_TEXT + 8 * 1024 - 3, 100])
def test_a_long_text_is_not_cut_in_the_middle_of_a_secret(before: int) -> None:
    """The cut is made behind what was hidden, also where most of the text before it was."""
    tail = "https://user:canary-canary@host/" + "y" * 200_000
    for head in ("x" * before, "canary-canary " * (before // 14)):
        shown = Redactor(["canary-canary"]).text(head + " " + tail)
        assert "canar" not in shown.removesuffix("y")
        assert len(shown) < MAX_TEXT + 100


def test_no_hostile_text_takes_long() -> None:
    known = [f"known-secret-{number}" for number in range(5000)]
    redactor = Redactor(known)
    begun = time.process_time()
    for piece in (
        "a-",
        "://",
        "token",
        "key=",
        "-----BEGIN ",
        "'",
        "known-secret-",
        "bearer ",
        "!",
    ):
        redactor.text(piece * MAX_TEXT)
    assert time.process_time() - begun < 20

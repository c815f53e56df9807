"""What records look like from outside."""

from __future__ import annotations

import pytest

from agentlab.daemon.views import _CREDENTIALS
from tests.unit.daemon.bench import Bench


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/x.git", "https://example.org/x.git"),
        ("https://ghp_secret@example.org/x.git", "https://***@example.org/x.git"),
        ("https://user:word@example.org/x.git", "https://***@example.org/x.git"),
        ("https://user:w@rd@example.org/x@y.git", "https://***@example.org/x@y.git"),
        ("http://:word@10.0.0.1:8080/x", "http://***@10.0.0.1:8080/x"),
        ("ssh://git@example.org:22/x.git", "ssh://***@example.org:22/x.git"),
        ("https://secret@example.org", "https://***@example.org"),
        ("git@example.org:x/y.git", "git@example.org:x/y.git"),
    ],
)
def test_no_credentials_of_a_repository_are_shown(url: str, shown: str) -> None:
    assert _CREDENTIALS.sub("***@", url) == shown


def test_a_job_shows_its_repository_without_them(bench: Bench) -> None:
    asked = bench.job_request(repo={"url": "https://ghp_secret@example.org/x.git"})
    made = bench.ask("POST", "/v1/jobs", asked)
    assert (made.status, made.document["repo"]) == (202, "https://***@example.org/x.git")
    assert b"ghp_secret" not in bench.ask("GET", "/v1/jobs").body

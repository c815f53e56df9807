"""Paths to endpoints, and every endpoint to its handler."""

from __future__ import annotations

import pytest

from agentlab.api import table
from agentlab.daemon.exchange import MethodNotAllowed
from agentlab.daemon.guest_api import ENDPOINTS as GUEST_ENDPOINTS
from agentlab.daemon.handlers import HANDLERS
from agentlab.daemon.router import Router
from agentlab.errors import Invalid, NotFound

ROUTER = Router(table.ENDPOINTS)


def test_every_endpoint_has_a_handler_and_every_handler_an_endpoint() -> None:
    assert set(HANDLERS) == {each.name for each in table.ENDPOINTS}


@pytest.mark.parametrize(
    ("method", "path", "name", "values"),
    [
        ("GET", "/v1/jobs", "job_list", {}),
        ("GET", "/v1/jobs/abc", "job_show", {"id": "abc"}),
        ("POST", "/v1/jobs/validate", "job_validate", {}),
        ("GET", "/v1/jobs/a%20b", "job_show", {"id": "a b"}),
        ("GET", "/v1/jobs/j/artifacts/files/a/b.txt", "job_artifact",
         {"id": "j", "name": "files/a/b.txt"}),
        ("GET", "/v1/jobs/j/artifacts/%2e%2e/x", "job_artifact", {"id": "j", "name": "../x"}),
    ],
)  # fmt: skip
def test_a_path_finds_its_endpoint(
    method: str, path: str, name: str, values: dict[str, str]
) -> None:
    match = ROUTER.find(method, path)
    assert (match.endpoint.name, dict(match.values)) == (name, values)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/jobs/", "/v1/job", "/v1/jobs/a/b", "/v2/jobs", "//v1/jobs", "/v1/jobs//log"]
)  # fmt: skip
def test_an_unknown_path(path: str) -> None:
    with pytest.raises(NotFound):
        ROUTER.find("GET", path)


def test_a_near_path_is_offered() -> None:
    with pytest.raises(NotFound) as caught:
        ROUTER.find("GET", "/v1/statu")
    assert caught.value.hint == "did you mean /v1/status?"


@pytest.mark.parametrize("path", ["/v1/jobs/%zz", "/v1/jobs/%", "/v1/jobs/%ff%fe"])
def test_a_badly_quoted_path(path: str) -> None:
    with pytest.raises(Invalid):
        ROUTER.find("GET", path)


def test_a_quoted_slash_in_a_name_is_refused() -> None:
    with pytest.raises(Invalid):
        Router(GUEST_ENDPOINTS).find("PUT", "/guest/v1/jobs/j/artifacts/a%2fb")


def test_a_wrong_method_names_the_right_ones() -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        ROUTER.find("DELETE", "/v1/jobs")
    assert caught.value.allowed == ["GET", "POST"]

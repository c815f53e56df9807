"""Documents to values and back; hostile documents are refused with their path."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentlab.api import messages as m
from agentlab.api.codec import at_most, from_plain, parse_document, render_document, to_plain
from agentlab.api.table import ENDPOINTS, Raw
from agentlab.errors import Invalid

CHARACTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
TEXT = st.text(CHARACTERS, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MESSAGES: list[type] = sorted(
    {kind for each in ENDPOINTS for kind in (each.request, each.response)} - {Raw} | {m.ErrorBody},
    key=lambda kind: kind.__name__,
)
st.register_type_strategy(object, JSON)


def values(kind: Any, most: int = 20) -> st.SearchStrategy[Any]:
    """Any value of a type that the contract uses, with texts of at most `most` characters."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return st.lists(values(args[0], most), max_size=3)
    if origin is dict:
        return st.dictionaries(TEXT, values(args[1], most), max_size=3)
    if args:  # `X | None`
        return st.one_of(*(values(each, most) for each in args))
    if kind is type(None):
        return st.none()
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(CHARACTERS, max_size=most), int: st.integers(-(2**53), 2**53), bool: st.booleans(), object: JSON,
        float: st.floats(allow_nan=False, allow_infinity=False),
    }  # fmt: skip
    if kind in simple:
        return simple[kind]
    hints = typing.get_type_hints(kind)
    limits = {each.name: min(20, each.metadata.get("max", 20)) for each in dataclasses.fields(kind)}
    return st.builds(kind, **{name: values(hints[name], limits[name]) for name in limits})


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_round_trip(kind: type) -> None:
    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(values(kind))
    def there_and_back(value: object) -> None:
        assert from_plain(kind, to_plain(value)) == value
        assert from_plain(kind, parse_document(render_document(value))) == value

    there_and_back()


@settings(max_examples=200)
@given(st.sampled_from(MESSAGES), JSON)
def test_any_document_is_read_or_refused(kind: type, document: object) -> None:
    try:
        from_plain(kind, document)
    except Invalid:
        pass


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        parse_document(body)
    except Invalid:
        pass


GOOD: dict[str, Any] = {"repo": {"url": "https://h/x"}, "task": "t", "profile": "p"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repo": []}, "repo: must be an object"),
        ({"repo": {"ulr": "x"}}, "repo.ulr: unknown key"),
        ({"repo": {"depth": True}}, "repo.depth: must be a whole number"),
        ({"repo": {"depth": 1.5}}, "repo.depth: must be a whole number"),
        ({"repo": {"url": 5}}, "repo.url: must be a string"),
        ({"repo": {"url": "x" * 4097}}, "repo.url: is longer than 4096 characters"),
        ({"repo": {"ref": "a\0b"}}, "repo.ref: must not contain a NUL character"),
        ({"task": "\ud800"}, "task: must not contain lone surrogates"),
        ({"task": None}, "task: must be a string"),
        ({"env": {"A": 1}}, "env.A: must be a string"),
        ({"env": ["A"]}, "env: must be an object"),
        ({"labels": {"a": {"b": {}}}}, "labels.a: must be a string"),
        ({"nope": 1}, "nope: unknown key"),
    ],
)
def test_refusal_names_the_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid) as caught:
        from_plain(m.JobRequest, {**GOOD, **change})
    assert caught.value.message == message
    assert caught.value.details == {"path": message.partition(":")[0]}


def test_missing_key_names_the_path() -> None:
    with pytest.raises(Invalid, match="task: is missing"):
        from_plain(m.JobRequest, {"repo": {}, "profile": "demo"})


def test_place_in_a_list_is_in_the_path() -> None:
    with pytest.raises(Invalid, match=r"jobs\[1\]: must be an object"):
        from_plain(m.JobList, {"jobs": [to_plain(JOB), 5]})


JOB = m.JobView(
    "j", "QUEUED", False, False, "p", "t", "r", "", 0, "", "o", 0.0, 0.0, 0.0, "", "", "", {}, None
)  # fmt: skip


def test_unknown_key_suggests_the_near_one() -> None:
    with pytest.raises(Invalid) as caught:
        from_plain(m.JobRequest, {**GOOD, "taks": "x"})
    assert caught.value.hint == "did you mean task?"


def test_older_client_reads_newer_answers() -> None:
    plain = {**typing.cast(dict[str, Any], to_plain(JOB)), "new": 1}
    assert from_plain(m.JobView, plain, strict=False) == JOB
    with pytest.raises(Invalid, match="new: unknown key"):
        from_plain(m.JobView, plain)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000])
def test_deep_nesting_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid, match="cannot read the document"):
        parse_document(body)


def test_whole_numbers_are_times_too() -> None:
    assert from_plain(m.JobView, {**json.loads(render_document(JOB)), "created": 5}).created == 5.0


def test_table_names_are_unique_and_paths_distinct() -> None:
    assert len({each.name for each in ENDPOINTS}) == len(ENDPOINTS)
    assert len({(each.method, each.path) for each in ENDPOINTS}) == len(ENDPOINTS)


def test_a_list_may_have_a_limit() -> None:
    @dataclasses.dataclass
    class Basket:
        eggs: list[str] = dataclasses.field(default_factory=list, metadata=at_most(2))

    assert from_plain(Basket, {"eggs": ["a", "b"]}).eggs == ["a", "b"]
    for eggs in (["a", "b", "c"], [None] * 3):  # counted before anything is looked at
        with pytest.raises(Invalid, match="eggs: has more than 2 entries"):
            from_plain(Basket, {"eggs": eggs})

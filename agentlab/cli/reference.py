"""docs/states.md, docs/api.md and docs/config.md, rendered from their tables.  Pure."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from enum import StrEnum

from agentlab.api import messages as m
from agentlab.api import table
from agentlab.api.table import ENDPOINTS, Endpoint, Raw
from agentlab.errors import BY_CODE
from agentlab.model.job import JOB
from agentlab.model.machine import StateMachine
from agentlab.model.sandbox import SANDBOX
from agentlab.model.workspace import WORKSPACE
from agentlab.settings import PROFILE, SETTINGS


def _made_from(source: str) -> str:
    return f"<!-- Made by `agentlab docs` from {source}; do not edit. -->"


def render_states() -> str:
    """docs/states.md: a drawing and a table for each noun that has states."""
    lines = [_made_from("agentlab/model/{job,sandbox,workspace}.py"), "", "# States"]
    for noun, machine in (("Job", JOB), ("Sandbox", SANDBOX), ("Workspace", WORKSPACE)):
        lines += ["", f"## {noun}", "", *_machine(machine)]
    lines += [
        "",
        "A session is what its workspace is: RUNNING while that is ATTACHED, else STOPPED.",
    ]
    return "\n".join(lines) + "\n"


def render_config() -> str:
    """docs/config.md: every setting of the daemon and every key of a profile."""
    return "\n".join(
        [
            _made_from("agentlab/settings.py"), "", "# Settings and profiles", "",
            "A dot stands for a mapping inside: `network.bridge` is `bridge` under `network`.", "",
            "## The daemon: `/etc/agentlab/config.yaml`", "", *_keys(SETTINGS), "",
            "## A profile: `/etc/agentlab/profiles/NAME.yaml`", "",
            "Read anew for each job. Durations: `90s`, `30m`, `4h`, `2d`; a bare number is minutes.",
            "", *_keys(PROFILE),
        ]
    ) + "\n"  # fmt: skip


def _keys(table: dict[str, tuple[object, str]]) -> list[str]:
    rows = [
        f"| `{key}` | {'' if default in ('', {}) else f'`{json.dumps(default)}`'} | {meaning} |"
        for key, (default, meaning) in table.items()
    ]
    return ["| key | default | meaning |", "| --- | --- | --- |", *rows]


def _machine(machine: StateMachine[typing.Any, typing.Any]) -> list[str]:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {machine.initial}"]
    labels: dict[tuple[StrEnum, StrEnum], list[str]] = {}
    for edge in machine.edges:
        labels.setdefault((edge.source, edge.target), []).append(edge.event.value)
    for (source, target), events in labels.items():
        lines.append(f"    {source} --> {target}: {', '.join(events)}")
    lines += [f"    {state} --> [*]" for state in machine.states if machine.final(state)]
    lines += ["```", "", "| state | meaning | events and where they lead |", "| --- | --- | --- |"]
    for state in machine.states:
        ways = [f"{e.event} → {e.target}" for e in machine.edges if e.source == state]
        lines.append(f"| {state} | {machine.meaning[state]} | {'; '.join(ways) or 'final'} |")
    return lines


def render_api() -> str:
    """docs/api.md: endpoints, documents and error codes."""
    lines = [
        _made_from("agentlab/api/"),
        "",
        "# The daemon's interface",
        "",
        "HTTP/1.1 with JSON over the Unix socket. Times are seconds since the epoch. Requests",
        f"refuse unknown keys and are at most {table.MAX_BODY >> 20} MiB; a long poll (`wait`)",
        f"takes at most {table.MAX_WAIT:g} seconds, a bundle {table.MAX_BUNDLE >> 30} GiB.",
        "",
        "| endpoint | does | parameters | request | response | status |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_endpoint(each) for each in ENDPOINTS]
    lines += ["", "## Documents"]
    for kind in _documents():
        lines += _document(kind)
    lines += ["", "## Errors", "", _ERRORS, "", "| code | HTTP status | meaning |"]
    lines += ["| --- | --- | --- |"]
    for code, error in BY_CODE.items():
        meaning = (error.__doc__ or "").strip().splitlines()[0]
        lines.append(f"| `{code}` | {error.http_status} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


_ERRORS = "Every error is an `ErrorBody` with one of these codes."


def _endpoint(each: Endpoint[typing.Any, typing.Any]) -> str:
    query = ", ".join(f"`{name}`" for name in each.query)
    return (
        f"| `{each.method} {each.path}` | {_cell(each.summary)} | {query} | {_named(each.request)} "
        f"| {_named(each.response)} | {each.status} |"
    )


def _named(kind: type) -> str:
    if kind is m.Nothing:
        return ""
    return "bytes" if kind is Raw else f"[{kind.__name__}](#{kind.__name__.lower()})"


def _documents() -> list[type]:
    found: dict[type, None] = {}

    def add(kind: typing.Any) -> None:
        for inner in typing.get_args(kind):
            add(inner)
        if not dataclasses.is_dataclass(kind) or kind in (Raw, m.Nothing) or kind in found:
            return
        found[typing.cast(type, kind)] = None
        for hint in typing.get_type_hints(kind).values():
            add(hint)

    for each in ENDPOINTS:
        add(each.request)
        add(each.response)
    add(m.ErrorBody)
    return list(found)


def _document(kind: type) -> list[str]:
    hints = typing.get_type_hints(kind)
    doc = (kind.__doc__ or "").strip()
    lines = ["", f"### {kind.__name__}", ""]
    if doc and not doc.startswith(f"{kind.__name__}("):  # what dataclass writes is no document
        lines += [" ".join(doc.split()), ""]
    lines += ["| key | type | default |", "| --- | --- | --- |"]
    for field in dataclasses.fields(kind):
        lines.append(f"| `{field.name}` | {_cell(_typed(hints[field.name]))} | {_default(field)} |")
    return lines


def _typed(kind: typing.Any) -> str:
    args = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is list:
        return f"list of {_typed(args[0])}"
    if origin is dict:
        return f"object of {_typed(args[1])}"
    if origin is types.UnionType:
        return f"{_typed(args[0])} or null"
    if dataclasses.is_dataclass(kind):
        return typing.cast(type, kind).__name__
    return {str: "string", int: "whole number", float: "number", bool: "true or false"}.get(
        kind, "any value"
    )


def _default(field: dataclasses.Field[typing.Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`".replace("'", '"').replace("False", "false")
    return "empty" if field.default_factory is not dataclasses.MISSING else "required"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

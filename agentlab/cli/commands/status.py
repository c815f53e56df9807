"""`status`: the daemon at a glance.

It must start as fast as Python lets it, so it reads the document without the contract's
dataclasses, which take 30 ms to define; a test holds the two together.
"""

from __future__ import annotations

from agentlab.cli.command import Answer, Context
from agentlab.cli.text import ago, fields, size
from agentlab.client.unix import document
from agentlab.errors import Unavailable

TARGET = "/v1/status"
KEYS = (
    "version", "commit", "python", "pid", "started", "hypervisor", "accelerator", "data_dir",
    "resident", "jobs", "sandboxes",
)  # fmt: skip


def status(ctx: Context) -> Answer:
    found = document(ctx.socket_path, TARGET, timeout=ctx.timeout)
    if not isinstance(found, dict):
        raise Unavailable("cannot understand the daemon's answer: not an object")
    return Answer(found, fields(_pairs({key: found.get(key, "") for key in KEYS})))


def _pairs(found: dict[str, object]) -> list[tuple[str, object]]:
    return [
        ("version", f"{found['version']} (commit {found['commit']}, Python {found['python']})"),
        ("pid", found["pid"]),
        ("up", ago(_number(found["started"]))),
        ("hypervisor", f"{found['hypervisor']} ({found['accelerator'] or 'remote'})"),
        ("data", found["data_dir"]),
        ("resident", size(_number(found["resident"]))),
        ("jobs", _counts(found["jobs"])),
        ("sandboxes", _counts(found["sandboxes"])),
    ]


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _counts(value: object) -> str:
    if not isinstance(value, dict) or not value:
        return "none"
    return ", ".join(f"{count} {state}" for state, count in value.items())

"""Profiles from YAML text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agentlab.config import parse_yaml
from agentlab.errors import Invalid
from agentlab.model.ids import parse_duration, parse_name, parse_size
from agentlab.model.profile import After, Limits, NetworkMode, Profile

# The headless forms of agents that people know; any other command is taken as it is.
AGENTS = {
    "claude": 'claude -p "$AGENTLAB_TASK" --dangerously-skip-permissions',
    "codex": 'codex exec --dangerously-bypass-approvals-and-sandbox "$AGENTLAB_TASK"',
    "opencode": 'opencode run "$AGENTLAB_TASK"',
}
_KEYS = {
    "name", "template", "cores", "memory", "disk", "network", "ttl", "handback", "after", "agent",
    "limits", "mode",
}  # fmt: skip
_AGENT_KEYS = {"command", "bubblewrap", "env"}
_LIMIT_KEYS = {"log", "artifact", "artifacts", "artifact_count"}
_MIB = 1 << 20


def parse_profile(text: str, path: Path) -> Profile:
    """A profile; its name is the file's.  Invalid names the file and the key."""
    document = parse_yaml(text, path)
    _known(document, _KEYS, "", path)
    agent = _mapping(document, "agent", path)
    _known(agent, _AGENT_KEYS, "agent.", path)
    command = _text(agent, "command", "", path)
    try:
        return Profile(
            name=_name(document, path),
            template=parse_name(_text(document, "template", "debian-12", path), what="template"),
            cores=_number(document, "cores", 2, (1, 128), path),
            memory=_size(document, "memory", "2G", "M", path),
            disk=_size(document, "disk", "8G", "G", path),
            network=NetworkMode(_text(document, "network", "nat", path)),
            ttl=_duration(document, "ttl", "1h", path),
            handback=_duration(document, "handback", "2m", path),
            after=After(_text(document, "after", "destroy", path)),
            command=AGENTS.get(command, command),
            mode=_text(document, "mode", "", path),
            bubblewrap=_flag(agent, "bubblewrap", path),
            env=_env(agent, path),
            limits=_limits(_mapping(document, "limits", path), path),
        )
    except ValueError as error:  # an enum's
        raise Invalid(
            f"{path}: {error}", hint="network: nat or off; after: destroy, stop or keep"
        ) from error


def _name(document: Mapping[str, object], path: Path) -> str:
    name = _text(document, "name", path.stem, path)
    if name != path.stem:
        raise Invalid(f"{path}: name is {name!r}, the file says {path.stem!r}")
    return parse_name(name, what="profile")


def _known(document: Mapping[str, object], keys: set[str], prefix: str, path: Path) -> None:
    for key in document:
        if key not in keys:
            raise Invalid(
                f"{path}: unknown key {prefix}{key}", hint=f"known: {', '.join(sorted(keys))}"
            )


def _mapping(document: Mapping[str, object], key: str, path: Path) -> Mapping[str, object]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise Invalid(f"{path}: {key} must be a mapping")
    return value


def _text(document: Mapping[str, object], key: str, default: str, path: Path) -> str:
    value = document.get(key, default)
    # YAML reads a bare `off` as false
    if key == "network" and value is False:
        return "off"
    if not isinstance(value, str):
        raise Invalid(f"{path}: {key} must be text")
    return value


def _number(
    document: Mapping[str, object], key: str, default: int, bounds: tuple[int, int], path: Path
) -> int:
    value = document.get(key, default)
    if type(value) is not int or not bounds[0] <= value <= bounds[1]:
        raise Invalid(f"{path}: {key} must be a whole number from {bounds[0]} to {bounds[1]}")
    return value


def _flag(document: Mapping[str, object], key: str, path: Path) -> bool:
    value = document.get(key, False)
    if not isinstance(value, bool):
        raise Invalid(f"{path}: {key} must be true or false")
    return value


def _size(document: Mapping[str, object], key: str, default: str, bare: str, path: Path) -> int:
    return _worded(document, key, path, parse_size(str(document.get(key, default)), bare=bare))


def _duration(document: Mapping[str, object], key: str, default: str, path: Path) -> int:
    return _worded(document, key, path, parse_duration(str(document.get(key, default))))


def _worded(document: Mapping[str, object], key: str, path: Path, value: int) -> int:
    if isinstance(document.get(key), bool):
        raise Invalid(f"{path}: {key} must not be true or false")
    return value


def _env(agent: Mapping[str, object], path: Path) -> dict[str, str]:
    env = _mapping(agent, "env", path)
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in env.items()):
        raise Invalid(f"{path}: agent.env must map names to texts")
    return {key: str(value) for key, value in env.items()}


def _limits(document: Mapping[str, object], path: Path) -> Limits:
    _known(document, _LIMIT_KEYS, "limits.", path)
    known = Limits()
    return Limits(
        log=_size(document, "log", f"{known.log // _MIB}M", "M", path) * _MIB,
        artifact=_size(document, "artifact", f"{known.artifact // _MIB}M", "M", path) * _MIB,
        artifacts=_size(document, "artifacts", f"{known.artifacts // _MIB}M", "M", path) * _MIB,
        artifact_count=_number(
            document, "artifact_count", known.artifact_count, (1, 100_000), path
        ),
    )

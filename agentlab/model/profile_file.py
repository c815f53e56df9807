"""Profiles from YAML text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agentlab.config import flatten, parse_yaml
from agentlab.errors import Invalid
from agentlab.model.ids import parse_name
from agentlab.model.profile import After, Limits, NetworkMode, Profile
from agentlab.settings import PROFILE
from agentlab.units import parse_duration, parse_size

# The headless forms of agents that people know; any other command is taken as it is.
AGENTS = {
    "claude": 'claude -p "$AGENTLAB_TASK" --dangerously-skip-permissions',
    "codex": 'codex exec --dangerously-bypass-approvals-and-sandbox "$AGENTLAB_TASK"',
    "opencode": 'opencode run "$AGENTLAB_TASK"',
}
_MIB = 1 << 20


def parse_profile(text: str, path: Path) -> Profile:
    """A profile; its name is the file's.  Invalid names the file and the key."""
    given = flatten(parse_yaml(text, path), PROFILE, path)
    read = _Reader(path, {**{key: default for key, (default, _) in PROFILE.items()}, **given})
    command = read.text("agent.command")
    return Profile(
        name=_name(read.text("name"), path),
        template=parse_name(read.text("template"), what="template"),
        cores=read.number("cores", 1, 128),
        memory=read.size("memory", bare="M"),
        disk=read.size("disk", bare="G"),
        network=NetworkMode(read.word("network", tuple(NetworkMode))),
        ttl=read.duration("ttl"),
        handback=read.duration("handback"),
        after=After(read.word("after", tuple(After))),
        command=AGENTS.get(command, command),
        mode=read.text("mode"),
        bubblewrap=read.flag("agent.bubblewrap"),
        env=read.texts("agent.env"),
        limits=Limits(
            log=read.size("limits.log", bare="M") * _MIB,
            artifact=read.size("limits.artifact", bare="M") * _MIB,
            artifacts=read.size("limits.artifacts", bare="M") * _MIB,
            artifact_count=read.number("limits.artifact_count", 1, 100_000),
        ),
        idle_stop=read.duration("idle_stop", absent=0),
    )


def _name(name: str, path: Path) -> str:
    if name not in {"", path.stem}:
        raise Invalid(f"{path}: name is {name!r}, the file says {path.stem!r}")
    return parse_name(path.stem, what="profile")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Values of a profile by dotted key; each method gives one type or Invalid naming the key."""

    path: Path
    values: Mapping[str, object]

    def _bad(self, key: str, why: str) -> Invalid:
        return Invalid(f"{self.path}: {key} must be {why}")

    def text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str):
            raise self._bad(key, "text")
        return value

    def word(self, key: str, known: tuple[str, ...]) -> str:
        # YAML reads a bare `off` as false
        value = "off" if self.values[key] is False and "off" in known else self.values[key]
        if value not in known:
            raise self._bad(key, f"one of {', '.join(known)}")
        return str(value)

    def number(self, key: str, low: int, high: int) -> int:
        value = self.values[key]
        if type(value) is not int or not low <= value <= high:
            raise self._bad(key, f"a whole number from {low} to {high}")
        return value

    def flag(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            raise self._bad(key, "true or false")
        return value

    def texts(self, key: str) -> dict[str, str]:
        value = self.values[key]
        if not isinstance(value, dict):
            raise self._bad(key, "a mapping")
        if not all(isinstance(each, str) for pair in value.items() for each in pair):
            raise self._bad(key, "a mapping of names to texts")
        return dict(value)

    def size(self, key: str, *, bare: str) -> int:
        """MiB."""
        return self._measured(key, lambda text: parse_size(text, bare=bare))

    def duration(self, key: str, *, absent: int | None = None) -> int:
        """Seconds; `absent` is what the default "" means."""
        if absent is not None and self.values[key] == "":
            return absent
        return self._measured(key, parse_duration)

    def _measured(self, key: str, parse: Callable[[str], int]) -> int:
        value = self.values[key]
        if type(value) not in {int, str}:
            raise self._bad(key, "text or a whole number")
        try:
            return parse(str(value))
        except Invalid as error:
            raise Invalid(f"{self.path}: {key}: {error.message}", hint=error.hint) from error

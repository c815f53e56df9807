"""Documents without their secrets: by the name of a key, by the look of a text, and by value.

All three, because a secret that is known can turn up anywhere (in the words of an error, in what a
guest has reported), and one that is not known has only its key or its form to give it away.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path

from agentlab.secret import Secret

HIDDEN = "***"
MAX_TEXT = 64 * 1024  # characters of one string
_MAX_DEPTH = 24
_MAX_ENTRIES = 5000  # of one list or mapping
_MARGIN = (
    8 * 1024
)  # characters that are looked at beyond that: what is cut has not its form any more
_LEAST = 8  # characters of a value that is looked for everywhere: `1` and `true` are no secrets

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_ENDS = (
    "token", "secret", "password", "passwd", "passphrase", "credential", "key", "nonce", "cookie",
    "authorization", "bearer",
)  # fmt: skip
_ENVIRONMENTS = frozenset({"env", "environ", "environment"})

_USER = re.compile(r"(?<=://)([^/\s]*)@")
_NAMES = r"[A-Za-z0-9_.-]{0,40}(?:token|secret|passw(?:or)?d|passphrase|api_?key|private_?key|access_?key)"
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    # userinfo of a URL: a token may stand in a user's place
    (re.compile(r"(?<=://)[^/\s]*@"), HIDDEN + "@"),
    (re.compile(r"(?i)\b(bearer|basic)[ \t]+[A-Za-z0-9+/=._~-]{8,}"), r"\1 " + HIDDEN),
    (
        re.compile(rf"(?i)\b({_NAMES}[\"']?[ \t]{{0,4}}[=:][ \t]{{0,4}})(\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&]+)"),
        r"\1" + HIDDEN,
    ),
    # user@realm!name=uuid of Proxmox
    (re.compile(r"(![A-Za-z][A-Za-z0-9._-]{0,64}=)[0-9a-fA-F-]{16,}"), r"\1" + HIDDEN),
    (
        re.compile(
            r"\b(?:gh[a-z]_|github_pat_|glpat-|sk-|xox[a-z]-|AKIA|tskey-|hf_|npm_)[A-Za-z0-9_-]{12,}"
        ),
        HIDDEN,
    ),
    (
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,40}-----)?"),
        HIDDEN,
    ),
)  # fmt: skip


class Redactor:
    """Makes documents fit to be shown; `known` are secrets, which are hidden wherever they stand."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known: dict[str, list[str]] = {}  # by their beginnings: there can be many
        for each in sorted({each for each in known if len(each) >= _LEAST}, key=len, reverse=True):
            self._known.setdefault(each[:_LEAST], []).append(each)

    def text(self, text: str) -> str:
        """A text without what is a secret or looks like one; at most MAX_TEXT characters."""
        shown = self._without_known(text[: MAX_TEXT + _MARGIN])
        for form, instead in _FORMS:
            shown = form.sub(instead, shown)
        if len(text) <= MAX_TEXT:
            return shown
        end = MAX_TEXT if len(text) <= MAX_TEXT + _MARGIN else min(MAX_TEXT, len(shown) - _MARGIN)
        return f"{shown[: max(0, end)]}… ({len(text)} characters)"

    def _without_known(self, text: str) -> str:
        """One pass, however many are known; of two that begin at one place the longer one counts."""
        if not self._known:
            return text
        pieces, done, at = [], 0, 0
        last = len(text) - _LEAST
        while at <= last:
            candidates = self._known.get(text[at : at + _LEAST])
            found = next((each for each in candidates or () if text.startswith(each, at)), "")
            if found:
                pieces += [text[done:at], HIDDEN]
                done = at = at + len(found)
            else:
                at += 1
        return "".join(pieces) + text[done:] if pieces else text

    def document(self, value: object) -> object:
        """A value of the store or of a driver as JSON has it, redacted.

        Dataclasses become mappings; paths are left out of them, since they tell users' names.
        """
        return self._walk(value, 0)

    def _walk(self, value: object, depth: int) -> object:
        if depth > _MAX_DEPTH:
            return "… (nested too deeply)"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [each.name for each in dataclasses.fields(value)]
            value = {name: getattr(value, name) for name in names}
            value = {name: each for name, each in value.items() if not isinstance(each, Path)}
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, (list, tuple, range, set, frozenset)):
            return self._entries(value, depth)
        return self._scalar(value)

    def _mapping(self, value: Mapping[object, object], depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, each in list(value.items())[:_MAX_ENTRIES]:
            name = str(key)
            if name == "labels":  # they are names that people give, whatever these names are
                shown = self._labels(each, depth)
            elif is_environment(name):
                shown = _without_values(each)
            elif is_secret(name):
                shown = _hidden(each)
            else:
                shown = self._walk(each, depth + 1)
            found[self.text(name)] = shown
        return found

    def _labels(self, value: object, depth: int) -> object:
        if not isinstance(value, Mapping):
            return self._walk(value, depth + 1)
        return {self.text(str(key)): self._walk(each, depth + 2) for key, each in value.items()}

    def _entries(self, value: Iterable[object], depth: int) -> object:
        if isinstance(value, range):
            return [value.start, value.stop - 1]
        entries = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else [*value]
        shown = [self._walk(each, depth + 1) for each in entries[:_MAX_ENTRIES]]
        if len(entries) > _MAX_ENTRIES:
            shown.append(f"… ({len(entries) - _MAX_ENTRIES} entries are left out)")
        return shown

    def _scalar(self, value: object) -> object:
        if isinstance(value, Secret):
            return HIDDEN
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)  # JSON has no word for it
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return self.text(str(value.value if isinstance(value, Enum) else value))


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is a secret: one of its words ends in such a one."""
    words = (each.lower().removesuffix("s") for each in _WORD.findall(key))
    return any(word.endswith(_ENDS) for word in words) or key.lower().endswith(_ENDS)


def is_environment(key: str) -> bool:
    """Whether a key's name says that its value maps variables to what may be secrets."""
    words = [each.lower() for each in _WORD.findall(key)]
    return bool(words) and words[-1] in _ENVIRONMENTS


def _without_values(value: object) -> object:
    """An environment with the names of its variables alone."""
    if isinstance(value, Mapping):
        return {str(key): HIDDEN for key in list(value)[:_MAX_ENTRIES]}
    return _hidden(value)


def _hidden(value: object) -> object:
    """Nothing stays nothing, so that one sees whether there was a secret at all."""
    return value if value is None or isinstance(value, bool) or value in ("", 0) else HIDDEN


def secrets_in(value: object) -> Iterator[str]:
    """The texts of a document of ours that stand where secrets do: they may stand elsewhere too."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key, each in value.items():
            if is_environment(str(key)) or is_secret(str(key)):
                yield from _texts(each)
            elif key != "labels":
                yield from secrets_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from secrets_in(each)
    elif isinstance(value, Secret):
        yield from _texts(value)
    elif isinstance(value, str):
        for user in _USER.findall(value):
            yield from (user, user.partition(":")[2])


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, Secret):
        yield from (value.reveal(), value.reveal().partition("=")[2], value.fingerprint)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield from (value, value.strip())

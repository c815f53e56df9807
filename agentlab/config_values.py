"""Values of settings, checked: what is wrong with one names the file and the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from agentlab.errors import Invalid
from agentlab.settings import SETTINGS
from agentlab.units import parse_duration, parse_size


def size(text: str, key: str, path: Path, *, bare: str) -> int:
    """MiB, 0 for none."""
    try:
        return parse_size(text, bare=bare) if text else 0
    except Invalid as error:
        raise Invalid(f"{path}: {key}: {error.message}", hint=error.hint) from error


def duration(text: str, key: str, path: Path) -> int:
    try:
        return parse_duration(text)
    except Invalid as error:
        raise Invalid(f"{path}: {key}: {error.message}", hint=error.hint) from error


def absolute(text: str, key: str, path: Path) -> Path:
    found = Path(text)
    if not found.is_absolute():
        raise Invalid(f"{path}: {key} must be an absolute path, not {text!r}")
    return found


def one_of(text: Mapping[str, str], key: str, known: tuple[str, ...], path: Path) -> str:
    if text[key] not in known:
        raise Invalid(f"{path}: {key} must be one of {', '.join(known)}, not {text[key]!r}")
    return text[key]


def between(values: Mapping[str, object], key: str, low: int, high: int, path: Path) -> int:
    number = cast(int, values[key])
    if not low <= number <= high:
        raise Invalid(f"{path}: {key} must be from {low} to {high}, not {number}")
    return number


def vmids_of(values: Mapping[str, object], key: str, path: Path) -> range:
    bounds = cast("list[object]", values[key])
    if len(bounds) != 2 or any(type(each) is not int for each in bounds):
        raise Invalid(f"{path}: {key} must be two numbers, like {SETTINGS[key][0]}")
    low, high = cast("list[int]", bounds)
    # Proxmox's own bounds for a VMID
    if not 100 <= low <= high <= 999_999_999:
        raise Invalid(f"{path}: {key} must rise and lie within 100 and 999999999")
    return range(low, high + 1)

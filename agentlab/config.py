"""The settings of the daemon: one YAML file, read once, complete afterwards."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import cast

import yaml

from agentlab.errors import Invalid, NotFound
from agentlab.settings import SETTINGS

DEFAULT_PATH = Path("/etc/agentlab/config.yaml")


@dataclass(frozen=True, slots=True)
class Network:
    """The sandboxes' network; `dns` is used in mode nat."""

    bridge: str
    subnet: IPv4Network
    host: IPv4Address
    dns: tuple[IPv4Address, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, checked."""

    path: Path
    data_dir: Path
    artifact_dir: Path
    bundle_dir: Path
    machine_dir: Path
    template_dir: Path
    socket: Path
    socket_group: str
    profiles_dir: Path
    hypervisor: str
    vmids: range
    workers: int
    network: Network
    guest_port: int
    start: str
    accelerator: str
    retention_days: int


def load(path: Path) -> Config:
    """The settings from a file; NotFound, or Invalid naming file and key."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise NotFound(
            f"cannot read the settings: no file {path}", hint="write one, or name it by --config"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read {path}: {error}") from error
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """The settings from YAML text; what is not said there has its default."""
    given = _typed(flatten(parse_yaml(text, path), SETTINGS, path), path)
    values = {key: given.get(key, default) for key, (default, _) in SETTINGS.items()}
    return _config(values, path)


def parse_yaml(text: str, path: Path) -> Mapping[str, object]:
    """A YAML mapping from text; Invalid names the place.  An empty text is an empty mapping."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise Invalid(f"cannot read {path}{where}: {problem}") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise Invalid(f"cannot read {path}: it must be a mapping of settings")
    return document


def flatten(
    document: Mapping[str, object], table: Mapping[str, tuple[object, str]], path: Path
) -> dict[str, object]:
    """`{"network": {"bridge": b}}` as `{"network.bridge": b}`; Invalid for what the table lacks."""
    groups = {key.partition(".")[0] for key in table if "." in key}
    flat: dict[str, object] = {}
    for key, value in document.items():
        if key in groups:
            if not isinstance(value, dict):
                raise Invalid(f"{path}: {key} must be a mapping")
            flat.update({f"{key}.{inner}": each for inner, each in value.items()})
        else:
            flat[key] = value
    for key in flat:
        if key not in table:
            near = difflib.get_close_matches(key, table, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(table)}"
            raise Invalid(f"{path}: unknown key {key}", hint=hint)
    return flat


def _typed(values: Mapping[str, object], path: Path) -> Mapping[str, object]:
    words = {str: "text", int: "a whole number", list: "a list"}
    for key, value in values.items():
        kind = type(SETTINGS[key][0])
        if type(value) is not kind:
            raise Invalid(f"{path}: {key} must be {words[kind]}")
    return values


def _config(values: Mapping[str, object], path: Path) -> Config:
    text = {key: value for key, value in values.items() if isinstance(value, str)}
    data_dir = _absolute(text["data_dir"], "data_dir", path)
    low, high = _vmids(values["vmid_range"], path)
    return Config(
        path=path,
        data_dir=data_dir,
        artifact_dir=_absolute(
            text["artifact_dir"] or f"{data_dir}/artifacts", "artifact_dir", path
        ),
        bundle_dir=data_dir / "bundles",
        machine_dir=data_dir / "machines",
        template_dir=_absolute(
            text["local.template_dir"] or f"{data_dir}/templates", "local.template_dir", path
        ),
        socket=_absolute(text["socket"], "socket", path),
        socket_group=text["socket_group"],
        profiles_dir=_absolute(text["profiles_dir"], "profiles_dir", path),
        hypervisor=_one_of(text, "hypervisor", ("local",), path),
        vmids=range(low, high + 1),
        workers=_between(values, "workers", 1, 200, path),
        network=_network(values, path),
        guest_port=_between(values, "guest_listener.port", 1, 65535, path),
        start=_one_of(text, "local.start", ("auto", "cold", "memory"), path),
        accelerator=_one_of(text, "local.accelerator", ("auto", "kvm", "tcg"), path),
        retention_days=_between(values, "retention.days", 1, 3650, path),
    )


def _absolute(text: str, key: str, path: Path) -> Path:
    found = Path(text)
    if not found.is_absolute():
        raise Invalid(f"{path}: {key} must be an absolute path, not {text!r}")
    return found


def _one_of(text: Mapping[str, str], key: str, known: tuple[str, ...], path: Path) -> str:
    if text[key] not in known:
        raise Invalid(f"{path}: {key} must be one of {', '.join(known)}, not {text[key]!r}")
    return text[key]


def _between(values: Mapping[str, object], key: str, low: int, high: int, path: Path) -> int:
    number = cast(int, values[key])
    if not low <= number <= high:
        raise Invalid(f"{path}: {key} must be from {low} to {high}, not {number}")
    return number


def _vmids(value: object, path: Path) -> tuple[int, int]:
    bounds = cast("list[object]", value)
    if len(bounds) != 2 or any(type(each) is not int for each in bounds):
        raise Invalid(f"{path}: vmid_range must be two numbers, like [1000, 1999]")
    low, high = cast("list[int]", bounds)
    # Proxmox's own bounds for a VMID
    if not 100 <= low <= high <= 999_999_999:
        raise Invalid(f"{path}: vmid_range must rise and lie within 100 and 999999999")
    return low, high


def _network(values: Mapping[str, object], path: Path) -> Network:
    try:
        subnet = ipaddress.IPv4Network(str(values["network.subnet"]))
        host = IPv4Address(str(values["network.host"]))
        dns = tuple(IPv4Address(str(each)) for each in cast("list[object]", values["network.dns"]))
    except ValueError as error:
        raise Invalid(f"{path}: network: {error}") from error
    if host not in subnet or host in (subnet.network_address, subnet.broadcast_address):
        raise Invalid(f"{path}: network.host {host} is not an address within {subnet}")
    bridge = str(values["network.bridge"])
    if not (bridge.isascii() and bridge.isalnum() and len(bridge) <= 10):
        raise Invalid(f"{path}: network.bridge must be 1 to 10 letters and digits, not {bridge!r}")
    return Network(bridge, subnet, host, dns)

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

from agentlab.config_proxmox import Proxmox, read_proxmox
from agentlab.config_values import absolute, between, duration, one_of, size, vmids_of
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
class Limits:
    """What all sandboxes together may take of this host; 0 is no limit.  Memory in MiB."""

    sandboxes: int = 0
    cores: int = 0
    memory: int = 0


_VOLUMES = range(990_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, checked.  `proxmox` is None unless it is the hypervisor."""

    path: Path
    data_dir: Path
    artifact_dir: Path
    bundle_dir: Path
    machine_dir: Path
    volume_dir: Path
    pvesh_dir: Path
    template_dir: Path
    socket: Path
    socket_group: str
    profiles_dir: Path
    hypervisor: str
    proxmox: Proxmox | None
    vmids: range
    workers: int
    network: Network
    guest_port: int
    start: str
    accelerator: str
    retention_days: int
    limits: Limits = Limits()
    lease_grace: int = 300
    workspace_size: int = 20 << 10  # MiB, of one that is made without being asked how large

    @property
    def volume_numbers(self) -> range:
        """What volumes are numbered by; on Proxmox VMIDs that no VM has."""
        return self.proxmox.volume_vmids if self.proxmox else _VOLUMES


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
    words = {str: "text", int: "a whole number", list: "a list", bool: "true or false"}
    for key, value in values.items():
        kind = type(SETTINGS[key][0])
        if type(value) is not kind:
            raise Invalid(f"{path}: {key} must be {words[kind]}")
    return values


def _config(values: Mapping[str, object], path: Path) -> Config:
    text = {key: value for key, value in values.items() if isinstance(value, str)}
    data_dir = absolute(text["data_dir"], "data_dir", path)
    vmids = vmids_of(values, "vmid_range", path)
    hypervisor = one_of(text, "hypervisor", ("local", "proxmox"), path)
    backend = one_of(text, "proxmox_backend", ("api", "shell"), path)
    return Config(
        path=path,
        data_dir=data_dir,
        artifact_dir=absolute(
            text["artifact_dir"] or f"{data_dir}/artifacts", "artifact_dir", path
        ),
        bundle_dir=data_dir / "bundles",
        machine_dir=data_dir / "machines",
        volume_dir=data_dir / "volumes",
        pvesh_dir=data_dir / "pvesh",
        template_dir=absolute(
            text["local.template_dir"] or f"{data_dir}/templates", "local.template_dir", path
        ),
        socket=absolute(text["socket"], "socket", path),
        socket_group=text["socket_group"],
        profiles_dir=absolute(text["profiles_dir"], "profiles_dir", path),
        hypervisor=hypervisor,
        proxmox=read_proxmox(values, backend, vmids, path) if hypervisor == "proxmox" else None,
        vmids=vmids,
        workers=between(values, "workers", 1, 200, path),
        network=_network(values, path),
        guest_port=between(values, "guest_listener.port", 1, 65535, path),
        start=one_of(text, "local.start", ("auto", "cold", "memory"), path),
        accelerator=one_of(text, "local.accelerator", ("auto", "kvm", "tcg"), path),
        retention_days=between(values, "retention.days", 1, 3650, path),
        limits=Limits(
            sandboxes=between(values, "limits.sandboxes", 0, 100_000, path),
            cores=between(values, "limits.cores", 0, 100_000, path),
            memory=size(text["limits.memory"], "limits.memory", path, bare="M"),
        ),
        lease_grace=duration(text["lease.grace"], "lease.grace", path),
        workspace_size=size(text["workspace.size"], "workspace.size", path, bare="G"),
    )


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

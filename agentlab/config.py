"""The settings of the daemon: one YAML file, read once, complete afterwards."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import yaml

from agentlab.errors import Invalid, NotFound
from agentlab.secret import Secret
from agentlab.settings import SETTINGS
from agentlab.units import parse_duration, parse_size

DEFAULT_PATH = Path("/etc/agentlab/config.yaml")
PVE = Path("/etc/pve")  # pmxcfs: there on a Proxmox VE host, and nowhere else

_GUIDE = "see docs/how-to/proxmox.md"
_TOKEN = re.compile(r"[^\s@!=]+@[^\s@!=]+![A-Za-z][A-Za-z0-9._-]+=[^\s=]+")
# PVE::JSONSchema: pve-node, pve-poolid, pve-storage-id
_NODE = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_POOL = r"([A-Za-z0-9._-]+/){0,2}[A-Za-z0-9._-]+"
_STORAGE = r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]"
_FINGERPRINT = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){31}")


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


@dataclass(frozen=True, slots=True)
class Proxmox:
    """How to reach Proxmox VE and what to use of it.

    `token` is None with the backend `shell`.  `ca_file` None: the system's certificates.
    """

    backend: str
    url: str
    token: Secret | None
    ca_file: Path | None
    fingerprint: str
    insecure: bool
    node: str
    pool: str
    storage: str
    full_clone: bool
    template_vmid: int
    volume_vmids: range
    tasks_per_node: int
    clones_per_template: int
    clones_per_storage: int


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
    data_dir = _absolute(text["data_dir"], "data_dir", path)
    vmids = _vmids(values, "vmid_range", path)
    hypervisor = _one_of(text, "hypervisor", ("local", "proxmox"), path)
    backend = _one_of(text, "proxmox_backend", ("api", "shell"), path)
    return Config(
        path=path,
        data_dir=data_dir,
        artifact_dir=_absolute(
            text["artifact_dir"] or f"{data_dir}/artifacts", "artifact_dir", path
        ),
        bundle_dir=data_dir / "bundles",
        machine_dir=data_dir / "machines",
        volume_dir=data_dir / "volumes",
        pvesh_dir=data_dir / "pvesh",
        template_dir=_absolute(
            text["local.template_dir"] or f"{data_dir}/templates", "local.template_dir", path
        ),
        socket=_absolute(text["socket"], "socket", path),
        socket_group=text["socket_group"],
        profiles_dir=_absolute(text["profiles_dir"], "profiles_dir", path),
        hypervisor=hypervisor,
        proxmox=_proxmox(values, backend, vmids, path) if hypervisor == "proxmox" else None,
        vmids=vmids,
        workers=_between(values, "workers", 1, 200, path),
        network=_network(values, path),
        guest_port=_between(values, "guest_listener.port", 1, 65535, path),
        start=_one_of(text, "local.start", ("auto", "cold", "memory"), path),
        accelerator=_one_of(text, "local.accelerator", ("auto", "kvm", "tcg"), path),
        retention_days=_between(values, "retention.days", 1, 3650, path),
        limits=Limits(
            sandboxes=_between(values, "limits.sandboxes", 0, 100_000, path),
            cores=_between(values, "limits.cores", 0, 100_000, path),
            memory=_size(text["limits.memory"], "limits.memory", path, bare="M"),
        ),
        lease_grace=_duration(text["lease.grace"], "lease.grace", path),
        workspace_size=_size(text["workspace.size"], "workspace.size", path, bare="G"),
    )


def _size(text: str, key: str, path: Path, *, bare: str) -> int:
    """MiB, 0 for none."""
    try:
        return parse_size(text, bare=bare) if text else 0
    except Invalid as error:
        raise Invalid(f"{path}: {key}: {error.message}", hint=error.hint) from error


def _duration(text: str, key: str, path: Path) -> int:
    try:
        return parse_duration(text)
    except Invalid as error:
        raise Invalid(f"{path}: {key}: {error.message}", hint=error.hint) from error


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


def _vmids(values: Mapping[str, object], key: str, path: Path) -> range:
    bounds = cast("list[object]", values[key])
    if len(bounds) != 2 or any(type(each) is not int for each in bounds):
        raise Invalid(f"{path}: {key} must be two numbers, like {SETTINGS[key][0]}")
    low, high = cast("list[int]", bounds)
    # Proxmox's own bounds for a VMID
    if not 100 <= low <= high <= 999_999_999:
        raise Invalid(f"{path}: {key} must rise and lie within 100 and 999999999")
    return range(low, high + 1)


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


def _proxmox(values: Mapping[str, object], backend: str, vmids: range, path: Path) -> Proxmox:
    text = {key: value for key, value in values.items() if isinstance(value, str)}
    volume_vmids = _vmids(values, "proxmox.volume_vmids", path)
    if volume_vmids.start < vmids.stop and vmids.start < volume_vmids.stop:
        raise Invalid(
            f"{path}: proxmox.volume_vmids overlaps vmid_range",
            hint="volumes need VMIDs of their own: destroying a VM takes along what has its VMID",
        )
    template = _between(values, "proxmox.template_vmid", 100, 999_999_999, path)
    if template in vmids or template in volume_vmids:
        which = "vmid_range" if template in vmids else "proxmox.volume_vmids"
        raise Invalid(f"{path}: proxmox.template_vmid {template} lies in {which}")
    insecure = bool(values["proxmox.insecure"])
    fingerprint = _fingerprint(text["proxmox.fingerprint"], path)
    given = [key for key in ("ca_file", "fingerprint", "insecure") if values[f"proxmox.{key}"]]
    if len(given) > 1:
        raise Invalid(
            f"{path}: proxmox.{given[0]} and proxmox.{given[-1]} exclude each other",
            hint=f"say in one way which certificate to trust: take proxmox.{given[-1]} out",
        )
    return Proxmox(
        backend=backend,
        url=_url(text["proxmox.url"], path),
        token=_token(text["proxmox.token_file"], path) if backend == "api" else None,
        ca_file=_ca_file(text["proxmox.ca_file"], fingerprint, insecure, path),
        fingerprint=fingerprint,
        insecure=insecure,
        node=_node(text["proxmox.node"], path),
        pool=_matching(text, "proxmox.pool", _POOL, "a pool", path),
        storage=_matching(text, "proxmox.storage", _STORAGE, "a storage", path),
        full_clone=bool(values["proxmox.full_clone"]),
        template_vmid=template,
        volume_vmids=volume_vmids,
        tasks_per_node=_between(values, "proxmox.tasks_per_node", 1, 100, path),
        clones_per_template=_between(values, "proxmox.clones_per_template", 1, 100, path),
        clones_per_storage=_between(values, "proxmox.clones_per_storage", 1, 100, path),
    )


def _matching(text: Mapping[str, str], key: str, pattern: str, what: str, path: Path) -> str:
    if text[key] and not re.fullmatch(pattern, text[key]):
        raise Invalid(f"{path}: {key} is not the name of {what}: {text[key]!r}")
    return text[key]


def _url(text: str, path: Path) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme == "https" and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or parts.username or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise Invalid(
            f"{path}: proxmox.url must be like https://localhost:8006, and nothing behind it"
        )
    return text.rstrip("/")


def _fingerprint(text: str, path: Path) -> str:
    found = text.upper()
    if found and not _FINGERPRINT.fullmatch(found):
        raise Invalid(
            f"{path}: proxmox.fingerprint must be 32 hexadecimal pairs with colons (SHA-256)",
            hint="openssl x509 -noout -fingerprint -sha256 -in /etc/pve/local/pve-ssl.pem",
        )
    return found


def _ca_file(text: str, fingerprint: str, insecure: bool, path: Path) -> Path | None:
    if text:
        found = _absolute(text, "proxmox.ca_file", path)
        if not found.is_file():
            raise Invalid(
                f"{path}: proxmox.ca_file: there is no file {found}",
                hint="on a Proxmox host it is /etc/pve/pve-root-ca.pem",
            )
        return found
    own = PVE / "pve-root-ca.pem"
    return own if not (fingerprint or insecure) and own.is_file() else None


def _node(text: str, path: Path) -> str:
    """The name of the node that we are on: only there are the rules that fence sandboxes."""
    here = os.uname().nodename.partition(".")[0] if PVE.is_dir() else ""
    if text and not re.fullmatch(_NODE, text):
        raise Invalid(f"{path}: proxmox.node is not the name of a node: {text!r}")
    if here and text not in ("", here):
        raise Invalid(
            f"{path}: proxmox.node is {text}, and this host is {here}",
            hint="agentlabd fences sandboxes on its own host only: "
            f"run it on {text}, or take proxmox.node out",
        )
    if not (text or here):
        raise Invalid(
            f"{path}: hypervisor is proxmox, and this host is no Proxmox VE node: no {PVE}",
            hint="run agentlabd on the Proxmox host itself, or choose `hypervisor: local`",
        )
    return text or here


def _token(text: str, path: Path) -> Secret:
    """The API token; refused when others could have read it."""
    where = _absolute(text, "proxmox.token_file", path)
    begin = f"{path}: proxmox.token_file:"
    try:
        with where.open(encoding="ascii") as file:
            found = os.fstat(file.fileno())
            token = file.read(4096).strip()
    except FileNotFoundError as error:
        raise Invalid(
            f"{begin} there is no file {where}",
            hint="make a token with `pveum user token add` and write it there "
            f"({_GUIDE}), or set `proxmox_backend: shell` and run as root",
        ) from error
    except (OSError, ValueError) as error:
        raise Invalid(f"{begin} cannot read {where}: {error}") from error
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise Invalid(
            f"{begin} {where} is open to other users (mode {stat.S_IMODE(found.st_mode):04o})",
            hint=f"chmod 600 {where}; and if others use this host, make a new token",
        )
    if found.st_uid not in (0, os.geteuid()):
        raise Invalid(
            f"{begin} {where} belongs to another user (uid {found.st_uid})",
            hint=f"chown root: {where}",
        )
    if not _TOKEN.fullmatch(token):
        raise Invalid(
            f"{begin} {where} must hold one line USER@REALM!NAME=SECRET",
            hint=f"`pveum user token add` prints NAME and SECRET; {_GUIDE}",
        )
    return Secret(token)

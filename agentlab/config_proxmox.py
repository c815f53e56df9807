"""The settings of Proxmox VE: where it is, how it is spoken to, and what of it is ours."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agentlab.config_values import absolute, between, vmids_of
from agentlab.errors import Invalid
from agentlab.secret import Secret

PVE = Path("/etc/pve")  # pmxcfs: there on a Proxmox VE host, and nowhere else

_GUIDE = "see docs/how-to/proxmox.md"
_TOKEN = re.compile(r"[^\s@!=]+@[^\s@!=]+![A-Za-z][A-Za-z0-9._-]+=[^\s=]+")
# PVE::JSONSchema: pve-node, pve-poolid, pve-storage-id
_NODE = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_POOL = r"([A-Za-z0-9._-]+/){0,2}[A-Za-z0-9._-]+"
_STORAGE = r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]"
_FINGERPRINT = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){31}")


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


def read_proxmox(values: Mapping[str, object], backend: str, vmids: range, path: Path) -> Proxmox:
    text = {key: value for key, value in values.items() if isinstance(value, str)}
    volume_vmids = vmids_of(values, "proxmox.volume_vmids", path)
    if volume_vmids.start < vmids.stop and vmids.start < volume_vmids.stop:
        raise Invalid(
            f"{path}: proxmox.volume_vmids overlaps vmid_range",
            hint="volumes need VMIDs of their own: destroying a VM takes along what has its VMID",
        )
    template = between(values, "proxmox.template_vmid", 100, 999_999_999, path)
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
        tasks_per_node=between(values, "proxmox.tasks_per_node", 1, 100, path),
        clones_per_template=between(values, "proxmox.clones_per_template", 1, 100, path),
        clones_per_storage=between(values, "proxmox.clones_per_storage", 1, 100, path),
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
        found = absolute(text, "proxmox.ca_file", path)
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
    where = absolute(text, "proxmox.token_file", path)
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

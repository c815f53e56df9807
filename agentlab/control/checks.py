"""What `agentlab init` looks at: this host and what AgentLab needs of it.  Nothing is changed."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from agentlab.errors import AgentLabError, Denied, Invalid, NotFound, Unsupported
from agentlab.hypervisor.base import CheckResult, CheckStatus
from agentlab.model.profile import NetworkMode
from agentlab.operations.context import World

_log = logging.getLogger(__name__)
_CONNECT = 2.0
_ROOM = 2 << 30  # bytes that a first job can need: an image, a disk, artifacts
_KVM = Path("/dev/kvm")
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")

_OK, _MISSING, _ERROR, _SKIPPED = (
    CheckStatus.OK, CheckStatus.MISSING, CheckStatus.ERROR, CheckStatus.SKIPPED,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Named:
    """A result and the stable name of its check."""

    name: str
    result: CheckResult


def _bridge(world: World) -> CheckResult:
    network = world.config.network
    interface = f"{network.host}/{network.subnet.prefixlen}"
    remedy = (
        f"in /etc/network/interfaces, then `ifreload -a`:\nauto {network.bridge}\n"
        f"iface {network.bridge} inet static\n  address {interface}\n"
        "  bridge-ports none\n  bridge-stp off\n  bridge-fd 0"
    )
    try:
        ours = world.fence.look_at_bridge()
    except NotFound as absent:
        by_us = "agentlabd makes it when it starts, as root: see `journalctl -u agentlabd`"
        return CheckResult(_MISSING, absent.message, remedy if world.config.proxmox else by_us)
    if ours and world.config.proxmox:
        detail = f"agentlabd made {network.bridge} itself, and Proxmox does not list such a one"
        return CheckResult(_MISSING, detail, remedy)
    whose = "made by agentlabd" if ours else "the administrator's own"
    return CheckResult(_OK, f"{network.bridge} has {interface}; it is {whose}")


def _ip_forward(world: World) -> CheckResult:
    modes = {each.profile.network for each in world.profiles() if each.profile is not None}
    if _FORWARD.read_text("ascii").strip() == "1":
        return CheckResult(_OK, "on")
    if NetworkMode.NAT not in modes:
        return CheckResult(_SKIPPED, "off, and no profile has `network: nat`, which needs it")
    if os.access(_FORWARD, os.W_OK):
        return CheckResult(_OK, "off; agentlabd switches it on with the first `nat` sandbox")
    return CheckResult(
        _MISSING, "off, and agentlabd may not change it", "sysctl -w net.ipv4.ip_forward=1"
    )


def _nftables(world: World) -> CheckResult:
    try:
        admitted = world.fence.look_at_rules()
    except Unsupported as absent:
        return CheckResult(_MISSING, absent.message, "apt install nftables")
    except NotFound as absent:
        remedy = "agentlabd puts them up when it starts, as root: see `journalctl -u agentlabd`"
        return CheckResult(_MISSING, absent.message, remedy)
    return CheckResult(_OK, f"the rules are in place, for {admitted} sandboxes")


def _guest_listener(world: World) -> CheckResult:
    where = (str(world.config.network.host), world.config.guest_port)
    try:
        socket.create_connection(where, _CONNECT).close()
    except OSError as error:
        detail = f"nothing answers on {where[0]}:{where[1]}: {error.strerror or error}"
        remedy = (
            f"another firewall on this host must let {world.config.network.bridge} reach TCP "
            f"{where[1]}; see `journalctl -u agentlabd`"
        )
        return CheckResult(_ERROR, detail, remedy)
    return CheckResult(_OK, f"{where[0]}:{where[1]} answers on this host")


def _profiles(world: World) -> CheckResult:
    found = world.profiles()
    folder = world.config.profiles_dir
    if not found:
        return CheckResult(_MISSING, f"no profile in {folder}", f"write one: {folder}/NAME.yaml")
    broken = [each for each in found if each.profile is None]
    if broken:
        said = "; ".join(f"{each.name}: {each.problem}" for each in broken)
        return CheckResult(_ERROR, said, f"mend {broken[0].path}")
    return CheckResult(_OK, ", ".join(each.name for each in found))


def _template(world: World) -> CheckResult:
    """Each template that a profile names must be there and ready."""
    profiles = [each.profile for each in world.profiles() if each.profile is not None]
    wanted = sorted({each.template for each in profiles})
    known = {each.name: each for each in world.hypervisor.templates()}
    for name in wanted:
        build = f"agentlab template build {name}"
        if world.config.proxmox is not None:
            try:
                report = world.check_template(name)  # by VMID, too
            except NotFound as absent:
                return CheckResult(
                    _MISSING, absent.message, f"{build} (see docs/how-to/template.md)"
                )
            lacks = [each for each in report.findings if each.needed]
            if lacks:
                said = "; ".join(each.problem for each in lacks)
                return CheckResult(_MISSING, f"{name}: {said}", lacks[0].remedy)
            continue
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            return CheckResult(_MISSING, f"there is no template {name}; there are: {there}", build)
        if not known[name].ready:
            return CheckResult(_MISSING, known[name].detail or f"{name} is not ready", build)
    if not wanted:
        return CheckResult(_SKIPPED, "no profile names one")
    told = (f"{name}: {known[name].detail}" if name in known else name for name in wanted)
    return CheckResult(_OK, "; ".join(told))


def _storage(world: World) -> CheckResult:
    folder = world.config.data_dir
    free = shutil.disk_usage(folder).free
    text = f"{free / (1 << 30):.1f} GiB are free under {folder}"
    if free < _ROOM:
        return CheckResult(
            _ERROR, text, f"make room, or set data_dir to a larger disk: {_ROOM >> 30} GiB"
        )
    return CheckResult(_OK, text)


def _kvm(world: World) -> CheckResult:
    if world.config.proxmox is None and world.config.accelerator == "tcg":
        return CheckResult(_SKIPPED, "local.accelerator is tcg")
    if not _KVM.exists():
        return CheckResult(
            _MISSING, f"there is no {_KVM}: virtual machines run several times slower",
            "switch virtualisation on in the firmware, or in the VM that this host is: "
            "CPU type `host`",
        )  # fmt: skip
    return CheckResult(_OK, f"{_KVM} is there")


def _workspaces(world: World) -> CheckResult:
    """They are no duty: where there can be none, or not all of it, this is no fault of the host."""
    try:
        world.hypervisor.check_storage()
    except (Denied, Invalid, NotFound, Unsupported) as lacks:
        return CheckResult(_SKIPPED, f"there can be none: {lacks.message}", lacks.hint)
    try:
        world.hypervisor.check_storage(tools=True)
    except (Denied, Unsupported) as lacks:
        detail = f"without snapshots, forks and growth: {lacks.message}"
        return CheckResult(_SKIPPED, detail, lacks.hint)
    return CheckResult(_OK, "there can be some, with snapshots, forks and growth")


def _not_proxmox(world: World) -> CheckResult:
    hint = "set `hypervisor: proxmox` to use it" if Path("/etc/pve").is_dir() else ""
    return CheckResult(_SKIPPED, f"hypervisor is {world.config.hypervisor}", hint)


Check = Callable[[World], CheckResult]
# In the order in which they build on each other.  Those of the hypervisor take their places.
CHECKS: Mapping[str, Check] = {
    "bridge": _bridge,  # its name is added: bridge_vmbr1
    "ip_forward": _ip_forward,
    "nftables": _nftables,
    "proxmox_api": _not_proxmox,
    "token_privileges": _not_proxmox,
    "template": _template,
    "profiles": _profiles,
    "storage": _storage,
    "workspaces": _workspaces,
    "guest_listener": _guest_listener,
    "kvm": _kvm,
}


def look(world: World) -> list[Named]:
    """All checks, at the same time; one that fails is an error, with the sentence."""
    names = list(dict.fromkeys((*CHECKS, *world.checks)))
    with ThreadPoolExecutor(len(names), thread_name_prefix="check") as pool:
        results = pool.map(lambda name: _ask(world, name), names)
        return [
            Named(f"bridge_{world.config.network.bridge}" if name == "bridge" else name, result)
            for name, result in zip(names, results, strict=True)
        ]


def _ask(world: World, name: str) -> CheckResult:
    try:
        return world.checks[name]() if name in world.checks else CHECKS[name](world)
    except AgentLabError as error:
        return CheckResult(_ERROR, error.message, error.hint)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what the check has found
        _log.warning("check %s failed", name, exc_info=error)
        return CheckResult(_ERROR, f"{type(error).__name__}: {error}")

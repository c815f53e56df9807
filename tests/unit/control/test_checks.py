"""What each check says of a host that is in order, and of one that is not."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentlab.control import checks
from agentlab.errors import AgentLabError, Conflict, Denied, NotFound, Unavailable, Unsupported
from agentlab.hypervisor.base import CheckResult, CheckStatus, Template
from agentlab.model.profile import NetworkMode

OK, MISSING, ERROR, SKIPPED = (
    CheckStatus.OK, CheckStatus.MISSING, CheckStatus.ERROR, CheckStatus.SKIPPED,
)  # fmt: skip


@dataclass
class Fence:
    bridge: bool | Exception = True
    rules: int | Exception = 3

    def look_at_bridge(self) -> bool:
        if isinstance(self.bridge, Exception):
            raise self.bridge
        return self.bridge

    def look_at_rules(self) -> int:
        if isinstance(self.rules, Exception):
            raise self.rules
        return self.rules


@dataclass
class World:
    """Only what checks look at."""

    config: Any
    fence: Fence = field(default_factory=Fence)
    found: list[Any] = field(default_factory=list)
    templates: list[Template] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)
    volumes: AgentLabError | None = None  # why there can be none
    tools: AgentLabError | None = None  # why there is no more than making and removing them

    def profiles(self) -> list[Any]:
        return self.found

    @property
    def hypervisor(self) -> Any:
        return SimpleNamespace(templates=lambda: self.templates, check_storage=self.check_storage)

    def check_storage(self, storage: str = "", *, tools: bool = False) -> None:
        lacks = self.volumes or (self.tools if tools else None)
        if storage == "" and lacks is not None:
            raise lacks


def profile(name: str, *, mode: NetworkMode = NetworkMode.NAT, problem: str = "") -> Any:
    inner = None if problem else SimpleNamespace(network=mode, template="debian-12")
    return SimpleNamespace(name=name, path=Path(f"/p/{name}.yaml"), profile=inner, problem=problem)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("_KVM", "_FORWARD"):
        monkeypatch.setattr(checks, name, tmp_path / name)
    (tmp_path / "_KVM").touch()
    (tmp_path / "_FORWARD").write_text("1\n")
    network = SimpleNamespace(
        bridge="vmbr1", host=IPv4Address("127.0.0.1"), subnet=IPv4Network("127.0.0.0/8")
    )
    config = SimpleNamespace(
        network=network, guest_port=1, profiles_dir=Path("/p"), data_dir=tmp_path, proxmox=None,
        hypervisor="local", accelerator="auto",
    )  # fmt: skip
    return World(config, found=[profile("demo")], templates=[Template("debian-12", True, "key a")])


def asked(world: World, name: str) -> CheckResult:
    found = {each.name: each.result for each in checks.look(world)}  # type: ignore[arg-type]
    return found[name]


def test_a_host_that_is_in_order(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        world.config.guest_port = server.getsockname()[1]
        found = {each.name: each.result for each in checks.look(world)}  # type: ignore[arg-type]
    bad = {name: each for name, each in found.items() if each.status not in (OK, SKIPPED)}
    assert bad == {}
    assert list(found) == [
        "bridge_vmbr1", "ip_forward", "nftables", "proxmox_api", "token_privileges", "template",
        "profiles", "storage", "workspaces", "guest_listener", "kvm",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bridge", "proxmox", "status", "words"),
    [
        (True, False, OK, "made by agentlabd"),
        (False, True, OK, "the administrator's own"),
        (NotFound("there is no bridge vmbr1"), False, MISSING, "agentlabd makes it"),
        (NotFound("there is no bridge vmbr1"), True, MISSING, "bridge-ports none"),
        (True, True, MISSING, "/etc/network/interfaces"),
        (Conflict("it has 10.66.0.1/16", hint="choose another"), True, ERROR, "choose another"),
    ],
)
def test_the_bridge(
    world: World, bridge: bool | Exception, proxmox: bool, status: CheckStatus, words: str
) -> None:
    world.fence.bridge = bridge
    world.config.proxmox = object() if proxmox else None
    found = asked(world, "bridge_vmbr1")
    assert found.status is status
    assert words in f"{found.detail} {found.remedy}"


@pytest.mark.parametrize(
    ("rules", "status", "words"),
    [
        (0, OK, "for 0 sandboxes"),
        (NotFound("there is no nftables table"), MISSING, "journalctl -u agentlabd"),
        (Unsupported("cannot run nft: not installed"), MISSING, "apt install nftables"),
        (Unavailable("not as asked", hint="nft list ruleset"), ERROR, "nft list ruleset"),
    ],
)
def test_the_rules(world: World, rules: int | Exception, status: CheckStatus, words: str) -> None:
    world.fence.rules = rules
    found = asked(world, "nftables")
    assert found.status is status
    assert words in f"{found.detail} {found.remedy}"


def test_forwarding_matters_for_nat_only(world: World, tmp_path: Path) -> None:
    (tmp_path / "_FORWARD").write_text("0\n")
    assert asked(world, "ip_forward").status is OK  # agentlabd may switch it on
    world.found = [profile("demo", mode=NetworkMode.OFF)]
    assert asked(world, "ip_forward").status is SKIPPED
    (tmp_path / "_FORWARD").unlink()
    assert asked(world, "ip_forward").status is ERROR


def test_profiles_and_the_templates_that_they_name(world: World) -> None:
    world.templates = []
    found = asked(world, "template")
    assert (found.status, found.remedy) == (MISSING, "agentlab template build debian-12")
    world.templates = [Template("debian-12", False, "no disk")]
    assert asked(world, "template").detail == "no disk"
    world.found = [profile("bad", problem="cores must be a number")]
    assert asked(world, "template").status is SKIPPED
    assert asked(world, "profiles").detail == "bad: cores must be a number"
    world.found = []
    assert asked(world, "profiles").status is MISSING


def test_what_is_not_there(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_KVM").unlink()
    assert asked(world, "kvm").status is MISSING
    world.config.accelerator = "tcg"
    assert asked(world, "kvm").status is SKIPPED
    assert asked(world, "guest_listener").status is ERROR
    monkeypatch.setattr(checks, "_ROOM", 1 << 60)
    assert asked(world, "storage").status is ERROR


def test_workspaces_are_no_duty(world: World) -> None:
    assert asked(world, "workspaces").status is OK
    world.tools = Unsupported("storage ceph cannot snapshot", hint="use another")
    found = asked(world, "workspaces")
    assert (found.status, found.remedy) == (SKIPPED, "use another")
    assert found.detail == "without snapshots, forks and growth: storage ceph cannot snapshot"
    world.volumes = Denied("the token lacks Datastore.Allocate on /storage/x", hint="grant it")
    found = asked(world, "workspaces")
    assert (found.status, found.remedy) == (SKIPPED, "grant it")
    assert "there can be none: the token lacks Datastore.Allocate" in found.detail
    world.volumes = Unavailable("Proxmox does not answer")
    assert asked(world, "workspaces").status is ERROR


def test_a_hypervisors_own_checks_take_their_places(world: World) -> None:
    def fails() -> CheckResult:
        raise Unavailable("cannot connect", hint="is it on?")

    world.checks = {
        "proxmox_api": fails,
        "storage": lambda: CheckResult(OK, "local on node pve"),
        "qemu": lambda: CheckResult(OK, "QEMU 7.2"),
    }
    assert asked(world, "proxmox_api") == CheckResult(ERROR, "cannot connect", "is it on?")
    assert asked(world, "storage").detail == "local on node pve"
    assert asked(world, "qemu").status is OK


def test_whatever_a_check_raises_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def breaks() -> CheckResult:
        raise ZeroDivisionError("by zero")

    world.checks = {"proxmox_api": breaks}
    found = asked(world, "proxmox_api")
    assert (found.status, found.detail) == (ERROR, "ZeroDivisionError: by zero")
    assert "check proxmox_api failed" in caplog.text

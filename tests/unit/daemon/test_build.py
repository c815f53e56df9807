"""What is built from the settings, and what is not even loaded for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentlab import config, config_proxmox
from agentlab.daemon import build
from agentlab.errors import Invalid, NotFound, Unsupported
from agentlab.hypervisor.base import TemplateOrder
from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
from agentlab.hypervisor.proxmox.rest import RestTransport
from agentlab.store.db import Store

TOKEN = "agentlab@pve!daemon=01234567-89ab-cdef-0123-456789abcdef"
SETTINGS = """
data_dir: {folder}
hypervisor: proxmox
proxmox_backend: {backend}
vmid_range: [2000, 2099]
proxmox:
  token_file: {folder}/token
  node: pve1
  pool: lab
  storage: fast
  full_clone: true
  tasks_per_node: 9
"""


def parsed(folder: Path, backend: str) -> config.Config:
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    text = SETTINGS.format(folder=folder, backend=backend)
    return config.parse(text, folder / "config.yaml")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config_proxmox, "PVE", tmp_path / "no-pve")


@pytest.mark.parametrize("backend", ["api", "shell"])
def test_proxmox_by_either_way(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.os, "geteuid", lambda: 0)
    store = Store(tmp_path / "agentlab.db")
    world = build.build_world(parsed(tmp_path, backend), store)
    assert isinstance(world.hypervisor, ProxmoxHypervisor)
    assert world.hypervisor.capabilities.makes_taps
    assert not world.fence._settings.own_taps
    assert {"proxmox_api", "token_privileges", "storage"} == set(world.checks)
    with pytest.raises(NotFound) as unknown:
        world.build_template(TemplateOrder("debian-11"), print)
    assert unknown.value.hint == "did you mean debian-12?"
    store.close()


def test_the_settings_arrive(tmp_path: Path) -> None:
    made = build.TRANSPORTS["api"](parsed(tmp_path, "api"))
    assert isinstance(made, RestTransport)
    assert made.name == "api"


def test_the_shell_is_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.os, "geteuid", lambda: 1000)
    settings = parsed(tmp_path, "shell")
    with pytest.raises(Invalid, match="for root alone"):
        build.TRANSPORTS["shell"](settings)


def test_local_templates_are_of_the_recipe_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "agentlab.db")
    world = build.build_world(config.parse(f"data_dir: {tmp_path}\n", tmp_path / "c"), store)
    with pytest.raises(Unsupported, match="for Proxmox"):
        world.build_template(TemplateOrder("debian-12", image="/a.qcow2"), print)
    with pytest.raises(NotFound):
        world.check_template("debian-11")
    (lacks,) = world.check_template("debian-12").findings
    assert (lacks.problem, lacks.remedy) == ("it is not built", "agentlab template build")
    store.close()


def test_a_local_installation_loads_nothing_of_proxmox(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
import agentlab.daemon.main
from agentlab import config
from agentlab.daemon.build import build_world
from agentlab.store.db import Store
folder = Path(sys.argv[1])
world = build_world(config.parse(f"data_dir: {folder}", folder / "c"), Store(folder / "a.db"))
assert type(world.hypervisor).__name__ == "LocalHypervisor" and world.fence._settings.own_taps
wrong = {"requests", "proxmoxer", "urllib3", "agentlab.hypervisor.proxmox"} & set(sys.modules)
assert not wrong, wrong
"""
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=True, cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip

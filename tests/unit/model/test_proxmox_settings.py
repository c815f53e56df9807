"""The settings of `hypervisor: proxmox`, and how a wrong one is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentlab import config, config_proxmox
from agentlab.config import Config
from agentlab.config_proxmox import Proxmox
from agentlab.errors import Invalid

TOKEN = "agentlab@pve!daemon=01234567-89ab-cdef-0123-456789abcdef"
FINGERPRINT = ":".join(["aB"] * 32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with /etc/pve (its CA too) and a token."""
    pve = tmp_path / "pve"
    pve.mkdir()
    (pve / "pve-root-ca.pem").write_text("")
    monkeypatch.setattr(config_proxmox, "PVE", pve)
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    return tmp_path


def parsed(folder: Path, text: str = "", top: str = "") -> Config:
    lines = ["hypervisor: proxmox", top, "proxmox:", f"  token_file: {folder}/token"]
    body = "\n".join([*lines, *(f"  {line}" for line in text.splitlines())]) + "\n"
    return config.parse(body, folder / "config.yaml")


def proxmox(folder: Path, text: str = "", top: str = "") -> Proxmox:
    found = parsed(folder, text, top).proxmox
    assert found is not None
    return found


def test_the_defaults_are_those_of_a_proxmox_host(folder: Path) -> None:
    found = proxmox(folder)
    assert (found.backend, found.url) == ("api", "https://localhost:8006")
    assert found.ca_file == folder / "pve/pve-root-ca.pem"
    assert found.node == os.uname().nodename.partition(".")[0]
    assert (found.volume_vmids.start, found.volume_vmids.stop) == (990000, 991000)
    assert found.token is not None
    assert found.token.reveal() == TOKEN
    assert TOKEN not in repr(found)


def test_without_proxmox_nothing_of_it_need_be_there(tmp_path: Path) -> None:
    assert config.parse("proxmox: {token_file: /nowhere}", tmp_path / "config.yaml").proxmox is None


def test_the_shell_needs_no_token(folder: Path) -> None:
    (folder / "token").unlink()
    found = proxmox(folder, top="proxmox_backend: shell")
    assert (found.backend, found.token) == ("shell", None)


def test_a_fingerprint_stands_instead_of_the_ca(folder: Path) -> None:
    found = proxmox(folder, f"fingerprint: '{FINGERPRINT}'")
    assert (found.fingerprint, found.ca_file) == (FINGERPRINT.upper(), None)
    assert proxmox(folder, "insecure: true").ca_file is None
    (folder / "pve/pve-root-ca.pem").unlink()
    assert proxmox(folder).ca_file is None


def test_a_node_is_named_only_where_there_is_no_proxmox(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.uname().nodename.partition(".")[0]
    assert proxmox(folder, f"node: {here}").node == here
    with pytest.raises(Invalid, match="fences sandboxes") as refused:
        config_hint(folder, "node: another")
    monkeypatch.setattr(config_proxmox, "PVE", folder / "nothing")
    assert proxmox(folder, "node: pve1").node == "pve1"
    with pytest.raises(Invalid, match="no Proxmox VE node"):
        proxmox(folder)
    assert "proxmox.node" in str(refused.value)


def config_hint(folder: Path, text: str) -> None:
    """Raises with the hint in the message, to look at both."""
    try:
        proxmox(folder, text)
    except Invalid as refused:
        raise Invalid(f"{refused.message} {refused.hint}") from refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("insecure: 'yes'", "proxmox.insecure must be true or false"),
        ("insecure: 1", "proxmox.insecure must be true or false"),
        ("insecure: true\nca_file: /etc/x", "take proxmox.insecure out"),
        (f"insecure: true\nfingerprint: '{FINGERPRINT}'", "take proxmox.insecure out"),
        (f"ca_file: /etc/x\nfingerprint: '{FINGERPRINT}'", "take proxmox.fingerprint out"),
        ("url: http://localhost:8006", "proxmox.url"),
        ("url: https://localhost:8006/api2/json", "proxmox.url"),
        ("url: https://root@localhost:8006", "proxmox.url"),
        ("url: https://localhost:x", "proxmox.url"),
        ("fingerprint: 'AB:CD'", "openssl x509"),
        ("ca_file: /nowhere/ca.pem", "/etc/pve/pve-root-ca.pem"),
        ("ca_file: ca.pem", "absolute"),
        ("node: 'a b'", "proxmox.node is not"),
        ("pool: 'a b'", "proxmox.pool is not the name of a pool"),
        ("storage: '-x'", "proxmox.storage is not the name of a storage"),
        ("template_vmid: 1500", "proxmox.template_vmid 1500 lies in vmid_range"),
        ("template_vmid: 990001", "lies in proxmox.volume_vmids"),
        ("template_vmid: 9", "proxmox.template_vmid must be from 100"),
        ("volume_vmids: [1900, 2100]", "overlaps vmid_range"),
        ("volume_vmids: [500]", "proxmox.volume_vmids must be two numbers"),
        ("tasks_per_node: 0", "proxmox.tasks_per_node must be from 1"),
        ("clones_per_template: 0", "proxmox.clones_per_template must be from 1"),
        ("clones_per_storage: 999", "proxmox.clones_per_storage must be from 1"),
        ("tokenfile: /x", "did you mean proxmox.token_file"),
    ],
)
def test_a_wrong_setting_is_told_with_its_name(folder: Path, text: str, words: str) -> None:
    with pytest.raises(Invalid) as refused:
        proxmox(folder, text)
    assert words in f"{refused.value.message} {refused.value.hint}"
    assert str(folder / "config.yaml") in refused.value.message


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602])
def test_a_token_that_others_can_read_is_refused_with_the_remedy(folder: Path, mode: int) -> None:
    (folder / "token").chmod(mode)
    with pytest.raises(Invalid, match=r"proxmox\.token_file") as refused:
        proxmox(folder)
    assert f"chmod 600 {folder}/token" in refused.value.hint
    assert TOKEN not in refused.value.message


def test_a_missing_token_says_how_to_make_one(folder: Path) -> None:
    (folder / "token").unlink()
    with pytest.raises(Invalid, match="there is no file") as refused:
        proxmox(folder)
    assert "pveum user token add" in refused.value.hint


@pytest.mark.parametrize(
    "text", ["", "secret", TOKEN.replace("!", ""), f"{TOKEN}\n{TOKEN}", "\xff"]
)
def test_what_is_no_token_is_refused_and_not_shown(folder: Path, text: str) -> None:
    (folder / "token").write_bytes(text.encode("latin-1"))
    with pytest.raises(Invalid, match=r"proxmox\.token_file") as refused:
        proxmox(folder)
    assert "cdef" not in refused.value.message

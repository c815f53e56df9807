"""Settings and profiles: what is read, what is refused, and that the refusal names the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab import config
from agentlab.errors import AgentLabError, Invalid, NotFound
from agentlab.model.profile import After, NetworkMode
from agentlab.model.profile_file import parse_profile

CONFIG, PROFILE = Path("/etc/agentlab/config.yaml"), Path("/etc/agentlab/profiles/demo.yaml")


def test_an_empty_file_gives_the_defaults() -> None:
    settings = config.parse("", CONFIG)
    assert settings.artifact_dir == Path("/var/lib/agentlab/artifacts")
    assert (settings.vmids.start, settings.vmids.stop) == (1000, 2000)
    profile = parse_profile("", PROFILE)
    assert (profile.name, profile.memory, profile.ttl) == ("demo", 2048, 3600)
    assert (profile.network, profile.after) == (NetworkMode.NAT, After.DESTROY)
    assert profile.limits.log == 16 << 20


def test_what_is_said_is_taken() -> None:
    text = "network: off\nmemory: 512\ndisk: 4\nttl: 5\nagent: {command: claude, env: {A: b}}"
    profile = parse_profile(text, PROFILE)
    assert (profile.network, profile.memory, profile.disk) == (NetworkMode.OFF, 512, 4096)
    assert (profile.ttl, profile.env) == (300, {"A": "b"})
    assert "AGENTLAB_TASK" in profile.command


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data_dirr: /x", "unknown key data_dirr"),
        ("data_dir: x", "absolute"),
        ("data_dir: 3", "data_dir must be text"),
        ("workers: true", "workers must be a whole number"),
        ("workers: 0", "from 1 to 200"),
        ("network: 3", "network must be a mapping"),
        ("network: {bridge: 'a b'}", "network.bridge"),
        ("network: {host: 10.78.0.1}", "not an address within"),
        ("network: {subnet: 10.77.0.1/16}", "network: "),
        ("vmid_range: [5, 9]", "vmid_range"),
        ("vmid_range: [1000]", "two numbers"),
        ("hypervisor: vmware", "hypervisor must be one of"),
        ("- a", "must be a mapping"),
        ("a: [", "line 1"),
    ],
)
def test_bad_settings_are_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(Invalid) as refused:
        config.parse(text, CONFIG)
    assert words in refused.value.message
    assert str(CONFIG) in refused.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: other", "the file says 'demo'"),
        ("cores: 0", "cores must be a whole number"),
        ("cores: '2'", "cores must be a whole number"),
        ("memory: lots", "memory: cannot read the size"),
        ("memory: true", "memory must be text or a whole number"),
        ("ttl: 0", "ttl: cannot read the duration"),
        ("network: lan", "network must be one of nat, allowlist, off"),
        ("after: burn", "after must be one of"),
        ("agent: claude", "agent must be a mapping"),
        ("agent: {comand: x}", "unknown key agent.comand"),
        ("agent: {env: {A: 1}}", "agent.env must be a mapping of names"),
        ("agent: {bubblewrap: 1}", "true or false"),
        ("limits: {artifact_count: -1}", "limits.artifact_count"),
    ],
)
def test_bad_profiles_are_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(AgentLabError) as refused:
        parse_profile(text, PROFILE)
    assert words in refused.value.message
    assert str(PROFILE) in refused.value.message


def test_a_missing_file_of_settings_is_named() -> None:
    with pytest.raises(NotFound, match=r"/nowhere/config\.yaml"):
        config.load(Path("/nowhere/config.yaml"))

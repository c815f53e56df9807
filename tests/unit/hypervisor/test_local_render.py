"""What the local hypervisor renders and reads: command lines, seeds, records, package sources."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.hypervisor.base import MachineSpec, Nic
from agentlab.hypervisor.image.rootfs import select_sources
from agentlab.hypervisor.local.driver import LocalHypervisor
from agentlab.hypervisor.local.guest import render_identity
from agentlab.hypervisor.local.machine_dir import Mark, Record, Run, parse_record, render_record
from agentlab.hypervisor.local.qemu import Boot, Launch, Memory, fingerprint, render_argv
from agentlab.hypervisor.local.seed import instance_id, render_seed
from agentlab.hypervisor.local.template import template_key

_NIC = Nic(
    "tap5", "52:54:00:00:00:05", IPv4Interface("10.77.0.5/16"), IPv4Address("10.77.0.1"),
    (IPv4Address("10.77.0.1"),),
)  # fmt: skip
_SPEC = MachineSpec("box5", 2, 1024, 8192, _NIC)
_LAUNCH = Launch(
    "agentlab-5", "u-u-i-d", "tcg", 2, 1024, "tap5", _NIC.mac,
    Boot(Path("/t/vmlinuz"), Path("/t/initrd"), "cloud-init=disabled"),
)  # fmt: skip


def _value(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_a_machine_starts_paused_without_defaults_and_boxed_in() -> None:
    argv = render_argv(_LAUNCH)
    assert {"-S", "-nodefaults", "-no-user-config", "-no-reboot"} <= set(argv)
    assert "spawn=deny" in _value(argv, "-sandbox")
    assert _value(argv, "-uuid") == "u-u-i-d"
    assert _value(argv, "-cpu").startswith("qemu64")
    assert "-incoming" not in argv
    assert "mitigations=off" in _value(argv, "-append")


def test_kvm_keeps_the_guards_against_speculation() -> None:
    argv = render_argv(replace(_LAUNCH, accelerator="kvm"))
    assert _value(argv, "-cpu") == "host"
    assert "mitigations=off" not in _value(argv, "-append")


def test_the_seed_comes_after_all_that_a_memory_snapshot_has() -> None:
    plain, seeded = render_argv(_LAUNCH), render_argv(replace(_LAUNCH, seed=True))
    assert seeded[: len(plain)] == plain


def test_saved_and_restored_machines_have_the_same_devices() -> None:
    saved = render_argv(replace(_LAUNCH, ram=Memory(Path("/a,b/ram"), shared=True)))
    ram = Memory(Path("/a,b/ram"), shared=False)
    restored = render_argv(replace(_LAUNCH, ram=ram, incoming=True))
    different = [(a, b) for a, b in zip(saved, restored, strict=False) if a != b]
    assert different == [
        (
            "memory-backend-file,id=ram,size=1024M,mem-path=/a,,b/ram,share=on",
            "memory-backend-file,id=ram,size=1024M,mem-path=/a,,b/ram,share=off",
        )
    ]
    assert restored[len(saved) :] == ["-incoming", "defer"]


def test_every_machine_has_a_port_for_a_work_disk() -> None:
    """Also one that starts without: it may get one later, and all have the same devices."""
    argv = render_argv(_LAUNCH)
    assert "pcie-root-port,id=work-port,chassis=1" in argv
    assert not any("serial=work" in word for word in argv)


def test_a_snapshot_fits_machines_of_its_size_only() -> None:
    same = replace(_LAUNCH, name="other", uuid="v", tap="t", mac="52:54:00:00:00:09")
    assert fingerprint(_LAUNCH, "7.2") == fingerprint(same, "7.2")
    for other in (
        replace(_LAUNCH, cores=1),
        replace(_LAUNCH, memory=512),
        replace(_LAUNCH, accelerator="kvm"),
    ):
        assert fingerprint(other, "7.2") != fingerprint(_LAUNCH, "7.2")
    assert fingerprint(_LAUNCH, "8.0") != fingerprint(_LAUNCH, "7.2")


def test_the_seed_gives_a_static_address_by_mac() -> None:
    files = render_seed("u", _SPEC)
    network = json.loads(files["network-config"])
    eth0 = network["ethernets"]["eth0"]
    assert network["version"] == 2
    assert eth0["match"] == {"macaddress": _NIC.mac}
    assert eth0["addresses"] == ["10.77.0.5/16"]
    assert eth0["routes"] == [{"to": "0.0.0.0/0", "via": "10.77.0.1"}]
    assert json.loads(files["meta-data"])["local-hostname"] == "box5"
    assert files["user-data"].startswith(b"#cloud-config\n{")


def test_cloud_init_applies_a_changed_spec_anew() -> None:
    changed = replace(_SPEC, hostname="box6")
    assert instance_id("u", _SPEC) == instance_id("u", replace(_SPEC))
    assert len({instance_id("u", _SPEC), instance_id("v", _SPEC), instance_id("u", changed)}) == 3


def test_the_identity_is_what_the_protocol_says() -> None:
    record = Record.new(5, name="box5", owner="o", template="t")
    run = Run("memory", "on", "abcd")
    identity = json.loads(render_identity(record, run, _SPEC))
    assert identity["nonce"] == "abcd"
    assert identity["machine_id"] == record.machine_id
    assert identity["address"] == "10.77.0.5/16"
    assert identity["entropy"] != json.loads(render_identity(record, run, _SPEC))["entropy"]


_words = st.text(max_size=20)


@given(
    name=_words,
    owner=_words,
    spec=st.none() | st.just(_SPEC),
    run=st.none() | st.builds(Run, st.just("cold"), st.just("on"), _words),
    marks=st.lists(st.builds(Mark, _words, _words), max_size=3),
    volume=_words,
)
def test_a_record_is_read_as_it_was_written(
    name: str, owner: str, spec: MachineSpec | None, run: Run | None, marks: list[Mark], volume: str
) -> None:
    new = Record.new(5, name=name, owner=owner, template="t")
    record = replace(new, spec=spec, run=run, marks=tuple(marks), volume=volume)
    assert parse_record(render_record(record)) == record


def test_a_record_from_before_there_were_volumes_is_read() -> None:
    record = Record.new(5, name="n", owner="o", template="t")
    document = json.loads(render_record(record))
    del document["volume"]
    assert parse_record(json.dumps(document).encode()) == record


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_anything_else_is_no_record(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own, or ours: both are meant
        parse_record(content)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"owner": 5}, {"vmid": "5"}, {"spec": {}}, {"run": {}}, {"marks": 3},
        {"more": 1}, {"spec": {"nic": {}}}, {"run": []}, {"marks": [1]}, {"volume": None},
    ],
)  # fmt: skip
def test_a_record_with_one_wrong_value_is_none(change: dict[str, object]) -> None:
    record = replace(Record.new(5, name="n", owner="o", template="t"), spec=_SPEC)
    document = json.loads(render_record(record))
    with pytest.raises(ValueError):  # noqa: PT011
        parse_record(json.dumps({**document, **change}).encode())


def test_a_disk_counts_as_changed_from_the_first_run_on() -> None:
    record = Record.new(5, name="n", owner="o", template="t").powered("memory")
    assert record.state == ""
    going = record.going()
    assert going.state
    assert going.going() == going
    assert not going.movable


def test_only_the_distributions_own_sources_are_taken() -> None:
    lines = (
        "# deb http://m/debian bookworm main\n"
        "deb [signed-by=/k] http://m/debian bookworm main contrib\n"
        "deb-src http://m/debian bookworm main\n"
        "deb http://m/debian bookworm-updates main\n"
        "deb http://other/node nodistro main\n"
        "deb http://other/docker bookworm stable\n"
    )
    assert select_sources("a.list", lines, "bookworm").splitlines() == [
        "deb [signed-by=/k] http://m/debian bookworm main contrib",
        "deb http://m/debian bookworm-updates main",
    ]
    ours = "Types: deb\n# a word\nURIs: http://m/debian\nSuites: bookworm\n bookworm-updates\nComponents: main"
    off = ours + "\nEnabled: no"
    other = "Types: deb\nURIs: http://n\nSuites: nodistro\nComponents: main"
    text = f"{other}\n\n{ours}\n\n{off}"
    assert select_sources("a.sources", text, "bookworm") == ours


def test_the_key_names_the_runner() -> None:
    assert template_key(b"a") == template_key(b"a")
    assert template_key(b"a") != template_key(b"b")


@pytest.mark.parametrize(
    ("start", "accelerator", "memory"),
    [
        ("auto", "kvm", False),
        ("auto", "tcg", True),
        ("memory", "kvm", True),
        ("cold", "tcg", False),
    ],
)
def test_the_start_is_from_memory_where_there_is_no_kvm(
    tmp_path: Path, start: Any, accelerator: Any, memory: bool
) -> None:
    driver = LocalHypervisor(tmp_path, tmp_path, "0123", start_mode=start, accelerator=accelerator)
    assert driver.capabilities.memory_start is memory

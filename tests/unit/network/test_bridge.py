"""What ip(8) says about devices, read."""

import json
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from agentlab.errors import Unavailable
from agentlab.network import bridge
from agentlab.network.bridge import Device, parse_devices

# ip -json -details address show, iproute2 6.1, shortened to the keys that matter and a few others
LISTING = [
    {"ifname": "lo", "flags": ["LOOPBACK", "UP"], "address": "00:00:00:00:00:00",
     "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8},
                   {"family": "inet6", "local": "::1", "prefixlen": 128}]},
    {"ifname": "vmbr1", "flags": ["BROADCAST", "UP"], "address": "06:c1:00:00:00:01",
     "ifalias": "agentlab lab", "linkinfo": {"info_kind": "bridge", "info_data": {}},
     "addr_info": [{"family": "inet", "local": "10.77.0.1", "prefixlen": 16}]},
    {"ifname": "tap1001xd6", "flags": ["NO-CARRIER", "UP"], "master": "vmbr1", "link": None,
     "address": "ca:1d:66:f2:1a:2b", "ifalias": "agentlab lab",
     "linkinfo": {"info_kind": "tun", "info_slave_kind": "bridge",
                  "info_slave_data": {"isolated": True}}},
]  # fmt: skip


def test_devices_are_read() -> None:
    found = parse_devices(json.dumps(LISTING))
    assert found["lo"].addresses == (IPv4Interface("127.0.0.1/8"),)
    assert found["vmbr1"] == Device(
        "vmbr1", "bridge", "agentlab lab", "06:c1:00:00:00:01", "", True, False,
        (IPv4Interface("10.77.0.1/16"),),
    )  # fmt: skip
    tap = found["tap1001xd6"]
    assert (tap.kind, tap.master, tap.up, tap.isolated) == ("tun", "vmbr1", True, True)


def test_no_devices() -> None:
    assert parse_devices("[]") == {}


def test_a_setting_of_the_kernel_that_cannot_be_made_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "_SYSCTL", tmp_path)
    with pytest.raises(Unavailable, match=r"cannot set .*/ipv4/ip_forward to 1: No such file"):
        bridge.ensure_forwarding()
    (tmp_path / "ipv4").mkdir()
    (tmp_path / "ipv4" / "ip_forward").write_text("0\n")
    bridge.ensure_forwarding()
    assert (tmp_path / "ipv4" / "ip_forward").read_text() == "1"

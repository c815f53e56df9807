"""The real nft accepts whatever we render, and the kernel then has it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentlab.model.profile import NetworkMode
from agentlab.network import nft
from agentlab.network.address import mac_for, tap_name
from agentlab.network.rules import plan_tables
from agentlab.network.settings import PRIVATE, Member, NetworkSettings

sys.path.insert(0, str(Path(__file__).parent))  # for the module beside this file
import netlab

REFUSED = netlab.usable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REFUSED != "", reason=REFUSED)]

SUBNET = IPv4Network("10.77.0.0/16")
NETS = st.builds(
    lambda number, prefix: IPv4Network((number, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)
MODES = st.sampled_from([NetworkMode.NAT, NetworkMode.OFF])
VMIDS = st.dictionaries(st.integers(1, 999_999_999), MODES, max_size=8)


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    name = f"al{uuid.uuid4().hex[:5]}rules"
    netlab.shell("ip", "netns", "add", name)
    yield name
    netlab.shell("ip", "netns", "delete", name)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(vmids=VMIDS, private=st.lists(NETS, max_size=6), port=st.integers(1, 65535))
def test_kernel_has_what_was_rendered(
    netns: str, vmids: dict[int, NetworkMode], private: list[IPv4Network], port: int
) -> None:
    chosen = NetworkSettings(
        "lab", "vmbr1", SUBNET, IPv4Address("10.77.0.1"), port, private=(*PRIVATE, *private)
    )
    members = [
        Member(vmid, tap_name("vmbr1", vmid), mac_for("lab", vmid), SUBNET[2 + number], mode)
        for number, (vmid, mode) in enumerate(vmids.items())
    ]
    text = nft.render_tables(plan_tables(chosen, members))
    netlab.shell("ip", "netns", "exec", netns, "nft", "-c", "-f", "-", stdin=text)
    netlab.inside(netns, lambda: nft.apply_ruleset(chosen, members))  # reads back, too

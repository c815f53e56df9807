"""The transport over HTTPS, as far as it needs no server: what it refuses to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.errors import Invalid, TooLarge
from agentlab.hypervisor.proxmox.rest import RestTransport, Tls
from agentlab.secret import Secret

URL = "https://pve1:8006"
VALUE = "01234567-89ab-cdef-0123-456789abcdef"
TOKEN = Secret(f"agentlab@pve!daemon={VALUE}")
FINGERPRINT = ":".join(["a1"] * 32)


@pytest.mark.parametrize(
    "url",
    [
        "http://pve1:8006",
        "pve1:8006",
        "https://",
        "https://pve1:99999",
        "https://pve1:8006/api2/json",
        "https://root@pve1:8006",
        "https://pve1:8006/?x=1",
        "",
    ],
)
def test_an_address_of_another_form_is_invalid(url: str) -> None:
    with pytest.raises(Invalid, match="not the address of a Proxmox node") as refused:
        RestTransport(url, TOKEN)
    assert "https://pve1:8006" in refused.value.hint


@pytest.mark.parametrize("url", ["https://pve1", "https://10.0.0.1:443/", "https://[fd00::1]:8006"])
def test_an_address_may_lack_the_port(url: str) -> None:
    RestTransport(url, TOKEN)


@pytest.mark.parametrize(
    "token",
    [
        VALUE,
        f"agentlab@pve={VALUE}",
        f"agentlab!daemon={VALUE}",
        f"PVEAPIToken: agentlab@pve!daemon={VALUE}",
        f"agentlab@pve!daemon={VALUE}\n",
        f"agentlab@pve!d={VALUE}",
        "agentlab@pve!daemon=",
        "",
    ],
)
def test_a_token_of_another_form_is_invalid_and_never_shown(token: str) -> None:
    with pytest.raises(Invalid, match="user@realm!name=value") as refused:
        RestTransport(URL, Secret(token))
    assert VALUE not in f"{refused.value} {refused.value.hint} {refused.value.details}"


def test_a_user_may_have_the_form_of_an_address() -> None:
    RestTransport(URL, Secret(f"who@example.org@ldap!daemon={VALUE}"))


@pytest.mark.parametrize("fingerprint", ["a1:b2", FINGERPRINT[:-3], FINGERPRINT.replace(":", "")])
def test_a_fingerprint_of_another_form_is_invalid(fingerprint: str) -> None:
    with pytest.raises(Invalid, match="not a SHA-256 fingerprint"):
        RestTransport(URL, TOKEN, Tls(fingerprint=fingerprint))


def test_a_ca_file_must_be_there_and_hold_a_certificate(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for path in (tmp_path / "missing.pem", empty, tmp_path):
        with pytest.raises(Invalid, match=str(path)) as refused:
            RestTransport(URL, TOKEN, Tls(ca_file=path))
        assert "pve-root-ca.pem" in refused.value.hint


def test_only_one_way_to_verify_is_taken() -> None:
    with pytest.raises(Invalid, match="more than one"):
        RestTransport(URL, TOKEN, Tls(fingerprint=FINGERPRINT, insecure=True))


@pytest.mark.parametrize("path", ["", "/", "nodes", "/nodes//x", "/nodes/../access", "/nodes/."])
def test_a_path_that_would_lead_elsewhere_is_invalid(path: str) -> None:
    with pytest.raises(Invalid, match="not a path"):
        RestTransport(URL, TOKEN).call("GET", path)


def test_what_a_guest_agent_does_not_take_is_not_sent() -> None:
    transport = RestTransport(URL, TOKEN)
    with pytest.raises(TooLarge):
        transport.guest_exec("pve1", 100, ["cat"], "x" * (64 * 1024 + 1), timeout=5)
    with pytest.raises(Invalid, match="ASCII"):
        transport.guest_exec("pve1", 100, ["cat"], "\N{SNOWMAN}", timeout=5)


def test_it_says_what_it_is_and_shows_no_token() -> None:
    transport = RestTransport(URL, TOKEN)
    assert (transport.name, transport.foreground) == ("api", False)
    assert VALUE not in repr(transport)

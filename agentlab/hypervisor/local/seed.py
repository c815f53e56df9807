"""The NoCloud seed: what cloud-init reads at a cold boot.  JSON, which is YAML too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from agentlab import run
from agentlab.hypervisor.base import MachineSpec
from agentlab.hypervisor.local.machine_dir import SEED


def instance_id(uuid: str, spec: MachineSpec) -> str:
    """Changes with the machine and with what it was given, so that cloud-init applies it anew."""
    return hashlib.sha256(f"{uuid} {spec}".encode()).hexdigest()[:32]


def render_seed(uuid: str, spec: MachineSpec) -> dict[str, bytes]:
    """The files of the seed by name."""
    nic = spec.nic
    network: dict[str, object] = {
        "version": 2,
        "ethernets": {
            "eth0": {
                "match": {"macaddress": nic.mac},
                "dhcp4": False,
                "addresses": [str(nic.address)],
                "routes": [{"to": "0.0.0.0/0", "via": str(nic.gateway)}],
                "nameservers": {"addresses": [str(server) for server in nic.dns]},
            }
        },
    }
    # Nothing in the guest turns networkd's name servers into a resolv.conf.
    resolvers = "".join(f"nameserver {server}\n" for server in nic.dns)
    hosts = f"127.0.0.1 localhost\n127.0.1.1 {spec.hostname}\n"
    user: dict[str, object] = {
        "write_files": [
            {"path": "/etc/resolv.conf", "content": resolvers},
            {"path": "/etc/hosts", "content": hosts},
        ]
    }
    meta = {"instance-id": instance_id(uuid, spec), "local-hostname": spec.hostname}
    return {
        "meta-data": _json(meta),
        "user-data": b"#cloud-config\n" + _json(user),
        "network-config": _json(network),
    }


def write_seed(directory: Path, uuid: str, spec: MachineSpec) -> None:
    """Makes the seed disk of a machine directory; cloud-init knows it by its label."""
    source = directory / "seed"
    source.mkdir(mode=0o700, exist_ok=True)
    for name, content in render_seed(uuid, spec).items():
        (source / name).write_bytes(content)
    argv = [
        "genisoimage",
        "-quiet",
        "-output",
        SEED,
        "-volid",
        "cidata",
        "-joliet",
        "-rock",
        "seed",
    ]
    run.run(argv, timeout=60, cwd=directory)


def _json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"

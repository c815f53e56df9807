"""Checks that only the local hypervisor has, for `agentlab init`."""

from __future__ import annotations

from agentlab.errors import Unsupported
from agentlab.hypervisor.base import CheckResult, Checks, CheckStatus
from agentlab.hypervisor.local.accelerator import qemu_version


def local_checks() -> Checks:
    """All of them by their names."""
    return {"qemu": _qemu}


def _qemu() -> CheckResult:
    try:
        version = qemu_version()
    except Unsupported as absent:
        return CheckResult(
            CheckStatus.MISSING, absent.message, "apt install qemu-system-x86 qemu-utils"
        )
    return CheckResult(CheckStatus.OK, f"QEMU {version}")

"""Whether KVM really runs our kernel: tried by booting it, once for a kernel and a QEMU.

Opening /dev/kvm proves little: on some hosts it opens, and no stock kernel runs under it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Literal
from uuid import uuid4

from agentlab import run
from agentlab.clock import Deadline, now
from agentlab.errors import AgentLabError, Unavailable
from agentlab.hypervisor.files import locked, write_durable
from agentlab.hypervisor.local.process import kill, launch
from agentlab.hypervisor.local.qemu import PROGRAM, bounded
from agentlab.hypervisor.local.template import TemplateInfo

Accelerator = Literal["kvm", "tcg"]
SLOWNESS: dict[str, float] = {"kvm": 1.0, "tcg": 8.0}

_KVM = Path("/dev/kvm")
_DEADLINE = 20.0
_TRY_AGAIN = 86400.0  # seconds for which a probe that failed is believed
_CACHE = "accelerator.json"
# What the initial RAM disk prints first: a program ran, not only the kernel.
_SIGN = b"Loading, please wait"

log = logging.getLogger(__name__)


def qemu_version() -> str:
    """As QEMU says it, with the distribution's revision."""
    text = run.run([PROGRAM, "--version"], timeout=30).text
    found = re.search(r"version (.+)", text)
    if found is None:
        raise Unavailable(f"cannot tell the version of {PROGRAM}")
    return found[1].strip()


def processor() -> str:
    """The host's processor, which a memory snapshot made with KVM depends on."""
    wanted = ("model name", "flags", "microcode")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n", maxsplit=1)[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))


def choose(template_dir: Path, template: TemplateInfo) -> Accelerator:
    """`kvm` where the template's kernel boots with it, else `tcg`; remembered per host kernel."""
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return "tcg"
    asked = [os.uname().release, os.uname().nodename, qemu_version()]
    path = template_dir / _CACHE
    with locked(template_dir / f"{_CACHE}.lock", timeout=4 * _DEADLINE, what="the KVM probe"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(path.read_bytes())
            fresh = kept["accelerator"] == "kvm" or now() - float(kept["at"]) < _TRY_AGAIN
            if kept["asked"] == asked and fresh:
                return "kvm" if kept["accelerator"] == "kvm" else "tcg"
        begun = time.monotonic()
        chosen: Accelerator = "kvm" if _boots(template) else "tcg"
        kept = {"asked": asked, "accelerator": chosen, "at": now()}
        write_durable(path, json.dumps(kept).encode())
    took = time.monotonic() - begun
    if chosen == "kvm":
        log.info("KVM runs the template's kernel (tried in %.1f s)", took)
    else:
        log.info("KVM opens but does not run the template's kernel (%.1f s): using TCG", took)
    return chosen


def render_probe(template: TemplateInfo, uuid: str) -> list[str]:
    """A machine with a console and nothing else."""
    return [
        *(PROGRAM, "-uuid", uuid, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-no-reboot", "-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", "256"),
        *("-serial", "file:console", "-pidfile", "pid"),
        *("-kernel", str(template.kernel), "-initrd", str(template.initrd)),
        *("-append", "console=ttyS0 panic=-1"),
    ]


def _boots(template: TemplateInfo) -> bool:
    uuid = str(uuid4())
    with tempfile.TemporaryDirectory(prefix="agentlab-kvm-") as name:
        work = Path(name)
        console = work / "console"
        deadline = Deadline.after(_DEADLINE)
        try:
            child = launch(
                work,
                bounded(render_probe(template, uuid), _DEADLINE + 5),
                stderr=work / "stderr",
            )
            while not deadline.passed and not child.ended:
                if console.exists() and _SIGN in console.read_bytes()[: 1 << 20]:
                    return True
                time.sleep(0.1)
        except AgentLabError as error:
            log.info("the KVM probe did not run: %s", error)
        finally:
            kill(work, uuid)
    return False

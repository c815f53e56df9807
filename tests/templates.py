"""Makes what the tests' virtual machines start from: `make test` calls it before several workers
would all wait for the one that builds, each within the time that a test may take.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from agentlab.hypervisor.image.disk import build_disk
from agentlab.hypervisor.local.place import Place
from agentlab.hypervisor.local.template import build_template
from agentlab.runner_file import runner_bytes
from tests.e2e.lab import template_dir
from tests.fakes.netns import private_network

MEMORY = (256, 512)  # MiB, of the machines of tests/e2e and tests/contract


def main() -> None:
    if os.geteuid() != 0:
        return  # the tests that need it say what they lack
    template = build_template(template_dir(), runner_bytes(), on_step=print)
    build_disk(template_dir(), runner_bytes(), on_step=print)
    with private_network(), tempfile.TemporaryDirectory() as root:
        place = Place(Path(root), template_dir(), template.key)
        for memory in MEMORY:
            place.memory_snapshot(template, 1, memory)


if __name__ == "__main__":
    main()

"""Drivers for the contract suite, and the network that their machines are in.

Machines with power need taps.  Each test that starts one runs in a network namespace of its own
session: the thread that runs the test enters it by setns(2), and what it starts inherits it, QEMU
and threads too.  So nothing is left on the host, and two runs do not meet.  The namespace has no
name; it goes with its last process.

The template is built once and kept: in AGENTLAB_TEMPLATE_DIR, or else under the user's cache.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.hypervisor.local.driver import LocalHypervisor
from agentlab.hypervisor.local.template import TemplateInfo, build_template
from agentlab.runner_file import runner_bytes
from tests.contract.bench import Bench

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def template_dir() -> Path:
    if "AGENTLAB_TEMPLATE_DIR" in os.environ:
        return Path(os.environ["AGENTLAB_TEMPLATE_DIR"])
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "agentlab/templates"


def _call(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture(scope="session")
def _namespace() -> Iterator[int]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _call(_LIBC.unshare(_CLONE_NEWNET))
    try:
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    finally:
        _call(_LIBC.setns(home, _CLONE_NEWNET))
        os.close(home)
    yield made
    os.close(made)


@pytest.fixture
def network(_namespace: int) -> Iterator[None]:
    """Puts the running test into the session's network namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _call(_LIBC.setns(_namespace, _CLONE_NEWNET))
    try:
        yield
    finally:
        _call(_LIBC.setns(home, _CLONE_NEWNET))
        os.close(home)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A driver over a template that is too small to boot: for all that needs no power."""
    templates, root = tmp_path / "templates", tmp_path / "machines"
    path = templates / "0123"
    path.mkdir(parents=True)
    root.mkdir()
    disk = ["qemu-img", "create", "-q", "-f", "qcow2", str(path / "disk.qcow2"), "64M"]
    subprocess.run(disk, check=True)
    (path / "manifest.json").write_text('{"name": "debian-12", "made": 1}')
    made = Bench(LocalHypervisor(root, templates, "0123", accelerator="tcg"), root)
    yield made
    made.clear()


@pytest.fixture(scope="session")
def real_template() -> TemplateInfo:
    return build_template(template_dir(), runner_bytes(), on_step=print)


@pytest.fixture
def powered(real_template: TemplateInfo, network: None, tmp_path: Path) -> Iterator[Bench]:
    """A driver whose machines really start, from memory where they can."""
    root = tmp_path / "machines"
    root.mkdir()
    driver = LocalHypervisor(root, template_dir(), real_template.key, start_mode="memory")
    made = Bench(driver, root)
    yield made
    made.clear()

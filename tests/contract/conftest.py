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
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from agentlab.hypervisor.image.disk import DISK_MIB, DiskImage, build_disk
from agentlab.hypervisor.local.driver import LocalHypervisor
from agentlab.hypervisor.local.template import TemplateInfo, build_template
from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
from agentlab.hypervisor.proxmox.node import NodeTools
from agentlab.hypervisor.proxmox.pvesh import PveshTransport
from agentlab.hypervisor.proxmox.rest import RestTransport, Tls
from agentlab.hypervisor.proxmox.transport import Transport
from agentlab.runner_file import runner_bytes
from agentlab.secret import Secret
from tests import tables
from tests.contract.bench import Bench, LocalBench, ProxmoxBench, settings
from tests.fakes.pve.commands import make_commands
from tests.fakes.pve.files import FileNode
from tests.fakes.pve.lab import LabNode
from tests.fakes.pve.node import ProxmoxNode, SimulatedGuests
from tests.fakes.pve.serving import Served, serve

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
    run_in(made, "ip", "link", "set", "lo", "up")
    yield made
    os.close(made)


def run_in(namespace: int, *argv: str) -> None:
    """Runs a program in a network namespace."""
    words = ["nsenter", f"--net=/proc/self/fd/{namespace}", *argv]
    subprocess.run(words, check=True, pass_fds=[namespace])


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


@pytest.fixture(params=["local", "api", "shell"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each driver in turn, over templates that are too small to boot: for what needs no power."""
    name = "local_bench" if request.param == "local" else f"proxmox_{request.param}"
    found = request.getfixturevalue(name)
    assert isinstance(found, Bench)
    return found


@pytest.fixture
def local_bench(tmp_path: Path) -> Iterator[LocalBench]:
    templates, root = tmp_path / "templates", tmp_path / "machines"
    path = templates / "0123"
    path.mkdir(parents=True)
    root.mkdir()
    disk = ["qemu-img", "create", "-q", "-f", "qcow2", str(path / "disk.qcow2"), "64M"]
    subprocess.run(disk, check=True)
    (path / "manifest.json").write_text('{"name": "debian-12", "made": 1}')
    made = LocalBench(LocalHypervisor(root, templates, "0123", accelerator="tcg"), root=root)
    yield made
    made.clear()


@pytest.fixture(scope="session")
def real_template() -> TemplateInfo:
    return build_template(template_dir(), runner_bytes(), on_step=print)


@pytest.fixture(params=["local", "api", "shell"])
def powered(request: pytest.FixtureRequest) -> Bench:
    """Each driver in turn, with machines that really start."""
    found = request.getfixturevalue(f"{request.param}_powered")
    assert isinstance(found, Bench)
    return found


@pytest.fixture
def local_powered(
    real_template: TemplateInfo, network: None, tmp_path: Path
) -> Iterator[LocalBench]:
    """Machines that start from memory where they can."""
    root = tmp_path / "machines"
    root.mkdir()
    driver = LocalHypervisor(root, template_dir(), real_template.key, start_mode="memory")
    made = LocalBench(driver, root=root)
    yield made
    made.clear()


# Proxmox


def connect_api(served: Served) -> RestTransport:
    return RestTransport(url=served.url, token=Secret(served.token), tls=Tls(ca_file=served.ca))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Served]:
    """A node of Proxmox whose tasks end at once, with a template and a stranger's VM."""
    made = ProxmoxNode(guests=SimulatedGuests())
    made.make_template(name="debian-12", size=1 << 30)
    made.make_vm(100, "production", description="not to be touched")
    with serve(made, tmp_path) as served:
        yield served


@pytest.fixture
def proxmox_api(node: Served) -> Iterator[ProxmoxBench]:
    with ExitStack() as open_ones:

        def connect() -> Transport:
            return open_ones.enter_context(closing(connect_api(node)))

        yield from _proxmox(node, connect, NodeTools(""))


@pytest.fixture
def proxmox_shell(
    node: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ProxmoxBench]:
    programs = make_commands(node, tmp_path / "bin")
    node.node.pvesh_secs = 0.0
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    name = node.node.node
    yield from _proxmox(
        node, lambda: PveshTransport(name, tmp_path / "spool", scope=False), NodeTools(name)
    )


@pytest.fixture(params=["local", "api", "shell"])
def storing(request: pytest.FixtureRequest) -> Bench:
    """Each driver in turn, with volumes that are real files, and machines too small to boot."""
    if request.param == "local":
        found = request.getfixturevalue("local_bench")
    else:
        found = request.getfixturevalue(f"storing_{request.param}")
    assert isinstance(found, Bench)
    return found


@pytest.fixture
def file_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """As `node`, with a storage that has files in it; on it, as root, the daemon runs."""
    made = FileNode(tmp_path / "lab", guests=SimulatedGuests())
    made.make_template(name="debian-12", size=1 << 30)
    empty = tmp_path / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(empty), "1G"], check=True)
    made.import_disk(empty, "local:9000/base-9000-disk-0.qcow2")
    made.make_vm(100, "production", description="not to be touched")
    with serve(made, tmp_path) as served:
        programs = make_commands(served, tmp_path / "bin")
        made.pvesh_secs = 0.0
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        yield served


@pytest.fixture
def storing_api(file_node: Served) -> Iterator[ProxmoxBench]:
    with closing(connect_api(file_node)) as transport:
        yield from _proxmox(file_node, lambda: transport, NodeTools(file_node.node.node))


@pytest.fixture
def storing_shell(file_node: Served, tmp_path: Path) -> Iterator[ProxmoxBench]:
    name = file_node.node.node
    yield from _proxmox(
        file_node, lambda: PveshTransport(name, tmp_path / "spool", scope=False), NodeTools(name)
    )


@pytest.fixture(params=["api", "shell"])
def proxmox(request: pytest.FixtureRequest) -> ProxmoxBench:
    """The Proxmox driver by each transport."""
    found = request.getfixturevalue(f"proxmox_{request.param}")
    assert isinstance(found, ProxmoxBench)
    return found


def _proxmox(
    served: Served, connect: Callable[[], Transport], tools: NodeTools
) -> Iterator[ProxmoxBench]:
    driver = ProxmoxHypervisor(connect(), settings(served), tools)
    yield ProxmoxBench(driver, served=served, connect=connect, tools=tools)
    with served.paused() as found:
        assert [vm.vmid for vm in found.vms if vm.vmid < 1000] == [100], "a stranger's VM is gone"
        assert found.vm(100).config["description"] == "not to be touched"


# Proxmox with power: the lab node


@pytest.fixture(scope="session")
def bootable() -> DiskImage:
    return build_disk(template_dir(), runner_bytes(), on_step=print)


@pytest.fixture
def lab(bootable: DiskImage, network: None, tmp_path: Path) -> Iterator[Served]:
    """A node whose machines are real, with the recipe's disk as its template."""
    subprocess.run(["ip", "link", "add", "vmbr0", "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "link", "set", "vmbr0", "up"], check=True)
        made = LabNode(tmp_path / "lab")
        made.make_template(name="debian-12", size=DISK_MIB << 20, scsi2=None)
        made.import_disk(bootable.path, "local:9000/base-9000-disk-0.qcow2")
        with serve(made, tmp_path) as served:
            yield served
    finally:
        subprocess.run(["ip", "link", "delete", "vmbr0"], check=True)


@pytest.fixture
def api_powered(lab: Served) -> Iterator[ProxmoxBench]:
    with closing(connect_api(lab)) as transport:
        yield from _powered(lab, lambda: transport, NodeTools(""))


@pytest.fixture
def shell_powered(
    lab: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ProxmoxBench]:
    programs = make_commands(lab, tmp_path / "bin")
    lab.node.pvesh_secs = 0.0
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    name = lab.node.node
    yield from _powered(
        lab, lambda: PveshTransport(name, tmp_path / "spool", scope=False), NodeTools(name)
    )


def _powered(
    served: Served, connect: Callable[[], Transport], tools: NodeTools
) -> Iterator[ProxmoxBench]:
    driver = ProxmoxHypervisor(connect(), settings(served, patience=20.0), tools)
    made = ProxmoxBench(
        driver, served=served, connect=connect, tools=tools, memory=1024, patience=120.0
    )
    yield made
    made.clear()


# The table of cases and drivers, at the end of a run

_DRIVERS = ("local", "api", "shell")
_SHARED = [
    Path(__file__).with_name(name)
    for name in ("test_hypervisor.py", "test_volumes.py", "test_work.py")
]
_BENCHES = ("bench", "storing", "powered")
_CASES = tables.Table(
    "the contract: case by driver", key=("case",), columns={each: each for each in _DRIVERS}
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    driver = item.nodeid.rpartition("[")[2].rstrip("]")
    if item.path in _SHARED and driver in _DRIVERS:
        case = getattr(item, "originalname", item.name).removeprefix("test_").replace("_", " ")
        if report.when == "call" or report.outcome != "passed":
            _CASES.note(item, [case], {**_not_asked(item), driver: report.outcome})
            report.user_properties = list(item.user_properties)
    return report


def _not_asked(item: pytest.Item) -> dict[str, tables.Cell]:
    """The drivers that a case is not for, and why; with power, `shell` differs from `api` in its
    transport alone."""
    for mark in item.iter_markers("parametrize"):
        if mark.args[0] in _BENCHES:
            asked = list(mark.args[1])
            left = [driver for driver in _DRIVERS if driver not in asked]
            return {
                driver: "as api" if driver == "shell" and "api" in asked else "not asked"
                for driver in left
            }
    return {}

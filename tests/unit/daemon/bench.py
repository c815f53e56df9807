"""A daemon in this process: real store, engine and sockets, and a hypervisor in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentlab import config
from agentlab.daemon.context import Daemon
from agentlab.daemon.guest_server import GuestListener
from agentlab.daemon.server import UnixListener
from agentlab.daemon.wire import Pace
from agentlab.engine.runner import Runner
from agentlab.model.event import Event
from agentlab.model.job import JOB, Job, JobSpec, JobState, Repo
from agentlab.network.settings import Member
from agentlab.operations import kinds, requests
from agentlab.operations.context import World
from agentlab.secret import Secret
from agentlab.store import events, jobs, sandboxes
from agentlab.store.db import Store
from tests.fakes.hypervisor import FakeHypervisor
from tests.waiting import PATIENCE, read_until

SPEC = JobSpec(Repo(url="https://example.org/x.git"), "do it", "demo")
PACE = Pace(silence=3.0, head=0.5, idle=0.5, drain=1.0, linger=0.2)
PATIENT = replace(PACE, idle=PATIENCE)  # for what happens while a body is on its way
BUNDLE = b"# v2 git bundle\n" + b"0" * 40 + b" refs/heads/main\n\nPACK"


@dataclass
class FakeFence:
    members: list[Member] = field(default_factory=list)

    def sync(self, read: Callable[[], list[Member]]) -> None:
        self.members = list(read())

    def look_at_bridge(self) -> bool:
        return True

    def look_at_rules(self) -> int:
        return len(self.members)


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> str:
        return str(self.document["error"])


class Wire:
    """A client that sends exactly what a test says."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(PATIENCE)
        self.buffer = b""

    def send(self, content: bytes) -> Wire:
        self.socket.sendall(content)
        return self

    def reply(self, *, body: bool = True) -> Reply:
        while b"\r\n\r\n" not in self.buffer:
            self._fill()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        size = int(headers["content-length"]) if body else 0
        while len(self.buffer) < size:
            self._fill()
        content, self.buffer = self.buffer[:size], self.buffer[size:]
        return Reply(int(first.split()[1]), headers, content)

    def _fill(self) -> None:
        piece = self.socket.recv(65536)
        assert piece, "the connection ended in the middle of a reply"
        self.buffer += piece

    def closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()


def request(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    given = {"Content-Length": str(len(body)), **(headers or {})}
    lines += [f"{name}: {value}" for name, value in given.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Bench:
    world: World
    daemon: Daemon
    hypervisor: FakeHypervisor
    api: UnixListener
    guests: GuestListener
    wires: list[Wire] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return self.world.store

    def wire(self) -> Wire:
        """A connection to the API."""
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(self.world.config.socket))
        self.wires.append(Wire(link))
        return self.wires[-1]

    def guest_wire(self, address: str = "127.0.0.1") -> Wire:
        """A connection to the guest listener, from an address."""
        where = (str(self.world.config.network.host), self.world.config.guest_port)
        link = socket.create_connection(where, PATIENCE, source_address=(address, 0))
        self.wires.append(Wire(link))
        return self.wires[-1]

    def ask(
        self, method: str, path: str, document: object = None, *, body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:  # fmt: skip
        content = body if document is None else json.dumps(document).encode()
        wire = self.wire()
        reply = wire.send(request(method, path, content, headers)).reply()
        wire.close()
        return reply

    def job_request(self, **more: object) -> dict[str, object]:
        base = {"repo": {"url": "https://example.org/x.git"}, "task": "do it", "profile": "demo"}
        return {**base, **more}

    def running(self, spec: JobSpec = SPEC) -> Guest:
        """A job whose task has been delivered, and the guest that has its token."""
        created = requests.create_job(self.world, self.daemon.runner, spec, "")
        job = self.until(created, JobState.RUNNING)
        with self.store.read() as tx:
            address = str(sandboxes.get(tx, job.vmid).address)
        return Guest(self, job, address, self.world.token(job.id).reveal())

    def until(self, job: Job, *states: JobState) -> Job:
        """The job in one of these states; in a final one, when its operation is over, too."""

        def right(found: Job) -> bool:
            return found.state in states and (found.settled or not JOB.final(found.state))

        return read_until(self.store, lambda tx: jobs.get(tx, job.id), right)

    def events(self, kind: str) -> list[Event]:
        with self.store.read() as tx:
            return [each for each in events.after(tx, 0, limit=10_000) if each.kind == kind]


@dataclass
class Guest:
    """A runner that says what a test wants it to say."""

    bench: Bench
    job: Job
    address: str
    token: str
    session: str = field(default_factory=lambda: os.urandom(32).hex())

    def ask(
        self, method: str, path: str, document: object = None, *, body: bytes = b"",
        headers: Mapping[str, str] | None = None, job: str = "", address: str = "",
    ) -> Reply:  # fmt: skip
        content = body if document is None else json.dumps(document).encode()
        given = {"Authorization": f"Bearer {self.session}", **(headers or {})}
        target = path if path.startswith("/") else f"/guest/v1/jobs/{job or self.job.id}/{path}"
        wire = self.bench.guest_wire(address or self.address)
        reply = wire.send(request(method, target, content, given)).reply()
        wire.close()
        return reply

    def claim(self, *, address: str = "", session: str = "", token: str = "") -> Reply:
        document = {"token": token or self.token, "session": session or self.session}
        return self.ask("POST", "/guest/v1/claim", document, address=address)

    def claimed(self) -> Guest:
        assert self.claim().status == 200
        return self

    def put(self, name: str, content: bytes, *, digest: str = "", **more: str) -> Reply:
        headers = {"X-Content-Sha256": digest or sha256(content)}
        return self.ask("PUT", f"artifacts/{name}", body=content, headers=headers, **more)

    def log(self, offset: int, content: bytes) -> Reply:
        return self.ask("PUT", f"log?offset={offset}", body=content)

    def report(self, **more: object) -> Reply:
        return self.ask("POST", "report", {**REPORT, **more})

    @property
    def folder(self) -> Path:
        return self.bench.world.job_dir(self.job.id)

    def files(self) -> set[str]:
        """All that lies in the job's directory."""
        found = self.folder.rglob("*") if self.folder.exists() else []
        return {str(each.relative_to(self.folder)) for each in found if not each.is_dir()}


REPORT: dict[str, object] = {
    "status": "completed", "stage": "done", "message": "", "exit_code": 0, "signal": None,
    "started": 1.5, "ended": 2.5, "commit_before": "a" * 40, "commit_after": "b" * 40,
    "log_bytes": 3, "log_truncated": False, "artifacts": [], "missing": [],
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def open_bench(
    folder: Path, *, limits: str = "", pace: Pace = PACE, most: int = 64,
    hypervisor: FakeHypervisor | None = None,
) -> Iterator[Bench]:  # fmt: skip
    profiles = folder / "profiles"
    profiles.mkdir(exist_ok=True)
    text = f"network: off\nagent: {{command: 'true'}}\n{limits}"
    (profiles / "demo.yaml").write_text(text)
    (profiles / "broken.yaml").write_text("cores: many\n")
    settings = config.parse(
        f"data_dir: {folder}/data\nsocket: {folder}/s.sock\nprofiles_dir: {profiles}\n"
        "network: {subnet: 127.0.0.0/8, host: 127.0.0.1, dns: []}\nsocket_group: ''\n"
        f"guest_listener: {{port: {free_port()}}}\n",
        folder / "config.yaml",
    )
    settings = replace(settings, socket=folder / "s.sock")
    settings.data_dir.mkdir(exist_ok=True)
    hypervisor = hypervisor or FakeHypervisor()
    store = Store(settings.data_dir / "agentlab.db")
    world = World(
        config=settings, store=store, hypervisor=hypervisor, fence=FakeFence(),  # type: ignore[arg-type]
        build_template=lambda name, on_step: None, installation="lab", key=Secret("k" * 43),
    )  # fmt: skip
    daemon = Daemon(world, Runner(store, kinds(world), workers=2))
    daemon.runner.start()
    bench = Bench(
        world, daemon, hypervisor, UnixListener(daemon, pace, most), GuestListener(daemon, pace)
    )
    bench.api.start()
    bench.guests.start()
    yield bench
    daemon.stopping.set()
    store.wake_waiters()
    for wire in bench.wires:
        wire.close()
    bench.api.stop(1)
    bench.guests.stop(1)
    daemon.runner.stop(PATIENCE)
    store.close()
    for connection in store._open if hasattr(store, "_open") else []:
        connection.close()

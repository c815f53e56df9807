"""A small daemon on a real Unix socket, strict about the endpoint table, for tests of the client.

What it does not know, and whatever does not decode, is an error and also a violation, which
fails the test in the end: a client that asks for more than the contract has is wrong even when
it copes with the answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import socketserver
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from agentlab.api import messages as m
from agentlab.api.codec import from_plain, parse_document, render_document
from agentlab.api.table import ENDPOINTS, Endpoint, Raw
from agentlab.errors import AgentLabError, Conflict, Invalid, InvalidTransition, NotFound
from agentlab.model.ids import unknown
from tests.unit.client.fake_work import WorkHandlers

STATUS = m.Status(
    version="0.1.0", commit="abc", python="3.11.2", pid=7, started=1.0, hypervisor="local",
    accelerator="kvm", data_dir="/data", resident=1 << 20, jobs={"RUNNING": 1}, sandboxes={},
)  # fmt: skip
PROFILE = m.ProfileView(name="demo", path="/p/demo.yaml", problem="", template="debian-12", ttl=60)
PLAN = m.PlanView(
    profile="demo", template="debian-12", cores=1, memory=512, disk=4096, network="nat", ttl=600,
    time_limit=500, after="destroy", command="true",
)  # fmt: skip
REPORT: dict[str, object] = {
    "status": "completed", "stage": "done", "exit_code": 0, "signal": None,
    "commit_before": "a" * 40, "commit_after": "b" * 40,
}  # fmt: skip


def job_view(name: str = "j1", state: str = "QUEUED", **changes: Any) -> m.JobView:
    final = state in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
    job = m.JobView(
        id=name, state=state, final=final, settled=final,
        profile="demo", task="do it", repo="https://host/x", ref="", vmid=0, address="",
        operation="op-" + name, created=100.0, changed=142.5, deadline=500.0, reason="",
        waits_for="", artifact_dir="/nowhere/" + name, labels={}, report=None,
    )  # fmt: skip
    return dataclasses.replace(job, **changes)


def sandbox_view(vmid: int = 1003, state: str = "READY", **changes: Any) -> m.SandboxView:
    power = "stopped" if state == "STOPPED" else "paused" if state == "SUSPENDED" else "running"
    sandbox = m.SandboxView(
        vmid=vmid, name=f"box-{vmid}", state=state, profile="demo", address="10.77.0.5",
        mac="52:54:00:00:00:01", network="nat", job="", power=power, created=1.0, changed=2.0,
        lease_until=0.0, reason="", allowed=["destroy"], template="debian-12", cores=2,
        memory=2048, disk=8192, ttl=3600.0,
    )  # fmt: skip
    return dataclasses.replace(sandbox, **changes)


@dataclasses.dataclass
class World:
    """What the daemon knows; a test changes it, also while the daemon serves."""

    jobs: dict[str, m.JobView] = dataclasses.field(default_factory=dict)
    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    requests: list[m.JobRequest] = dataclasses.field(default_factory=list)
    sandboxes: dict[str, m.SandboxView] = dataclasses.field(default_factory=dict)
    snapshots: list[str] = dataclasses.field(default_factory=lambda: ["clean"])
    asked: list[object] = dataclasses.field(default_factory=list)  # documents about sandboxes
    fails: dict[str, str] = dataclasses.field(default_factory=dict)  # operations, and of what
    workspaces: dict[str, m.WorkspaceView] = dataclasses.field(default_factory=dict)
    sessions: dict[str, m.SessionView] = dataclasses.field(default_factory=dict)
    kept: list[str] = dataclasses.field(default_factory=lambda: ["before"])  # of any workspace
    findings: list[m.WorkspaceFindingView] = dataclasses.field(default_factory=list)
    fsck: dict[str, object] = dataclasses.field(
        default_factory=lambda: {"state": "clean", "text": ""}
    )
    machines: list[m.MachineView] = dataclasses.field(default_factory=list)
    drifts: m.DriftList = dataclasses.field(default_factory=lambda: m.DriftList([], True))
    operations: dict[str, m.OperationView] = dataclasses.field(default_factory=dict)
    events: list[m.EventView] = dataclasses.field(default_factory=list)
    bundles: dict[str, bytes] = dataclasses.field(default_factory=dict)
    artifacts: dict[str, bytes] = dataclasses.field(default_factory=dict)
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    built: m.TemplateBuildRequest | None = None
    checks: list[m.CheckView] = dataclasses.field(
        default_factory=lambda: [m.CheckView("kvm", "ok", "/dev/kvm is there", "")]
    )
    programs: dict[str, m.ExecRequest] = dataclasses.field(default_factory=dict)
    input: bytes = b""
    fed: set[str] = dataclasses.field(default_factory=set)
    log: bytes = b""
    log_final: bool = False
    created: Callable[[str], None] = lambda _job: None

    def event(self, kind: str, text: str = "", job: str = "j1", **facts: object) -> None:
        operation = "op-" + job
        self.events.append(
            m.EventView(len(self.events) + 1, 1000.0, kind, text, job, 1003, operation, facts)
        )

    def finish(self, state: str = "COMPLETED", job: str = "j1") -> None:
        self.jobs[job] = job_view(job, state, report=REPORT)
        self.log_final = True
        self.event("job.state", job=job, **{"from": "RUNNING", "to": state})


@dataclasses.dataclass
class Bytes:
    """An answer that is no document."""

    data: bytes
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


class Handlers(WorkHandlers):
    """One method for each row of the endpoint table, by its name."""

    w: World

    def __init__(self, world: World) -> None:
        self.w = world

    def status(self, *_: Any) -> m.Status:
        return STATUS

    def job_create(self, request: m.JobRequest, _p: Any, _q: Any, headers: Any) -> m.JobView:
        key = headers["Idempotency-Key"]
        if request.profile != "demo" and not request.session:
            raise unknown("profile", request.profile, ["demo"])
        if request.repo.bundle and request.repo.bundle not in self.w.bundles:
            raise Invalid("repo.bundle: was never sent")
        if key not in self.w.keys:
            name = f"j{len(self.w.jobs) + 1}"
            self.w.keys[key] = name
            self.w.requests.append(request)
            self.w.jobs[name] = job_view(name)
            self.w.created(name)
        return self.w.jobs[self.w.keys[key]]

    def job_validate(self, request: m.JobRequest, *_: Any) -> m.PlanView:
        self.w.requests.append(request)
        return PLAN

    def job_list(self, _r: Any, _p: Any, query: dict[str, str], _h: Any) -> m.JobList:
        state = query.get("state")
        found = [job for job in self.w.jobs.values() if state in (None, job.state)]
        return m.JobList(found[: int(query["limit"])])

    def job_show(self, _r: Any, path: dict[str, str], *_: Any) -> m.JobView:
        if path["id"] not in self.w.jobs:
            raise unknown("job", path["id"], self.w.jobs)
        return self.w.jobs[path["id"]]

    def job_cancel(self, _r: Any, path: dict[str, str], *_: Any) -> m.JobView:
        self.job_show(_r, path)
        self.w.finish("CANCELLED", path["id"])
        return self.w.jobs[path["id"]]

    def job_log(self, _r: Any, path: dict[str, str], query: dict[str, str], _h: Any) -> Bytes:
        self.job_show(_r, path)
        offset = int(query["offset"])
        _until(lambda: len(self.w.log) > offset or self.w.log_final, query)
        final = {"X-Final": "1"} if self.w.log_final else {}
        return Bytes(self.w.log[offset : offset + 1000], final)

    def job_artifacts(self, _r: Any, path: dict[str, str], *_: Any) -> m.ArtifactList:
        self.job_show(_r, path)
        return m.ArtifactList(
            [
                m.ArtifactView(
                    name, len(data),
                    self.w.sha256.get(name, hashlib.sha256(data).hexdigest()), 1.0, "/x/" + name,
                )
                for name, data in self.w.artifacts.items()
            ]
        )  # fmt: skip

    def job_artifact(self, _r: Any, path: dict[str, str], *_: Any) -> Bytes:
        return Bytes(self.w.artifacts[path["name"]])

    def bundle_put(self, data: bytes, path: dict[str, str], *_: Any) -> m.BundleView:
        if hashlib.sha256(data).hexdigest() != path["sha256"]:
            raise Invalid("the bundle has another sha256")
        self.w.bundles[path["sha256"]] = data
        return m.BundleView(path["sha256"], len(data))

    def events(self, _r: Any, _p: Any, query: dict[str, str], _h: Any) -> m.EventList:
        after = int(query["after"])
        wanted = {key: query[key] for key in ("job", "vmid", "operation") if key in query}

        def found() -> list[m.EventView]:
            return [
                each for each in list(self.w.events)
                if each.seq > after
                and all(str(getattr(each, key)) == value for key, value in wanted.items())
            ][: int(query["limit"])]  # fmt: skip

        _until(lambda: bool(found()), query)
        events = found()
        return m.EventList(events, events[-1].seq if events else after)

    def sandbox_create(
        self, request: m.SandboxRequest, _p: Any, _q: Any, headers: Any
    ) -> m.OperationView:
        if request.profile != "demo":
            raise unknown("profile", request.profile, ["demo"])
        if request.name in [each.name for each in self.w.sandboxes.values()]:
            raise Conflict(f"cannot make sandbox {request.name}: there is one of that name already")
        operation = self._once(headers, lambda: self._made(request))
        return dataclasses.replace(operation, vmid=0)  # as long as nothing is allotted

    def _made(self, request: m.SandboxRequest) -> m.OperationView:
        self.w.asked.append(request)
        vmid = request.vmid or 1010
        state = "RUNNING" if request.keepalive else "READY"
        name = request.name or f"demo-{vmid}"
        self.w.sandboxes[str(vmid)] = sandbox_view(
            vmid, state, name=name, labels=request.labels, lease_until=time.time() + 3600.0
        )
        return self._operation("sandbox.create", vmid=vmid)

    def _once(self, headers: Any, act: Callable[[], m.OperationView]) -> m.OperationView:
        """Acts, but gives the same operation to the same key."""
        key = headers["Idempotency-Key"]
        assert key
        if key not in self.w.keys:
            self.w.keys[key] = act().id
        ended = self.w.operations[self.w.keys[key]]
        return dataclasses.replace(ended, state="doing", final=False, error="")

    def sandbox_validate(self, request: m.SandboxRequest, *_: Any) -> m.PlanView:
        self.w.asked.append(request)
        return dataclasses.replace(PLAN, command="", after="")

    def sandbox_list(self, _r: Any, _p: Any, query: dict[str, str], _h: Any) -> m.SandboxList:
        self.w.asked.append(query)
        return m.SandboxList(list(self.w.sandboxes.values()))

    def sandbox_show(self, _r: Any, path: dict[str, str], *_: Any) -> m.SandboxView:
        for vmid, each in self.w.sandboxes.items():
            if path["vmid"] in (vmid, each.name):
                return each
        raise unknown("sandbox", path["vmid"], self.w.sandboxes)

    def sandbox_update(
        self, request: m.UpdateRequest, path: dict[str, str], *_: Any
    ) -> m.SandboxView:
        self.w.asked.append(request)
        return self.sandbox_show(None, path)

    def sandbox_renew(
        self, request: m.RenewRequest, path: dict[str, str], *_: Any
    ) -> m.SandboxView:
        self.w.asked.append(request)
        each = self.sandbox_show(None, path)
        if each.state != "RUNNING":
            raise InvalidTransition(
                f"sandbox lease not renewable: sandbox {each.vmid} is {each.state}, and only "
                "RUNNING supports it", hint=f"agentlab sandbox exec {each.vmid} -- true",
            )  # fmt: skip
        return dataclasses.replace(each, lease_until=time.time() + 7230)

    def sandbox_start(self, *call: Any) -> m.OperationView:
        return self._verb("start", ("STOPPED",), "READY", *call)

    def sandbox_stop(self, *call: Any) -> m.OperationView:
        return self._verb("stop", ("READY", "RUNNING", "SUSPENDED"), "STOPPED", *call)

    def sandbox_pause(self, *call: Any) -> m.OperationView:
        return self._verb("pause", ("READY", "RUNNING"), "SUSPENDED", *call)

    def sandbox_resume(self, *call: Any) -> m.OperationView:
        return self._verb("resume", ("SUSPENDED",), "READY", *call)

    def sandbox_revert(self, *call: Any) -> m.OperationView:
        return self._verb("revert", ("READY", "RUNNING", "STOPPED"), "READY", *call)

    def snapshot_restore(self, *call: Any) -> m.OperationView:
        self.w.asked.append(call[1]["name"])
        return self._verb("revert", ("READY", "STOPPED"), "STOPPED", *call)

    def snapshot_list(self, _r: Any, path: dict[str, str], *_: Any) -> m.SnapshotList:
        self.sandbox_show(None, path)
        return m.SnapshotList(self.w.snapshots)

    def snapshot_save(self, *call: Any) -> m.OperationView:
        if call[0].name in self.w.snapshots:
            raise Conflict(f"cannot take snapshot {call[0].name} of sandbox 1003: there is one")
        return self._verb("take a snapshot of", ("STOPPED",), "STOPPED", *call)

    def snapshot_delete(self, *call: Any) -> m.OperationView:
        if call[1]["name"] == "clean":
            raise Conflict("cannot delete snapshot clean: revert goes back to it")
        self.w.asked.append(call[1]["name"])
        return self._verb("delete a snapshot of", ("STOPPED",), "STOPPED", *call)

    def _verb(
        self, verb: str, sources: tuple[str, ...], target: str,
        request: object, path: dict[str, str], _q: Any, headers: Any,
    ) -> m.OperationView:  # fmt: skip
        each = self.sandbox_show(None, path)
        kind = f"sandbox.{verb.split(maxsplit=1)[0]}"

        def act() -> m.OperationView:
            if each.state not in sources:
                raise InvalidTransition(
                    f"cannot {verb} sandbox {each.vmid}: it is {each.state}", hint="start it"
                )
            self.w.asked.append(request)
            if kind not in self.w.fails:
                power = sandbox_view(state=target).power
                changed = dataclasses.replace(each, state=target, power=power)
                self.w.sandboxes[str(each.vmid)] = changed
            return self._operation(kind, vmid=each.vmid)

        return self._once(headers, act)

    def sandbox_destroy(
        self, request: m.DestroyRequest, path: dict[str, str], _q: Any, headers: Any
    ) -> m.OperationView:
        each = self.sandbox_show(None, path)
        if each.state == "RUNNING" and not request.force:
            raise Conflict("it is RUNNING", hint="use --force")

        def act() -> m.OperationView:
            self.w.sandboxes[path["vmid"]] = sandbox_view(each.vmid, "DESTROYED")
            return self._operation("sandbox.destroy", vmid=each.vmid)

        return self._once(headers, act)

    def sandbox_prune(self, *_: Any) -> m.PruneView:
        gone = [
            each for each in self.w.sandboxes.values()
            if each.state == "TIMEOUT" and each.power == "absent"
        ]  # fmt: skip
        kept = [
            each.vmid for each in self.w.sandboxes.values()
            if each.state == "TIMEOUT" and each.power != "absent"
        ]  # fmt: skip
        for each in gone:
            del self.w.sandboxes[str(each.vmid)]
        return m.PruneView(gone, kept)

    def inventory(self, *_: Any) -> m.Inventory:
        return m.Inventory(self.w.machines)

    def reconcile_look(self, *_: Any) -> m.DriftList:
        return self.w.drifts

    def reconcile_apply(self, *_: Any) -> m.DriftList:
        drifts = []
        for each in self.w.drifts.drifts:
            operation = ""
            if each.mend:
                operation = self._operation(f"mend-{each.vmid}", vmid=each.vmid).id
            drifts.append(dataclasses.replace(each, operation=operation))
        return dataclasses.replace(self.w.drifts, drifts=drifts)

    def exec_start(self, request: m.ExecRequest, path: dict[str, str], *_: Any) -> m.ExecOutput:
        """Programs here end as soon as they have all their input, and say nothing."""
        self.sandbox_show(None, path)
        self.w.programs[request.id] = request
        return self._heard(None if request.input else 0)

    def exec_output(self, _r: Any, path: dict[str, str], query: dict[str, str], _h: Any) -> object:
        _until(lambda: path["id"] in self.w.fed, query)
        return self._heard(0 if path["id"] in self.w.fed else None)

    def exec_input(
        self, data: bytes, path: dict[str, str], query: dict[str, str], _h: Any
    ) -> m.ExecInput:
        assert int(query["offset"]) == len(self.w.input)
        self.w.input += data
        if query["last"] == "1":
            self.w.fed.add(path["id"])
        return m.ExecInput("taken")

    def exec_end(self, _r: Any, path: dict[str, str], *_: Any) -> m.ExecEnd:
        self.w.programs.pop(path["id"], None)
        return m.ExecEnd(0)

    def _heard(self, status: int | None) -> m.ExecOutput:
        return m.ExecOutput(0, 0, status, False, False, False, "", "")

    def profile_list(self, *_: Any) -> m.ProfileList:
        return m.ProfileList([PROFILE, m.ProfileView("bad", "/p/bad.yaml", "no template")])

    def template_list(self, *_: Any) -> m.TemplateList:
        return m.TemplateList([m.TemplateView("debian-12", True, "built")])

    def template_build(self, request: m.TemplateBuildRequest, *_: Any) -> m.OperationView:
        self.w.built = request
        return self._operation("template.build", failed=request.name == "broken")

    def template_check(self, _r: Any, path: dict[str, str], *_: Any) -> m.TemplateCheckView:
        if path["name"] != "half-made":
            return m.TemplateCheckView(path["name"], "VM 9000 on node pve", True, [])
        findings = [
            m.FindingView("kvm", "it is slow", "qm set 9001 --delete kvm", needed=False),
            m.FindingView("agent", "no agent", "qm set 9001 --agent 1", needed=True),
        ]
        return m.TemplateCheckView("half-made", "VM 9001 on node pve", False, findings)

    def job_doctor(self, _r: Any, path: dict[str, str], *_: Any) -> Bytes:
        self.job_show(_r, path)
        return _doctor(f"job {path['id']}")

    def sandbox_doctor(self, _r: Any, path: dict[str, str], *_: Any) -> Bytes:
        return _doctor(f"sandbox {self.sandbox_show(_r, path).vmid}")

    def session_doctor(self, _r: Any, path: dict[str, str], *_: Any) -> Bytes:
        if path["name"] != "lab":
            raise unknown("session", path["name"], ["lab"])
        return _doctor("session lab")

    def checks(self, *_: Any) -> m.CheckList:
        return m.CheckList(self.w.checks)

    def operation_show(self, _r: Any, path: dict[str, str], *_: Any) -> m.OperationView:
        return self.w.operations[path["id"]]

    def _operation(self, kind: str, *, failed: bool = False, vmid: int = 0) -> m.OperationView:
        """An operation that has ended by the time that somebody looks again."""
        name = f"op-{kind}-{vmid}" if vmid else f"op-{kind}"
        self.w.event("step.doing", step="make", job=name[3:])
        self.w.event("step.done", step="make", seconds=0.5, job=name[3:])
        doing = m.OperationView(name, kind, "s", "doing", "make", False, "", "", "", vmid)
        error = "the disk is full" if failed else self.w.fails.get(kind, "")
        self.w.operations[name] = dataclasses.replace(
            doing, state="failed" if error else "done", final=True, error=error
        )
        return doing


def _doctor(text: str) -> Bytes:
    """Some bundle; its bytes say of what."""
    return Bytes(text.encode(), {"X-Content-Sha256": hashlib.sha256(text.encode()).hexdigest()})


def _until(there: Callable[[], bool], query: dict[str, str]) -> None:
    """A long poll, shorter than was asked for, so that tests are quick."""
    until = time.monotonic() + min(0.2, float(query.get("wait", 0)))
    while not there() and time.monotonic() < until:
        time.sleep(0.005)


class FakeDaemon:
    """Serves `world` on `path`; can lose replies, and can go away and come back."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.world = World()
        self.handlers = Handlers(self.world)
        self.violations: list[str] = []
        self.seen: list[str] = []
        self.lose: list[str] = []  # names of endpoints whose next reply gets lost
        self._server: socketserver.BaseServer | None = None

    def start(self) -> None:
        Path(self.path).unlink(missing_ok=True)
        daemon = self

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

        class Handler(_Handler):
            fake = daemon

        self._server = Server(self.path, Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            Path(self.path).unlink(missing_ok=True)

    def violation(self, text: str) -> Invalid:
        self.violations.append(text)
        return Invalid(text)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeDaemon
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        endpoint = None
        headers: dict[str, str] = {}
        try:
            endpoint, path, query = self._route()
            value = self._call(endpoint, path, query, body)
            status = endpoint.status
            if isinstance(value, Bytes):
                data, headers = value.data, value.headers
            else:
                data = render_document(value)
        except AgentLabError as error:
            status = error.http_status
            data = render_document(
                m.ErrorBody(error.message, error.code, error.hint, error.details)
            )
        if endpoint is not None and endpoint.name in self.fake.lose:
            self.fake.lose.remove(endpoint.name)
            self.close_connection = True
            return
        self.send_response(status)
        for key, each in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, each)
        self.end_headers()
        self.wfile.write(data)

    def _route(self) -> tuple[Endpoint[Any, Any], dict[str, str], dict[str, str]]:
        raw_path, _, raw_query = self.path.partition("?")
        for endpoint in ENDPOINTS:
            path = match(endpoint.path, raw_path)
            if path is None or endpoint.method != self.command:
                continue
            pairs = urllib.parse.parse_qsl(raw_query, strict_parsing=bool(raw_query))
            query = dict(pairs)
            if len(query) != len(pairs) or not set(query) <= set(endpoint.query):
                raise self.fake.violation(f"{endpoint.name}: query {raw_query}")
            return endpoint, path, query
        if self.path.startswith("/v1/"):
            raise self.fake.violation(f"unknown endpoint {self.command} {self.path}")
        raise NotFound("no such path")

    def _call(
        self, endpoint: Endpoint[Any, Any], path: dict[str, str], query: dict[str, str], body: bytes
    ) -> object:
        self.fake.seen.append(endpoint.name)
        request: object = body
        if endpoint.request is not Raw:
            if endpoint.method == "GET" and body:
                raise self.fake.violation(f"{endpoint.name}: a GET with a body")
            try:
                plain = parse_document(body) if endpoint.method != "GET" else {}
                request = from_plain(endpoint.request, plain)
            except Invalid as error:
                raise self.fake.violation(f"{endpoint.name}: {error.message}") from error
        return getattr(self.fake.handlers, endpoint.name)(request, path, query, self.headers)


def match(template: str, path: str) -> dict[str, str] | None:
    """Path arguments when `path` fits the row's template."""
    names, words = template.split("/"), path.split("/")
    found: dict[str, str] = {}
    for at, name in enumerate(names):
        if name.endswith("...}"):
            rest = "/".join(words[at:])
            return {**found, name[1:-4]: urllib.parse.unquote(rest)} if rest else None
        if at >= len(words):
            return None
        if name.startswith("{"):
            found[name[1:-1]] = urllib.parse.unquote(words[at])
        elif name != words[at]:
            return None
    return found if len(names) == len(words) else None


@contextlib.contextmanager
def serving(path: Path) -> Iterator[FakeDaemon]:
    """A fake daemon for one test, which fails when the client broke the contract."""
    fake = FakeDaemon(path)
    fake.start()
    try:
        yield fake
    finally:
        fake.stop()
    assert fake.violations == []

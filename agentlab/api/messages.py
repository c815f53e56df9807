"""What goes over the wire, both ways.  Times are seconds since the epoch, sizes bytes unless named."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlab.api.codec import at_most, limit


@dataclass(frozen=True, slots=True)
class Nothing:
    """An empty request."""


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """An error, as every endpoint gives it."""

    error: str
    code: str
    hint: str = ""
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """The daemon at a glance; `jobs` and `sandboxes` count by state, finished ones left out."""

    version: str
    commit: str
    python: str
    pid: int
    started: float
    hypervisor: str
    accelerator: str
    data_dir: str
    resident: int
    jobs: dict[str, int]
    sandboxes: dict[str, int]


@dataclass(frozen=True, slots=True)
class RepoRequest:
    """A git URL, or the sha256 of a bundle sent before; `depth` 0 is the whole history."""

    url: str = limit(4096, default="")
    bundle: str = limit(64, default="")
    ref: str = limit(1024, default="")
    depth: int = 1


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job as asked for.  `ttl` is a duration like `30m`, "" for the profile's."""

    repo: RepoRequest
    task: str
    profile: str = limit(64)
    mode: str = limit(64, default="")
    ttl: str = limit(32, default="")
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlanView:
    """What would be done for a job, without doing it; sizes in MiB, times in seconds."""

    profile: str
    template: str
    cores: int
    memory: int
    disk: int
    network: str
    ttl: int
    time_limit: int
    after: str
    command: str


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as shown.  `report` is what the guest said about it, null before.

    `final`: the state will not change.  `settled`: its operation has ended as well, so that its
    sandbox is gone, or kept if the profile says so.
    """

    id: str
    state: str
    final: bool
    settled: bool
    profile: str
    task: str
    repo: str
    ref: str
    vmid: int
    address: str
    operation: str
    created: float
    changed: float
    deadline: float
    reason: str
    waits_for: str
    artifact_dir: str
    labels: dict[str, str]
    report: dict[str, object] | None


@dataclass(frozen=True, slots=True)
class JobList:
    jobs: list[JobView]


@dataclass(frozen=True, slots=True)
class ArtifactView:
    """A file that was handed back; `path` is where it lies on the daemon's host."""

    name: str
    size: int
    sha256: str
    created: float
    path: str


@dataclass(frozen=True, slots=True)
class ArtifactList:
    artifacts: list[ArtifactView]


@dataclass(frozen=True, slots=True)
class BundleView:
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class EventView:
    """A fact of the event stream; `job` is "" and `vmid` 0 where it is not about one."""

    seq: int
    at: float
    kind: str
    text: str
    job: str
    vmid: int
    operation: str
    facts: dict[str, object]


@dataclass(frozen=True, slots=True)
class EventList:
    """Events in order; `last` is the sequence number to ask after next."""

    events: list[EventView]
    last: int


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """A sandbox as asked for.  `ttl` is a duration like `4h`, "" for the profile's; `vmid` 0: any.

    `keepalive`: its lease renews itself.  `queue` false: refused when this host has no room now.
    """

    profile: str = limit(64)
    name: str = limit(64, default="")
    ttl: str = limit(32, default="")
    keepalive: bool = False
    vmid: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    queue: bool = True


@dataclass(frozen=True, slots=True)
class SandboxView:
    """A sandbox as shown; `allowed` are the events that its state table has now.

    Sizes are MiB.  `ttl` is the length of its lease in seconds; `idle_stop` after how many seconds
    without activity it is stopped, 0 for never.  `operation` is what is being done with it, "" for
    nothing, and `waits_for` for what that waits.
    """

    vmid: int
    name: str
    state: str
    profile: str
    address: str
    mac: str
    network: str
    job: str
    power: str
    created: float
    changed: float
    lease_until: float
    reason: str
    allowed: list[str]
    template: str = ""
    cores: int = 0
    memory: int = 0
    disk: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    ttl: float = 0.0
    keepalive: bool = False
    idle_stop: float = 0.0
    operation: str = ""
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class SandboxList:
    sandboxes: list[SandboxView]


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """A program to run in a sandbox.  `id` is the caller's own: the same one runs once.

    `workdir` "" is /work when it is there, else the user's home.  `input`: stdin will be sent.
    """

    argv: list[str] = field(metadata=at_most(4096))
    id: str = limit(64)
    user: str = limit(32, default="agent")
    workdir: str = limit(4096, default="")
    env: dict[str, str] = field(default_factory=dict)
    input: bool = False


@dataclass(frozen=True, slots=True)
class ExecOutput:
    """What a program has written, in base64, and the numbers of the pieces to ask for next.

    `status` is null until it has ended and all of it has been handed out; 128 + n for a signal.
    `cut`: something that it started still holds its output.  `broken`: the guest had no room, and
    some output is lost.  `lost`: nobody in the guest knows any more how it ends.
    """

    next_out: int
    next_err: int
    status: int | None
    cut: bool
    broken: bool
    lost: bool
    stdout: str = limit(1 << 20)
    stderr: str = limit(1 << 20)


@dataclass(frozen=True, slots=True)
class ExecInput:
    """What became of a part of stdin: `taken`, `full` (send it again), or `closed`: nobody reads."""

    state: str = limit(16)


@dataclass(frozen=True, slots=True)
class ExecEnd:
    """How a program that was cleaned away had ended; null when it was ended by this, or was gone."""

    status: int | None


@dataclass(frozen=True, slots=True)
class DestroyRequest:
    force: bool = False


@dataclass(frozen=True, slots=True)
class StartRequest:
    """`queue` false: refused when this host has no room now, instead of waiting for it."""

    queue: bool = True


@dataclass(frozen=True, slots=True)
class RevertRequest:
    """`force`: also from under a job, which is cancelled and hands back first, and past snapshots
    that stand in the way, which are deleted.  `restart` null: when it had power."""

    force: bool = False
    restart: bool | None = None


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """What is to change: 0 leaves cores or memory (MiB) as they are, a label that is null goes."""

    cores: int = 0
    memory: int = 0
    labels: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """`ttl` is a duration like `4h` from now on, "" for as long as before."""

    ttl: str = limit(32, default="")


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    name: str = limit(64)


@dataclass(frozen=True, slots=True)
class SnapshotList:
    """Names, oldest first."""

    snapshots: list[str]


@dataclass(frozen=True, slots=True)
class PruneView:
    """TIMEOUT entries that were removed; `kept` are those whose VM is, or may be, still there."""

    removed: list[SandboxView]
    kept: list[int]


@dataclass(frozen=True, slots=True)
class MachineView:
    """A machine of the hypervisor: `whose` is ours, template, other installation or stranger.

    `sandbox` is the state of the record that is about it, "" for none; `in_range`: its VMID is one
    that sandboxes may have.  `lock` is the hypervisor's own word, "" for none.
    """

    vmid: int
    name: str
    power: str
    node: str
    whose: str
    sandbox: str
    in_range: bool
    lock: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    machines: list[MachineView]


@dataclass(frozen=True, slots=True)
class DriftView:
    """Where record and hypervisor differ.  `mend` is what applying does about it, "" when that is
    for a person, whom `remedy` tells how.  After applying, `operation` is the one that goes on with
    it, "" for none, and `mended` says that it has been done; `detail` says what was in the way."""

    kind: str
    vmid: int
    name: str
    detail: str
    mend: str
    remedy: str
    operation: str = ""
    mended: bool = False


@dataclass(frozen=True, slots=True)
class DriftList:
    """`complete` false: the inventory could not be read whole, nothing is known or done, and
    `problem` says why.  A `problem` of a complete one is a reason to look twice before applying."""

    drifts: list[DriftView]
    complete: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ProfileView:
    """A profile as read, or why it cannot be (`problem`); sizes in MiB, times in seconds."""

    name: str
    path: str
    problem: str
    template: str = ""
    cores: int = 0
    memory: int = 0
    disk: int = 0
    network: str = ""
    ttl: int = 0
    after: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class ProfileList:
    profiles: list[ProfileView]


@dataclass(frozen=True, slots=True)
class TemplateBuildRequest:
    """`image`: absolute path of a cloud image on the daemon's host, "" for the recipe; root's own.

    `storage` is of the hypervisor, "" for its choice.
    """

    name: str = limit(64, default="debian-12")
    image: str = limit(4096, default="")
    storage: str = limit(100, default="")


@dataclass(frozen=True, slots=True)
class FindingView:
    """Something that a template lacks; `remedy` is for root's shell on the node.

    What is not `needed` depends on the guest inside, or is only slow.
    """

    name: str
    problem: str
    remedy: str
    needed: bool


@dataclass(frozen=True, slots=True)
class TemplateCheckView:
    """A template that was looked at; `ready` when nothing that is needed lacks."""

    name: str
    detail: str
    ready: bool
    findings: list[FindingView]


@dataclass(frozen=True, slots=True)
class TemplateView:
    name: str
    ready: bool
    detail: str


@dataclass(frozen=True, slots=True)
class TemplateList:
    templates: list[TemplateView]


@dataclass(frozen=True, slots=True)
class OperationView:
    """An operation: `state` is doing, undoing, done, failed or cancelled; `step` the present one.

    `vmid` is 0 for one that has no sandbox, or has none yet.
    """

    id: str
    kind: str
    subject: str
    state: str
    step: str
    final: bool
    error: str
    hint: str
    waits_for: str
    vmid: int = 0


@dataclass(frozen=True, slots=True)
class CheckView:
    """What a check of the host found: `status` is ok, missing, error or skipped."""

    name: str
    status: str
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CheckList:
    checks: list[CheckView]

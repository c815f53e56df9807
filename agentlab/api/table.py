"""The endpoint table: router, client and reference are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from agentlab.api import messages as m

Req = TypeVar("Req")
Resp = TypeVar("Resp")

MAX_BODY = 1 << 20  # bytes of a JSON request
MAX_BUNDLE = 4 << 30  # bytes of a git bundle
MAX_WAIT = 60.0  # seconds that a long poll may ask for


@dataclass(frozen=True, slots=True)
class Raw:
    """A body of bytes instead of a document."""


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Req, Resp]):
    """One row.  `{name}` in the path is one segment, `{name...}` all that follow.

    `query` lists the parameters that are known; any other one is Invalid.
    `status` is what success gives.
    """

    name: str
    method: str
    path: str
    request: type[Req]
    response: type[Resp]
    summary: str
    query: tuple[str, ...] = ()
    status: int = 200


N = m.Nothing

STATUS = Endpoint("status", "GET", "/v1/status", N, m.Status, "the daemon at a glance")
JOB_CREATE = Endpoint(
    "job_create", "POST", "/v1/jobs", m.JobRequest, m.JobView,
    "run a job; the same Idempotency-Key gives the same job", status=202,
)  # fmt: skip
JOB_VALIDATE = Endpoint(
    "job_validate", "POST", "/v1/jobs/validate", m.JobRequest, m.PlanView, "plan, and do nothing"
)
JOB_LIST = Endpoint(
    "job_list", "GET", "/v1/jobs", N, m.JobList, "jobs, newest first", ("state", "limit")
)
JOB_SHOW = Endpoint("job_show", "GET", "/v1/jobs/{id}", N, m.JobView, "one job")
JOB_CANCEL = Endpoint(
    "job_cancel", "POST", "/v1/jobs/{id}/cancel", N, m.JobView, "cancel a job", status=202
)
JOB_LOG = Endpoint(
    "job_log", "GET", "/v1/jobs/{id}/log", N, Raw,
    "the agent's log from a byte on; waits for more; header X-Final: 1 when there is no more",
    ("offset", "wait"),
)  # fmt: skip
JOB_ARTIFACTS = Endpoint(
    "job_artifacts", "GET", "/v1/jobs/{id}/artifacts", N, m.ArtifactList, "what was handed back"
)
JOB_ARTIFACT = Endpoint(
    "job_artifact", "GET", "/v1/jobs/{id}/artifacts/{name...}", N, Raw, "one artifact's bytes"
)
JOB_DOCTOR = Endpoint(
    "job_doctor", "GET", "/v1/jobs/{id}/doctor", N, Raw, "a job's doctor bundle, a tar.gz"
)
BUNDLE_PUT = Endpoint(
    "bundle_put", "PUT", "/v1/bundles/{sha256}", Raw, m.BundleView,
    "send a git bundle for a job to come; again is the same",
)  # fmt: skip
EVENTS = Endpoint(
    "events", "GET", "/v1/events", N, m.EventList, "events after a sequence number; waits for one",
    ("after", "job", "vmid", "operation", "wait", "limit"),
)  # fmt: skip
SANDBOX_CREATE = Endpoint(
    "sandbox_create", "POST", "/v1/sandboxes", m.SandboxRequest, m.OperationView,
    "make a sandbox; the same Idempotency-Key gives the same one", status=202,
)  # fmt: skip
SANDBOX_VALIDATE = Endpoint(
    "sandbox_validate", "POST", "/v1/sandboxes/validate", m.SandboxRequest, m.PlanView,
    "plan a sandbox, and do nothing",
)  # fmt: skip
SANDBOX_LIST = Endpoint(
    "sandbox_list", "GET", "/v1/sandboxes", N, m.SandboxList,
    "sandboxes; label=KEY or KEY=VALUE, state and profile narrow the list",
    ("all", "state", "profile", "label"),
)  # fmt: skip
SANDBOX_SHOW = Endpoint(
    "sandbox_show", "GET", "/v1/sandboxes/{vmid}", N, m.SandboxView, "one, by VMID or name"
)
SANDBOX_UPDATE = Endpoint(
    "sandbox_update", "POST", "/v1/sandboxes/{vmid}/update", m.UpdateRequest, m.SandboxView,
    "change labels at once, cores and memory for its next start",
)  # fmt: skip
SANDBOX_START = Endpoint(
    "sandbox_start", "POST", "/v1/sandboxes/{vmid}/start", m.StartRequest, m.OperationView,
    "start a stopped sandbox; its lease begins anew", status=202,
)  # fmt: skip
SANDBOX_STOP = Endpoint(
    "sandbox_stop", "POST", "/v1/sandboxes/{vmid}/stop", N, m.OperationView,
    "have the guest power off, or take its power", status=202,
)  # fmt: skip
SANDBOX_PAUSE = Endpoint(
    "sandbox_pause", "POST", "/v1/sandboxes/{vmid}/pause", N, m.OperationView,
    "halt its virtual CPUs", status=202,
)  # fmt: skip
SANDBOX_RESUME = Endpoint(
    "sandbox_resume", "POST", "/v1/sandboxes/{vmid}/resume", N, m.OperationView,
    "let it go on", status=202,
)  # fmt: skip
SANDBOX_REVERT = Endpoint(
    "sandbox_revert", "POST", "/v1/sandboxes/{vmid}/revert", m.RevertRequest, m.OperationView,
    "put its root disk back to the snapshot `clean`", status=202,
)  # fmt: skip
SANDBOX_DESTROY = Endpoint(
    "sandbox_destroy", "POST", "/v1/sandboxes/{vmid}/destroy", m.DestroyRequest, m.OperationView,
    "destroy a sandbox and its disks", status=202,
)  # fmt: skip
SANDBOX_RENEW = Endpoint(
    "sandbox_renew", "POST", "/v1/sandboxes/{vmid}/lease/renew", m.RenewRequest, m.SandboxView,
    "renew the lease of a RUNNING sandbox",
)  # fmt: skip
SANDBOX_PRUNE = Endpoint(
    "sandbox_prune", "POST", "/v1/sandboxes/prune", N, m.PruneView,
    "remove TIMEOUT entries whose VM is gone",
)  # fmt: skip
SNAPSHOT_LIST = Endpoint(
    "snapshot_list", "GET", "/v1/sandboxes/{vmid}/snapshots", N, m.SnapshotList,
    "snapshots of its root disk",
)  # fmt: skip
SNAPSHOT_SAVE = Endpoint(
    "snapshot_save", "POST", "/v1/sandboxes/{vmid}/snapshots", m.SnapshotRequest, m.OperationView,
    "take a snapshot of a stopped sandbox", status=202,
)  # fmt: skip
SNAPSHOT_RESTORE = Endpoint(
    "snapshot_restore", "POST", "/v1/sandboxes/{vmid}/snapshots/{name}/restore", m.RevertRequest,
    m.OperationView, "put its root disk back to a snapshot", status=202,
)  # fmt: skip
SNAPSHOT_DELETE = Endpoint(
    "snapshot_delete", "POST", "/v1/sandboxes/{vmid}/snapshots/{name}/delete", N, m.OperationView,
    "delete a snapshot", status=202,
)  # fmt: skip
SANDBOX_DOCTOR = Endpoint(
    "sandbox_doctor", "GET", "/v1/sandboxes/{vmid}/doctor", N, Raw,
    "a sandbox's doctor bundle, a tar.gz",
)  # fmt: skip
SESSION_DOCTOR = Endpoint(
    "session_doctor", "GET", "/v1/sessions/{name}/doctor", N, Raw,
    "a session's doctor bundle, a tar.gz",
)  # fmt: skip
INVENTORY = Endpoint(
    "inventory", "GET", "/v1/inventory", N, m.Inventory, "the hypervisor's machines, and whose"
)
RECONCILE_LOOK = Endpoint(
    "reconcile_look", "GET", "/v1/reconcile", N, m.DriftList,
    "where records and hypervisor differ; nothing is changed",
)  # fmt: skip
RECONCILE_APPLY = Endpoint(
    "reconcile_apply", "POST", "/v1/reconcile", N, m.DriftList,
    "mend what can be mended, and begin what takes longer", status=202,
)  # fmt: skip
EXEC_START = Endpoint(
    "exec_start", "POST", "/v1/sandboxes/{vmid}/exec", m.ExecRequest, m.ExecOutput,
    "run a program in a sandbox; the same id runs once; waits a moment for its output", ("wait",),
)  # fmt: skip
EXEC_OUTPUT = Endpoint(
    "exec_output", "GET", "/v1/sandboxes/{vmid}/exec/{id}", N, m.ExecOutput,
    "a program's output from these pieces on (earlier ones are forgotten); waits for more",
    ("out", "err", "wait"),
)  # fmt: skip
EXEC_INPUT = Endpoint(
    "exec_input", "PUT", "/v1/sandboxes/{vmid}/exec/{id}/stdin", Raw, m.ExecInput,
    "a part of a program's stdin, at most 256 KiB, the first byte at `offset`; `last`: the end",
    ("offset", "last", "wait"),
)  # fmt: skip
EXEC_END = Endpoint(
    "exec_end", "DELETE", "/v1/sandboxes/{vmid}/exec/{id}", N, m.ExecEnd,
    "end a program if it runs, and forget it; with `ended`, which says that it has, in a while",
    ("ended",),
)  # fmt: skip
WORKSPACE_CREATE = Endpoint(
    "workspace_create", "POST", "/v1/workspaces", m.WorkspaceRequest, m.OperationView,
    "make a workspace; the same Idempotency-Key gives the same one", status=202,
)  # fmt: skip
WORKSPACE_LIST = Endpoint(
    "workspace_list", "GET", "/v1/workspaces", N, m.WorkspaceList, "workspaces, by name"
)
WORKSPACE_SHOW = Endpoint(
    "workspace_show", "GET", "/v1/workspaces/{name}", N, m.WorkspaceView, "one workspace"
)
WORKSPACE_ATTACH = Endpoint(
    "workspace_attach", "POST", "/v1/workspaces/{name}/attach", m.AttachRequest, m.OperationView,
    "give a sandbox a workspace, at /work", status=202,
)  # fmt: skip
WORKSPACE_DETACH = Endpoint(
    "workspace_detach", "POST", "/v1/workspaces/{name}/detach", m.DetachRequest, m.OperationView,
    "take it from the sandbox that has it", status=202,
)  # fmt: skip
WORKSPACE_CHECK = Endpoint(
    "workspace_check", "GET", "/v1/workspaces/{name}/check", N, m.WorkspaceCheckView,
    "what is wrong with its record, its volume and its lease; nothing is changed",
)  # fmt: skip
WORKSPACE_FSCK = Endpoint(
    "workspace_fsck", "POST", "/v1/workspaces/{name}/fsck", m.FsckRequest, m.OperationView,
    "check the file system of a detached workspace, on the host", status=202,
)  # fmt: skip
WORKSPACE_REBIND = Endpoint(
    "workspace_rebind", "POST", "/v1/workspaces/{name}/rebind", m.RebindRequest, m.OperationView,
    "make a new sandbox, and move an attached workspace to it", status=202,
)  # fmt: skip
WORKSPACE_FORK = Endpoint(
    "workspace_fork", "POST", "/v1/workspaces/{name}/fork", m.ForkRequest, m.OperationView,
    "copy a detached workspace, or a snapshot of it, to a new one", status=202,
)  # fmt: skip
WORKSPACE_RESIZE = Endpoint(
    "workspace_resize", "POST", "/v1/workspaces/{name}/resize", m.ResizeRequest, m.OperationView,
    "make a detached workspace larger", status=202,
)  # fmt: skip
WORKSPACE_DELETE = Endpoint(
    "workspace_delete", "POST", "/v1/workspaces/{name}/delete", N, m.OperationView,
    "delete a detached workspace with all that is in it", status=202,
)  # fmt: skip
WORKSPACE_SNAPSHOT_LIST = Endpoint(
    "workspace_snapshot_list", "GET", "/v1/workspaces/{name}/snapshots", N, m.SnapshotList,
    "snapshots of its volume",
)  # fmt: skip
WORKSPACE_SNAPSHOT_CREATE = Endpoint(
    "workspace_snapshot_create", "POST", "/v1/workspaces/{name}/snapshots", m.SnapshotRequest,
    m.OperationView, "take a snapshot of a detached workspace", status=202,
)  # fmt: skip
WORKSPACE_SNAPSHOT_RESTORE = Endpoint(
    "workspace_snapshot_restore", "POST", "/v1/workspaces/{name}/snapshots/{snapshot}/restore", N,
    m.OperationView, "put a detached workspace back to a snapshot", status=202,
)  # fmt: skip
WORKSPACE_SNAPSHOT_DELETE = Endpoint(
    "workspace_snapshot_delete", "POST", "/v1/workspaces/{name}/snapshots/{snapshot}/delete", N,
    m.OperationView, "delete a snapshot of a detached workspace", status=202,
)  # fmt: skip
WORKSPACE_LEASE_CLEAR = Endpoint(
    "workspace_lease_clear", "POST", "/v1/workspaces/{name}/lease/clear", m.LeaseClearRequest,
    m.WorkspaceView, "end a lease that nobody renews any more",
)  # fmt: skip
SESSION_CREATE = Endpoint(
    "session_create", "POST", "/v1/sessions", m.SessionRequest, m.SessionMade,
    "make a session; the same Idempotency-Key gives the same one", status=202,
)  # fmt: skip
SESSION_LIST = Endpoint(
    "session_list", "GET", "/v1/sessions", N, m.SessionList, "sessions, by name"
)
SESSION_SHOW = Endpoint(
    "session_show", "GET", "/v1/sessions/{name}", N, m.SessionView, "one session"
)
SESSION_RESUME = Endpoint(
    "session_resume", "POST", "/v1/sessions/{name}/resume", m.ResumeRequest, m.OperationView,
    "make a new sandbox with the session's work at /work", status=202,
)  # fmt: skip
SESSION_STOP = Endpoint(
    "session_stop", "POST", "/v1/sessions/{name}/stop", m.SessionStopRequest, m.SessionEnded,
    "end its sandbox; the work stays", status=202,
)  # fmt: skip
SESSION_FORK = Endpoint(
    "session_fork", "POST", "/v1/sessions/{name}/fork", m.ForkRequest, m.SessionMade,
    "a new session with a copy of the work", status=202,
)  # fmt: skip
SESSION_BRANCH = Endpoint(
    "session_branch", "POST", "/v1/sessions/{name}/branch", m.BranchRequest, m.SessionMade,
    "the session of a branch of this session: found, or forked", status=202,
)  # fmt: skip
SESSION_DELETE = Endpoint(
    "session_delete", "POST", "/v1/sessions/{name}/delete", m.SessionDeleteRequest, m.SessionEnded,
    "delete a stopped session, and its workspace when that is asked for too", status=202,
)  # fmt: skip
PROFILE_LIST = Endpoint("profile_list", "GET", "/v1/profiles", N, m.ProfileList, "profiles")
TEMPLATE_LIST = Endpoint("template_list", "GET", "/v1/templates", N, m.TemplateList, "templates")
TEMPLATE_BUILD = Endpoint(
    "template_build", "POST", "/v1/templates/build", m.TemplateBuildRequest, m.OperationView,
    "build a template, or return at once when it is there", status=202,
)  # fmt: skip
TEMPLATE_CHECK = Endpoint(
    "template_check", "GET", "/v1/templates/{name}/check", N, m.TemplateCheckView,
    "what a template, or a VM that is to be one, lacks; by name or VMID",
)  # fmt: skip
OPERATION_SHOW = Endpoint(
    "operation_show", "GET", "/v1/operations/{id}", N, m.OperationView, "one operation"
)
CHECKS = Endpoint(
    "checks", "GET", "/v1/checks", N, m.CheckList, "checks of this host; nothing is changed"
)

ENDPOINTS: tuple[Endpoint[object, object], ...] = (
    STATUS, JOB_CREATE, JOB_VALIDATE, JOB_LIST, JOB_SHOW, JOB_CANCEL, JOB_LOG, JOB_ARTIFACTS,
    JOB_ARTIFACT, BUNDLE_PUT, EVENTS, SANDBOX_CREATE, SANDBOX_VALIDATE, SANDBOX_LIST,
    SANDBOX_SHOW, SANDBOX_UPDATE, SANDBOX_START, SANDBOX_STOP, SANDBOX_PAUSE, SANDBOX_RESUME,
    SANDBOX_REVERT, SANDBOX_DESTROY, SANDBOX_RENEW, SANDBOX_PRUNE, SNAPSHOT_LIST, SNAPSHOT_SAVE,
    SNAPSHOT_RESTORE, SNAPSHOT_DELETE, INVENTORY, RECONCILE_LOOK, RECONCILE_APPLY, EXEC_START,
    EXEC_OUTPUT, EXEC_INPUT, EXEC_END,
    WORKSPACE_CREATE, WORKSPACE_LIST, WORKSPACE_SHOW, WORKSPACE_ATTACH, WORKSPACE_DETACH,
    WORKSPACE_CHECK, WORKSPACE_FSCK, WORKSPACE_REBIND, WORKSPACE_FORK, WORKSPACE_RESIZE,
    WORKSPACE_DELETE, WORKSPACE_SNAPSHOT_LIST, WORKSPACE_SNAPSHOT_CREATE,
    WORKSPACE_SNAPSHOT_RESTORE, WORKSPACE_SNAPSHOT_DELETE, WORKSPACE_LEASE_CLEAR, SESSION_CREATE,
    SESSION_LIST, SESSION_SHOW, SESSION_RESUME, SESSION_STOP, SESSION_FORK, SESSION_BRANCH,
    SESSION_DELETE,
    PROFILE_LIST,
    TEMPLATE_LIST, TEMPLATE_BUILD, TEMPLATE_CHECK, OPERATION_SHOW, CHECKS,
    JOB_DOCTOR, SANDBOX_DOCTOR, SESSION_DOCTOR,
)  # type: ignore[assignment]  # fmt: skip

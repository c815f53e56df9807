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
BUNDLE_PUT = Endpoint(
    "bundle_put", "PUT", "/v1/bundles/{sha256}", Raw, m.BundleView,
    "send a git bundle for a job to come; again is the same",
)  # fmt: skip
EVENTS = Endpoint(
    "events", "GET", "/v1/events", N, m.EventList, "events after a sequence number; waits for one",
    ("after", "job", "vmid", "operation", "wait", "limit"),
)  # fmt: skip
SANDBOX_LIST = Endpoint(
    "sandbox_list", "GET", "/v1/sandboxes", N, m.SandboxList, "sandboxes", ("all",)
)
SANDBOX_SHOW = Endpoint(
    "sandbox_show", "GET", "/v1/sandboxes/{vmid}", N, m.SandboxView, "one, by VMID or name"
)
SANDBOX_DESTROY = Endpoint(
    "sandbox_destroy", "POST", "/v1/sandboxes/{vmid}/destroy", m.DestroyRequest, m.OperationView,
    "destroy a sandbox and its disks", status=202,
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
    JOB_ARTIFACT, BUNDLE_PUT, EVENTS, SANDBOX_LIST, SANDBOX_SHOW, SANDBOX_DESTROY, EXEC_START,
    EXEC_OUTPUT, EXEC_INPUT, EXEC_END, PROFILE_LIST,
    TEMPLATE_LIST, TEMPLATE_BUILD, TEMPLATE_CHECK, OPERATION_SHOW, CHECKS,
)  # type: ignore[assignment]  # fmt: skip

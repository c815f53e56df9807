"""The API's endpoints: one function each, in the module of its noun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentlab.daemon.context import Daemon
from agentlab.daemon.handlers import (
    artifacts,
    bundles,
    checks,
    doctor,
    events,
    job_log,
    jobs,
    operations,
    profiles,
    programs,
    reconcile,
    sandboxes,
    status,
    templates,
)
from agentlab.daemon.router import Request

Handler = Callable[[Daemon, Request[Any]], object]

HANDLERS: Mapping[str, Handler] = {
    "status": status.show,
    "job_create": jobs.create,
    "job_validate": jobs.validate,
    "job_list": jobs.newest,
    "job_show": jobs.show,
    "job_cancel": jobs.cancel,
    "job_log": job_log.read,
    "job_artifacts": artifacts.all_of_job,
    "job_artifact": artifacts.read,
    "bundle_put": bundles.put,
    "events": events.after,
    "sandbox_create": sandboxes.create,
    "sandbox_validate": sandboxes.validate,
    "sandbox_list": sandboxes.all_known,
    "sandbox_show": sandboxes.show,
    "sandbox_update": sandboxes.update,
    "sandbox_start": sandboxes.start,
    "sandbox_stop": sandboxes.stop,
    "sandbox_pause": sandboxes.pause,
    "sandbox_resume": sandboxes.resume,
    "sandbox_revert": sandboxes.revert,
    "sandbox_destroy": sandboxes.destroy,
    "sandbox_renew": sandboxes.renew,
    "sandbox_prune": reconcile.prune,
    "snapshot_list": sandboxes.snapshots,
    "snapshot_save": sandboxes.save_snapshot,
    "snapshot_restore": sandboxes.revert,
    "snapshot_delete": sandboxes.delete_snapshot,
    "inventory": reconcile.inventory,
    "reconcile_look": reconcile.look,
    "reconcile_apply": reconcile.apply,
    "exec_start": programs.start,
    "exec_output": programs.output,
    "exec_input": programs.take,
    "exec_end": programs.end,
    "profile_list": profiles.all_known,
    "template_list": templates.all_known,
    "template_build": templates.build,
    "template_check": templates.check,
    "operation_show": operations.show,
    "checks": checks.all_checks,
    "job_doctor": doctor.job,
    "sandbox_doctor": doctor.sandbox,
    "session_doctor": doctor.session,
}

"""The rows of jobs."""

from __future__ import annotations

from agentlab.cli.command import Arg, Command
from agentlab.cli.tables.common import DOCTOR, FOLLOW, JOB, NO_QUEUE, NO_WAIT, RUN, TAIL

_PLAN = (
    Arg("--repo", "git URL, or a path on this machine", value="REPO", required=True),
    Arg("--ref", "branch, tag or commit; default: that of --branch, or HEAD", value="REF"),
    Arg("--task", "what the agent is to do", value="TEXT"),
    Arg("--task-file", "read the task from a file; - is standard input", value="FILE"),
    Arg("--profile", "what kind of sandbox and agent; default: the session's", value="NAME"),
    Arg("--mode", "the agent's mode; default: the profile's", value="MODE"),
    Arg("--ttl", "how long the sandbox may live; default: the profile's", value="DUR",
        kind="duration"),
    Arg("--depth", "commits of history to fetch from a git URL, 0 for all; default: 1",
        value="N", kind="count"),
    Arg("--env", "variable for the agent; KEY alone takes it from here; repeatable",
        value="KEY=VALUE", many=True),
    Arg("--label", "label of the job; repeatable", value="KEY=VALUE", many=True),
    Arg("--workspace", "the workspace that it has at /work", value="W"),
    Arg("--session", "the session that it works in, and goes on with", value="S"),
    Arg("--stateful", "work in this repository's own session, made when there is none"),
    Arg("--branch", "with --session or --stateful: in the session of this branch, made when there"
        " is none", value="BRANCH"),
    Arg("--workspace-wait", "how long to wait for a workspace that another has; default: not at"
        " all", value="DUR", kind="duration"),
    NO_QUEUE,
)  # fmt: skip

JOBS: tuple[Command, ...] = (
    Command(
        "job", "run", "run a job",
        (*_PLAN, Arg("--follow", "show the agent's log while it works"), NO_WAIT),
        RUN + "job_run:run",
        'agentlab job run --repo . --profile demo --task "fix the failing test" --follow',
    ),
    Command(
        "job", "validate", "plan a job; nothing is run", _PLAN, RUN + "job_run:validate",
        'agentlab job validate --repo . --profile demo --task "fix the failing test"',
    ),
    Command(
        "job", "list", "list jobs, newest first",
        (
            Arg("--state", "only jobs in this state", value="STATE", kind="job state"),
            Arg("--limit", "at most N jobs; default: 50", value="N", kind="count"),
        ),
        RUN + "job:list_", "agentlab job list --state RUNNING",
    ),
    Command("job", "show", "show a job", (JOB,), RUN + "job:show", "agentlab job show ID"),
    Command(
        "job", "wait", "wait for a job's end; exit status 5 when it failed", (JOB,),
        RUN + "job:wait", "agentlab job wait ID --timeout 30m",
    ),
    Command(
        "job", "cancel", "cancel a job", (JOB, NO_WAIT), RUN + "job:cancel",
        "agentlab job cancel ID",
    ),
    Command(
        "job", "logs", "print the agent's log", (JOB, FOLLOW, TAIL), RUN + "job_logs:logs",
        "agentlab job logs ID --follow --tail 100",
    ),
    Command(
        "job", "artifacts", "list what a job handed back", (JOB,), RUN + "artifacts:list_",
        "agentlab job artifacts ID",
    ),
    Command(
        "job", "artifacts download", "download what a job handed back",
        (
            JOB,
            Arg("NAME", "only these artifacts; default: all", many=True),
            Arg("--out", "directory to write to; default: the present one", value="DIR"),
            Arg("--force", "overwrite files that are there"),
        ),
        RUN + "artifacts:download", "agentlab job artifacts download ID changes.patch --out work",
    ),
    Command(
        "job", "doctor", "write a job's doctor bundle: records, events, no secrets",
        (JOB, *DOCTOR), RUN + "doctor:job", "agentlab job doctor ID --out bundles/",
    ),
)  # fmt: skip

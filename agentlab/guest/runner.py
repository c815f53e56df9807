"""The course of one job: claim, check out, run the agent, hand back, report; always a report."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentlab import clock, log
from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, DeadlineExceeded, Unavailable
from agentlab.guest import bootstrap, identity, marker
from agentlab.guest.account import Account, kill_all
from agentlab.guest.agent import Agent
from agentlab.guest.checkout import Checkout
from agentlab.guest.command import Stopped
from agentlab.guest.control import Control, Heartbeat, Limit
from agentlab.guest.daemon import Daemon
from agentlab.guest.git import CheckoutFailed
from agentlab.guest.handback import HandBack, Handed
from agentlab.guest.identity import Kernel
from agentlab.guest.job import Job, parse_job
from agentlab.guest.joblog import JobLog, LogSender
from agentlab.guest.marker import Marker
from agentlab.guest.paths import Pace, Paths, Workplace
from agentlab.guest.report import STILL_RUNS, Facts, Verdict, judge, render_report, stopped
from agentlab.guest.spool import Spool
from agentlab.secret import Secret

DONE, FAILED, REFUSED = 0, 1, 4  # exit statuses


def _agent_account() -> Account:
    return Account.named("agent")


@dataclass(frozen=True, slots=True)
class Guest:
    """The machine that the runner works in; every part can be replaced."""

    paths: Paths = field(default_factory=Paths)
    pace: Pace = field(default_factory=Pace)
    account: Callable[[], Account] = _agent_account
    kernel: Kernel = field(default_factory=Kernel)


def run(guest: Guest) -> int:
    """Waits for one job, does it, and returns the exit status; never a second job, never twice."""
    paths = guest.paths
    begun = marker.load(paths.marker)
    if begun is not None and begun.stage == marker.OVER:
        if not paths.bootstrap.exists():
            logging.info("the job of this machine is over")
            return DONE
        begun = None
    if begun is None:
        given = bootstrap.wait(
            paths,
            guest.pace,
            lambda document: identity.adopt(identity.parse_identity(document), paths, guest.kernel),
        )
        begun = Marker(given, Secret.generate())
        marker.save(paths.marker, begun)
    with log.context(job=begun.bootstrap.job):
        return Course(guest, begun).run()


class Course:
    """One job from its claim to its report."""

    def __init__(self, guest: Guest, begun: Marker) -> None:
        self._guest = guest
        self._marker = begun
        self._control = Control()
        self._facts = Facts(commit_before=begun.commit_before, started=begun.started)
        self._daemon = Daemon(begun.bootstrap.url, begun.bootstrap.job, begun.session, guest.pace)

    def run(self) -> int:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._control.stop("shutdown"))
        try:
            document = self._daemon.claim(
                self._marker.bootstrap.token, Deadline.after(self._guest.pace.claim)
            )
        except Unavailable as away:
            logging.error("gave up claiming the job: %s", away.message)
            return FAILED
        except AgentLabError as refused:
            logging.error("the daemon refused the claim: %s", refused.message)
            self._mark(marker.OVER)
            return REFUSED
        try:
            job = parse_job(document)
        except AgentLabError as problem:
            return self._report(Verdict("failed", "bootstrap", problem.message), Deadline.after(0))
        return self._do(job)

    def _do(self, job: Job) -> int:
        spare = self._guest.pace.report
        overall = Deadline.after(job.time_limit + job.handback_limit + spare)
        limit = Limit(job.time_limit)
        try:
            spool = Spool(self._guest.paths.spools)
        except OSError as full:
            return self._report(
                Verdict("failed", "bootstrap", f"cannot keep a log: {full.strerror}"), overall
            )
        with spool:
            verdict = self._see_through(job, JobLog(spool, job.limits.log_bytes), limit)
        return self._report(verdict, overall)

    def _see_through(self, job: Job, joblog: JobLog, limit: Limit) -> Verdict:
        """The job itself, while its log and its heartbeats are sent; all are over after it."""
        sender = LogSender(self._daemon, joblog, self._guest.pace)
        beat = Heartbeat(self._daemon, self._control, job.heartbeat, limit)
        sender.start()
        beat.start()
        verdict = self._judged(lambda: self._work(job, limit, joblog), job, limit, joblog)
        until = Deadline.after(job.handback_limit)
        if self._marker.stage in ("agent", "handback"):
            verdict = self._hand_back(job, until, verdict)
        unsent = sender.finish(Deadline.after(max(until.left, 5.0)))
        if unsent:
            self._facts.missing.append({"name": "agent.log", "reason": unsent})
        self._facts.log_bytes, self._facts.log_truncated = joblog.written, joblog.truncated
        beat.end()
        return verdict

    def _work(self, job: Job, limit: Limit, joblog: JobLog) -> Verdict:
        """Checks out and runs the agent; on a second start only says that it was one."""
        account = self._guest.account()
        if self._marker.stage != "bootstrap":
            self._control.enter(self._marker.stage)
            ended = "the job was ended" if kill_all(account) else STILL_RUNS
            said = f"the runner was restarted while the job ran; {ended}"
            return Verdict("failed", self._marker.stage, said)
        self._enter("checkout")
        begun = Checkout(
            account, self._place(account), job, limit, self._control.stopping,
            lambda line: joblog.write(f"agentlab: {line}\n".encode(errors="replace")),
        ).run(self._daemon)  # fmt: skip
        place, self._facts.commit_before = begun.place, begun.commit
        if self._control.reason:
            raise Stopped("the job was stopped")
        task = self._write_task(job.task)
        # The marker first: whatever happens from here on, the task is not begun again.
        self._enter("agent", started=clock.now(), repo=str(place.repo))
        agent = Agent(account, place, job, self._guest.pace, task, lambda: self._control.reason)
        outcome = agent.run(limit, joblog.write)
        self._facts.started = outcome.started
        self._facts.exit_code, self._facts.signal = outcome.exit_code, outcome.signal
        return judge(outcome, job)

    def _judged(
        self, work: Callable[[], Verdict], job: Job, limit: Limit, joblog: JobLog
    ) -> Verdict:
        """The verdict of `work`, or the one that its failure stands for."""
        try:
            return work()
        except Stopped:
            return stopped(self._control.reason, self._control.stage, job)
        except CheckoutFailed as failed:
            joblog.write(failed.said)
            return Verdict("failed", "checkout", failed.message)
        except AgentLabError as problem:
            late = limit.passed and isinstance(problem, DeadlineExceeded | Unavailable)
            if late:
                return stopped("timeout", self._control.stage, job)
            joblog.write(f"agentlab: {problem.message}\n".encode(errors="replace"))
            return Verdict("failed", self._control.stage, problem.message)
        except Exception as fault:
            logging.exception("the runner failed")
            said = f"internal error of the runner: {type(fault).__name__}: {fault}"
            return Verdict("failed", self._control.stage, said)

    def _write_task(self, task: str) -> Path:
        """The whole task in a file that the agent can read and not change."""
        shared, path = self._guest.paths.shared, self._guest.paths.task
        shared.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(task.encode(errors="replace"))
        path.chmod(0o644)
        return path

    def _hand_back(self, job: Job, until: Deadline, verdict: Verdict) -> Verdict:
        """The work comes back whatever the verdict; a fault of ours here is one more reason."""
        self._enter("handback")
        handed = Handed()
        try:
            account = self._guest.account()
            HandBack(
                account, self._guest.paths, self._place(account), self._daemon, job.limits,
                self._facts.commit_before, until, handed,
            ).run()  # fmt: skip
        except Exception as fault:
            logging.exception("the hand-back failed")
            handed.miss("files", f"internal error of the runner: {type(fault).__name__}: {fault}")
            if verdict.status == "completed":
                said = f"internal error of the runner while handing back: {fault}"
                verdict = Verdict("failed", "handback", said)
        self._facts.commit_after = handed.commit_after
        self._facts.artifacts, self._facts.missing = handed.artifacts, handed.missing
        return verdict

    def _place(self, account: Account) -> Workplace:
        """Where the job's directories are; once it is checked out, they stay where they are."""
        place = Workplace.of(self._guest.paths, account.home)
        return replace(place, repo=Path(self._marker.repo)) if self._marker.repo else place

    def _enter(self, stage: str, *, started: float | None = None, repo: str | None = None) -> None:
        self._mark(stage, started=started, repo=repo)
        self._control.enter(stage)

    def _mark(self, stage: str, *, started: float | None = None, repo: str | None = None) -> None:
        self._marker = self._marker.at(
            stage, commit_before=self._facts.commit_before, started=started, repo=repo
        )
        marker.save(self._guest.paths.marker, self._marker)

    def _report(self, verdict: Verdict, overall: Deadline) -> int:
        """Tells the daemon until it has heard, or until nobody can be waiting any more."""
        document = render_report(verdict, self._facts, clock.now())
        until = Deadline.after(max(overall.left, self._guest.pace.report))
        try:
            self._daemon.report(document, until)
        except Unavailable as away:
            logging.error("gave up reporting: %s", away.message)
            return FAILED
        except AgentLabError as refused:
            logging.error("the daemon refused the report: %s", refused.message)
            self._mark(marker.OVER)
            return FAILED
        self._mark(marker.OVER)
        logging.info("reported: %s %s", verdict.status, verdict.message)
        return DONE

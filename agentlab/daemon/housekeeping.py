"""What is put in order once the sockets are served, without holding anybody up."""

from __future__ import annotations

import logging
import threading

from agentlab import clock
from agentlab.control import (
    deadlines,
    fence_watch,
    idle,
    leases,
    reconcile,
    retention,
    workspace_leases,
)
from agentlab.control.loop import Loop
from agentlab.daemon.context import Daemon
from agentlab.daemon.job_files import INCOMING, sweep_parts
from agentlab.daemon.notify import notify
from agentlab.errors import AgentLabError

_log = logging.getLogger(__name__)
_FIRST_PAUSE = 1.0
_MOST_PAUSE = 30.0


class Housekeeping:
    """The fence, the engine, and the sweeping up of what an earlier process left half done."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        world = daemon.world
        ends = deadlines.Deadlines(world, daemon.runner)
        self._loops = [
            Loop("retention", lambda: retention.sweep(world, clock.now()), every=retention.EVERY),
            Loop("deadlines", ends.check, every=deadlines.EVERY),
            Loop("leases", leases.Leases(world, daemon.runner).check, every=leases.EVERY),
            Loop(
                "reconcile",
                reconcile.Reconciler(world, daemon.runner).check,
                every=reconcile.EVERY,
            ),
            Loop(
                "workspace leases",
                lambda: workspace_leases.renew(world),
                every=workspace_leases.EVERY,
            ),
            Loop("idle", idle.IdleStop(world, daemon.runner).check, every=idle.EVERY),
        ]
        self._watch = Loop("fence", lambda: fence_watch.check(world), every=fence_watch.EVERY)
        self._lock = threading.Lock()
        self._engine_runs = False
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Begins nothing more; steps under way have `timeout` seconds and are done again later."""
        for loop in (*self._loops, self._watch):
            loop.stop()
        with self._lock:
            if self._engine_runs:
                self._daemon.runner.stop(timeout)

    def _run(self) -> None:
        """Operations go on without a fence: the steps that need it put it up, or wait for it."""
        fenced, working = self._fence(), self._begin_work()
        self._sweep()
        pause = _FIRST_PAUSE
        while not (fenced and working) and not self._daemon.stopping.wait(pause):
            fenced = fenced or self._fence()
            working = working or self._begin_work()
            pause = min(_MOST_PAUSE, 2 * pause)
        if fenced:
            self._watch.start()

    def _fence(self) -> bool:
        world = self._daemon.world
        try:
            world.fence.ensure()
            world.sync_fence()
        except Exception as error:  # noqa: BLE001  # told, and tried again
            if self._daemon.stopping.is_set():
                return False  # its program was ended with the daemon
            _complain("the network is not in order", error)
            notify(f"STATUS=waiting for the network: {str(error)[:200]}")
            return False
        config = world.config.network
        _log.info("sandboxes are on bridge %s, %s", config.bridge, config.subnet)
        notify("STATUS=ready")
        return True

    def _begin_work(self) -> bool:
        """True when the engine runs, or is not wanted any more."""
        with self._lock:
            if self._daemon.stopping.is_set():
                return True
            try:
                count = self._daemon.runner.start()
            except Exception as error:  # noqa: BLE001  # told, and tried again
                _complain("the engine cannot start", error)
                return False
            self._engine_runs = True
        if count:
            _log.info("going on with %d unfinished operations", count)
        for loop in self._loops:
            loop.start()
        return True

    def _sweep(self) -> None:
        config, boot = self._daemon.world.config, self._daemon.boot
        try:
            swept = sweep_parts(config.bundle_dir, boot)
            for folder in config.artifact_dir.glob(f"*/{INCOMING}"):
                swept += sweep_parts(folder, boot)
        except OSError as error:
            _log.warning("cannot sweep up half-received files: %s", error)
        else:
            if swept:
                _log.info("removed %d half-received files", swept)


def _complain(what: str, error: Exception) -> None:
    """One line, and the traceback of what nobody foresaw."""
    unforeseen = None if isinstance(error, AgentLabError) else error
    _log.error("%s, trying again: %s", what, error, exc_info=unforeseen)

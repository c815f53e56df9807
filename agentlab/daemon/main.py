"""agentlabd: the program.  All objects are built from here, and only from here."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import signal
import sys
import threading
from pathlib import Path

from agentlab import config as settings
from agentlab import log, run, version
from agentlab.config import Config
from agentlab.daemon.build import build_daemon, build_world
from agentlab.daemon.context import Daemon
from agentlab.daemon.guest_server import GuestListener
from agentlab.daemon.housekeeping import Housekeeping
from agentlab.daemon.instance import sole_instance
from agentlab.daemon.listener import Listener, check_socket_path
from agentlab.daemon.notify import notify
from agentlab.daemon.server import UnixListener
from agentlab.engine.step import Observer
from agentlab.errors import AgentLabError, Unavailable
from agentlab.store.db import Store
from agentlab.store.operations import OperationRow

_log = logging.getLogger(__name__)
_TIDY = 3.0  # seconds that programs of ours are given to tidy up
_GRACE = 2.0  # seconds for requests, and for steps, that are under way at the end
_FILES = 65536  # open files: connections, and readers of the database


def main(argv: list[str]) -> int:
    """Runs the daemon until it is told to stop; `argv` is without the program's name."""
    options = _parser().parse_args(argv)
    if options.version:
        sys.stdout.write(version.text() + "\n")
        return 0
    log.setup(options.log_level.upper())
    try:
        config = settings.load(options.config)
    except AgentLabError as error:
        return _failed(error)
    return serve(config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agentlabd",
        description="The control plane of AgentLab: serves its socket and the sandboxes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=Path, default=settings.DEFAULT_PATH, metavar="PATH",
        help="the settings (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"],
        metavar="LEVEL",
        help="what the log on stderr tells: %(choices)s (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--version", action="store_true", help="tell the version, and end")
    return parser


def unobserved(moment: str, verb: str, operation: OperationRow, step: str) -> None:
    """The observer of an engine that nobody watches."""


def serve(config: Config, *, observer: Observer | None = None) -> int:
    """Serves until SIGTERM or SIGINT; the exit status.  Fault tests pass an `observer`."""
    os.umask(0o077)  # what others may read is given to them by name
    signals = _heard_signals()
    try:
        with contextlib.ExitStack() as stack:
            _prepare(config)
            stack.enter_context(sole_instance(config.data_dir))
            store = Store(config.data_dir / "agentlab.db")
            daemon = build_daemon(build_world(config, store), observer or unobserved)
            _run(daemon, signals)
    except AgentLabError as error:
        return _failed(error)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _failed(Unavailable(f"cannot start: {error.strerror or error}{where}"))
    return 0


def _failed(error: AgentLabError) -> int:
    text = error.message if error.message.startswith("cannot start") else f"cannot start: {error}"
    sys.stderr.write(f"error: {text}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    return 1


def _heard_signals() -> int:
    """The reading end of a pipe that gets the number of each signal as a byte.

    The byte is written in whichever thread the kernel interrupts, and takes no lock; a Python
    handler would run in the main thread only, which may sleep on, or hold the lock it needs.
    """
    heard, tell = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(tell, False)
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)
    return heard


def _prepare(config: Config) -> None:
    """The directories, and room for as many open files as the system allows us."""
    check_socket_path(config.socket)
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _close_to_others(config)
    for folder in (
        config.artifact_dir, config.bundle_dir, config.machine_dir, config.volume_dir,
    ):  # fmt: skip
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _close_to_others(config: Config) -> None:
    """Mode 0700 for a data directory that was there, when there is nothing in it but ours."""
    folder = config.data_dir
    found = folder.stat()
    places = (
        config.artifact_dir, config.bundle_dir, config.machine_dir, config.volume_dir,
        config.pvesh_dir, config.template_dir,
    )  # fmt: skip
    known = {each.relative_to(folder).parts[0] for each in places if folder in each.parents}
    if (
        found.st_uid == os.geteuid()
        and found.st_mode & 0o077
        and all(each.name in known or each.name.startswith("agentlab") for each in folder.iterdir())
    ):
        folder.chmod(0o700)
        _log.info("closed %s to other users", folder)


def _run(daemon: Daemon, signals: int) -> None:
    """Both sockets are served before anything else is looked after."""
    world = daemon.world
    with contextlib.ExitStack() as stack:
        listeners: list[Listener] = [UnixListener(daemon)]
        stack.callback(listeners[0].server_close)
        listeners.append(GuestListener(daemon))
        stack.pop_all()
    for listener in listeners:
        listener.start()
    config = world.config
    _log.info("agentlabd (pid %d) serves %s", os.getpid(), config.socket)
    _log.info("guests are served on %s:%d", config.network.host, config.guest_port)
    notify("READY=1", f"MAINPID={os.getpid()}")
    housekeeping = Housekeeping(daemon)
    housekeeping.start()
    while (number := os.read(signals, 1)[0]) == signal.SIGHUP:
        _log.info("nothing to reload: profiles are read for each job, settings at the start only")
    _log.info("stopping: %s came", signal.Signals(number).name)
    _stop(daemon, listeners, housekeeping)


def _stop(daemon: Daemon, listeners: list[Listener], housekeeping: Housekeeping) -> None:
    """Machines run on; what is unfinished is taken up at the next start."""
    notify("STOPPING=1", "STATUS=stopping")
    daemon.stopping.set()
    daemon.world.store.wake_waiters()
    enders = [threading.Thread(target=each.stop, args=(_GRACE,)) for each in listeners]
    for ender in enders:
        ender.start()
    housekeeping.stop(_GRACE)
    run.end_active(_TIDY)
    for ender in enders:
        ender.join()
    # a step that is still under way would find a closed database; SQLite needs no closing
    if not any(each.name.startswith("engine-") for each in threading.enumerate()):
        daemon.world.store.close()
    _log.info("stopped")

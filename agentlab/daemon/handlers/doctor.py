"""Doctor bundles."""

from __future__ import annotations

import hashlib

from agentlab.api import messages as m
from agentlab.control import doctor
from agentlab.daemon.context import Daemon
from agentlab.daemon.exchange import Answer, raw
from agentlab.daemon.router import Request


def session(daemon: Daemon, request: Request[m.Nothing]) -> Answer:
    return _bundle(daemon, "session", request.values["name"])


def sandbox(daemon: Daemon, request: Request[m.Nothing]) -> Answer:
    return _bundle(daemon, "sandbox", request.values["vmid"])


def job(daemon: Daemon, request: Request[m.Nothing]) -> Answer:
    return _bundle(daemon, "job", request.values["id"])


def _bundle(daemon: Daemon, noun: str, name: str) -> Answer:
    found = doctor.collect(daemon.world, noun, name, commit=daemon.commit)
    digest = hashlib.sha256(found.content).hexdigest()
    return raw(found.content, {"X-Content-Sha256": digest})

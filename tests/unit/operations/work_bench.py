"""As `bench.py`, with volumes and guests that mount them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentlab.errors import Unavailable
from agentlab.model.session import Session, SessionSpec
from agentlab.model.workspace import Workspace, WorkspaceSpec
from agentlab.operations import session_requests, workspace_requests
from agentlab.store import operations, sessions, workspaces
from agentlab.store.operations import OperationRow
from tests.fakes.work_hypervisor import FakeVolume, WorkHypervisor
from tests.unit.operations.bench import Bench, opened
from tests.waiting import happened


@dataclass
class WorkBench(Bench):
    hypervisor: WorkHypervisor

    def undestroyed(self, vmid: int) -> threading.Event:
        """Nobody answers who destroys this machine, until the event is set."""
        plain, block = self.hypervisor.destroy, threading.Event()

        def destroy(asked: int, *, owner: str) -> None:
            if asked == vmid and not block.is_set():
                raise Unavailable("no answer")
            plain(asked, owner=owner)

        self.hypervisor.destroy = destroy  # type: ignore[method-assign]
        return block

    def make(self, name: str = "work", size: int = 1024) -> Workspace:
        """A workspace that is there."""
        operation = workspace_requests.create(
            self.world, self.runner, WorkspaceSpec(name, size), ""
        )
        assert self.ended(operation).state == "done"
        return self.workspace(name)

    def attach(self, workspace: str, sandbox: int) -> OperationRow:
        return self.ended(
            workspace_requests.attach(self.world, self.runner, workspace, str(sandbox), "")
        )

    def detach(self, workspace: str, *, force: bool = False) -> OperationRow:
        return self.ended(
            workspace_requests.detach(self.world, self.runner, workspace, "", force=force)
        )

    def session(self, name: str = "lab", **asked: object) -> Session:
        spec = SessionSpec(name, "demo", **asked)  # type: ignore[arg-type]
        _, operation = session_requests.create(self.world, self.runner, spec, "")
        if operation:
            assert self.ended(operation).state == "done"
        with self.world.store.read() as tx:
            return sessions.get(tx, name)

    def workspace(self, name: str = "work") -> Workspace:
        with self.world.store.read() as tx:
            return workspaces.get(tx, name)

    def volume(self, name: str = "work") -> FakeVolume:
        return self.hypervisor.stored[self.workspace(name).volid]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[WorkBench]:
    hypervisor = WorkHypervisor()
    with opened(tmp_path, hypervisor, "[1000, 1009]") as (world, runner, fence):
        yield WorkBench(world, runner, hypervisor, fence)


def operation(bench: WorkBench, identity: str) -> OperationRow:
    with bench.world.store.read() as tx:
        return operations.get(tx, identity)


class Gate:
    """A call of the hypervisor that begins, and goes on when it is let."""

    def __init__(self, bench: WorkBench, name: str) -> None:
        self._began, self.go = threading.Event(), threading.Event()
        plain = getattr(bench.hypervisor, name)

        def slow(*arguments: Any, **named: Any) -> Any:
            self._began.set()
            happened(self.go)
            return plain(*arguments, **named)

        setattr(bench.hypervisor, name, slow)

    def wait(self) -> None:
        """Until the call has begun."""
        happened(self._began)

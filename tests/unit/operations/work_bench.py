"""As `bench.py`, with volumes and guests that mount them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentlab import config
from agentlab.engine.runner import Runner
from agentlab.model.session import Session, SessionSpec
from agentlab.model.workspace import Workspace, WorkspaceSpec
from agentlab.operations import kinds, session_requests, workspace_requests
from agentlab.operations.context import World
from agentlab.secret import Secret
from agentlab.store import sessions, workspaces
from agentlab.store.db import Store
from agentlab.store.operations import OperationRow
from tests.fakes.fence import FakeFence
from tests.fakes.work_hypervisor import FakeVolume, WorkHypervisor
from tests.unit.operations.bench import Bench


@dataclass
class WorkBench(Bench):
    hypervisor: WorkHypervisor

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
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    for after in ("destroy", "stop", "keep"):
        name = "demo" if after == "destroy" else after
        text = f"after: {after}\nnetwork: off\nagent: {{command: 'true'}}\n"
        (profiles / f"{name}.yaml").write_text(text)
    settings = config.parse(
        f"data_dir: {tmp_path}\nprofiles_dir: {profiles}\nvmid_range: [1000, 1009]\n",
        tmp_path / "config.yaml",
    )
    hypervisor, fence = WorkHypervisor(), FakeFence()
    store = Store(tmp_path / "agentlab.db")
    world = World(
        config=settings, store=store, hypervisor=hypervisor, fence=fence,  # type: ignore[arg-type]
        build_template=lambda name, on_step: None, installation="lab", key=Secret("k" * 43),
    )  # fmt: skip
    runner = Runner(store, kinds(world), workers=4)
    runner.start()
    yield WorkBench(world, runner, hypervisor, fence)
    runner.stop(5)
    store.close()

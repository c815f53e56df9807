"""What tests of operations hold in their hand: a real store and engine over a hypervisor in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentlab import config
from agentlab.engine.runner import Runner
from agentlab.model.job import JOB, Job, JobSpec, JobState, Repo
from agentlab.model.sandbox import Sandbox, SandboxEvent, SandboxSpec, SandboxState
from agentlab.operations import kinds, requests, sandbox_requests
from agentlab.operations.context import World
from agentlab.secret import Secret
from agentlab.store import jobs, operations, sandboxes, tokens
from agentlab.store.db import Store
from agentlab.store.operations import OperationRow
from tests.fakes.fence import FakeFence
from tests.fakes.hypervisor import FakeHypervisor
from tests.waiting import PATIENCE, read_until

SPEC = JobSpec(Repo(url="https://example.org/x.git"), "do it", "demo")


@dataclass
class Bench:
    world: World
    runner: Runner
    hypervisor: FakeHypervisor
    fence: FakeFence

    def create(self, spec: JobSpec = SPEC, key: str = "") -> Job:
        return requests.create_job(self.world, self.runner, spec, key)

    def until(self, job: Job, *states: JobState) -> Job:
        def right(found: Job) -> bool:
            return found.state in states and found.settled == JOB.final(found.state)

        return read_until(self.world.store, lambda tx: jobs.get(tx, job.id), right)

    def waits(self, job: Job, words: str) -> None:
        """Until that is in what the job waits for."""
        look = lambda tx: jobs.get(tx, job.id).waits_for  # noqa: E731
        read_until(self.world.store, look, lambda found: words in found)

    def report(self, job: Job, status: str = "completed", message: str = "") -> None:
        """Plays the runner: claims, then reports."""
        token = self.world.token(job.id).fingerprint
        with self.world.store.write() as tx:
            tokens.spend(tx, token, "session-" + job.id)
            jobs.set_report(tx, job.id, {"status": status, "stage": "agent", "message": message})
        self.runner.wake(job.operation)

    def job(self, job: Job) -> Job:
        with self.world.store.read() as tx:
            return jobs.get(tx, job.id)

    def ended(self, operation: str) -> OperationRow:
        """Waits for an operation's end."""
        return read_until(
            self.world.store, lambda tx: operations.get(tx, operation), lambda found: found.final
        )

    def new(self, **asked: object) -> Sandbox:
        """A sandbox made by hand, as it is when its operation has ended."""
        made = self.ended(self.ask(**asked))
        assert made.state == "done", made
        return self.box(made.vmid)

    def ask(self, key: str = "", **asked: object) -> str:
        spec = SandboxSpec(**{"profile": "demo", **asked})  # type: ignore[arg-type]
        return sandbox_requests.create(self.world, self.runner, spec, key)

    def act(self, kind: str, box: Sandbox | int, **given: object) -> OperationRow:
        """Starts, stops, pauses or resumes a sandbox, and waits for the end of that."""
        vmid = str(box if isinstance(box, int) else box.vmid)
        return self.ended(sandbox_requests.act(self.world, self.runner, kind, vmid, "", **given))

    def destroy(self, vmid: str | int, *, force: bool = False) -> str:
        return sandbox_requests.destroy(self.world, self.runner, str(vmid), "", force=force)

    def use(self, box: Sandbox) -> Sandbox:
        """Somebody has been in it."""
        with self.world.store.write() as tx:
            return sandboxes.transition(tx, box.vmid, SandboxEvent.RUN)

    def box(self, reference: str | int) -> Sandbox:
        with self.world.store.read() as tx:
            return sandboxes.get_live(tx, reference)

    def state(self, job: Job) -> SandboxState:
        with self.world.store.read() as tx:
            return sandboxes.get(tx, jobs.get(tx, job.id).vmid).state

    def clean(self) -> bool:
        with self.world.store.read() as tx:
            rows = [
                tx.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("subject", "token")
            ]
        return not self.hypervisor.machines and not self.fence.members and rows == [0, 0]


@contextmanager
def opened(
    tmp_path: Path, hypervisor: FakeHypervisor, vmids: str
) -> Iterator[tuple[World, Runner, FakeFence]]:
    """An installation with the profiles demo, stop and keep, whose engine runs."""
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    for after in ("destroy", "stop", "keep"):
        name = "demo" if after == "destroy" else after
        text = f"after: {after}\nnetwork: off\nagent: {{command: 'true'}}\n"
        (profiles / f"{name}.yaml").write_text(text)
    settings = config.parse(
        f"data_dir: {tmp_path}\nprofiles_dir: {profiles}\nvmid_range: {vmids}\n",
        tmp_path / "config.yaml",
    )
    fence, store = FakeFence(), Store(tmp_path / "agentlab.db")
    world = World(
        config=settings, store=store, hypervisor=hypervisor, fence=fence,  # type: ignore[arg-type]
        build_template=lambda name, on_step: None, installation="lab", key=Secret("k" * 43),
    )  # fmt: skip
    runner = Runner(store, kinds(world), workers=4)
    runner.start()
    yield world, runner, fence
    runner.stop(PATIENCE)
    store.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    hypervisor = FakeHypervisor()
    with opened(tmp_path, hypervisor, "[1000, 1004]") as (world, runner, fence):
        yield Bench(world, runner, hypervisor, fence)

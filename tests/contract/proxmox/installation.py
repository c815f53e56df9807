"""A whole installation on a hypervisor, with a fence that only remembers, and the test as the runner."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agentlab import config
from agentlab.engine.runner import Runner
from agentlab.hypervisor.base import Hypervisor
from agentlab.model.job import JOB, Job, JobSpec, JobState, Repo
from agentlab.operations import kinds, requests
from agentlab.operations.context import World
from agentlab.secret import Secret
from agentlab.store import jobs, sandboxes, tokens
from agentlab.store.db import Store
from tests.fakes.fence import FakeFence

OWNER = "lab"
SPEC = JobSpec(Repo(url="https://example.org/x.git"), "do it", "demo")
PROFILE = "network: off\nmemory: 512\ndisk: 2G\nagent: {command: 'true'}\n"


@dataclass
class Installation:
    world: World
    runner: Runner
    fence: FakeFence

    def create(self, spec: JobSpec = SPEC) -> Job:
        return requests.create_job(self.world, self.runner, spec, "")

    def until(self, job: Job, *states: JobState, seconds: float = 120.0) -> Job:
        """Waits for one of these states, and when it is a final one for all to be settled."""
        deadline = time.monotonic() + seconds
        while True:
            seen = self.world.store.commits
            with self.world.store.read() as tx:
                found = jobs.get(tx, job.id)
            if found.state in states and found.settled == JOB.final(found.state):
                return found
            assert time.monotonic() < deadline, f"{found} is not in {states}"
            self.world.store.wait(seen, 0.2)

    def report(self, job: Job, status: str = "completed") -> None:
        """Plays the runner: claims, then reports."""
        token = self.world.token(job.id).fingerprint
        with self.world.store.write() as tx:
            tokens.spend(tx, token, "session-" + job.id)
            jobs.set_report(tx, job.id, {"status": status, "stage": "agent", "message": ""})
        self.runner.wake(job.operation)

    def left_over(self) -> list[str]:
        """What the database still holds for sandboxes that are gone."""
        with self.world.store.read() as tx:
            rows = {
                table: tx.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("subject", "token")
            }
            live = [f"sandbox {box.vmid}" for box in sandboxes.live(tx)]
        members = [f"member {member.vmid}" for member in self.fence.members]
        return (
            [f"{count} rows in {table}" for table, count in rows.items() if count] + live + members
        )


@contextmanager
def installation(
    directory: Path,
    hypervisor: Hypervisor,
    *,
    vmids: tuple[int, int] = (1000, 1099),
    workers: int = 12,
) -> Iterator[Installation]:
    profiles = directory / "profiles"
    profiles.mkdir(exist_ok=True)
    (profiles / "demo.yaml").write_text(PROFILE)
    text = (
        f"data_dir: {directory}\nprofiles_dir: {profiles}\nvmid_range: [{vmids[0]}, {vmids[1]}]\n"
    )
    store, fence = Store(directory / "agentlab.db"), FakeFence()
    world = World(
        config=config.parse(text, directory / "config.yaml"), store=store, hypervisor=hypervisor,
        fence=fence, build_template=lambda name, on_step: None,  # type: ignore[arg-type]
        installation=OWNER, key=Secret("k" * 43),
    )  # fmt: skip
    runner = Runner(store, kinds(world), workers=workers)
    runner.start()
    try:
        yield Installation(world, runner, fence)
    finally:
        runner.stop(10)
        store.close()

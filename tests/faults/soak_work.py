"""The part of a soak that is about workspaces and sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.fakes.sim_door import DOOR, Asked

if TYPE_CHECKING:
    from tests.faults.soak import Soak

_MOST = 12  # workspaces that are kept at one time
_SNAPSHOTS = ["first", "second"]


@dataclass
class WorkActs:
    """`texts` is all that was ever written and synced, `last` what was last, by volume.

    `moved` are the volumes that were put back to a snapshot: on them is what was there some day.
    """

    soak: Soak
    names: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    texts: set[str] = field(default_factory=lambda: {""})
    last: dict[str, str] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    made: int = 0

    def acts(self) -> dict[Callable[[], None], int]:
        return {
            self.new: 5, self.attach: 7, self.detach: 5, self.write: 14, self.check: 2,
            self.resize: 2, self.save: 4, self.restore: 2, self.drop: 2, self.fork: 3,
            self.rebind: 2, self.delete: 2, self.new_session: 3, self.resume: 5, self.stop: 3,
            self.fork_session: 1, self.delete_session: 1, self.job: 5,
        }  # fmt: skip

    def _ask(self, verb: str, name: str, **asked: Any) -> Any:
        return self.soak._ask(f"work: {verb}", DOOR, Asked(verb, name, **asked))

    def _some(self) -> str:
        return self.soak.rng.choice(self.names) if self.names else "nobody"

    def _session(self) -> str:
        return self.soak.rng.choice(self.sessions) if self.sessions else "nobody"

    def _name(self, noun: str) -> str:
        self.made += 1
        return f"{noun}{self.made}"

    def new(self) -> None:
        if len(self.names) < _MOST:
            name = self._name("work")
            self.names.append(name)
            self._ask("create", name, size=64)

    def attach(self) -> None:
        self._ask("attach", self._some(), to=self.soak._some("up", "off"))

    def detach(self) -> None:
        self._ask("detach", self._some(), force=self.soak.rng.random() < 0.5)

    def write(self) -> None:
        """A process in a guest writes, and syncs; where none has it mounted, nothing happens."""
        row = self.soak.bench.work(self._some())
        node = self.soak.node
        self.soak.asked["work: write"] += 1
        if row and row["vmid"]:
            with node.work._lock:
                if node.work.has(row["vmid"], row["volid"]):
                    text = f"{row['name']} {self.soak.asked.total()}"
                    node.work.put(row["vmid"], text, sync=True)
                    self.texts.add(text)
                    self.last[row["volid"]] = text

    def check(self) -> None:
        self._ask("fsck", self._some(), force=True)

    def resize(self) -> None:
        self._ask("resize", self._some(), size=self.soak.rng.choice([64, 96, 128]))

    def save(self) -> None:
        self._ask("snapshot", self._some(), snapshot=self.soak.rng.choice(_SNAPSHOTS))

    def restore(self) -> None:
        name = self._some()
        row = self.soak.bench.work(name)
        if row:
            self.moved.add(row["volid"])
        self._ask("restore", name, snapshot=self.soak.rng.choice(_SNAPSHOTS))

    def drop(self) -> None:
        self._ask("snapshot delete", self._some(), snapshot=self.soak.rng.choice(_SNAPSHOTS))

    def fork(self) -> None:
        if len(self.names) < _MOST:
            source, name = self._some(), self._name("work")
            self.names.append(name)
            self._ask("fork", source, to=name)

    def rebind(self) -> None:
        self._ask("rebind", self._some(), force=self.soak.rng.random() < 0.3)

    def delete(self) -> None:
        name = self._some()
        answer = self._ask("delete", name)
        if answer is not None and name in self.names:
            self.names.remove(name)

    def new_session(self) -> None:
        if len(self.names) < _MOST:
            name = self._name("sess")
            self.names.append(name)
            self.sessions.append(name)
            self._ask("session create", name, size=64)

    def resume(self) -> None:
        self._ask("session resume", self._session())

    def stop(self) -> None:
        self._ask("session stop", self._session(), force=self.soak.rng.random() < 0.5)

    def fork_session(self) -> None:
        if len(self.names) < _MOST:
            source, name = self._session(), self._name("sess")
            self.names.append(name)
            self.sessions.append(name)
            self._ask("session fork", source, to=name)

    def delete_session(self) -> None:
        name, both = self._session(), self.soak.rng.random() < 0.5
        answer = self._ask("session delete", name, force=both)
        if answer is not None:
            self.sessions = [each for each in self.sessions if each != name]
            if both:
                self.names = [each for each in self.names if each != name]

    def job(self) -> None:
        task = self.soak.rng.choice(["complete", "fail", "hold"])
        made = self._ask("job", self._some(), to=task, wait=self.soak.rng.choice([0, 30]))
        if made is not None:
            self.soak.jobs.append(made.job)
            self.soak.boxes[f"job-{made.job}"] = "job"

    # ------------------------------------------------------------------- what must be true

    def wrong(self) -> list[str]:
        """Texts that are not what was written; when nothing is under way."""
        found = []
        for row in self.soak.bench.rows("SELECT * FROM workspace WHERE state != 'DELETED'"):
            if not row["volid"]:
                continue
            text = self.soak.bench.content(row["volid"]).text.replace(" and a job", "")
            if text not in self.texts:
                found.append(f"on workspace {row['name']} is {text!r}, which nobody wrote")
            last = self.last.get(row["volid"])
            if last is not None and row["volid"] not in self.moved and text != last:
                found.append(f"on workspace {row['name']} is {text!r}, not {last!r}")
        return found

    def end(self) -> None:
        """Deletes all."""
        for row in self.soak.bench.rows("SELECT name FROM session"):
            self._ask("session delete", row["name"], force=True)
        self.soak._settle()
        for row in self.soak.bench.rows("SELECT name FROM workspace WHERE state != 'DELETED'"):
            self._ask("delete", row["name"])
        self.soak._settle()

    def left(self) -> list[str]:
        rows = self.soak.bench.rows("SELECT * FROM workspace WHERE state != 'DELETED'")
        shelf = self.soak.node.shelf
        assert shelf is not None
        files = [f"file {each.name} is left" for each in shelf.glob("*/*")]
        return [f"workspace {row['name']} is still {row['state']}" for row in rows] + files

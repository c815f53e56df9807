"""How far the job has got, on tmpfs: a runner that is started again never runs a task twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from agentlab.guest import bootstrap
from agentlab.guest.bootstrap import Bootstrap
from agentlab.secret import Secret

OVER = "over"  # the stage after the report, or when the claim was refused


@dataclass(frozen=True, slots=True)
class Marker:
    """Bootstrap and session of the job, and its stage; the file is root's alone."""

    bootstrap: Bootstrap
    session: Secret
    stage: str = "bootstrap"
    commit_before: str | None = None
    started: float | None = None
    repo: str | None = None  # the directory, once it is checked out

    def at(
        self,
        stage: str,
        *,
        commit_before: str | None = None,
        started: float | None = None,
        repo: str | None = None,
    ) -> Marker:
        return replace(
            self,
            stage=stage,
            commit_before=commit_before or self.commit_before,
            started=started or self.started,
            repo=repo or self.repo,
        )


def save(path: Path, marker: Marker) -> None:
    document = {
        "url": marker.bootstrap.url,
        "job": marker.bootstrap.job,
        # Kept, because the same token with the same session gets the same answer again.
        "token": marker.bootstrap.token.reveal(),
        "session": marker.session.reveal(),
        "stage": marker.stage,
        "commit_before": marker.commit_before,
        "started": marker.started,
        "repo": marker.repo,
    }
    bootstrap.replace(path, json.dumps(document))


def load(path: Path) -> Marker | None:
    """None when no job was begun since the machine was started."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return Marker(
        Bootstrap(document["url"], document["job"], Secret(document["token"])),
        Secret(document["session"]),
        document["stage"],
        document["commit_before"],
        document["started"],
        document.get("repo"),
    )

"""What jobs handed back."""

from __future__ import annotations

import os

from agentlab.api import messages as m
from agentlab.daemon.context import Daemon
from agentlab.daemon.exchange import Answer, FileContent, raw
from agentlab.daemon.job_files import open_file, open_job_dir
from agentlab.daemon.router import Request
from agentlab.errors import Conflict, NotFound
from agentlab.model.ids import unknown
from agentlab.store import jobs


def all_of_job(daemon: Daemon, request: Request[m.Nothing]) -> m.ArtifactList:
    with daemon.world.store.read() as tx:
        job = jobs.get(tx, request.values["id"])
        found = jobs.artifacts(tx, job.id)
    folder = daemon.world.job_dir(job.id)
    return m.ArtifactList(
        [
            m.ArtifactView(each.name, each.size, each.sha256, each.created, str(folder / each.name))
            for each in found
        ]
    )


def read(daemon: Daemon, request: Request[m.Nothing]) -> Answer:
    """One artifact's bytes; only a name that is in the database ever becomes a path."""
    name = request.values["name"]
    with daemon.world.store.read() as tx:
        job = jobs.get(tx, request.values["id"])
        found = {each.name: each for each in jobs.artifacts(tx, job.id)}
    if name not in found:
        raise unknown("artifact", name[:200], found)
    try:
        with open_job_dir(daemon.world.config.artifact_dir, job.id, create=False) as folder:
            file = open_file(folder, name)
    except FileNotFoundError as error:
        raise NotFound(
            f"cannot read {name}: its file is gone", hint="retention may have removed it"
        ) from error
    except OSError as error:
        raise Conflict(f"cannot read {name}: {error.strerror}") from error
    headers = {"X-Content-Sha256": found[name].sha256}
    return raw(FileContent(file, os.fstat(file.fileno()).st_size), headers)

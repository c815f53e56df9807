"""What lies in a job's directory at its end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from agentlab import clock
from agentlab.errors import Unavailable
from agentlab.model.job import Artifact, Job

LOG = "agent.log"
REPORT = "report.json"
INCOMING = ".incoming"


def measure(job_dir: Path, job: Job, outcome: str, reason: str) -> list[Artifact]:
    """Log and report as artifacts; a report is written when the guest gave none.

    Unavailable when the disk does not let us, which is worth a retry: room may come.
    """
    try:
        return _measure(job_dir, job, outcome, reason)
    except OSError as error:
        raise Unavailable(
            f"cannot keep what job {job.id} handed back: {error.strerror or error}",
            hint=f"see to the disk of {job_dir.parent}: is it full?",
        ) from error


def _measure(job_dir: Path, job: Job, outcome: str, reason: str) -> list[Artifact]:
    job_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    shutil.rmtree(job_dir / INCOMING, ignore_errors=True)
    report = job.report or {"status": outcome, "stage": "sandbox", "message": reason}
    _write(job_dir / REPORT, json.dumps(report, indent=2).encode() + b"\n")
    if not (job_dir / LOG).exists():
        _write(job_dir / LOG, b"")
    return [_artifact(job.id, job_dir / name) for name in (LOG, REPORT)]


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _artifact(job: str, path: Path) -> Artifact:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    return Artifact(job, path.name, size, digest, clock.now())

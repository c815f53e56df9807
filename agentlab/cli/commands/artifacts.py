"""Artifacts: listed, and downloaded without trust in their names."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.cli.command import Answer, Context
from agentlab.cli.text import moment, safe, size, table
from agentlab.client.client import Client
from agentlab.errors import AgentLabError, Conflict, Invalid
from agentlab.model.ids import unknown


def list_(ctx: Context) -> Answer:
    found = ctx.client().call(api.JOB_ARTIFACTS, path={"id": ctx.args.text("ID")})
    rows = [
        (each.name, size(each.size), each.sha256[:12], moment(each.created))
        for each in found.artifacts
    ]
    lines = table(("NAME", "SIZE", "SHA256", "CREATED"), rows)
    return Answer(found, lines if rows else ["no artifacts"])


def download(ctx: Context) -> Answer:
    client, job = ctx.client(), ctx.args.text("ID")
    there = {each.name: each for each in client.call(api.JOB_ARTIFACTS, path={"id": job}).artifacts}
    names = ctx.args.many("NAME") or list(there)
    for name in names:
        if name not in there:
            missing = unknown("artifact", name, there)
            if not missing.details.get("did_you_mean"):
                missing.hint = f"see: agentlab job artifacts {job}"
            raise missing
    out = Path(ctx.args.text("--out") or ".")
    force = ctx.args.flag("--force")
    plan = [(there[name], place(out, name)) for name in names]
    for _, path in plan:
        check_free(out, path, force=force)
    lines, documents = [], []
    for artifact, path in plan:
        ctx.out.moving(f"{artifact.name}  {size(artifact.size)}")
        fetch(client, job, artifact, path)
        lines.append(f"{safe(str(path))}  {size(artifact.size)}")
        documents.append({"name": artifact.name, "path": str(path), "sha256": artifact.sha256})
    return Answer({"files": documents}, lines or ["no artifacts"])


def place(out: Path, name: str) -> Path:
    """Where an artifact goes; Invalid for a name that would leave `out` or deceive a reader."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or len(part) > 255 for part in parts) or not name.isprintable():
        raise Invalid(
            f"cannot download {name!r}: not a plain file name",
            hint="name the artifacts that you want; the others are left alone",
        )
    return out.joinpath(*parts)


def check_free(out: Path, path: Path, *, force: bool) -> None:
    """Conflict when a file is there already, or a link on the way leads elsewhere."""
    for each in path.parents:
        if each == out:
            break
        if each.is_symlink() or (each.exists() and not each.is_dir()):
            raise Conflict(f"cannot write {path}: {each} is no directory")
    if path.is_dir() and not path.is_symlink():
        raise Conflict(f"cannot write {path}: it is a directory")
    if os.path.lexists(path) and not force:
        raise Conflict(
            f"cannot write {path}: it is there already",
            hint="overwrite it: --force; or write elsewhere: --out DIR",
        )


def fetch(client: Client, job: str, artifact: m.ArtifactView, path: Path) -> None:
    """One artifact, whole and as its sha256 says, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, count = hashlib.sha256(), 0
    handle, part = tempfile.mkstemp(prefix=".agentlab-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for block in client.artifact(job, artifact.name):
                count += len(block)
                if count > artifact.size:
                    break
                digest.update(block)
                file.write(block)
        if count != artifact.size or digest.hexdigest() != artifact.sha256:
            raise AgentLabError(
                f"cannot download {artifact.name!r}: its bytes do not have the sha256 "
                f"{artifact.sha256}",
                hint="try again; if it stays so, the file on the daemon's host is damaged",
            )
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise

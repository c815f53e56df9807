"""Doctor bundles, fetched from the daemon and written whole."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from agentlab.api import messages as m
from agentlab.api import table as api
from agentlab.api.table import Endpoint, Raw
from agentlab.cli.command import Answer, Context
from agentlab.cli.text import safe
from agentlab.cli.text import size as size_text
from agentlab.errors import Conflict, Invalid, NotFound, Unavailable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def session(ctx: Context) -> Answer:
    return _fetch(ctx, "session", api.SESSION_DOCTOR, "name", ctx.args.text("SESSION"))


def sandbox(ctx: Context) -> Answer:
    return _fetch(ctx, "sandbox", api.SANDBOX_DOCTOR, "vmid", ctx.args.text("SANDBOX"))


def job(ctx: Context) -> Answer:
    return _fetch(ctx, "job", api.JOB_DOCTOR, "id", ctx.args.text("ID"))


def _fetch(
    ctx: Context, noun: str, endpoint: Endpoint[m.Nothing, Raw], parameter: str, name: str
) -> Answer:
    if not _NAME.fullmatch(name):
        raise NotFound(f"no {noun} {name!r}")
    path = place(ctx.args.text("--out"), f"agentlab-{noun}-{name}.tar.gz")
    force = ctx.args.flag("--force")
    check_free(path, force=force)
    reply = ctx.client().stream(endpoint, path={parameter: name})
    content = reply.body()
    digest = hashlib.sha256(content).hexdigest()
    if reply.headers.get("x-content-sha256") != digest:
        raise Unavailable("cannot fetch the bundle: it did not arrive as it was sent")
    write(path, content, force=force)
    line = f"{safe(str(path))}  {size_text(len(content))}"
    return Answer({"path": str(path), "size": len(content), "sha256": digest}, [line])


def place(out: str, default: str) -> Path:
    """Where a bundle goes: into a directory (one that is there, or ends with /), or to a file."""
    if not out or out.endswith("/") or Path(out).is_dir():
        return Path(out or ".") / default
    return Path(out)


def check_free(path: Path, *, force: bool) -> None:
    """Conflict when there is something already, before anything is asked for."""
    if path.is_dir():
        raise Conflict(f"cannot write {path}: it is a directory")
    if os.path.lexists(path) and not force:
        raise Conflict(
            f"cannot write {path}: it is there already",
            hint="overwrite it: --force; or write elsewhere: --out PATH",
        )


def write(path: Path, content: bytes, *, force: bool) -> None:
    """All of it or nothing; readable by nobody else.  A link in its place is replaced."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise Invalid(f"cannot write {path}: {path.parent} is no directory") from error
    handle, part = tempfile.mkstemp(prefix=".agentlab-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        check_free(path, force=force)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise

"""`sandbox cp`: files and directories into a sandbox, and out of one."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path

from agentlab.cli.command import Answer, Context
from agentlab.cli.commands.sandbox_exec import followed, order_of, read_some
from agentlab.cli.text import safe, size
from agentlab.client import copy
from agentlab.client.copy import Side
from agentlab.client.program import Ended, Item, Piece, Program, Source
from agentlab.client.unpack import Unpacked, put_in_place, unpack_file, unpack_tree
from agentlab.errors import AgentLabError, Invalid

_MAX_SAID = 4096  # bytes of the guest's own words that are kept for an error


def cp(ctx: Context) -> Answer:
    source, destination = copy.parse_sides(ctx.args.text("SRC"), ctx.args.text("DST"))
    if source.sandbox:
        return _from(ctx, source, destination)
    return _into(ctx, source, destination)


class _Run:
    """A program in the sandbox that copies: its stdout to read from, its words for errors."""

    def __init__(self, ctx: Context, side: Side, argv: list[str], source: Source | None) -> None:
        order = order_of(ctx, argv, input=source is not None)
        self.program = Program(ctx.client(waits=True), side.sandbox, order, source)
        self._items: Generator[Item, None, None] = followed(ctx, self.program)
        self._ctx = ctx
        self._said = bytearray()
        self._have = b""
        self.status: int | None = None
        self.whole = 0
        self.done = 0

    def close(self) -> None:
        self._items.close()

    def step(self) -> bytes:
        """What came on stdout; b"" for nothing yet, or at the end, when `status` is known."""
        item = next(self._items, None)
        if isinstance(item, Ended):
            self.status = item.status
            next(self._items, None)  # so that it is forgotten there
        elif isinstance(item, Piece):
            self._said += item.err[: _MAX_SAID - len(self._said)]
            return item.out
        self.show()
        return b""

    def show(self) -> None:
        if self.whole:
            self._ctx.out.moving(f"{size(min(self.done, self.whole))} of {size(self.whole)}")
        elif self.done:
            self._ctx.out.moving(size(self.done))

    def read(self, most: int = -1) -> bytes:
        """The next bytes of stdout, at least one; b"" at the end."""
        while not self._have and self.status is None:
            self._have = self.step()
        if most < 0:
            most = len(self._have)
        found, self._have = self._have[:most], self._have[most:]
        return found

    def line(self) -> bytes:
        found = bytearray()
        while not found.endswith(b"\n") and len(found) < copy.MAX_HEADER:
            byte = self.read(1)
            if not byte:
                break
            found += byte
        return bytes(found)

    def drain(self) -> None:
        while self.read():
            pass

    def check(self, what: str) -> None:
        """Raises what the program said when it did not end well."""
        if self.status:
            lines = self._said.decode(errors="replace").strip().splitlines()
            said = lines[-1] if lines else f"it ended with status {self.status}"
            hint = "files of others: --user root" if "ermission denied" in said else ""
            raise AgentLabError(f"cannot copy {what}: {said}", hint=hint)


def _into(ctx: Context, here: Side, there: Side) -> Answer:
    """A failure on either side leaves nothing under the final name."""
    left_out: list[str] = []
    if here.path == "-":
        argv = _argv(copy.RECEIVE, there.path, "", "raw")
        run = _Run(ctx, there, argv, lambda: read_some(sys.stdin.fileno()))
        sender = None
    else:
        path = Path(here.path)
        if not (path.is_file() or path.is_dir()):
            why = (
                "it is neither a file nor a directory" if path.exists() else "there is no such file"
            )
            raise Invalid(f"cannot copy {here.path}: {why}")
        kind = "dir" if path.is_dir() else "file"
        sender = _Sender(Path(os.path.realpath(path)), left_out)
        name = here.name if here.name != ".." else "."
        run = _Run(ctx, there, _argv(copy.RECEIVE, there.path, name, kind), sender.read)
    with contextlib.closing(run):
        while run.status is None:
            run.step()
            run.done = run.program.sent
    run.check(f"to {there.sandbox}:{there.path}")
    sent = sender.size if sender else run.program.sent
    return _answer(ctx, here, there, sent, left_out)


class _Sender:
    """Packs in a thread of its own; `read` gives what is packed, and raises what went wrong."""

    def __init__(self, path: Path, left_out: list[str]) -> None:
        self._path = path
        self._left_out = left_out
        self._error: BaseException | None = None
        self.size = copy.size_of(path)
        self._out, self._into = os.pipe()
        self._thread = threading.Thread(target=self._pack, daemon=True)
        self._begun = False

    def _pack(self) -> None:
        try:
            with os.fdopen(self._into, "wb") as out:
                copy.pack(self._path, out, self._left_out.append)
        except Exception as error:  # noqa: BLE001  # raised where it is read
            self._error = error

    def read(self) -> bytes:
        if not self._begun:
            self._begun = True
            self._thread.start()
        found = read_some(self._out)
        if not found:
            self._thread.join()
            if self._error is not None:
                raise self._error
        return found


def _from(ctx: Context, there: Side, here: Side) -> Answer:
    if here.path == "-":
        return _to_stdout(ctx, there)
    if there.name == "..":
        raise Invalid(f"cannot copy {there.path}: name the directory itself")
    target, within = Path(here.path), Path(here.path).is_dir()
    final = target / there.name if within else target
    if not within and (here.path.endswith("/") or not target.parent.is_dir()):
        missing = target if here.path.endswith("/") else target.parent
        raise Invalid(f"cannot copy to {here.path}: there is no directory {missing}")
    run = _Run(ctx, there, _argv(copy.SEND, there.path, "tree"), None)
    with (
        contextlib.closing(run),
        tempfile.TemporaryDirectory(
            prefix=".agentlab-", dir=final.parent, ignore_cleanup_errors=True
        ) as scratch,
    ):
        found = _receive(run, there, Path(scratch))
        put_in_place(Path(scratch) / "x", final)
    return _answer(ctx, there, here, found.size, found.left_out)


def _receive(run: _Run, there: Side, scratch: Path) -> Unpacked:
    what = f"from {there.sandbox}:{there.path}"
    line = run.line()
    if not line:
        run.drain()
        run.check(what)
    kind, run.whole = copy.parse_header(line)
    copy.check_room(scratch, run.whole)

    def moved(count: int) -> None:
        run.done += count
        run.show()

    try:
        if kind == "dir":
            (scratch / "x").mkdir()
            found = unpack_tree(run, scratch / "x", run.whole, moved)
        else:
            found = unpack_file(run, scratch, run.whole, moved)
    except AgentLabError:
        if run.status is not None:
            run.check(what)  # its own words, when it has failed, say more
        raise
    run.drain()
    run.check(what)
    return found


def _to_stdout(ctx: Context, there: Side) -> Answer:
    run = _Run(ctx, there, _argv(copy.SEND, there.path, "raw"), None)
    with contextlib.closing(run):
        while run.status is None:
            content = run.read()
            if content:
                ctx.out.pipe(content)
            elif ctx.out.unread():
                raise BrokenPipeError
    run.check(f"from {there.sandbox}:{there.path}")
    return Answer(None)


def _argv(script: str, *words: str) -> list[str]:
    return ["/bin/sh", "-c", script, "agentlab-cp", *words]


def _answer(ctx: Context, source: Side, to: Side, count: int, left_out: list[str]) -> Answer:
    for name in left_out[:10]:
        ctx.out.warn(f"left out: {name} (a special file, or a link that leads out)")
    if len(left_out) > 10:
        ctx.out.warn(f"left out: {len(left_out) - 10} more")
    document = {"from": _shown(source), "to": _shown(to), "bytes": count, "left_out": left_out}
    line = f"{safe(_shown(source))} -> {safe(_shown(to))}  {size(count)}"
    return Answer(document, [line], status=1 if left_out else 0)


def _shown(side: Side) -> str:
    return f"{side.sandbox}:{side.path}" if side.sandbox else side.path

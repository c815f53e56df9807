"""Programs in a guest that are followed while they run: started, heard, fed and ended.

By `Guest.exec` alone, so for all drivers the same.  Whatever is known of a program is in the
guest, under the id that the caller has chosen; so every call may be made again after a lost reply
or a restart, nothing runs twice, and the same pieces of output come back until the caller asks
for later ones.  What the guest says is hostile: bounded, parsed, and never more than bytes.
"""

from __future__ import annotations

import base64
import re
import shlex
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from agentlab.clock import Deadline
from agentlab.errors import (
    Conflict,
    DeadlineExceeded,
    Invalid,
    NotFound,
    TooLarge,
    TooMany,
    Unavailable,
)
from agentlab.hypervisor import program_scripts as scripts
from agentlab.hypervisor.base import ExecResult, Guest
from agentlab.log import one_line

BASE = "/run/agentlab/programs"
MAX_PROGRAM = 40_000  # bytes of a command with its environment, which go in at once
MAX_INPUT = 256 << 10  # bytes of one `feed`
_PIECE_BYTES = 64 << 10
_MAX_ANSWER = 1 << 20
_CALL = 60.0  # seconds that a call may take beyond what it waits for
_LEAST_WAIT = 0.1  # to timeout(1), 0 is for ever
_FULL_WAIT = 2.0

_ID = re.compile(r"[a-z0-9]{16,64}", re.ASCII)
_USER = re.compile(r"[a-z_][a-z0-9_.-]{0,31}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_PIECES = re.compile(rb"(out|err) (\d{1,15}) (\d{1,15}) (plain|gzip) ([A-Za-z0-9+/=]*)")
_END = re.compile(rb"end (running|lost|\d{1,3}) ?((?:cut)?(?: broken)?)")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run.  `workdir` "" is /work when it is there, else the user's home.

    `input`: there will be input; without it stdin is empty.
    """

    argv: Sequence[str]
    user: str = "agent"
    workdir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    input: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """What a program has written, and where to go on: the numbers of the next pieces.

    `status` when it has ended and all of it has been handed out; 128 + n for a signal.
    `cut`: it has ended, and something that it started still holds its output open.
    `broken`: the guest had no room, and some output is lost.
    `lost`: nobody in the guest knows any more how it ends.
    """

    out: bytes
    err: bytes
    next_out: int
    next_err: int
    status: int | None = None
    cut: bool = False
    broken: bool = False
    lost: bool = False

    @property
    def news(self) -> bool:
        return bool(self.out or self.err or self.lost) or self.status is not None


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs of one guest.  `most` is what one `exec` takes as its stdin, in bytes.

    `base` is where they are kept in the guest; only tests have another one.
    """

    guest: Guest
    vmid: int
    owner: str
    most: int = 45_000
    at_once: int = 4  # calls that may be under way for one piece of input
    base: str = BASE

    def check(self, name: str) -> None:
        """Invalid for an id that is none: it becomes the name of a directory."""
        if not _ID.fullmatch(name):
            raise Invalid("the id of a program has 16 to 64 lower-case letters and digits")

    def start(self, name: str, order: Order, *, wait: float = 1.0) -> Heard:
        """Starts it, unless it has been; waits a moment for what it says.

        Invalid for an order that cannot be, Unavailable when the guest has no room, TooMany.
        """
        program = render_program(order)
        words = ["0", "0", _seconds(wait), order.user, str(len(program)),
                 "input" if order.input else "none", scripts.KEEPER]  # fmt: skip
        result = self._call("start", scripts.START, name, words, program, wait)
        refused = result.stdout.strip()
        if refused == b"refused user":
            raise Invalid(f"cannot run a program as {order.user}: the guest has no such user")
        if refused == b"refused many":
            raise TooMany(
                f"cannot run a program: {scripts.MOST} are running in this guest already",
                hint="end some of them; those that nobody asks for are ended after an hour",
            )
        if refused.startswith(b"refused "):
            raise Unavailable("cannot run a program: the guest has no room in /run")
        return parse_heard(result, 0, 0)

    def hear(self, name: str, next_out: int, next_err: int, *, wait: float = 1.0) -> Heard:
        """What there is from these pieces on; the earlier ones are forgotten.  NotFound."""
        words = [str(next_out), str(next_err), _seconds(wait)]
        result = self._call("hear", scripts.FETCH, name, words, b"", wait)
        return parse_heard(result, next_out, next_err)

    def feed(self, name: str, offset: int, content: bytes, *, last: bool, wait: float) -> str:
        """Gives it input from byte `offset` on; `last`: and no more.  The same bytes may come again.

        "taken"; "full" when the program did not read enough of it within `wait` seconds, and the
        same call is to be made again; "closed" when it will never read it.
        """
        if len(content) > MAX_INPUT:
            raise TooLarge(f"cannot take more than {MAX_INPUT} bytes of input at once")
        total = str(offset + len(content)) if last else "more"
        parts = [content[at : at + self.most] for at in range(0, len(content), self.most)]
        tasks = [(offset + n * self.most, part) for n, part in enumerate(parts)] or [(offset, b"")]
        until = Deadline.after(wait)
        if len(tasks) == 1:
            return self._feed(name, tasks[0], total, until)
        with ThreadPoolExecutor(self.at_once, "agentlab-feed") as pool:
            words = list(pool.map(lambda task: self._feed(name, task, total, until), tasks))
        return next((word for word in ("closed", "full") if word in words), "taken")

    def _feed(self, name: str, task: tuple[int, bytes], total: str, until: Deadline) -> str:
        offset, content = task
        while True:
            patience = min(_FULL_WAIT, max(until.left, 0.0))
            words = [str(offset), str(len(content)), total, _seconds(patience)]
            result = self._call("feed", scripts.FEED, name, words, content, patience)
            word = one_line(result.stdout[:100].decode(errors="replace").strip())
            if word == "room":
                raise Unavailable(
                    "cannot give the program its input: the guest has no room in /run"
                )
            if word == "clash":
                raise Conflict("cannot give the program its input: this part of it came before")
            if word not in ("taken", "full", "closed"):
                raise Unavailable(f"cannot give the program its input: the guest said {word!r}")
            if word != "full" or until.passed:
                return word

    def end(self, name: str) -> int | None:
        """Ends it with all of its session, if it runs, and forgets it; its status, or None.

        None when it was ended by this, or was not there.
        """
        try:
            result = self._call("end", scripts.END, name, [], b"", 5.0)
        except NotFound:
            return None
        match = re.fullmatch(rb"ended (\d{1,3})\n", result.stdout)
        return int(match[1]) if match and int(match[1]) < 256 else None

    def _call(
        self, what: str, script: str, name: str, words: Sequence[str], stdin: bytes, wait: float
    ) -> ExecResult:
        self.check(name)
        argv = ["/bin/sh", "-c", script, f"agentlab-{what}", self.base, name, *words]
        try:
            result = self.guest.exec(
                self.vmid, argv, owner=self.owner, stdin=stdin, timeout=wait + _CALL
            )
        except DeadlineExceeded as error:  # and may be asked again, as everything here
            raise Unavailable(error.message, hint=error.hint) from error
        if result.stdout == b"gone\n":
            raise NotFound(
                "there is no such program in the guest",
                hint="it has been cleaned away, or the sandbox was started anew since",
            )
        return result


def _seconds(wait: float) -> str:
    return f"{max(wait, _LEAST_WAIT):.1f}"


def render_program(order: Order) -> bytes:
    """What a shell that is the user already is to do; Invalid for what no program can be given.

    In a file, not in arguments: they may hold any byte but NUL, and others see arguments.
    """
    if not order.argv or not order.argv[0]:
        raise Invalid("cannot run a program: there is no command")
    if not _USER.fullmatch(order.user):
        raise Invalid(f"cannot run a program as {order.user!r}: no name of a user")
    for name in order.env:
        if not _VARIABLE.fullmatch(name):
            raise Invalid(f"cannot set the variable {name!r}: not a name", details={"path": "env"})
    if any("\0" in text for text in (*order.argv, order.workdir, *order.env.values())):
        raise Invalid("cannot run a program: a NUL byte in what it is given")
    where = "if [ -d /work ]; then cd /work; else cd; fi 2>/dev/null || cd /\n"
    if order.workdir:
        place = shlex.quote(order.workdir)
        where = f"cd -- {place} || exit 126\n"
    lines = ["exec 9<&-\n", where]
    lines += [f"export {name}={shlex.quote(value)}\n" for name, value in order.env.items()]
    lines += ["exec " + " ".join(shlex.quote(word) for word in order.argv) + "\n"]
    content = "".join(lines).encode(errors="surrogateescape")
    if len(content) > MAX_PROGRAM:
        raise TooLarge(
            f"cannot run a program: its command and its environment have {len(content)} bytes,"
            f" and at most {MAX_PROGRAM} can be given",
            hint="copy a file into the sandbox instead: agentlab sandbox cp",
        )
    return content


def parse_heard(result: ExecResult, next_out: int, next_err: int) -> Heard:
    """The answer of the scripts; Unavailable for anything else, from a guest that is not honest."""
    text = result.stdout
    if result.truncated or len(text) > _MAX_ANSWER or not text.endswith(b"\n"):
        raise _nonsense(result)
    *pieces, last = text[:-1].split(b"\n")
    end = _END.fullmatch(last.rstrip())
    streams: dict[bytes, tuple[bytes, int]] = {}
    asked = {b"out": (next_out, scripts.OUT_AT_ONCE), b"err": (next_err, scripts.ERR_AT_ONCE)}
    for line in pieces:
        match = _PIECES.fullmatch(line)
        if match is None or match[1] in streams:
            raise _nonsense(result)
        first, following = int(match[2]), int(match[3])
        wanted, most = asked[match[1]]
        if first != wanted or not 0 < following - first <= most:
            raise _nonsense(result)
        try:
            content = _decoded(match[5], match[4], (following - first) * _PIECE_BYTES)
        except (ValueError, zlib.error) as error:
            raise _nonsense(result) from error
        streams[match[1]] = (content, following)
    if end is None:
        raise _nonsense(result)
    out, err = streams.get(b"out", (b"", next_out)), streams.get(b"err", (b"", next_err))
    status = int(end[1]) if end[1].isdigit() else None
    if status is not None and status > 255:
        raise _nonsense(result)
    return Heard(
        out[0], err[0], out[1], err[1], status,
        cut=b"cut" in end[2], broken=b"broken" in end[2], lost=end[1] == b"lost",
    )  # fmt: skip


def _decoded(text: bytes, how: bytes, most: int) -> bytes:
    """The bytes of some pieces; ValueError or zlib.error.  No more than `most` are ever made."""
    content = base64.b64decode(text, validate=True)
    if how == b"gzip":
        packed, content = content, b""
        while packed and len(content) <= most:  # a member for each piece
            member = zlib.decompressobj(31)
            content += member.decompress(packed, most + 1 - len(content))
            if not member.eof:
                raise ValueError("it is cut off, or too long")
            packed = member.unused_data
    if not 0 < len(content) <= most:
        raise ValueError("too many bytes, or none")
    return content


def _nonsense(result: ExecResult) -> Unavailable:
    said = one_line((result.stderr or result.stdout)[:200].decode(errors="replace"))
    return Unavailable(f"cannot hear the program: the guest gave an answer of no kind: {said!r}")

"""Programs that are run in a sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlab.api.codec import at_most, limit


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """A program to run in a sandbox.  `id` is the caller's own: the same one runs once.

    `workdir` "" is /work when it is there, else the user's home.  `input`: stdin will be sent.
    """

    argv: list[str] = field(metadata=at_most(4096))
    id: str = limit(64)
    user: str = limit(32, default="agent")
    workdir: str = limit(4096, default="")
    env: dict[str, str] = field(default_factory=dict)
    input: bool = False


@dataclass(frozen=True, slots=True)
class ExecOutput:
    """What a program has written, in base64, and the numbers of the pieces to ask for next.

    `status` is null until it has ended and all of it has been handed out; 128 + n for a signal.
    `cut`: something that it started still holds its output.  `broken`: the guest had no room, and
    some output is lost.  `lost`: nobody in the guest knows any more how it ends.
    """

    next_out: int
    next_err: int
    status: int | None
    cut: bool
    broken: bool
    lost: bool
    stdout: str = limit(1 << 20)
    stderr: str = limit(1 << 20)


@dataclass(frozen=True, slots=True)
class ExecInput:
    """What became of a part of stdin: `taken`, `full` (send it again), or `closed`: nobody reads."""

    state: str = limit(16)


@dataclass(frozen=True, slots=True)
class ExecEnd:
    """How a program that was cleaned away had ended; null when it was ended by this, or was gone."""

    status: int | None

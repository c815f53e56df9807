"""The one tree of errors: the class is for programs, the sentence is for people.

Each class carries its stable code, its HTTP status and the exit status that the
command line gives.  Raise or handle, never both.
"""

from __future__ import annotations


class AgentLabError(Exception):
    """What went wrong, in a sentence ("cannot X: why"), and what to do about it.

    `hint` is empty when there is nothing useful to advise; `details` holds facts
    for programs (JSON values only) and never a secret.
    """

    code = "internal"
    http_status = 500
    exit_status = 1

    def __init__(
        self, message: str, *, hint: str = "", details: dict[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: dict[str, object] = details or {}


class Internal(AgentLabError):
    """A fault of ours; the log has the traceback."""


class Invalid(AgentLabError):
    """The request itself is wrong; sending it again changes nothing."""

    code = "invalid"
    http_status = 400
    exit_status = 2


class TooLarge(Invalid):
    """The request is bigger than the limit named in the message."""

    code = "too_large"
    http_status = 413


class Denied(AgentLabError):
    """Not allowed, whoever asks again."""

    code = "denied"
    http_status = 403
    exit_status = 4


class NotFound(AgentLabError):
    """No such thing; `hint` may offer a near name."""

    code = "not_found"
    http_status = 404


class Conflict(AgentLabError):
    """True as asked, but not in the present state of things."""

    code = "conflict"
    http_status = 409


class InvalidTransition(Conflict):
    """The state table has no such edge; `details["allowed"]` lists the events that it has."""

    code = "invalid_transition"


class Busy(Conflict):
    """Another operation holds the subject; `details["operation"]` names it."""

    code = "busy"


class NotOurs(Conflict):
    """A machine, volume or directory that does not carry this installation's owner mark."""

    code = "not_ours"


class Unsupported(AgentLabError):
    """This hypervisor, storage or host cannot do it."""

    code = "unsupported"
    http_status = 422


class TooMany(AgentLabError):
    """Too many requests from one source; worth a retry later."""

    code = "too_many_requests"
    http_status = 429


class Unavailable(AgentLabError):
    """Not now; worth a retry."""

    code = "unavailable"
    http_status = 503


class DeadlineExceeded(AgentLabError):
    """It took longer than it was given."""

    code = "deadline_exceeded"
    http_status = 504


class Unreachable(AgentLabError):
    """The client cannot reach the daemon (never sent over the wire)."""

    code = "unreachable"
    http_status = 503
    exit_status = 6


_ALL: tuple[type[AgentLabError], ...] = (
    Internal, Invalid, TooLarge, Denied, NotFound, Conflict, InvalidTransition, Busy, NotOurs,
    Unsupported, TooMany, Unavailable, DeadlineExceeded, Unreachable,
)  # fmt: skip
BY_CODE: dict[str, type[AgentLabError]] = {cls.code: cls for cls in _ALL}

"""A way to Proxmox's API, and what its error texts mean.

Texts are matched here and nowhere else.  `TEXTS` is the table; each row has a recorded sample in
tests/data/proxmox/errors.jsonl, taken from Proxmox VE's own programs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agentlab.errors import (
    AgentLabError,
    Busy,
    Conflict,
    Denied,
    Internal,
    NotFound,
    Unavailable,
    Unsupported,
)
from agentlab.hypervisor.base import ExecResult
from agentlab.log import one_line

Method = Literal["GET", "POST", "PUT", "DELETE"]
Parameter = str | int | bool | Sequence[str]
Parameters = Mapping[str, Parameter]

_LONGEST = 400  # characters of Proxmox's own words that an error carries


class Transport(Protocol):
    """One way to the API.  All methods may be called from any thread.

    No method repeats a call by itself: whether that is safe, the caller knows.
    """

    @property
    def name(self) -> str:
        """`api` or `shell`, for people."""
        ...

    @property
    def foreground(self) -> bool:
        """Whether `call` returns a UPID only when its task has ended (pvesh does)."""
        ...

    def call(
        self, method: Method, path: str, params: Parameters | None = None, *, timeout: float = 30.0
    ) -> object:
        """One call; what Proxmox gives as `data`, decoded.

        `path` is like `/nodes/pve1/qemu`.  True is sent as 1 and False as 0; a sequence is sent
        as one parameter given many times.  A call that starts a task gives its UPID, a text.
        Raises the errors below by `classify`, and ReplyLost when the call may or may not have
        been carried out.
        """
        ...

    def guest_exec(
        self, node: str, vmid: int, argv: Sequence[str], stdin: str, *, timeout: float
    ) -> ExecResult | int:
        """Starts a program in a guest with `stdin` (plain ASCII, at most 64 KiB).

        Gives the pid to ask `exec-status` for, or the result where this way waits for the end.
        Secrets may be in `stdin`: it is never in the arguments of a process.
        """
        ...


class NoSuchVM(NotFound):
    """The node has no configuration file for this VMID."""


class NoSuchSnapshot(NotFound):
    """The VM has no snapshot of that name."""


class NoSuchVolume(NotFound):
    """The storage has no such volume."""


class NoSuchTask(NotFound):
    """The node has forgotten this UPID, or never knew it."""


class NoSuchPid(NotFound):
    """The guest agent has already told how this process ended, or never knew it."""


class Exists(Conflict):
    """The VMID, snapshot or volume is taken; by whom, only a look can tell."""


class Running(Conflict):
    """The machine has power, and should not have."""


class NotRunning(Conflict):
    """The machine has no power, and should have."""


class Template(Conflict):
    """It is a template: it is never started, changed or destroyed by us."""


class InUse(Conflict):
    """Linked clones depend on it."""


class Refused(Conflict):
    """Proxmox said no in words that we do not know."""


class Locked(Busy):
    """The configuration carries a lock; `details["lock"]` is its word.  Nothing was done."""


class LockTimeout(Busy):
    """Somebody else held a lock file for too long.  Nothing was done."""


class NoWorker(Busy):
    """The daemon could not start a worker.  Nothing was done."""


class NotReached(Unavailable):
    """The node did not get the call.  Nothing was done."""


class ReplyLost(Unavailable):
    """The call may have been carried out or not."""


class AgentSilent(Unavailable):
    """The guest agent does not answer, or is not configured."""


class StorageFull(Unavailable):
    """There is no room on the storage."""


class PowerdownTimeout(Conflict):
    """The guest did not power off in the time that it was given."""


DONE_NOTHING = (Locked, LockTimeout, NoWorker, NotReached)


@dataclass(frozen=True, slots=True)
class Text:
    """A pattern in Proxmox's words, and what it means.  The first row that is found decides."""

    pattern: str
    means: type[AgentLabError]
    hint: str = ""


_AGENT_HINT = (
    "is qemu-guest-agent installed and running in the guest, and `agent: 1` in its config?"
)
TEXTS: tuple[Text, ...] = (
    Text(r"Configuration file 'nodes/[^']*' does not exist", NoSuchVM),
    Text(r"unable to find configuration file for VM \d+", NoSuchVM),
    Text(r"unable to create VM \d+: config file already exists", Exists),
    Text(r"VM \d+ already exists", Exists),
    Text(r"disk image '[^']*' already exists", Exists),
    Text(r"snapshot name '[^']*' already used", Exists),
    Text(r"snapshot '[^']*' does not exist", NoSuchSnapshot),
    Text(r"VM is locked \((?P<lock>[a-z-]+)\)", Locked, "wait for what holds the lock"),
    Text(r"can't lock file '[^']*' - got timeout", LockTimeout),
    Text(r"cfs-lock '[^']*' error: got lock request timeout", LockTimeout),
    Text(r"got no worker upid", NoWorker),
    Text(r"VM \d+ already running", Running),
    Text(r"VM \d+ is running - destroy failed", Running),
    Text(r"VM \d+ (?:is )?not running", NotRunning),
    Text(r"if it's a template|can't convert a template to a template", Template),
    Text(r"is still in use by linked clone", InUse, "destroy the linked clones first"),
    Text(r"VM quit/powerdown failed", PowerdownTimeout),
    Text(r"QEMU guest agent is not running", AgentSilent, _AGENT_HINT),
    Text(r"No QEMU guest agent configured", AgentSilent, _AGENT_HINT),
    Text(r"Agent error: Invalid parameter 'pid'", NoSuchPid),
    Text(r"qmp command 'guest-[a-z-]+' failed", AgentSilent, _AGENT_HINT),
    Text(r"Agent error: ", Refused),
    Text(r"no such task|unable to parse worker upid", NoSuchTask),
    Text(r"storage '[^']*' does not exist|No such storage", NotFound, "see `pvesm status`"),
    Text(r"volume '[^']*' does not exist", NoSuchVolume),
    Text(r"storage '[^']*' is not (?:online|available)", Unavailable, "see `pvesm status`"),
    Text(r"storage '[^']*' is disabled", Unavailable, "see `pvesm status`"),
    Text(
        r"No space left on device|not enough (?:free )?space|out of space|insufficient free space",
        StorageFull,
        "free some space on the storage, or name another one in the settings",
    ),
    Text(
        r"[Ll]inked clone feature is not (?:supported|available)",
        Unsupported,
        "make the machine a template with `agentlab template build`, or ask for full clones",
    ),
    Text(r"snapshot feature is not available", Unsupported, "use a storage that has snapshots"),
    Text(r"is not most recent snapshot", Conflict, "only the newest snapshot can be rolled back"),
    Text(r"no such cluster node|hostname lookup '[^']*' failed", NotReached, "see `pvecm status`"),
    Text(r"no quorum", NotReached, "the cluster has lost its quorum; see `pvecm status`"),
    Text(r"only root can|Only root may|Only root can", Denied),
    Text(r"protection mode enabled", Conflict, "take the protection off in Proxmox"),
    Text(r"unexpected status|interrupted by signal", Unavailable),
)
_COMPILED = tuple((re.compile(text.pattern), text) for text in TEXTS)


def classify(
    what: str, status: int, said: str, errors: Mapping[str, object] | None = None
) -> AgentLabError:
    """The error for an answer of Proxmox.

    `what` is a sentence's beginning ("cannot clone template 9000 to 1012").  `status` is the HTTP
    status, or 0 for the exit status of a task or the words of a program.  `errors` are the fields
    that a 400 names.
    """
    words = said
    if errors:
        words = "; ".join(f"{key}: {str(value).strip()}" for key, value in errors.items())
    words = one_line(words.strip())[:_LONGEST] or f"status {status}"
    message = f"{what}: {words}"
    details: dict[str, object] = {"status": status, "said": words}
    for pattern, text in _COMPILED:
        found = pattern.search(words)
        if found:
            details.update({key: value for key, value in found.groupdict().items() if value})
            return text.means(message, hint=text.hint, details=details)
    return _by_status(what, status, words, details)


def _by_status(what: str, status: int, words: str, details: dict[str, object]) -> AgentLabError:
    message = f"{what}: {words}"
    if status == 401:
        return Denied(
            message, hint="is the API token right, and not expired? see docs/how-to/proxmox.md",
            details=details,
        )  # fmt: skip
    if status == 403:
        return Denied(message, hint=_right(words), details=details)
    if status == 400:
        return Internal(message, hint="Proxmox does not take what we sent", details=details)
    if status == 501:
        return Unsupported(message, hint="this version of Proxmox lacks the call", details=details)
    if status == 595:
        return NotReached(message, hint="is the node online? see `pvecm status`", details=details)
    if status in (502, 503, 504, 596, 597, 598, 599):
        return ReplyLost(
            message, hint="Proxmox is busy, or its daemon was restarted", details=details
        )
    return Refused(message, details=details)


def _right(words: str) -> str:
    found = re.search(r"\((/[^,]*), ([A-Za-z.|]+)\)", words)
    if found is None:
        return "the API token lacks a right; see docs/how-to/proxmox.md"
    path, privileges = found.groups()
    return f"grant {privileges.replace('|', ' or ')} on {path}; see docs/how-to/proxmox.md"

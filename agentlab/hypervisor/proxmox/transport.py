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
    Invalid,
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
_MOST = 64 << 10  # characters that are looked at
_PLACE = re.compile(r" at /usr/share/perl5/\S+ line \d+(?:, <\w*> line \d+)?\.?$")


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


class VolumeExists(Exists):
    """The name of the volume is taken, under whichever VMID it stands for."""


class Running(Conflict):
    """The machine has power, and should not have."""


class NotRunning(Conflict):
    """The machine has no power, and should have."""


class Template(Conflict):
    """It is a template: it is never started, changed or destroyed by us."""


class NotNewest(Conflict):
    """The storage goes back to its newest snapshot only, and this one is older.  Nothing was done."""


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


class Changed(Busy):
    """Somebody else changed the configuration since it was read.  Nothing was done."""


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
_STORAGE_HINT = "see `pvesm status`"
_CLUSTER_HINT = "see `pvecm status`"
TEXTS: tuple[Text, ...] = (
    # First, what holds words of the guest: it must not be able to speak for Proxmox.
    Text(r"Agent error: Invalid parameter 'pid'", NoSuchPid),
    Text(r"Agent error: ", Refused),
    Text(r"qmp command 'guest-[a-z-]+' failed", AgentSilent, _AGENT_HINT),
    Text(r"QEMU guest agent is not running", AgentSilent, _AGENT_HINT),
    Text(r"No QEMU guest agent configured", AgentSilent, _AGENT_HINT),
    # What is not there, and what is there already
    Text(r"Configuration file 'nodes/[^']*' does not exist", NoSuchVM),
    Text(r"unable to find configuration file for VM \d+", NoSuchVM),
    Text(r"unable to create VM \d+: config file already exists", Exists),
    Text(r"VM \d+ already exists", Exists),
    # of another node, or of a container: clone looks for a file of its own node alone
    Text(r"atomic file '[^']*/\d+\.conf' failed: File exists", Exists),
    Text(r"disk image '[^']*' already exists", VolumeExists),
    Text(
        r'Logical Volume "[^"]*" already exists|dataset already exists|\(17\) File exists',
        VolumeExists,
        "a volume was left behind under this VMID; see `pvesm list`",
    ),
    Text(r"snapshot name '[^']*' already used", Exists),
    Text(r"snapshot '[^']*' does not exist", NoSuchSnapshot),
    Text(r"no such task|unable to parse worker upid", NoSuchTask),
    Text(r"storage '[^']*' does not exist|No such storage", NotFound, _STORAGE_HINT),
    Text(r"volume '[^']*' does not exist|Failed to find logical volume", NoSuchVolume),
    Text(r"iface: interface does not exist", NotFound),
    Text(
        r"pool '[^']*' does not exist",
        Denied,
        "make the pool, or name another one in the settings",
    ),
    # Locks and full queues
    Text(r"VM is locked \((?P<lock>[a-z-]+)\)", Locked, "wait for what holds the lock"),
    Text(r"can't lock file '[^']*'|Failed to obtain guest migration lock", LockTimeout),
    Text(r"cfs-lock '[^']*' error: got lock request timeout", LockTimeout),
    Text(r"got no worker upid", NoWorker),
    Text(
        r'dataset is busy|Failed to get (?:shared )?"[a-z ]+" lock',
        Busy,
        "another program has the volume open: wait for it",
    ),
    # Power
    Text(r"VM \d+ already running", Running),
    Text(r"VM \d+ is running - destroy failed", Running),
    Text(r"if VM is running|: vm is running", Running),
    Text(r"VM \d+ (?:is )?not running", NotRunning),
    Text(r"if (?:it's|vm is) a template|can't convert a template to a template", Template),
    Text(r"VM quit/powerdown failed", PowerdownTimeout),
    # Room, slowness, and what the node or the cluster lacks
    Text(
        r"No space left on device|Disk quota exceeded|out of space|[Nn]ot enough (?:free )?space"
        r"|[Ii]nsufficient free space|free space in thin pool .* reached threshold",
        StorageFull,
        "free some space on the storage, or name another one in the settings",
    ),
    Text(r"storage '[^']*' is not (?:online|available)", Unavailable, _STORAGE_HINT),
    Text(r"storage '[^']*' is disabled", Unavailable, _STORAGE_HINT),
    Text(
        r"unable to activate storage '|connection check for storage '", Unavailable, _STORAGE_HINT
    ),
    Text(
        r"-locked command timed out|failed: got timeout|timeout waiting on systemd",
        Unavailable,
        "the node or its storage is slow or overloaded; let fewer operations run at one time",
    ),
    Text(
        r"qmp command '[^']*' failed - (?:got timeout|unable to connect)",
        Unavailable,
        "the machine's QEMU does not answer: its node may be overloaded, or its storage gone",
    ),
    Text(r"[Cc]annot allocate memory", Unavailable, "the node has too little free memory"),
    Text(r"no such cluster node|hostname lookup '[^']*' failed", NotReached, _CLUSTER_HINT),
    Text(
        r"cluster not ready - no quorum",
        NotReached,
        "the cluster lost its quorum; see `pvecm status`",
    ),
    # Within a task: what came before may have been done.
    Text(r"cfs-lock '[^']*' error: (?:no quorum|pve cluster)", Unavailable, _CLUSTER_HINT),
    Text(r"unexpected status|interrupted by signal", Unavailable),
    # What the storage or the node cannot do
    Text(
        r"[Ll]inked clone feature is not (?:supported|available)",
        Unsupported,
        "make the machine a template with `agentlab template build`, or ask for full clones",
    ),
    Text(r"snapshot feature is not available", Unsupported, "use a storage that has snapshots"),
    Text(
        r"does not support vm images",
        Unsupported,
        "name a storage that takes disk images: `pvesm set <storage> --content images,…`",
    ),
    Text(
        r"KVM virtualisation configured, but not available",
        Unsupported,
        "the node's processor, or the hypervisor around it, does not allow virtualisation",
    ),
    # What is refused as things are
    Text(r"is still in use by linked clone", InUse, "destroy the linked clones first"),
    Text(r"volume is still in use", Conflict, "a snapshot refers to it; delete that first"),
    Text(r"is not most recent snapshot", NotNewest, "only the newest snapshot can be rolled back"),
    Text(r"protection mode enabled", Conflict, "take the protection off in Proxmox"),
    Text(r"checksum miss?match", Changed, "somebody else has changed it just now; try again"),
    Text(
        r"bridge '[^']*' does not exist", Conflict, "make the bridge on that node, or name another"
    ),
    Text(r"hotplug problem", Refused),
    Text(r"[Oo]nly root (?:can|may)", Denied, "no token may do that, not even one of root"),
    Text(r"missing privileges to access", Denied, "the API token lacks a right on the storage"),
    # What was wrong in the call
    Text(r"shrinking disks is not supported", Invalid, "a disk can only become larger"),
    Text(r"unable to use snapshot name '", Invalid, "take another name"),
    Text(r"no options specified|parameter '[^']*' not allowed for", Internal),
)
_COMPILED = tuple((re.compile(text.pattern), text) for text in TEXTS)


def classify(
    what: str, status: int, said: str, errors: Mapping[str, object] | None = None
) -> AgentLabError:
    """The error for an answer of Proxmox.

    `what` is a sentence's beginning ("cannot clone template 9000 to 1012").  `status` is the HTTP
    status, or 0 for the exit status of a task or the words of a program.  `errors` are the fields
    that a 400 names.  `details` have `status` and `said`, and `lock` for Locked.
    """
    if errors:
        said = "\n".join(f"{key}: {str(value).strip()}" for key, value in errors.items())
    words = _words(said)
    shown = _shorten(words) or f"status {status}"
    message = f"{what}: {shown}"
    details: dict[str, object] = {"status": status, "said": shown}
    for pattern, text in _COMPILED:
        found = pattern.search(words)
        if found:
            details.update({key: value for key, value in found.groupdict().items() if value})
            return text.means(message, hint=text.hint, details=details)
    return _by_status(message, status, words, details)


def _words(said: str) -> str:
    """In one line, without the places in Proxmox's own source."""
    lines = (_PLACE.sub("", line.strip()) for line in said[:_MOST].splitlines())
    return one_line("; ".join(line for line in lines if line))


def _shorten(words: str) -> str:
    """Why it failed stands at the end, after what may be a whole command of QEMU."""
    if len(words) <= _LONGEST:
        return words
    return f"{words[: _LONGEST // 2]} … {words[-_LONGEST // 2 :]}"


def _by_status(message: str, status: int, words: str, details: dict[str, object]) -> AgentLabError:
    if status == 401:
        return Denied(
            message, hint="is the API token right, and not expired? see docs/how-to/proxmox.md",
            details=details,
        )  # fmt: skip
    if status == 403 or words.startswith("Permission check failed"):
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

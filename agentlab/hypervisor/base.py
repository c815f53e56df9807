"""What a hypervisor driver promises.  The docstrings are the contract; one suite tests all drivers.

Every method may be called again and returns quietly when things are already as asked.
Errors: NotFound (no such machine or template, where absence is not success), NotOurs (it does
not carry the owner that we gave), Conflict, Unsupported, Unavailable (worth a retry),
DeadlineExceeded.  All sizes are MiB, all times seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface
from typing import Protocol


class Power(StrEnum):
    """Whether the machine's virtual CPUs exist and run.

    UNKNOWN: the machine is there and cannot be looked at, for example on a node that is offline.
    It says nothing about the machine's end.
    """

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this driver can do, as data."""

    accelerator: str  # "kvm", "tcg", or "" where the hypervisor decides by itself
    slowness: float  # factor for every deadline that waits for a guest; 1.0 with KVM
    memory_start: bool  # machines start from a memory snapshot of the booted template
    volumes: bool = False
    volume_tools: bool = False  # their snapshots, clones, growth and moves, besides
    snapshots: bool = True
    exec_stdin: int = 45_000  # bytes that one `exec` takes as its stdin
    makes_taps: bool = False  # the hypervisor itself makes the tap, with the power: `tap_of(vmid)`
    look: float = (
        2.0  # seconds between looks at what runs: what one costs is for the driver to know
    )


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as the inventory shows it; `owner` is "" for one that carries no mark of ours.

    `lock` is the hypervisor's own word for an operation that holds the machine; "" for none.
    `cpu` is the share of its virtual CPUs that was in use lately, 0.0 to 1.0: up to some seconds
    old, a measure and no proof; None when it is not known, and of a machine without power.
    A `template` is never a sandbox, whoever made it.
    """

    vmid: int
    name: str
    owner: str
    power: Power
    node: str = ""
    lock: str = ""
    cpu: float | None = None
    template: bool = False


@dataclass(frozen=True, slots=True)
class Nic:
    """One network interface: all of it is decided before the machine has power."""

    tap: str
    mac: str
    address: IPv4Interface
    gateway: IPv4Address
    dns: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What a clone is given before its first power-on."""

    hostname: str
    cores: int
    memory: int
    disk: int  # root disk; a template's larger disk is never shrunk
    nic: Nic


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a program in the guest said.  `truncated` when the agent left some output out."""

    status: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class GuestInterface:
    """An interface as the guest itself reports it: a claim, not a fact."""

    name: str
    mac: str
    addresses: tuple[IPv4Address, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Template:
    """A template that machines can be cloned from."""

    name: str
    ready: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TemplateOrder:
    """What `agentlab template build` asks for.

    `image` is a cloud image on this host, "" for the recipe; `storage` is a name of the
    hypervisor's, "" for its choice.
    """

    name: str
    image: str = ""
    storage: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a template lacks: one word, a sentence, and what mends it, for a shell.

    What is not `needed` depends on the guest inside, or is only slow.
    """

    name: str
    problem: str
    remedy: str
    needed: bool = True


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """A template that was looked at; `detail` says where it is.  No findings: all is well."""

    name: str
    detail: str
    findings: tuple[Finding, ...] = ()


class Machines(Protocol):
    """Machines from clone to destroy."""

    def inventory(self) -> Sequence[Machine]:
        """All machines of the hypervisor, strangers too, in one call.

        Raises Unavailable when it cannot be read whole: a partial list is never returned.
        """
        ...

    def templates(self) -> Sequence[Template]:
        """The templates that the hypervisor knows, ready or not."""
        ...

    def clone(self, template: str, vmid: int, *, name: str, owner: str, full: bool = False) -> None:
        """Makes a stopped machine from a template, and writes `owner` into it in the same call.

        Ours already: returns.  Another's: NotOurs.  No such template: NotFound.
        A clone that was cut off half-way is finished or done again.
        """
        ...

    def configure(self, vmid: int, spec: MachineSpec, *, owner: str) -> None:
        """Sets resources, address and name of a stopped machine; NotFound, NotOurs."""
        ...

    def start(self, vmid: int, *, owner: str) -> None:
        """Gives power.  Returns when the virtual CPUs run; the guest may still be booting.

        The tap of its Nic must exist and be fenced already.  Running: returns.
        """
        ...

    def shutdown(self, vmid: int, *, owner: str, timeout: float) -> bool:
        """Asks the guest to power off; True when it did within `timeout`."""
        ...

    def stop(self, vmid: int, *, owner: str) -> None:
        """Takes power away at once.  Stopped or absent: returns."""
        ...

    def pause(self, vmid: int, *, owner: str) -> None:
        """Halts the virtual CPUs; memory stays."""
        ...

    def resume(self, vmid: int, *, owner: str) -> None:
        """Lets paused virtual CPUs run on."""
        ...

    def status(self, vmid: int) -> Machine | None:
        """One machine, or None when the hypervisor is sure that there is none."""
        ...

    def destroy(self, vmid: int, *, owner: str) -> None:
        """Removes the machine and its disks, running or not.  Absent: returns.  Not ours: NotOurs."""
        ...


class Snapshots(Protocol):
    """Snapshots of the root disk of a stopped machine.

    While a volume is attached it would be a part of them: Conflict, from `snapshot` and `rollback`.
    One that somebody else took then has the volume in it: Conflict, from all that would change it.
    """

    def snapshot(self, vmid: int, name: str, *, owner: str) -> None:
        """Takes a snapshot of the disk; a name that exists: Conflict, unless it is stopped and the same.

        Unsupported, and nothing is changed, where the disk's storage has no snapshots.  Busy while
        it is still being taken: it may fail yet.
        """
        ...

    def rollback(self, vmid: int, name: str, *, owner: str) -> None:
        """Puts the stopped machine's root disk back; NotFound for an unknown name.

        The disk has the size that it had then; the next start makes it as large as its spec says.
        Some storages go back to their newest snapshot only: Conflict, `details["later"]` has what
        `blockers` says, and nothing is changed.  Later snapshots stay where the storage keeps them.
        """
        ...

    def blockers(self, vmid: int, name: str) -> Sequence[str]:
        """Later snapshots that stand in the way of a rollback to this one, newest first.

        Empty where the storage does not mind.  What somebody else has made on the storage itself
        is not known here, and can still make `rollback` refuse.  NotFound: machine or name; Conflict
        when this one or a blocker has a volume in it, so that neither may be touched.
        """
        ...

    def snapshots(self, vmid: int, *, half: bool = False) -> Sequence[str]:
        """Names, oldest first; only with `half` those being taken or deleted, or left half so."""
        ...

    def delete_snapshot(self, vmid: int, name: str, *, owner: str) -> None:
        """Absent: returns."""
        ...


class Guest(Protocol):
    """The guest agent of a running machine.  All that comes back is hostile input."""

    def ready(self, vmid: int, spec: MachineSpec) -> bool:
        """True when the agent answers and the guest has its own fresh identity and `spec.nic.address`.

        Never blocks for more than a few seconds; False means "not yet".
        """
        ...

    def ping(self, vmid: int) -> bool:
        """True when the agent answers."""
        ...

    def file_write(
        self, vmid: int, path: str, content: bytes, *, owner: str, mode: int = 0o600
    ) -> None:
        """Writes a small file (≤ 64 KiB) whole, as root: a reader sees all of it or nothing.

        NotOurs before anything is said to a guest that is not this owner's.
        """
        ...

    def exec(
        self, vmid: int, argv: Sequence[str], *, owner: str, stdin: bytes = b"", timeout: float
    ) -> ExecResult:
        """Runs a program as root and waits for its end; DeadlineExceeded leaves it running.

        NotOurs before anything is said to a guest that is not this owner's.
        """
        ...

    def interfaces(self, vmid: int) -> Sequence[GuestInterface]:
        """IPv4 addresses as the guest reports them."""
        ...


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that stands by itself.  `volid` is the hypervisor's own name for it."""

    volid: str
    size: int  # MiB
    attached: tuple[int, ...] = ()  # VMIDs of machines that have it; more than one is a fault


class FileSystem(StrEnum):
    """How the file system on a volume is.  BLANK: nothing was ever written there, so it has none.

    UNREPAIRABLE: e2fsck cannot mend it, or it is none of ext4's kind, and was left as it is.
    """

    CLEAN = "clean"
    NEEDS_REPAIR = "NEEDS REPAIR"
    REPAIRED = "repaired"
    BLANK = "blank"
    UNREPAIRABLE = "unrepairable"


@dataclass(frozen=True, slots=True)
class VolumeCheck:
    """A file system that was checked; `text`: what is to be said of it and the end of e2fsck's words.

    At most 16 KiB, printable, with ends of lines.  It quotes names that a guest chose.
    """

    state: FileSystem
    text: str


class Volumes(Protocol):
    """Volumes that outlive machines.  Where `Capabilities.volumes` is false there are none.

    Where `Capabilities.volume_tools` is false, `move` and all that follows it are Unsupported.

    The owner is in the volume's name, which the call that makes it writes.  What does not carry
    our owner is never attached, changed or freed: NotOurs.  Unsupported is raised before anything
    is done where the storage cannot do it.
    """

    def volumes(self, *, owner: str, storage: str | None = None) -> Sequence[Volume]:
        """All volumes of this owner, attached or not; those of one `storage`, "": the one that is set.

        Denied or Unavailable when a storage that is looked at cannot be read: a list is whole.
        """
        ...

    def attached(self, vmid: int, *, owner: str) -> Sequence[str]:
        """The volids of this owner's volumes that a machine has now; NotFound, NotOurs.

        Asked of the machine alone: it needs no right on any storage, and no list of volumes.
        """
        ...

    def storage_of(self, volid: str) -> str:
        """The storage that a volume is on, from its name alone; of "" the one that is set, "" for none."""
        ...

    def check_storage(self, storage: str = "", *, tools: bool = False) -> None:
        """Raises what `allot` would for this storage ("": the one that is set), and does nothing.

        With `tools` also what the snapshots, clones and growth of a volume there would raise.
        NotFound, Unsupported, Denied, Invalid when none is named or set.
        """
        ...

    def allot(self, number: int, size: int, *, storage: str = "", owner: str) -> str:
        """Makes an empty volume, or finds the one of this number; its volid.

        `number` is from the range that volumes have for themselves, and no machine's VMID.
        """
        ...

    def attach(self, vmid: int, volid: str, *, owner: str) -> None:
        """Gives the machine the volume as its work disk, running or not; Conflict when another has it."""
        ...

    def detach(self, vmid: int, volid: str, *, owner: str) -> None:
        """Takes it away from the machine.  Not attached there, or no such machine: returns."""
        ...

    def free(self, volid: str, *, owner: str) -> None:
        """Removes the volume, what is in it, and its snapshots.  Absent: returns.  Attached: Conflict.

        Its clones stay as they are.
        """
        ...

    def move(self, volid: str, storage: str, *, owner: str) -> str:
        """Moves a detached volume to another storage; its new volid."""
        ...

    def grow(self, volid: str, size: int, *, owner: str) -> None:
        """Makes it larger, detached; never smaller: Invalid."""
        ...

    def snapshot_volume(self, volid: str, name: str, *, owner: str) -> None:
        """Takes a snapshot of a detached volume; a name that exists: Conflict.

        Whether it is from an earlier call that was cut off, the caller alone can know.
        """
        ...

    def rollback_volume(self, volid: str, name: str, *, owner: str) -> None:
        """Puts a detached volume back; NotFound for an unknown name.

        Some storages go back to their newest snapshot only: Conflict, `details["later"]` has the
        newer ones, newest first, and nothing is changed.
        """
        ...

    def delete_volume_snapshot(self, volid: str, name: str, *, owner: str) -> None:
        """Absent: returns."""
        ...

    def volume_snapshots(self, volid: str, *, owner: str) -> Sequence[str]:
        """Names, oldest first, of a volume that may be attached."""
        ...

    def clone_volume(
        self,
        volid: str,
        number: int,
        *,
        snapshot: str = "",
        owner: str,
        progress: Callable[[float], None] | None = None,
    ) -> str:
        """Another volume with the same content (of now, or of a snapshot); its volid.

        It needs nothing of its source.  `progress` is called now and then, with 0.0 to 1.0; what
        it raises ends the copy, and nothing of it stays.
        """
        ...

    def clones_thin(self, volid: str) -> bool:
        """True when a clone shares its content and takes no room at first; False: it is a copy."""
        ...

    def check_volume(self, volid: str, *, repair: bool, owner: str) -> VolumeCheck:
        """Checks the ext4 file system on a detached volume, on the host; changes it with `repair` only.

        A journal to replay, as after a power cut, is NEEDS REPAIR.  A repair that was cut off is
        done by the next one.  Unsupported ("unsupported volume path") where this host cannot.
        """
        ...


class CheckStatus(StrEnum):
    """What a check of the host has found.  Missing can be mended by what `remedy` says."""

    OK = "ok"
    MISSING = "missing"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check says: `detail` in a sentence, `remedy` in commands or words, a line each."""

    status: CheckStatus
    detail: str
    remedy: str = ""


# Checks of this host by their names.  Each looks and never changes anything; what it raises is
# told as an error.
Checks = Mapping[str, Callable[[], CheckResult]]


class Hypervisor(Machines, Snapshots, Guest, Volumes, Protocol):
    """A whole driver.  Templates are built by `TemplateBuilder`, where there is one."""

    @property
    def capabilities(self) -> Capabilities: ...

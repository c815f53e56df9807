"""A machine's directory and the record in it: whose it is, what it was given, how it was started."""

from __future__ import annotations

import contextlib
import json
import secrets
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, ClassVar, Literal
from uuid import uuid4

from agentlab.clock import now
from agentlab.errors import Conflict
from agentlab.hypervisor.base import MachineSpec, Nic
from agentlab.hypervisor.local.owned_dir import OwnedDir

RECORD = "machine.json"
DISK = "disk.qcow2"
SEED = "seed.iso"
STDERR = "qemu.log"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Run:
    """The last power-on.

    `starting`: the virtual CPUs have not run yet, and a QEMU that is found is thrown away.
    `on`: they may have run, and a QEMU that is found paused can go on.
    """

    mode: Literal["cold", "memory"]
    stage: Literal["starting", "on"]
    nonce: str  # names this run, and the identity handed in after a start from memory


@dataclass(frozen=True, slots=True)
class Mark:
    """A snapshot of the disk, and the state of the disk that it holds."""

    name: str
    state: str


@dataclass(frozen=True, slots=True)
class Record:
    """All that is known of a machine; the file `machine.json` is this and nothing else."""

    vmid: int
    name: str
    owner: str
    template: str  # the template's key
    uuid: str  # on QEMU's command line: tells its process from all others
    machine_id: str
    # Names what is on the root disk: a new word at each power-on, "" for the template as it is.
    # Only a disk in state "" may be started from a memory snapshot of the template.
    state: str = ""
    backing: str = ""  # the memory snapshot whose disk is under ours; "" for the template's
    spec: MachineSpec | None = None
    run: Run | None = None
    marks: tuple[Mark, ...] = ()
    volume: str = ""  # the volid of the volume that it has as its work disk

    @classmethod
    def new(cls, vmid: int, *, name: str, owner: str, template: str) -> Record:
        uuid = uuid4()
        return cls(vmid, name, owner, template, str(uuid), secrets.token_hex(16))

    def powered(self, mode: Literal["cold", "memory"]) -> Record:
        """The record of a power-on that begins."""
        return replace(self, run=Run(mode, "starting", secrets.token_hex(16)))

    def going(self) -> Record:
        """The record from which on the disk counts as changed."""
        if self.run is None or self.run.stage == "on":
            return self
        return replace(self, run=replace(self.run, stage="on"), state=secrets.token_hex(8))

    @property
    def movable(self) -> bool:
        """Whether nothing depends on the disk that is under ours."""
        return self.state == "" and all(mark.state == "" for mark in self.marks)


def render_record(record: Record) -> bytes:
    document = {"format": FORMAT, **asdict(record)}
    return json.dumps(document, indent=1, default=str).encode() + b"\n"


def parse_record(content: bytes) -> Record:
    """Raises ValueError for anything that `render_record` did not write."""
    try:
        document: dict[str, Any] = json.loads(content)
        if document.pop("format") != FORMAT:
            raise ValueError("not a machine record of this format")
        spec, run = document.pop("spec"), document.pop("run")
        record = Record(
            **{
                **document,
                "spec": _parse_spec(spec) if spec is not None else None,
                "run": Run(**run) if run is not None else None,
                "marks": tuple(Mark(**mark) for mark in document["marks"]),
            }
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a machine record: {error}") from error
    words = [record.name, record.owner, record.template, record.uuid, record.machine_id]
    words += [record.state, record.backing, record.volume]
    if not isinstance(record.vmid, int) or not all(isinstance(word, str) for word in words):
        raise ValueError("not a machine record: a value has the wrong type")
    return record


def _parse_spec(document: dict[str, Any]) -> MachineSpec:
    nic = document["nic"]
    return MachineSpec(
        hostname=document["hostname"],
        cores=document["cores"],
        memory=document["memory"],
        disk=document["disk"],
        nic=Nic(
            tap=nic["tap"],
            mac=nic["mac"],
            address=IPv4Interface(nic["address"]),
            gateway=IPv4Address(nic["gateway"]),
            dns=tuple(IPv4Address(server) for server in nic["dns"]),
        ),
    )


@dataclass(frozen=True, slots=True)
class MachineDir(OwnedDir[Record]):
    """The directory of one machine."""

    noun: ClassVar[str] = "machine"
    record_name: ClassVar[str] = RECORD
    other_range: ClassVar[str] = "choose another vmid range in the configuration"

    def parse(self, content: bytes) -> Record:
        return parse_record(content)

    def render(self, record: Record) -> bytes:
        return render_record(record)

    def number_of(self, record: Record) -> int:
        return record.vmid

    @property
    def vmid(self) -> str:
        return self.number

    def note(self, what: str, nonce: str) -> None:
        """Notes that something was done for this run; gone machines take no notes."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / f"{what}.note").write_text(nonce)

    def noted(self, what: str, nonce: str) -> float | None:
        """How many seconds ago it was done for this run; None for never."""
        path = self.path / f"{what}.note"
        try:
            return max(0.0, now() - path.stat().st_mtime) if path.read_text() == nonce else None
        except FileNotFoundError:
            return None


def needs_spec(record: Record, verb: str) -> MachineSpec:
    if record.spec is None:
        raise Conflict(f"cannot {verb} machine {record.vmid}: it was never configured")
    return record.spec

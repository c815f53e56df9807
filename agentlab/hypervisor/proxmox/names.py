"""Names and marks that we write into Proxmox, and how they are read back.

The owner mark is a line of the description, which the clone call itself writes.  It holds the
VMID too: an administrator's copy of our machine, which takes the description along, is not ours.
The tag is an index for people and for the inventory; it proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agentlab.errors import Invalid
from agentlab.hypervisor.base import MachineSpec, Nic

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MARK = re.compile(
    r"^agentlab-owner: (?P<owner>[A-Za-z0-9._-]+) vmid=(?P<vmid>[0-9]+)\s*$", re.MULTILINE
)
_DEFAULTS = {"sockets": "1", "onboot": "0", "protection": "0"}  # Proxmox's own
_NO_RESOLVER = "127.0.0.1"  # refuses at once
_DOMAIN = "agentlab.internal"  # .internal is for private use, and resolves nowhere
_STORAGE = re.compile(r"^agentlab-storage: ([A-Za-z][A-Za-z0-9._-]*)\s*$", re.MULTILINE)
_TAG = "agentlab"
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
# PVE::JSONSchema pve_verify_dns_name, and the guest's own limit of 63
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# PVE::JSONSchema pve-configid, and PVE::QemuConfig's limit of 40
_SNAPSHOT = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}")
_RESERVED = ("current", "pending")
_DRIVE = re.compile(r"(?:ide[0-3]|sata[0-5]|scsi(?:30|[12]?[0-9])|virtio(?:1[0-5]|[0-9]))")
_UNITS = {"": 1 / (1 << 20), "K": 1 / 1024, "M": 1, "G": 1 << 10, "T": 1 << 20}


def check_owner(owner: str) -> str:
    """The owner as it is; Invalid when it could not stand in a description."""
    if not _OWNER.fullmatch(owner):
        raise Invalid(f"not the name of an installation: {owner!r}")
    return owner


def render_description(owner: str, vmid: int, storages: Iterable[str] = ()) -> str:
    """What people and we read in a machine's notes.

    `storages` are those that had no volume of this VMID before the clone began.
    """
    empty = "".join(f"agentlab-storage: {storage}\n" for storage in sorted(storages))
    return (
        "A sandbox of AgentLab: it is made and destroyed by agentlabd.\n\n"
        f"agentlab-owner: {check_owner(owner)} vmid={vmid}\n{empty}"
    )


def parse_storages(description: object) -> list[str]:
    """The storages that a description names."""
    return _STORAGE.findall(description) if isinstance(description, str) else []


def parse_owner(description: object, vmid: int) -> str:
    """The owner in a description, "" when there is none or it is that of another VMID."""
    found = _MARK.search(description) if isinstance(description, str) else None
    return found["owner"] if found and int(found["vmid"]) == vmid else ""


def render_tags(owner: str, vmid: int) -> str:
    """Tags in the form that Proxmox keeps: lower case, sorted."""
    return f"{_TAG};{_tag(owner, vmid)}"


def _tag(owner: str, vmid: int) -> str:
    return f"{_TAG}-{check_owner(owner).lower()}-{vmid}"


def tagged_owner(tags: object, vmid: int) -> str:
    """The owner (in lower case) that the tags name for this VMID; "" for none."""
    words = re.split(r"[;, ]+", tags) if isinstance(tags, str) else []
    for word in words:
        if word.startswith(f"{_TAG}-") and word.endswith(f"-{vmid}"):
            return word[len(_TAG) + 1 : -len(str(vmid)) - 1]
    return ""


def check_spec(spec: MachineSpec) -> None:
    """What goes into property strings is of a plain form; Invalid."""
    if not _MAC.fullmatch(spec.nic.mac):
        raise Invalid(f"not a MAC address in lower case: {spec.nic.mac!r}")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", spec.nic.tap):
        raise Invalid(f"not the name of an interface: {spec.nic.tap!r}")
    if not _HOSTNAME.fullmatch(spec.hostname):
        raise Invalid(f"not a host name: {spec.hostname!r}")
    if spec.cores < 1 or spec.memory < 16 or spec.disk < 1:
        raise Invalid("a machine needs a core, 16 MiB of memory and a disk")


def check_snapshot(name: str) -> str:
    """A snapshot's name as Proxmox allows it; Invalid with the rule."""
    if not _SNAPSHOT.fullmatch(name) or name.lower() in _RESERVED:
        raise Invalid(
            f"not a name for a snapshot: {name!r}",
            hint="2 to 40 letters, digits, _ and -, first a letter; not `current` or `pending`",
        )
    return name


def render_net(nic: Nic, bridge: str) -> str:
    return f"virtio={nic.mac.upper()},bridge={bridge}"


def render_ipconfig(nic: Nic) -> str:
    return f"ip={nic.address},gw={nic.gateway}"


def render_config(spec: MachineSpec, *, bridge: str, owner: str, vmid: int) -> dict[str, str | int]:
    """The keys of a machine's configuration that are ours to set, as Proxmox names them."""
    return {
        "name": spec.hostname,
        "cores": spec.cores,
        "sockets": 1,
        "memory": spec.memory,
        "balloon": 0,
        "onboot": 0,
        "protection": 0,
        "ciupgrade": 0,  # left out, each first boot upgrades packages
        "agent": 1,
        "net0": render_net(spec.nic, bridge),
        "ipconfig0": render_ipconfig(spec.nic),
        "tags": render_tags(owner, vmid),
        # Left out, both would be the host's own (PVE::QemuServer::Cloudinit::get_dns_conf).
        "nameserver": " ".join(str(server) for server in spec.nic.dns) or _NO_RESOLVER,
        "searchdomain": _DOMAIN,
    }


def surplus(config: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """Keys that a template may have and a sandbox must not.

    A second way into a network, somebody else's user data, and fewer processors than were asked.
    """
    ways = re.compile(r"net\d+|ipconfig\d+|cicustom|vcpus")
    return sorted(key for key in config if ways.fullmatch(key) and key not in wanted)


def past_the_fence(config: Mapping[str, object]) -> list[str]:
    """Keys of a template that give its clones the host's own devices, files, memory or programs.

    Memory by `ivshmem` is shared by all that name it, so by all clones.
    """
    ways = re.compile(r"hostpci\d+|usb\d+|virtiofs\d+|parallel\d+|ivshmem|args|hookscript")
    found = [key for key in config if ways.fullmatch(key)]
    found += [
        key
        for key, value in config.items()
        if re.fullmatch(r"serial\d+", key) and str(value).startswith("/")
    ]
    found += [
        drive.key
        for drive in parse_drives(config)
        if drive.volid == "cdrom" or drive.volid.startswith("/")
    ]
    return sorted(found)


def same(config: Mapping[str, object], key: str, wanted: str | int) -> bool:
    """Whether the configuration says that already; numbers come as text or not, without rule."""
    have = config.get(key)
    if have is None:
        return str(wanted) == _DEFAULTS.get(key)
    if key == "net0":
        return _properties(str(have)) == _properties(str(wanted))
    if key == "tags":
        return set(re.split(r"[;, ]+", str(have))) == set(str(wanted).split(";"))
    if key == "agent":
        return str(have).partition(",")[0].removeprefix("enabled=") == str(wanted)
    return str(have) == str(wanted)


def _properties(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.lower().split(","))
    return {key: value for key, _, value in pairs}


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk or CD-ROM of a configuration.  `size` is in MiB, 0 when it is not said."""

    key: str
    volid: str
    size: int
    cdrom: bool
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def storage(self) -> str:
        return self.volid.partition(":")[0] if ":" in self.volid else ""

    @property
    def cloudinit(self) -> bool:
        return self.cdrom and "cloudinit" in self.volid


def parse_drives(config: Mapping[str, object]) -> list[Drive]:
    """All drives, by key in their order."""
    keys = [key for key in config if _DRIVE.fullmatch(key)]
    return [parse_drive(key, str(config[key])) for key in sorted(keys, key=_natural)]


def _natural(key: str) -> tuple[str, int]:
    word = key.rstrip("0123456789")
    return word, int(key[len(word) :])


def parse_drive(key: str, text: str) -> Drive:
    volid, *rest = text.split(",")
    options = {name: value for name, _, value in (part.partition("=") for part in rest)}
    volid = volid.removeprefix("file=")
    return Drive(
        key, volid, parse_size(options.get("size", "")), options.get("media") == "cdrom", options
    )


def parse_size(text: str) -> int:
    """`8G` in MiB, rounded up; 0 for what is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    return -int(-float(found[1]) * _UNITS[found[2]] // 1) if found else 0


def root_drive(config: Mapping[str, object]) -> Drive | None:
    """The disk that the machine boots from: the first of `boot: order=` that is one, or the first."""
    disks = {drive.key: drive for drive in parse_drives(config) if not drive.cdrom}
    order = re.search(r"order=([^,\s]*)", str(config.get("boot", "")))
    for key in order[1].split(";") if order else ():
        if key in disks:
            return disks[key]
    return next(iter(disks.values()), None)


def parse_disks(answer: object, vmid: int) -> list[str]:
    """The volume ids, of a storage's `content`, of the disk images that carry this VMID."""
    return [
        str(entry["volid"])
        for entry in (answer if isinstance(answer, list) else [])
        if entry.get("content") == "images" and str(entry.get("vmid")) == str(vmid)
    ]


# Volumes that stand by themselves: `vm-<number>-agentlab-<owner>`; the name is the owner mark.
_VOLUME = re.compile(
    r"(?:^|/)vm-(?P<number>[0-9]+)-agentlab-(?P<owner>[A-Za-z0-9._-]+?)(?P<suffix>\.(?:qcow2|raw))?$"
)


def volume_name(number: int, owner: str, suffix: str = "") -> str:
    """`suffix` is the ending on storages whose volumes are files: `.qcow2` or `.raw`."""
    return f"vm-{number}-agentlab-{check_owner(owner)}{suffix}"


def volume_owner(volid: str) -> tuple[int, str]:
    """Number and owner that a volume's name carries; (0, "") for a stranger's."""
    found = _VOLUME.search(volid.partition(":")[2])
    return (int(found["number"]), found["owner"]) if found else (0, "")

"""GRUB for a BIOS, put on a disk image as bytes: nothing is mounted and nothing of it runs here.

The first sector holds GRUB's boot.img and the partition table.  boot.img loads the sector after
it, which is the head of core.img and loads the rest of it from the sectors that follow: as
grub-mkimage writes them, both already point there, so nothing needs to be patched.
core.img finds grub.cfg in the first partition of the disk that the BIOS booted from.
"""

from __future__ import annotations

import struct
from pathlib import Path

from agentlab import run
from agentlab.errors import Unsupported

SECTOR = 512
FIRST = 2048  # the partition's first sector, at 1 MiB
CONFIG = "boot/grub/grub.cfg"
_LIBRARY = Path("/usr/lib/grub/i386-pc")
_MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "linux")
_CODE = 440  # bytes of the first sector that are GRUB's
_LINUX = 0x83
# The last console is the one that the system's own messages go to.  Devices are found before the
# initial RAM disk goes on: the disc with the settings must be there when systemd looks for it.
_KERNEL = (
    "rw rootfstype=ext4 console=tty0 console=ttyS0 quiet loglevel=3 panic=10 "
    "net.ifnames=0 ipv6.disable=1 random.trust_cpu=on audit=0 nowatchdog scsi_mod.scan=sync"
)


def render_config(uuid: str) -> bytes:
    """grub.cfg: no menu, one kernel, which Debian's packages keep a link to."""
    return (
        f"linux /vmlinuz root=UUID={uuid} {_KERNEL}\n"
        "initrd /initrd.img\n"
        "boot\n"
    ).encode()  # fmt: skip


def render_first_sector(boot: bytes, sectors: int, signature: int) -> bytes:
    """The first sector of a disk of that many sectors: one bootable Linux partition to its end.

    Addresses by cylinder, head and sector are given as out of range: everything here counts
    sectors.
    """
    nowhere = b"\xfe\xff\xff"
    entry = struct.pack("<B3sB3sII", 0x80, nowhere, _LINUX, nowhere, FIRST, sectors - FIRST)
    table = struct.pack("<IH", signature, 0) + entry + bytes(3 * 16)
    return boot[:_CODE] + table + b"\x55\xaa"


def make_core(work: Path) -> bytes:
    """core.img, by grub-mkimage; Unsupported where GRUB's files for a BIOS are not installed."""
    if not (_LIBRARY / "boot.img").exists():
        raise Unsupported(
            f"cannot make a disk that boots: {_LIBRARY} is not there",
            hint="apt install grub-pc-bin grub-common",
        )
    target = work / "core.img"
    prefix = ("-O", "i386-pc", "-d", _LIBRARY, "-p", "(,msdos1)/boot/grub")
    run.run(["grub-mkimage", *prefix, "-o", target, *_MODULES], timeout=60)
    core = target.read_bytes()
    target.unlink()
    if len(core) > (FIRST - 1) * SECTOR:
        raise Unsupported("cannot make a disk that boots: GRUB does not fit before the partition")
    return core


def install(disk: Path, work: Path, signature: int) -> None:
    """Writes partition table and boot loader into a raw image, whose size they are made for."""
    core = make_core(work)
    first = (_LIBRARY / "boot.img").read_bytes()
    with disk.open("r+b") as file:
        sectors = file.seek(0, 2) // SECTOR
        file.seek(0)
        file.write(render_first_sector(first, sectors, signature) + core)

"""The disk that boots by itself: its first sector, its boot loader's settings, its key."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from agentlab.errors import Unsupported
from agentlab.hypervisor.image import grub
from agentlab.hypervisor.image.disk import disk_key, render_fstab


def test_the_first_sector_has_the_boot_code_and_one_partition_to_the_end() -> None:
    sector = grub.render_first_sector(b"\xeb" * 512, 1 << 20, 0x12345678)
    assert len(sector) == 512
    assert sector[:440] == b"\xeb" * 440
    assert struct.unpack_from("<I", sector, 440) == (0x12345678,)
    flag, kind = sector[446], sector[450]
    assert (flag, kind) == (0x80, 0x83)
    assert struct.unpack_from("<II", sector, 454) == (2048, (1 << 20) - 2048)
    assert sector[462:510] == bytes(48)
    assert sector[510:] == b"\x55\xaa"


def test_the_kernel_finds_root_by_its_uuid_and_talks_to_the_serial_console_last() -> None:
    linux, initrd, boot = grub.render_config("a-b-c").decode().splitlines()
    assert linux.startswith("linux /vmlinuz root=UUID=a-b-c rw ")
    consoles = [word for word in linux.split() if word.startswith("console=")]
    assert consoles == ["console=tty0", "console=ttyS0"]
    assert (initrd, boot) == ("initrd /initrd.img", "boot")
    assert render_fstab("a-b-c").startswith(b"UUID=a-b-c / ext4 ")


def test_the_key_names_the_runner() -> None:
    assert disk_key(b"a") == disk_key(b"a")
    assert disk_key(b"a") != disk_key(b"b")


def test_without_grubs_files_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grub, "_LIBRARY", tmp_path)
    with pytest.raises(Unsupported) as refused:
        grub.make_core(tmp_path)
    assert "grub-pc-bin" in refused.value.hint

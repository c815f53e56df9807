"""An operator's cloud image becomes a template's disk; here one that resembles a distribution's."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from agentlab import run
from agentlab.errors import Invalid, Unsupported
from agentlab.hypervisor.image import grub
from agentlab.hypervisor.image.adapt import adapt_image
from agentlab.hypervisor.image.disk import make_filesystem, render_fstab
from agentlab.hypervisor.image.root import put
from agentlab.hypervisor.image.rootfs import ensure_rootfs
from agentlab.runner_file import runner_bytes
from tests.e2e.boxes import make_box, on_a_bridge
from tests.e2e.lab import template_dir

pytestmark = [pytest.mark.vm, pytest.mark.slow]

_UUID = "11111111-2222-3333-4444-555555555555"
_LACKS = ("qemu-guest-agent", "git", "git-man", "bubblewrap")


def make_stock(work: Path) -> Path:
    """What the recipe installs, without what is ours, and used: it has keys and a machine-id."""
    root, raw, image = work / "root", work / "raw", work / "stock.qcow2"
    root.mkdir(parents=True)
    rootfs = ensure_rootfs(template_dir(), print)
    run.run(["tar", "--numeric-owner", "--xattrs", "-xpf", rootfs, "-C", root], timeout=600)
    purge = ("dpkg", "--purge", "--force-depends", *_LACKS)
    run.run(["chroot", root, *purge], timeout=300)
    run.run(["chroot", root, "userdel", "--remove", "agent"], timeout=60, check=False)
    system = root / "etc/systemd/system"
    (system / "multi-user.target.wants/agentlab-runner.service").unlink()
    (system / "cloud-config.service").unlink()
    for source in Path("/etc/apt/sources.list.d").glob("debian.sources"):
        put(root / "etc/apt/sources.list.d" / source.name, source.read_bytes(), 0o644)
    if Path("/etc/apt/sources.list").exists():
        put(root / "etc/apt/sources.list", Path("/etc/apt/sources.list").read_bytes(), 0o644)
    put(root / grub.CONFIG, grub.render_config(_UUID), 0o644)
    put(root / "etc/fstab", render_fstab(_UUID), 0o644)
    put(root / "etc/machine-id", b"f" * 32 + b"\n", 0o444)
    put(root / "etc/ssh/ssh_host_ed25519_key", b"everybody's", 0o600)
    with raw.open("wb") as file:
        file.truncate(2 << 30)
    make_filesystem(root, raw, _UUID)
    grub.install(raw, work, 0x11111111)
    run.run(["qemu-img", "convert", "-O", "qcow2", raw, image], timeout=600)
    raw.unlink()
    shutil.rmtree(root)
    return image


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.timeout(1500)
def test_an_image_of_a_distribution_runs_jobs(tmp_path: Path) -> None:
    stock = make_stock(tmp_path / "stock")
    before, templates, told = digest(stock), tmp_path / "templates", []
    made = adapt_image(templates, stock, runner_bytes(), told.append)
    assert adapt_image(templates, stock, runner_bytes(), told.append) == made
    assert told[-1].startswith("the image is adapted (")
    assert digest(stock) == before
    assert sorted(path.name for path in made.parent.iterdir()) == ["disk.qcow2"]
    assert not run.run(["losetup", "--list", "--noheadings"], timeout=30).text.count(str(templates))
    box = make_box(tmp_path / "box", made, 1007, gib=5, q35=False)
    with on_a_bridge([box]):
        print(f"an adapted image waits for its job after {box.wait_ready():.0f} s")
        assert box.say("hostname") == "box1007"
        assert box.say("cat /etc/machine-id") != "f" * 32
        assert "everybody" not in box.say("cat /etc/ssh/ssh_host_ed25519_key")
        assert box.say("id -un agent; ls /usr/bin/git /usr/bin/bwrap | wc -l").split() == [
            "agent",
            "2",
        ]
        assert "nameserver 10.77.0.1" in box.say("cat /etc/resolv.conf")
        assert int(box.say("df --output=size -BM / | tail -1").rstrip("M")) > 4500
        assert box.say("systemctl --failed --no-legend --plain") == ""
        assert box.say("systemctl is-active agentlab-runner") == "active"
        assert box.say("ls -A /etc/apt/apt.conf.d /usr/sbin | grep -c policy-rc.d || true") == "0"


def test_what_is_no_image_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    templates, text, overlay = tmp_path / "t", tmp_path / "text", tmp_path / "overlay.qcow2"
    text.write_bytes(b"no disk at all" * 1000)
    create = ("qemu-img", "create", "-q", "-f", "qcow2")
    run.run([*create, "-b", text, "-F", "raw", overlay], timeout=30)
    with pytest.raises(Unsupported, match="no partition table"):
        adapt_image(templates, text, b"", print)
    with pytest.raises(Invalid, match="needs another file"):
        adapt_image(templates, overlay, b"", print)
    assert [path.name for path in templates.iterdir()] == ["build.lock"]

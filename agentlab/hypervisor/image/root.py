"""The guest's root file system as a directory: the packages, the recipe's own files, the runner."""

from __future__ import annotations

from pathlib import Path

from agentlab import run
from agentlab.hypervisor.image import recipe

RUNNER = "usr/local/bin/agentlab"


def unpack_root(rootfs: Path, root: Path, runner: bytes) -> None:
    """Fills the new directory `root` from the tar file that `ensure_rootfs` made."""
    root.mkdir()
    root.chmod(0o755)
    run.run(["tar", "--numeric-owner", "--xattrs", "-xpf", rootfs, "-C", root], timeout=600)
    for name, content in recipe.tree():
        put(root / name, content, 0o644)
    put(root / RUNNER, runner, 0o755)


def put(path: Path, content: bytes, mode: int) -> None:
    """Writes a file of the guest and makes the directories above it."""
    for folder in reversed([each for each in path.parents if not each.exists()]):
        folder.mkdir()
        folder.chmod(0o755)  # the guest's, whatever our own umask is
    path.write_bytes(content)
    path.chmod(mode)

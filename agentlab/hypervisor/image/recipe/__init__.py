"""What the template is made of: package data, read by `rootfs.py` and by those who pack it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

PACKAGES = "packages.txt"
CUSTOMISE = "customise.sh"
_TREE = "tree"


def read(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


def packages() -> list[str]:
    lines = read(PACKAGES).decode().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def tree() -> list[tuple[str, bytes]]:
    """The files that go into the image as they are: path from the root, content; sorted."""
    return sorted(_walk(files(__package__).joinpath(_TREE), ""))


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry.read_bytes()

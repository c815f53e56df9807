"""The guest's runner as one small file, made from the running program's own sources."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

_FLOOR = ("__init__", "__main__", "clock", "errors", "log", "run", "secret", "version")
_SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = b"""import sys

from agentlab.__main__ import main

sys.exit(main(["agentlab-guest", *sys.argv[1:]]))
"""
_TIME = (2020, 1, 1, 0, 0, 0)  # any fixed time; a zip cannot do without one


def runner_bytes() -> bytes:
    """A zipapp with the floor and `agentlab/guest/`: sources only, for Python 3.11 and later.

    The same bytes whether we run from the one file or from a checkout, on any Python and from
    any commit with the same sources, so that a template is rebuilt only when the runner changed.
    Nothing is compressed, because compressors differ between machines.
    """
    package = resources.files("agentlab")
    files = {f"agentlab/{name}.py": (package / f"{name}.py").read_bytes() for name in _FLOOR}
    files |= dict(_sources(package / "guest", "agentlab/guest"))
    files["__main__.py"] = _MAIN
    out = io.BytesIO()
    out.write(_SHEBANG)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system = 3  # Unix, whatever we run on
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    return out.getvalue()


def _sources(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(".py"):
            yield f"{name}/{entry.name}", entry.read_bytes()
